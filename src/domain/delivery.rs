//! Deliveries and the attempts made for them.

use std::sync::Arc;
use std::time::Duration;

use super::attempt::{AttemptOutcome, ErrorClass};
use super::clock::Timestamp;
use super::id::{AttemptId, DeliveryId, EndpointId, EventId, LeaseId, ProjectId};

/// Where a delivery stands. Stored numbers; never reuse one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum DeliveryStatus {
    /// Waits for its first attempt.
    Scheduled = 1,
    /// A process holds it. Derived from a live claim, never stored, so nothing can rest in it.
    Processing = 2,
    /// Failed, and will be tried again.
    Retry = 3,
    /// The receiver answered 2xx.
    Success = 4,
    /// Given up; stays until someone retries it.
    Failed = 5,
    /// Not sent because of the endpoint's state; stays until someone retries it.
    Discarded = 6,
}

impl DeliveryStatus {
    pub const fn code(self) -> i16 {
        self as i16
    }

    pub const fn from_code(code: i16) -> Option<Self> {
        match code {
            1 => Some(Self::Scheduled),
            2 => Some(Self::Processing),
            3 => Some(Self::Retry),
            4 => Some(Self::Success),
            5 => Some(Self::Failed),
            6 => Some(Self::Discarded),
            _ => None,
        }
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "SCHEDULED",
            Self::Processing => "PROCESSING",
            Self::Retry => "RETRY",
            Self::Success => "SUCCESS",
            Self::Failed => "FAILED",
            Self::Discarded => "DISCARDED",
        }
    }

    /// Whether nothing more happens by itself.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Success | Self::Failed | Self::Discarded)
    }
}

/// One event on its way to one endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    pub id: DeliveryId,
    pub project: ProjectId,
    pub event: EventId,
    pub endpoint: EndpointId,
    pub event_type: Arc<str>,
    pub status: DeliveryStatus,
    /// Attempts made, over all budgets.
    pub attempts: u16,
    pub next_attempt_at: Option<Timestamp>,
    pub last_error: Option<ErrorClass>,
    pub last_status: Option<u16>,
    /// From creation to the end, once there is one.
    pub ended_at: Option<Timestamp>,
    pub created_at: Timestamp,
}

impl Delivery {
    pub fn latency(&self) -> Option<Duration> {
        self.ended_at.map(|end| end.since(self.created_at))
    }
}

/// The right to attempt a delivery: whose lease it is under, and the fencing token that outcomes name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    pub lease: LeaseId,
    pub token: i64,
}

/// What an attempt tries out beside delivering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Whether an open breaker may close.
    Breaker,
    /// Whether a PENDING endpoint answers again. Breaker, rate limit and in-flight cap do not hold it up.
    Endpoint,
}

/// One HTTP request made for a delivery, as it is kept.
#[derive(Clone, Debug)]
pub struct Attempt {
    pub id: AttemptId,
    pub delivery: DeliveryId,
    pub project: ProjectId,
    pub endpoint: EndpointId,
    pub event: EventId,
    /// 1 for the first, counted over all budgets.
    pub number: u16,
    /// Redacted: no signature, no credential.
    pub request_headers: Vec<(String, String)>,
    pub outcome: AttemptOutcome,
}

impl Attempt {
    /// The same without what the receiver answered.
    pub fn without_body(attempt: &Arc<Self>) -> Arc<Self> {
        if attempt.outcome.body.is_empty() {
            return attempt.clone();
        }
        let mut copy = Self::clone(attempt);
        copy.outcome.body = bytes::Bytes::new();
        Arc::new(copy)
    }

    /// Roughly what it takes in memory.
    pub fn weight(&self) -> usize {
        let text = |list: &[(String, String)]| -> usize {
            list.iter().map(|(name, value)| 48 + name.len() + value.len()).sum()
        };
        let outcome = &self.outcome;
        size_of::<Self>() + text(&self.request_headers) + text(&outcome.response_headers) + outcome.body.len()
    }
}

/// What the outcome of an attempt makes of its delivery: a pure function of policy and outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Success,
    /// Try again after this wait.
    Retry(Duration),
    Failed,
}

/// Decides after `made` attempts of this budget, the one that ended included. `random` is uniform in [0, 1).
pub fn judge(
    outcome: &AttemptOutcome,
    policy: &super::retry::RetryPolicy,
    made: u16,
    random: f64,
) -> Verdict {
    if outcome.is_success() {
        return Verdict::Success;
    }
    // 410 Gone ends a delivery at once.
    if outcome.is_gone() {
        return Verdict::Failed;
    }
    match policy.wait_after(made, random, outcome.retry_after) {
        Some(wait) => Verdict::Retry(wait),
        None => Verdict::Failed,
    }
}

/// Which deliveries a list shows.
#[derive(Clone, Debug, Default)]
pub struct DeliveryFilter {
    pub endpoint: Option<EndpointId>,
    pub event: Option<EventId>,
    pub statuses: Vec<DeliveryStatus>,
    pub from: Option<Timestamp>,
    pub before: Option<Timestamp>,
}
