//! What a batch of attempts says of each endpoint: its last failures in a row.

use std::collections::BTreeMap;

use super::outcomes::{FinishedAttempt, Next};
use crate::domain::clock::Timestamp;
use crate::domain::delivery::Probe;
use crate::domain::disable::DisablePolicy;
use crate::domain::id::{DeliveryId, EndpointId, ProjectId};

/// The last failures in a row of an endpoint within one batch.
pub(super) struct Streak {
    pub project: ProjectId,
    pub failures: u32,
    pub first: Timestamp,
    pub last: Timestamp,
    pub any_success: bool,
    /// The delivery that probed and failed.
    pub probe: Option<DeliveryId>,
    pub gone: bool,
    /// Of the last failure: why, and the policy its attempt went by.
    pub cause: String,
    pub disable: DisablePolicy,
}

/// Streaks by endpoint, in the order in which rows are locked.
pub(super) struct Streaks(pub BTreeMap<EndpointId, Streak>);

impl Streaks {
    pub(super) fn of<'a>(finished: impl IntoIterator<Item = &'a FinishedAttempt>) -> Self {
        let mut streaks = BTreeMap::new();
        for one in finished {
            let outcome = &one.attempt.outcome;
            // What a probe of a PENDING endpoint leads to does not hang on any count.
            if one.next == Next::Again || !outcome.counts() || one.probe == Some(Probe::Endpoint) {
                continue;
            }
            let streak = streaks.entry(one.attempt.endpoint).or_insert_with(|| Streak::new(one));
            streak.add(one);
        }
        Self(streaks)
    }
}

impl Streak {
    fn new(one: &FinishedAttempt) -> Self {
        Self {
            project: one.attempt.project,
            failures: 0,
            first: one.ended_at,
            last: one.ended_at,
            any_success: false,
            probe: None,
            gone: false,
            cause: String::new(),
            disable: one.disable,
        }
    }

    fn add(&mut self, one: &FinishedAttempt) {
        if one.attempt.outcome.is_success() {
            *self = Self {
                any_success: true,
                gone: self.gone,
                cause: std::mem::take(&mut self.cause),
                ..Self::new(one)
            };
            return;
        }
        if self.failures == 0 {
            self.first = one.ended_at;
        }
        self.failures += 1;
        self.last = self.last.max(one.ended_at);
        self.disable = one.disable;
        if one.probe == Some(Probe::Breaker) {
            self.probe = Some(one.attempt.delivery);
        }
        // What a 410 says stands, whatever came after it.
        if !self.gone {
            self.gone = one.attempt.outcome.is_gone();
            self.cause = one.cause();
        }
    }
}
