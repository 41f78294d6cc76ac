//! What a stream shows.

use sha2::{Digest, Sha256};

use crate::domain::change::{Change, DeliveryChange, DeliveryChangeKind, EndpointChange, EndpointChangeKind};
use crate::domain::id::EndpointId;
use crate::domain::subscription::EventTypePattern;

/// What a stream shows of its project. Empty lists and none mean everything.
#[derive(Clone, Debug, Default)]
pub struct WatchFilter {
    /// Sorted.
    pub endpoints: Vec<EndpointId>,
    pub owner: Option<String>,
    pub event_types: Vec<EventTypePattern>,
    pub no_endpoint_changes: bool,
    pub no_delivery_changes: bool,
    pub no_attempts: bool,
    /// New deliveries come with their event's payload.
    pub include_payload: bool,
}

impl WatchFilter {
    /// Whether anything of a change of the stream's project is shown.
    pub fn matches(&self, change: &Change) -> bool {
        let (endpoint, owner, event_type) = match change {
            Change::Delivery(change) => (change.endpoint, &change.owner, Some(&change.event_type)),
            Change::Endpoint(change) => (change.endpoint, &change.owner, None),
        };
        let type_matches = match event_type {
            Some(event_type) if !self.event_types.is_empty() => {
                self.event_types.iter().any(|pattern| pattern.matches(event_type))
            }
            _ => true,
        };
        let shown = match change {
            Change::Delivery(change) => self.shows_delivery(change) || self.shows_attempt(change),
            Change::Endpoint(change) => self.shows_endpoint(change),
        };
        shown
            && type_matches
            && (self.endpoints.is_empty() || self.endpoints.binary_search(&endpoint).is_ok())
            && (self.owner.is_none() || self.owner.as_deref() == owner.as_deref())
    }

    /// Whether the change is shown. To whoever does not watch an owner, an endpoint that leaves its owner is changed and no
    /// more.
    fn shows_endpoint(&self, change: &EndpointChange) -> bool {
        !self.no_endpoint_changes && (change.kind != EndpointChangeKind::Left || self.owner.is_some())
    }

    /// Whether the change itself is shown.
    pub fn shows_delivery(&self, change: &DeliveryChange) -> bool {
        !self.no_delivery_changes && change.kind != DeliveryChangeKind::Late
    }

    /// Whether the attempt that made this change is shown after it, if one did.
    pub fn shows_attempt(&self, change: &DeliveryChange) -> bool {
        !self.no_attempts && change.attempt.is_some()
    }

    /// Whether this change is shown with its event's payload.
    pub fn shows_payload(&self, change: &DeliveryChange) -> bool {
        self.include_payload && !self.no_delivery_changes && change.kind == DeliveryChangeKind::Created
    }

    /// Stands for the filter in a token. Payloads do not belong to it: they do not change what is next.
    pub fn fingerprint(&self) -> String {
        let endpoints: Vec<String> = self.endpoints.iter().map(ToString::to_string).collect();
        let mut types: Vec<String> = self.event_types.iter().map(ToString::to_string).collect();
        types.sort_unstable();
        let kinds = (self.no_endpoint_changes, self.no_delivery_changes, self.no_attempts);
        let text = format!("{endpoints:?} {:?} {types:?} {kinds:?}", self.owner);
        Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
