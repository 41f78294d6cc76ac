//! Publishing as messages: reading what is to be published, one or many, and telling what became of it.

use prost::Message;

use super::check::Check;
use super::{pb, status};
use crate::domain::error::{Error, Result};
use crate::domain::event::{Receipt, Target};
use crate::domain::id::ProjectId;
use crate::service::PublishRequest;

pub const TEXT_MAX: usize = 128;
/// Events in a batch, and bytes of its message.
const BATCH_EVENTS: usize = 1000;
const BATCH_BYTES: usize = 16 * 1024 * 1024;
/// The largest message that holds a batch, so that one slightly too large is told why.
pub const MESSAGE_MAX: usize = BATCH_BYTES + 1024 * 1024;

/// An event to publish, and the project it names.
pub fn read(request: pb::PublishEventRequest) -> Result<(Option<ProjectId>, PublishRequest)> {
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
    Ok((project, check.finish(publish)?))
}

/// The events of a batch; one that is not valid is an error at its place.
pub fn read_batch(
    batch: pb::BatchPublishEventsRequest,
) -> Result<(Option<ProjectId>, Vec<Result<PublishRequest>>)> {
    let mut check = Check::default();
    let project = check.project(&batch.project_id);
    if !(1..=BATCH_EVENTS).contains(&batch.requests.len()) {
        check.refuse("requests", "must have 1 to 1,000 entries");
    }
    if batch.encoded_len() > BATCH_BYTES {
        check.refuse("requests", "must be at most 16 MiB together");
    }
    check.finish(Some(()))?;
    let own = batch.project_id;
    let read_one = |request: pb::PublishEventRequest| {
        if !request.project_id.is_empty() && request.project_id != own {
            return Err(Error::invalid("project_id", "must be empty or the same as the batch's"));
        }
        read(request).map(|(_, event)| event)
    };
    Ok((project, batch.requests.into_iter().map(read_one).collect()))
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

pub fn receipt(receipt: Receipt) -> pb::PublishEventResponse {
    pb::PublishEventResponse {
        event_id: receipt.event.to_string(),
        delivery_count: i32::try_from(receipt.deliveries).unwrap_or(i32::MAX),
        duplicate: receipt.duplicate,
    }
}

/// One event's result within a batch.
pub fn result(result: Result<Receipt>) -> pb::publish_result::Result {
    match result {
        Ok(accepted) => pb::publish_result::Result::Receipt(receipt(accepted)),
        Err(error) => pb::publish_result::Result::Error(status::embedded(error)),
    }
}

/// One event's acknowledgement within a stream.
pub fn acknowledgement(request_number: i64, result: Result<Receipt>) -> pb::StreamPublishEventsResponse {
    use pb::stream_publish_events_response::Result as Told;
    let result = match result {
        Ok(accepted) => Told::Receipt(receipt(accepted)),
        Err(error) => Told::Error(status::embedded(error)),
    };
    pb::StreamPublishEventsResponse { request_number, result: Some(result) }
}
