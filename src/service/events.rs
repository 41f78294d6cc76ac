//! Events: publishing and reading.

use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::Mutex;

use super::{Services, found, headers};
use crate::domain::clock::Timestamp;
use crate::domain::error::{Error, Result};
use crate::domain::event::{
    Event, EventFilter, IdempotencyKey, Message, PAYLOAD_MAX, Receipt, StoredEvent, Target,
};
use crate::domain::id::{EventId, ProjectId};
use crate::domain::page::{Page, PageRequest};
use crate::domain::principal::{Principal, Scope};
use crate::domain::subscription::is_event_type;

/// An event to publish.
#[derive(Clone, Debug)]
pub struct PublishRequest {
    pub event_type: String,
    pub target: Target,
    pub payload: Bytes,
    pub headers: Vec<(String, String)>,
    /// Empty: none.
    pub idempotency_key: String,
}

impl Services {
    /// Answers when the event and its deliveries are durable.
    pub async fn publish_event(
        &self,
        principal: &Principal,
        project: Option<ProjectId>,
        request: PublishRequest,
    ) -> Result<Receipt> {
        // Ingest answers NOT_FOUND where an operator names a project that does not exist.
        let project = principal.project_for(project, Scope::EventsPublish)?;
        self.ingest.submit(event(project, request)?).await
    }

    /// The same for a caller that has others under way: where too much waits already, it waits too. They keep the order in
    /// which they ask for `order`.
    pub async fn publish_in_turn(
        &self,
        principal: &Principal,
        project: Option<ProjectId>,
        request: PublishRequest,
        order: &Mutex<()>,
    ) -> Result<Receipt> {
        let project = principal.project_for(project, Scope::EventsPublish)?;
        self.ingest.submit_in_turn(event(project, request)?, order).await
    }

    /// Waits until an event might be taken.
    pub async fn may_publish(&self) {
        self.ingest.has_room().await;
    }

    /// Answers when each event is durable or refused. What is refused already keeps its place.
    pub async fn publish_events(
        &self,
        principal: &Principal,
        project: Option<ProjectId>,
        requests: Vec<Result<PublishRequest>>,
    ) -> Result<Vec<Result<Receipt>>> {
        let project = principal.project_for(project, Scope::EventsPublish)?;
        let (mut events, mut refusals) = (Vec::with_capacity(requests.len()), Vec::new());
        for request in requests {
            match request.and_then(|request| event(project, request)) {
                Ok(event) => {
                    events.push(event);
                    refusals.push(None);
                }
                Err(error) => refusals.push(Some(error)),
            }
        }
        let mut receipts = self.ingest.submit_all(events).await?.into_iter();
        let lost = || Err(Error::unavailable("the event was not answered; try again"));
        let result = |refusal: Option<Error>| match refusal {
            Some(error) => Err(error),
            None => receipts.next().unwrap_or_else(lost),
        };
        Ok(refusals.into_iter().map(result).collect())
    }

    pub async fn get_event(
        &self,
        principal: &Principal,
        project: Option<ProjectId>,
        id: EventId,
    ) -> Result<StoredEvent> {
        let project = self.project_of(principal, project, Scope::EventsRead).await?;
        found(self.store.event(project, id).await?, "event", id)
    }

    pub async fn list_events(
        &self,
        principal: &Principal,
        project: Option<ProjectId>,
        filter: EventFilter,
        page: PageRequest,
    ) -> Result<Page<StoredEvent>> {
        let project = self.project_of(principal, project, Scope::EventsRead).await?;
        Ok(self.store.events(project, &filter, page).await?)
    }
}

/// Checks a request and makes an event of it.
fn event(project: ProjectId, request: PublishRequest) -> Result<Event> {
    if !is_event_type(&request.event_type) {
        let rule =
            "must be dotted segments of letters, digits, _ and -, 128 bytes at most, such as invoice.paid";
        return Err(Error::invalid("event_type", rule));
    }
    if request.payload.len() > PAYLOAD_MAX {
        return Err(Error::invalid("payload", "must be at most 1 MiB"));
    }
    let mut headers = headers::check("headers", request.headers)?;
    headers.sort_unstable();
    let idempotency = (!request.idempotency_key.is_empty()).then(|| IdempotencyKey {
        content_hash: content_hash(&request.event_type, &request.target, &request.payload, &headers),
        key: request.idempotency_key,
    });
    Ok(Event {
        message: Arc::new(Message {
            event: EventId::new(),
            project,
            event_type: request.event_type.into(),
            payload: request.payload,
            headers,
        }),
        target: request.target,
        idempotency,
        created_at: Timestamp::now(),
    })
}

/// Over all that a request says, each part with its length, so that no two requests read alike.
fn content_hash(event_type: &str, target: &Target, payload: &[u8], headers: &[(String, String)]) -> [u8; 32] {
    let mut hash = Sha256::new();
    let mut add = |part: &[u8]| {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    };
    add(event_type.as_bytes());
    match target {
        Target::Endpoint(id) => add(format!("endpoint {id}").as_bytes()),
        Target::Owner(owner) => add(format!("owner {owner}").as_bytes()),
        Target::Broadcast => add(b"broadcast"),
    }
    add(payload);
    for (name, value) in headers {
        add(name.as_bytes());
        add(value.as_bytes());
    }
    hash.finalize().into()
}
