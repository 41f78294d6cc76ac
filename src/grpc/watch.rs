//! WatchService.

use std::pin::Pin;

use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::check::Check;
use super::{Api, convert, pb, principal, status};
use crate::domain::change::{DeliveryChangeKind, EndpointChangeKind};
use crate::domain::id::EndpointId;
use crate::service::{Start, WatchFilter, WatchItem, WatchPayload, Watcher};

/// Messages on their way to a reader; what it does not take stays in the log.
const BUFFER: usize = 64;
const LIST_MAX: usize = 100;

#[tonic::async_trait]
impl pb::watch_service_server::WatchService for Api {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<pb::WatchResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<pb::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let caller = principal(&request)?;
        let request = request.into_inner();
        let mut check = Check::default();
        let project = check.project(&request.project_id);
        let filter = filter(&mut check, &request);
        let start = match request.start {
            Some(pb::watch_request::Start::ResumeToken(token)) => Start::Token(token),
            Some(pb::watch_request::Start::Now(_)) | None => Start::Now,
        };
        let filter = check.finish(Some(filter))?;
        let watcher = self.services.watch(&caller, project, start, filter).await?;
        let (sender, receiver) = mpsc::channel(BUFFER);
        // Ends with the reader, with an error, or when the server drains.
        tokio::spawn(forward(watcher, sender, self.stop.clone()));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

async fn forward(
    mut watcher: Watcher,
    sender: mpsc::Sender<Result<pb::WatchResponse, Status>>,
    stop: tokio_util::sync::CancellationToken,
) {
    loop {
        // A place first, so that a message that was taken is also sent.
        let place = tokio::select! {
            place = sender.reserve() => place,
            () = stop.cancelled() => break,
        };
        let Ok(place) = place else { return };
        let item = tokio::select! {
            item = watcher.next() => item,
            () = sender.closed() => return,
            () = stop.cancelled() => {
                place.send(Err(status::draining()));
                return;
            }
        };
        match item {
            Ok(item) => place.send(Ok(response(item))),
            Err(error) => {
                place.send(Err(error.into()));
                return;
            }
        }
    }
    // The reader had no room for the reason; give it a moment, then end without.
    let told = sender.send(Err(status::draining()));
    let _slow = tokio::time::timeout(std::time::Duration::from_secs(1), told).await;
}

fn filter(check: &mut Check, request: &pb::WatchRequest) -> WatchFilter {
    if request.endpoint_ids.len() > LIST_MAX {
        check.refuse("endpoint_ids", format!("must have at most {LIST_MAX} entries"));
        return WatchFilter::default();
    }
    let mut endpoints: Vec<EndpointId> = Vec::with_capacity(request.endpoint_ids.len());
    for (index, id) in request.endpoint_ids.iter().enumerate() {
        endpoints.extend(check.id::<EndpointId>(&format!("endpoint_ids[{index}]"), id));
    }
    for (index, kind) in request.kinds.iter().enumerate() {
        if !matches!(pb::ChangeKind::try_from(*kind), Ok(kind) if kind != pb::ChangeKind::Unspecified) {
            check.refuse(format!("kinds[{index}]"), "is not a known kind");
        }
    }
    let hidden = |kind: pb::ChangeKind| !request.kinds.is_empty() && !request.kinds.contains(&kind.into());
    WatchFilter {
        endpoints,
        owner: check.optional_text("owner_id", request.owner_id.clone(), 128),
        event_types: check.patterns("event_types", &request.event_types, LIST_MAX),
        no_endpoint_changes: hidden(pb::ChangeKind::Endpoint),
        no_delivery_changes: hidden(pb::ChangeKind::Delivery),
        no_attempts: hidden(pb::ChangeKind::Attempt),
    }
}

fn response(item: WatchItem) -> pb::WatchResponse {
    use pb::watch_response::Change;
    let change = match item.payload {
        WatchPayload::Endpoint(kind, endpoint) => {
            let kind = match kind {
                EndpointChangeKind::Created => pb::EndpointChangeType::Created,
                EndpointChangeKind::Updated => pb::EndpointChangeType::Updated,
                EndpointChangeKind::Deleted => pb::EndpointChangeType::Deleted,
                EndpointChangeKind::Paused => pb::EndpointChangeType::Paused,
                EndpointChangeKind::Resumed => pb::EndpointChangeType::Resumed,
            };
            let endpoint = Some(convert::endpoint(*endpoint));
            Change::EndpointChange(pb::EndpointChange { r#type: kind.into(), endpoint })
        }
        WatchPayload::Delivery(change) => {
            let kind = match change.kind {
                DeliveryChangeKind::Created => pb::DeliveryChangeType::Created,
                DeliveryChangeKind::Attempted => pb::DeliveryChangeType::Attempted,
                DeliveryChangeKind::Retried => pb::DeliveryChangeType::Retried,
                DeliveryChangeKind::Discarded => pb::DeliveryChangeType::Discarded,
            };
            let delivery = Some(convert::delivery(change.delivery()));
            Change::DeliveryChange(pb::DeliveryChange { r#type: kind.into(), delivery })
        }
        WatchPayload::Attempt(attempt) => Change::Attempt(convert::attempt(*attempt, false)),
        WatchPayload::Bookmark => Change::Bookmark(pb::Bookmark {}),
    };
    pb::WatchResponse {
        change: Some(change),
        resume_token: item.token,
        commit_time: Some(convert::time(item.at)),
    }
}
