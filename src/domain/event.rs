//! Events: what services publish.

use std::sync::Arc;

use bytes::Bytes;

use super::clock::Timestamp;
use super::id::{EndpointId, EventId, ProjectId};

/// The largest payload: 1 MiB.
pub const PAYLOAD_MAX: usize = 1024 * 1024;

/// How far one publish may reach.
#[derive(Clone, Copy, Debug)]
pub struct FanOut {
    /// The most endpoints; an event that would reach more is refused.
    pub max: usize,
    /// Above so many, the list of endpoints is stored with the event and its deliveries are made afterwards.
    pub at_once: usize,
}

impl Default for FanOut {
    fn default() -> Self {
        Self { max: 10_000, at_once: 1_000 }
    }
}

/// Whom an event is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Endpoint(EndpointId),
    /// All endpoints of an owner.
    Owner(String),
    /// All endpoints of the project.
    Broadcast,
}

/// A client's key that makes publishing again harmless for 24 hours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    pub key: String,
    /// SHA-256 over all that the request says; the same key with other content is refused.
    pub content_hash: [u8; 32],
}

/// What every delivery of an event carries; shared in memory, never copied.
#[derive(Clone, Debug)]
pub struct Message {
    pub event: EventId,
    pub project: ProjectId,
    pub event_type: Arc<str>,
    /// Exactly the published bytes.
    pub payload: Bytes,
    /// Sent on every delivery; lower-case names.
    pub headers: Vec<(String, String)>,
}

/// An event about to be accepted.
#[derive(Clone, Debug)]
pub struct Event {
    pub message: Arc<Message>,
    pub target: Target,
    pub idempotency: Option<IdempotencyKey>,
    pub created_at: Timestamp,
}

/// What a delivery needs to know of its event to be written down.
#[derive(Clone, Debug)]
pub struct EventHead {
    pub event: EventId,
    pub project: ProjectId,
    pub event_type: Arc<str>,
    pub created_at: Timestamp,
}

impl Event {
    pub fn head(&self) -> EventHead {
        EventHead {
            event: self.message.event,
            project: self.message.project,
            event_type: self.message.event_type.clone(),
            created_at: self.created_at,
        }
    }
}

/// What a publish led to, once it is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    pub event: EventId,
    /// Deliveries made, those recorded as DISCARDED included.
    pub deliveries: u32,
    /// The idempotency key was used before, and this is the first event's receipt.
    pub duplicate: bool,
}

/// An event as it is kept.
#[derive(Clone, Debug)]
pub struct StoredEvent {
    pub id: EventId,
    pub project: ProjectId,
    pub event_type: String,
    pub target: Target,
    pub headers: Vec<(String, String)>,
    pub idempotency_key: Option<String>,
    pub deliveries: u32,
    pub created_at: Timestamp,
    pub payload_size: u32,
    /// Empty in lists.
    pub payload: Bytes,
}

/// Which events a list shows.
#[derive(Clone, Debug, Default)]
pub struct EventFilter {
    pub event_type: Option<String>,
    pub from: Option<Timestamp>,
    pub before: Option<Timestamp>,
}
