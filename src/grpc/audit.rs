//! AuditService.

use tonic::{Request, Response, Status};

use super::check::Check;
use super::{Api, convert, pb, principal};
use crate::domain::audit::{AuditEvent, AuditFilter};

const TEXT_MAX: usize = 64;

#[tonic::async_trait]
impl pb::audit_service_server::AuditService for Api {
    async fn list_audit_events(
        &self,
        request: Request<pb::ListAuditEventsRequest>,
    ) -> Result<Response<pb::ListAuditEventsResponse>, Status> {
        let caller = principal(&request)?;
        let request = request.into_inner();
        let mut check = Check::default();
        let project = check.project(&request.project_id);
        let filter = AuditFilter {
            resource: check.optional_text("resource", request.resource.clone(), TEXT_MAX),
            action: check.optional_text("action", request.action.clone(), TEXT_MAX),
            start: check.time("start_time", request.start_time),
            end: check.time("end_time", request.end_time),
        };
        let times = format!("{:?} {:?}", filter.start, filter.end);
        let context = [
            "audit_events",
            request.project_id.as_str(),
            request.resource.as_str(),
            request.action.as_str(),
            times.as_str(),
        ];
        let page = self.services.page(request.page_size, &request.page_token, &context)?;
        let filter = check.finish(Some(filter))?;
        let page = self.services.list_audit_events(&caller, project, filter, page).await?;
        let next_page_token = self.services.next_page(&page, &context);
        let audit_events = page.items.into_iter().map(message).collect();
        Ok(Response::new(pb::ListAuditEventsResponse { audit_events, next_page_token }))
    }
}

fn message(event: AuditEvent) -> pb::AuditEvent {
    pb::AuditEvent {
        id: event.id.to_string(),
        project_id: event.project.map(|project| project.to_string()).unwrap_or_default(),
        api_key_id: event.key.map(|key| key.to_string()).unwrap_or_default(),
        api_key_name: event.key_name.unwrap_or_default(),
        action: event.action,
        resource: event.resource,
        origin: event.origin.unwrap_or_default(),
        before: event.before.unwrap_or_default(),
        after: event.after.unwrap_or_default(),
        create_time: Some(convert::time(event.at)),
    }
}
