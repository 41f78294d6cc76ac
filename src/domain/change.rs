//! The change log's records: what Watch tells, in the order in which transactions committed.
//!
//! One transaction writes one record, and a record holds that transaction's small changes. A change's place
//! in the whole order is its record's position and its index in the record.

use std::sync::Arc;

use super::alert::AlertEvent;
use super::attempt::ErrorClass;
use super::clock::Timestamp;
use super::delivery::{Delivery, DeliveryStatus};
use super::id::{AttemptId, DeliveryId, EndpointId, EventId, ProjectId};

/// What happened to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum EndpointChangeKind {
    Created,
    Updated,
    Deleted,
    Paused,
    Resumed,
    /// By hand, whatever had switched it off.
    Activated,
    /// It became INACTIVE: it failed too often, the receiver answered 410, or a probe failed.
    Disabled,
    /// One of its deliveries is retried as a probe.
    Probing,
    /// The probe succeeded.
    Recovered,
    /// It has a new secret, made by hand or by itself.
    SecretRotated,
    /// It belongs to another owner now. For those who watch the former one, to whom it is gone.
    Left,
}

impl EndpointChangeKind {
    /// What alerts tell of it. That a probe is under way is not worth one: how it ends is; and what left one owner was changed.
    pub const fn alert(self) -> Option<AlertEvent> {
        match self {
            Self::Created => Some(AlertEvent::EndpointCreated),
            Self::Updated => Some(AlertEvent::EndpointUpdated),
            Self::Deleted => Some(AlertEvent::EndpointDeleted),
            Self::Paused => Some(AlertEvent::EndpointPaused),
            Self::Resumed | Self::Activated | Self::Recovered => Some(AlertEvent::EndpointActivated),
            Self::Disabled => Some(AlertEvent::EndpointDisabled),
            Self::Probing | Self::Left => None,
            Self::SecretRotated => Some(AlertEvent::SecretRotated),
        }
    }
}

/// What happened to a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum DeliveryChangeKind {
    Created,
    /// An attempt ended; the status is what it led to.
    Attempted,
    /// Someone asked for a fresh budget.
    Retried,
    /// Its endpoint's state ended it without an attempt.
    Discarded,
    /// The process that attempted it as a probe died, which ended it.
    Cancelled,
    /// An attempt ended whose claim was lost before: the delivery stays as it is, and only the attempt is told.
    Late,
}

/// A delivery right after the change, and the attempt that made it, if one did.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DeliveryChange {
    pub kind: DeliveryChangeKind,
    pub project: ProjectId,
    pub delivery: DeliveryId,
    pub event: EventId,
    pub endpoint: EndpointId,
    pub owner: Option<Arc<str>>,
    pub event_type: Arc<str>,
    pub status: DeliveryStatus,
    pub attempts: u16,
    pub next_attempt_at: Option<Timestamp>,
    pub last_error: Option<ErrorClass>,
    pub last_status: Option<u16>,
    pub created_at: Timestamp,
    pub ended_at: Option<Timestamp>,
    /// The attempt's row is read where someone wants to see it.
    pub attempt: Option<AttemptId>,
}

impl DeliveryChange {
    /// The delivery as it was right after this change.
    pub fn delivery(&self) -> Delivery {
        Delivery {
            id: self.delivery,
            project: self.project,
            event: self.event,
            endpoint: self.endpoint,
            event_type: self.event_type.clone(),
            status: self.status,
            attempts: self.attempts,
            next_attempt_at: self.next_attempt_at,
            last_error: self.last_error,
            last_status: self.last_status,
            created_at: self.created_at,
            ended_at: self.ended_at,
        }
    }
}

/// An endpoint right after the change.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct EndpointChange {
    pub kind: EndpointChangeKind,
    pub project: ProjectId,
    pub endpoint: EndpointId,
    pub owner: Option<Arc<str>>,
    /// The endpoint as JSON without secrets, as `store::endpoints` writes and reads it: endpoint changes
    /// are rare and their shape grows, so they are kept in a form that tolerates new fields.
    pub snapshot: String,
}

/// One small change.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Change {
    Delivery(DeliveryChange),
    Endpoint(EndpointChange),
}

impl Change {
    pub const fn project(&self) -> ProjectId {
        match self {
            Self::Delivery(change) => change.project,
            Self::Endpoint(change) => change.project,
        }
    }
}

/// One committed transaction's changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeRecord {
    pub position: i64,
    pub committed_at: Timestamp,
    pub changes: Vec<Change>,
}

impl ChangeRecord {
    /// Roughly what it takes in memory.
    pub fn weight(&self) -> usize {
        let snapshots = self.changes.iter().map(|change| match change {
            Change::Delivery(_) => 0,
            Change::Endpoint(change) => change.snapshot.len(),
        });
        size_of::<Self>() + self.changes.len() * size_of::<Change>() + snapshots.sum::<usize>()
    }
}

/// A place in the total order, exclusive when it is where reading starts: all up to and including this
/// change was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    pub position: i64,
    /// The last place seen in that record; each change has two, its own and its attempt's.
    pub index: u32,
}

impl Cursor {
    /// After everything in the record at `position`.
    pub const fn after(position: i64) -> Self {
        Self { position, index: u32::MAX }
    }

    /// Whether all of the record at `position` was seen.
    pub const fn is_whole(self) -> bool {
        self.index == u32::MAX
    }

    /// Whether all of the records up to the one at `position` was seen.
    pub const fn has_passed(self, position: i64) -> bool {
        self.position > position || (self.position == position && self.is_whole())
    }
}

/// The first byte of an encoded record. New enum variants go last; another shape gets another number.
const FORMAT: u8 = 1;

/// Why stored bytes are not a record.
#[derive(Debug, thiserror::Error)]
pub enum InvalidRecord {
    #[error("unknown format {0:?} of a change record")]
    Format(Option<u8>),
    #[error("a change record does not decode")]
    Decode(#[from] postcard::Error),
}

/// A record's changes as they are stored.
pub fn encode(changes: &[Change]) -> Result<Vec<u8>, postcard::Error> {
    postcard::to_extend(changes, vec![FORMAT])
}

/// The reverse of [`encode`].
pub fn decode(bytes: &[u8]) -> Result<Vec<Change>, InvalidRecord> {
    match bytes.split_first() {
        Some((&FORMAT, body)) => Ok(postcard::from_bytes(body)?),
        other => Err(InvalidRecord::Format(other.map(|(format, _)| *format))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_round_trip_and_stay_small() {
        let delivery = Change::Delivery(DeliveryChange {
            kind: DeliveryChangeKind::Attempted,
            project: ProjectId::new(),
            delivery: DeliveryId::new(),
            event: EventId::new(),
            endpoint: EndpointId::new(),
            owner: Some("acme".into()),
            event_type: "invoice.paid".into(),
            status: DeliveryStatus::Success,
            attempts: 1,
            next_attempt_at: None,
            last_error: Some(ErrorClass::HttpStatus),
            last_status: Some(200),
            created_at: Timestamp::now(),
            ended_at: Some(Timestamp::now()),
            attempt: Some(AttemptId::new()),
        });
        let endpoint = Change::Endpoint(EndpointChange {
            kind: EndpointChangeKind::Paused,
            project: ProjectId::new(),
            endpoint: EndpointId::new(),
            owner: None,
            snapshot: "{}".to_owned(),
        });
        let changes = vec![delivery, endpoint];
        let bytes = encode(&changes).expect("encodes");
        assert!(bytes.len() < 200, "{} bytes", bytes.len());
        assert_eq!(decode(&bytes).expect("decodes"), changes);
    }

    #[test]
    fn foreign_bytes_are_refused() {
        assert!(matches!(decode(&[]), Err(InvalidRecord::Format(None))));
        assert!(matches!(decode(&[9, 9]), Err(InvalidRecord::Format(Some(9)))));
        assert!(matches!(decode(&[FORMAT, 200, 200]), Err(InvalidRecord::Decode(_))));
    }
}
