//! SubscriptionService.

use tonic::{Request, Response, Status};

use super::check::Check;
use super::{Api, convert, pb, principal};
use crate::domain::id::{EndpointId, SubscriptionId};
use crate::domain::subscription::EventTypePattern;
use crate::service::SubscriptionField;

const PATTERNS_MAX: usize = 100;

#[tonic::async_trait]
impl pb::subscription_service_server::SubscriptionService for Api {
    async fn create_subscription(
        &self,
        request: Request<pb::CreateSubscriptionRequest>,
    ) -> Result<Response<pb::CreateSubscriptionResponse>, Status> {
        let caller = principal(&request)?;
        let request = request.into_inner();
        let mut check = Check::default();
        let project = check.project(&request.project_id);
        let new = request.subscription.unwrap_or_default();
        let endpoint: Option<EndpointId> = check.id("subscription.endpoint_id", &new.endpoint_id);
        let patterns = patterns(&mut check, &new.event_types);
        let endpoint = check.finish(endpoint)?;
        let enabled = new.enabled.unwrap_or(true);
        let subscription =
            self.services.create_subscription(&caller, project, endpoint, patterns, enabled).await?;
        let subscription = Some(convert::subscription(subscription));
        Ok(Response::new(pb::CreateSubscriptionResponse { subscription }))
    }

    async fn get_subscription(
        &self,
        request: Request<pb::GetSubscriptionRequest>,
    ) -> Result<Response<pb::GetSubscriptionResponse>, Status> {
        let caller = principal(&request)?;
        let request = request.into_inner();
        let mut check = Check::default();
        let project = check.project(&request.project_id);
        let id: Option<SubscriptionId> = check.id("subscription_id", &request.subscription_id);
        let id = check.finish(id)?;
        let subscription = self.services.get_subscription(&caller, project, id).await?;
        let subscription = Some(convert::subscription(subscription));
        Ok(Response::new(pb::GetSubscriptionResponse { subscription }))
    }

    async fn list_subscriptions(
        &self,
        request: Request<pb::ListSubscriptionsRequest>,
    ) -> Result<Response<pb::ListSubscriptionsResponse>, Status> {
        let caller = principal(&request)?;
        let request = request.into_inner();
        let mut check = Check::default();
        let project = check.project(&request.project_id);
        let endpoint: Option<EndpointId> = check.optional_id("endpoint_id", &request.endpoint_id);
        let endpoint = check.finish(Some(endpoint))?;
        let context = ["subscriptions", request.project_id.as_str(), request.endpoint_id.as_str()];
        let page = self.services.page(request.page_size, &request.page_token, &context)?;
        let page = self.services.list_subscriptions(&caller, project, endpoint, page).await?;
        let next_page_token = self.services.next_page(&page, &context);
        let subscriptions = page.items.into_iter().map(convert::subscription).collect();
        Ok(Response::new(pb::ListSubscriptionsResponse { subscriptions, next_page_token }))
    }

    async fn update_subscription(
        &self,
        request: Request<pb::UpdateSubscriptionRequest>,
    ) -> Result<Response<pb::UpdateSubscriptionResponse>, Status> {
        let caller = principal(&request)?;
        let request = request.into_inner();
        let mut check = Check::default();
        let project = check.project(&request.project_id);
        let new = request.subscription.unwrap_or_default();
        let id: Option<SubscriptionId> = check.id("subscription.id", &new.id);
        let paths = request.update_mask.map(|mask| mask.paths).unwrap_or_default();
        let fields = fields(&mut check, &paths, &new);
        let patterns = if fields.contains(&SubscriptionField::EventTypes) {
            patterns(&mut check, &new.event_types)
        } else {
            Vec::new()
        };
        let id = check.finish(id)?;
        let enabled = new.enabled.unwrap_or(true);
        let subscription = self
            .services
            .update_subscription(&caller, project, id, patterns, enabled, &fields, &new.etag)
            .await?;
        let subscription = Some(convert::subscription(subscription));
        Ok(Response::new(pb::UpdateSubscriptionResponse { subscription }))
    }

    async fn delete_subscription(
        &self,
        request: Request<pb::DeleteSubscriptionRequest>,
    ) -> Result<Response<pb::DeleteSubscriptionResponse>, Status> {
        let caller = principal(&request)?;
        let request = request.into_inner();
        let mut check = Check::default();
        let project = check.project(&request.project_id);
        let id: Option<SubscriptionId> = check.id("subscription_id", &request.subscription_id);
        let id = check.finish(id)?;
        self.services.delete_subscription(&caller, project, id, &request.etag).await?;
        Ok(Response::new(pb::DeleteSubscriptionResponse {}))
    }
}

fn patterns(check: &mut Check, texts: &[String]) -> Vec<EventTypePattern> {
    if texts.is_empty() {
        check.refuse("subscription.event_types", "must have at least one entry");
    }
    check.patterns("subscription.event_types", texts, PATTERNS_MAX)
}

fn fields(check: &mut Check, paths: &[String], new: &pb::Subscription) -> Vec<SubscriptionField> {
    let mut fields = Vec::new();
    if paths.is_empty() {
        if !new.event_types.is_empty() {
            fields.push(SubscriptionField::EventTypes);
        }
        if new.enabled.is_some() {
            fields.push(SubscriptionField::Enabled);
        }
    }
    for path in paths {
        match path.as_str() {
            "event_types" => fields.push(SubscriptionField::EventTypes),
            "enabled" => fields.push(SubscriptionField::Enabled),
            "*" => fields.extend([SubscriptionField::EventTypes, SubscriptionField::Enabled]),
            _ => check.refuse("update_mask", format!("{path:?} is not a field that can be changed")),
        }
    }
    fields
}
