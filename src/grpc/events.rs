//! EventService.

use tonic::{Request, Response, Status};

use super::check::Check;
use super::{Api, convert, pb, principal};
use crate::domain::event::{EventFilter, Target};
use crate::domain::id::EventId;
use crate::service::PublishRequest;

const TEXT_MAX: usize = 128;

#[tonic::async_trait]
impl pb::event_service_server::EventService for Api {
    async fn publish_event(
        &self,
        request: Request<pb::PublishEventRequest>,
    ) -> Result<Response<pb::PublishEventResponse>, Status> {
        let caller = principal(&request)?;
        let request = request.into_inner();
        let mut check = Check::default();
        let project = check.project(&request.project_id);
        let target = target(&mut check, request.target);
        let event_type = check.required_text("event_type", request.event_type, TEXT_MAX);
        let idempotency_key = check.text("idempotency_key", request.idempotency_key, TEXT_MAX);
        let publish = target.map(|target| PublishRequest {
            event_type,
            target,
            payload: request.payload,
            headers: request.headers.into_iter().collect(),
            idempotency_key,
        });
        let publish = check.finish(publish)?;
        let receipt = self.services.publish_event(&caller, project, publish).await?;
        Ok(Response::new(pb::PublishEventResponse {
            event_id: receipt.event.to_string(),
            delivery_count: i32::try_from(receipt.deliveries).unwrap_or(i32::MAX),
            duplicate: receipt.duplicate,
        }))
    }

    async fn get_event(
        &self,
        request: Request<pb::GetEventRequest>,
    ) -> Result<Response<pb::GetEventResponse>, Status> {
        let caller = principal(&request)?;
        let request = request.into_inner();
        let mut check = Check::default();
        let project = check.project(&request.project_id);
        let id: Option<EventId> = check.id("event_id", &request.event_id);
        let id = check.finish(id)?;
        let event = self.services.get_event(&caller, project, id).await?;
        Ok(Response::new(pb::GetEventResponse { event: Some(convert::event(event)) }))
    }

    async fn list_events(
        &self,
        request: Request<pb::ListEventsRequest>,
    ) -> Result<Response<pb::ListEventsResponse>, Status> {
        let caller = principal(&request)?;
        let request = request.into_inner();
        let mut check = Check::default();
        let project = check.project(&request.project_id);
        let times = format!("{:?} {:?}", request.start_time, request.end_time);
        let context = ["events", request.project_id.as_str(), request.event_type.as_str(), times.as_str()];
        let page = self.services.page(request.page_size, &request.page_token, &context)?;
        let filter = EventFilter {
            event_type: check.optional_text("event_type", request.event_type.clone(), TEXT_MAX),
            from: check.time("start_time", request.start_time),
            before: check.time("end_time", request.end_time),
        };
        let filter = check.finish(Some(filter))?;
        let page = self.services.list_events(&caller, project, filter, page).await?;
        let next_page_token = self.services.next_page(&page, &context);
        let events = page.items.into_iter().map(convert::event).collect();
        Ok(Response::new(pb::ListEventsResponse { events, next_page_token }))
    }
}

fn target(check: &mut Check, target: Option<pb::publish_event_request::Target>) -> Option<Target> {
    use pb::publish_event_request::Target as Given;
    match target {
        Some(Given::EndpointId(id)) => check.id("endpoint_id", &id).map(Target::Endpoint),
        Some(Given::OwnerId(owner)) => Some(Target::Owner(check.required_text("owner_id", owner, TEXT_MAX))),
        Some(Given::Broadcast(_)) => Some(Target::Broadcast),
        None => {
            check.refuse("target", "must name an endpoint_id, an owner_id, or broadcast");
            None
        }
    }
}
