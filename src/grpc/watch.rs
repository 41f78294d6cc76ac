//! WatchService.

use std::pin::Pin;
use std::sync::Arc;

use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::check::Check;
use super::{Api, convert, pb, principal, status};
use crate::domain::change::{DeliveryChangeKind, EndpointChangeKind};
use crate::domain::id::EndpointId;
use crate::service::{Payload, Start, WatchFilter, WatchItem, WatchPayload, Watcher};

const LIST_MAX: usize = 100;

#[tonic::async_trait]
impl pb::watch_service_server::WatchService for Api {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<pb::WatchResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<pb::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        use pb::watch_request::Start as Asked;
        let caller = principal(&request)?;
        let request = request.into_inner();
        let mut check = Check::default();
        let project = check.project(&request.project_id);
        let filter = filter(&mut check, &request);
        let start = match request.start {
            Some(Asked::ResumeToken(token)) => Start::Token(token),
            Some(Asked::Earliest(_)) => Start::Earliest,
            Some(Asked::Snapshot(_)) => Start::Snapshot,
            Some(Asked::Now(_)) | None => Start::Now,
        };
        let filter = check.finish(Some(filter))?;
        let watcher = self.services.watch(&caller, project, start, filter).await?;
        Ok(Response::new(Box::pin(messages(watcher, self.stop.clone()))))
    }
}

/// The stream's messages, each made when the transport has room for it: what a client does not take stays in
/// the log. Ends with an error, or when the server drains.
fn messages(
    watcher: Watcher,
    stop: CancellationToken,
) -> impl Stream<Item = Result<pb::WatchResponse, Status>> + Send {
    let open = Some(Box::new((watcher, stop)));
    futures_util::stream::unfold(open, |open| async move {
        let mut open = open?;
        let (watcher, stop) = open.as_mut();
        let message = tokio::select! {
            biased;
            () = stop.cancelled() => Err(status::watch_drained(watcher.token())),
            item = watcher.next() => item.map(response).map_err(Status::from),
        };
        let open = message.is_ok().then_some(open);
        Some((message, open))
    })
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
    endpoints.sort_unstable();
    endpoints.dedup();
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
        include_payload: request.include_payload,
    }
}

fn response(item: WatchItem) -> pb::WatchResponse {
    use pb::watch_response::Change;
    let endpoint_change = |kind: pb::EndpointChangeType, endpoint| {
        let endpoint = Some(convert::endpoint(endpoint));
        Change::EndpointChange(pb::EndpointChange { r#type: kind.into(), endpoint })
    };
    let change = match item.payload {
        WatchPayload::Snapshot(endpoint) => endpoint_change(pb::EndpointChangeType::Snapshot, *endpoint),
        WatchPayload::Endpoint(kind, endpoint) => endpoint_change(endpoint_change_type(kind), *endpoint),
        WatchPayload::Delivery(change, payload) => {
            let kind = match change.kind {
                DeliveryChangeKind::Created => pb::DeliveryChangeType::Created,
                // A late one is told as an attempt alone, and does not come here.
                DeliveryChangeKind::Attempted | DeliveryChangeKind::Late => pb::DeliveryChangeType::Attempted,
                DeliveryChangeKind::Retried => pb::DeliveryChangeType::Retried,
                DeliveryChangeKind::Discarded => pb::DeliveryChangeType::Discarded,
                DeliveryChangeKind::Cancelled => pb::DeliveryChangeType::Cancelled,
            };
            let (payload, payload_omitted) = match payload {
                Payload::NotAsked => (None, false),
                Payload::Inline(payload) => (Some(payload), false),
                Payload::Omitted => (None, true),
            };
            let delivery = Some(convert::delivery(change.delivery()));
            Change::DeliveryChange(pb::DeliveryChange {
                r#type: kind.into(),
                delivery,
                payload,
                payload_omitted,
            })
        }
        WatchPayload::Attempt(attempt) => {
            Change::Attempt(convert::attempt(Arc::unwrap_or_clone(attempt), false))
        }
        WatchPayload::Bookmark { snapshot_end } => Change::Bookmark(pb::Bookmark { snapshot_end }),
    };
    pb::WatchResponse {
        change: Some(change),
        resume_token: item.token,
        commit_time: Some(convert::time(item.at)),
    }
}

const fn endpoint_change_type(kind: EndpointChangeKind) -> pb::EndpointChangeType {
    match kind {
        EndpointChangeKind::Created => pb::EndpointChangeType::Created,
        EndpointChangeKind::Updated => pb::EndpointChangeType::Updated,
        EndpointChangeKind::Deleted | EndpointChangeKind::Left => pb::EndpointChangeType::Deleted,
        EndpointChangeKind::Paused => pb::EndpointChangeType::Paused,
        EndpointChangeKind::Resumed => pb::EndpointChangeType::Resumed,
        EndpointChangeKind::Activated => pb::EndpointChangeType::Activated,
        EndpointChangeKind::Disabled => pb::EndpointChangeType::Disabled,
        EndpointChangeKind::Probing => pb::EndpointChangeType::Probing,
        EndpointChangeKind::Recovered => pb::EndpointChangeType::Recovered,
        EndpointChangeKind::SecretRotated => pb::EndpointChangeType::SecretRotated,
    }
}
