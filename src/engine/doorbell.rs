//! What wakes the claimer: something is due now, or will be at a known time. Only a hint: the slow round finds
//! everything by itself.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::domain::clock::Timestamp;

/// Wakes the claimer.
#[derive(Default)]
pub struct Doorbell {
    bell: Notify,
    /// The soonest times at which retries of this process are due.
    soon: Mutex<BinaryHeap<Reverse<Timestamp>>>,
}

/// Times further away than the slow round's reach need not be remembered, and more than these are not.
const SOON: Duration = Duration::from_secs(60);
const REMEMBERED: usize = 4096;

impl Doorbell {
    fn soon(&self) -> MutexGuard<'_, BinaryHeap<Reverse<Timestamp>>> {
        self.soon.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something is due now.
    pub fn ring(&self) {
        self.bell.notify_one();
    }

    /// Something will be due at this time.
    pub fn ring_at(&self, due: Timestamp) {
        let mut soon = self.soon();
        let sooner = soon.peek().is_none_or(|first| due < first.0);
        if due.since(Timestamp::now()) <= SOON && soon.len() < REMEMBERED {
            soon.push(Reverse(due));
        }
        drop(soon);
        if sooner {
            self.ring();
        }
    }

    /// Waits for the bell, for the next known time, or for `longest`.
    pub async fn wait(&self, longest: Duration) {
        let next = self.next();
        let pause = next.map_or(longest, |wait| wait.min(longest));
        // Whichever comes first.
        let _rung = tokio::time::timeout(pause, self.bell.notified()).await;
    }

    /// How long until the next known time; forgets those that are past, which are due at once: they may have passed
    /// while a claim ran that did not see them yet.
    fn next(&self) -> Option<Duration> {
        let now = Timestamp::now();
        let mut soon = self.soon();
        let mut passed = None;
        while let Some(Reverse(first)) = soon.peek() {
            if *first > now {
                // The database's millisecond must have begun when the claim asks.
                return passed.or(Some(first.since(now) + Duration::from_millis(1)));
            }
            soon.pop();
            passed = Some(Duration::ZERO);
        }
        passed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_time_that_passed_unseen_is_due_at_once() {
        let doorbell = Doorbell::default();
        doorbell.ring_at(Timestamp::from_millis(Timestamp::now().as_millis() - 1));
        doorbell.wait(Duration::ZERO).await;
        doorbell.ring_at(Timestamp::from_millis(Timestamp::now().as_millis() - 2));
        // The bell of the first ring is spent; what passed must be seen without one.
        let _spent = tokio::time::timeout(Duration::ZERO, doorbell.bell.notified()).await;
        assert_eq!(doorbell.next(), Some(Duration::ZERO));
        assert_eq!(doorbell.next(), None);
    }
}
