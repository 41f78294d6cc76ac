//! Batches and streams with a single thing in them, and what becomes of it, as if it were a call of its own.

use hawser_client::{Client, error_of, pb};
use tonic::Status;

use super::bulk::{bulk, row};

/// What became of a bulk call in this project about an endpoint like that.
pub async fn bulk_about(client: &Client, project: &str, endpoint: &pb::Endpoint) -> Status {
    let options = pb::BulkOptions { project_id: project.to_owned(), ..Default::default() };
    let row = row(1, &endpoint.url, &endpoint.owner_id);
    bulk(client, options, vec![row]).await.err().unwrap_or_else(|| Status::ok(""))
}

/// What became of a batch's only event.
pub async fn first_of_batch(client: &Client, batch: pb::BatchPublishEventsRequest) -> Status {
    let reply = match client.events().batch_publish_events(batch).await {
        Ok(reply) => reply.into_inner(),
        Err(status) => return status,
    };
    match reply.results[0].result.clone().expect("a result") {
        pb::publish_result::Result::Receipt(_) => Status::ok(""),
        pb::publish_result::Result::Error(error) => error_of(&error),
    }
}

/// What became of a stream's only event.
pub async fn first_of_stream(client: &Client, event: pb::PublishEventRequest) -> Status {
    let request = pb::StreamPublishEventsRequest { request_number: 1, event: Some(event) };
    let acks = match client.events().stream_publish_events(tokio_stream::once(request)).await {
        Ok(acks) => acks.into_inner().message().await,
        Err(status) => return status,
    };
    let ack = match acks {
        Ok(ack) => ack.expect("an acknowledgement"),
        Err(status) => return status,
    };
    match ack.result.expect("a result") {
        pb::stream_publish_events_response::Result::Receipt(_) => Status::ok(""),
        pb::stream_publish_events_response::Result::Error(error) => error_of(&error),
    }
}
