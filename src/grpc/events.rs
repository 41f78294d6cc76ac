//! EventService.

use std::pin::Pin;

use futures_util::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::check::Check;
use super::listener::Connection;
use super::publish::{self, TEXT_MAX};
use super::{Api, convert, pb, principal, publish_stream};
use crate::domain::event::EventFilter;
use crate::domain::id::EventId;

#[tonic::async_trait]
impl pb::event_service_server::EventService for Api {
    async fn publish_event(
        &self,
        request: Request<pb::PublishEventRequest>,
    ) -> Result<Response<pb::PublishEventResponse>, Status> {
        let caller = principal(&request)?;
        let (project, event) = publish::read(request.into_inner())?;
        let receipt = self.services.publish_event(&caller, project, event).await?;
        Ok(Response::new(publish::receipt(receipt)))
    }

    async fn batch_publish_events(
        &self,
        request: Request<pb::BatchPublishEventsRequest>,
    ) -> Result<Response<pb::BatchPublishEventsResponse>, Status> {
        let caller = principal(&request)?;
        let (project, events) = publish::read_batch(request.into_inner())?;
        let results = self.services.publish_events(&caller, project, events).await?;
        let results =
            results.into_iter().map(|result| pb::PublishResult { result: Some(publish::result(result)) });
        Ok(Response::new(pb::BatchPublishEventsResponse { results: results.collect() }))
    }

    type StreamPublishEventsStream =
        Pin<Box<dyn Stream<Item = Result<pb::StreamPublishEventsResponse, Status>> + Send>>;

    async fn stream_publish_events(
        &self,
        request: Request<Streaming<pb::StreamPublishEventsRequest>>,
    ) -> Result<Response<Self::StreamPublishEventsStream>, Status> {
        let caller = principal(&request)?;
        let connection = request.extensions().get::<Connection>();
        let leaving = connection.map(|connection| connection.leaving.clone()).unwrap_or_default();
        let acks = publish_stream::acknowledge(self.clone(), caller, leaving, request.into_inner());
        Ok(Response::new(Box::pin(acks)))
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
