//! DeliveryService.

use tonic::{Request, Response, Status};

use super::check::Check;
use super::{Api, convert, pb, principal};
use crate::domain::delivery::{DeliveryFilter, DeliveryStatus};
use crate::domain::id::DeliveryId;

#[tonic::async_trait]
impl pb::delivery_service_server::DeliveryService for Api {
    async fn get_delivery(
        &self,
        request: Request<pb::GetDeliveryRequest>,
    ) -> Result<Response<pb::GetDeliveryResponse>, Status> {
        let caller = principal(&request)?;
        let request = request.into_inner();
        let mut check = Check::default();
        let project = check.project(&request.project_id);
        let id: Option<DeliveryId> = check.id("delivery_id", &request.delivery_id);
        let id = check.finish(id)?;
        let delivery = self.services.get_delivery(&caller, project, id).await?;
        Ok(Response::new(pb::GetDeliveryResponse { delivery: Some(convert::delivery(delivery)) }))
    }

    async fn list_deliveries(
        &self,
        request: Request<pb::ListDeliveriesRequest>,
    ) -> Result<Response<pb::ListDeliveriesResponse>, Status> {
        let caller = principal(&request)?;
        let request = request.into_inner();
        let mut check = Check::default();
        let project = check.project(&request.project_id);
        let rest = format!("{:?} {:?} {:?}", request.statuses, request.start_time, request.end_time);
        let context = [
            "deliveries",
            request.project_id.as_str(),
            request.endpoint_id.as_str(),
            request.event_id.as_str(),
            rest.as_str(),
        ];
        let page = self.services.page(request.page_size, &request.page_token, &context)?;
        let filter = DeliveryFilter {
            endpoint: check.optional_id("endpoint_id", &request.endpoint_id),
            event: check.optional_id("event_id", &request.event_id),
            statuses: statuses(&mut check, &request.statuses),
            from: check.time("start_time", request.start_time),
            before: check.time("end_time", request.end_time),
        };
        let filter = check.finish(Some(filter))?;
        let page = self.services.list_deliveries(&caller, project, filter, page).await?;
        let next_page_token = self.services.next_page(&page, &context);
        let deliveries = page.items.into_iter().map(convert::delivery).collect();
        Ok(Response::new(pb::ListDeliveriesResponse { deliveries, next_page_token }))
    }

    async fn list_attempts(
        &self,
        request: Request<pb::ListAttemptsRequest>,
    ) -> Result<Response<pb::ListAttemptsResponse>, Status> {
        let caller = principal(&request)?;
        let request = request.into_inner();
        let mut check = Check::default();
        let project = check.project(&request.project_id);
        let id: Option<DeliveryId> = check.id("delivery_id", &request.delivery_id);
        let id = check.finish(id)?;
        let context = ["attempts", request.project_id.as_str(), request.delivery_id.as_str()];
        let page = self.services.page(request.page_size, &request.page_token, &context)?;
        let page = self.services.list_attempts(&caller, project, id, page).await?;
        let next_page_token = self.services.next_page(&page, &context);
        let attempts = page.items.into_iter().map(|attempt| convert::attempt(attempt, true)).collect();
        Ok(Response::new(pb::ListAttemptsResponse { attempts, next_page_token }))
    }

    async fn retry_delivery(
        &self,
        request: Request<pb::RetryDeliveryRequest>,
    ) -> Result<Response<pb::RetryDeliveryResponse>, Status> {
        let caller = principal(&request)?;
        let request = request.into_inner();
        let mut check = Check::default();
        let project = check.project(&request.project_id);
        let id: Option<DeliveryId> = check.id("delivery_id", &request.delivery_id);
        let id = check.finish(id)?;
        let delivery = self.services.retry_delivery(&caller, project, id).await?;
        Ok(Response::new(pb::RetryDeliveryResponse { delivery: Some(convert::delivery(delivery)) }))
    }
}

fn statuses(check: &mut Check, numbers: &[i32]) -> Vec<DeliveryStatus> {
    let mut statuses = Vec::new();
    for (index, number) in numbers.iter().enumerate() {
        // The contract's numbers are the domain's.
        match i16::try_from(*number).ok().and_then(DeliveryStatus::from_code) {
            Some(status) if statuses.contains(&status) => {}
            Some(status) => statuses.push(status),
            None => check.refuse(format!("statuses[{index}]"), "is not a known status"),
        }
    }
    statuses
}
