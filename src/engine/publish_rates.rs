//! How fast projects publish, where they have a limit.
//!
//! Each node counts what it is handed itself: a count that all nodes share would be a row that each commit of theirs
//! waits for. So a project may publish as fast as its limit says on every node.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::domain::error::{Error, Result};
use crate::domain::id::ProjectId;

const SECOND: Duration = Duration::from_secs(1);

/// When each project has used up what it published so far, at its limit's pace (GCRA). Those that have no limit are
/// not here.
#[derive(Default)]
pub struct PublishRates(Mutex<HashMap<ProjectId, Instant>>);

impl PublishRates {
    /// Counts an event of a project that may publish so many a second, and as many at once; or refuses it.
    pub fn take(&self, project: ProjectId, per_second: NonZeroU32, now: Instant) -> Result<()> {
        let interval = SECOND / per_second.get();
        let mut rates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let used_up = rates.entry(project).or_insert(now);
        let next = (*used_up).max(now) + interval;
        let Some(wait) = next.checked_duration_since(now + SECOND).filter(|wait| !wait.is_zero()) else {
            *used_up = next;
            return Ok(());
        };
        let message = format!("the project may publish {per_second} events a second");
        Err(Error { retry_after: Some(wait), ..Error::quota("PUBLISHES_PER_SECOND", project, message) })
    }

    /// Drops what was counted of a project that has no limit any more.
    pub fn forget(&self, project: ProjectId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&project);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_takes_what_the_limit_says_and_no_more() {
        let (rates, project, start) = (PublishRates::default(), ProjectId::new(), Instant::now());
        let limit = NonZeroU32::new(3).expect("not zero");
        let at = |millis: u64| start + Duration::from_millis(millis);
        for _ in 0..3 {
            rates.take(project, limit, at(0)).expect("as many at once");
        }
        let refused = rates.take(project, limit, at(0)).expect_err("one more");
        assert_eq!(refused.reason, "PUBLISHES_PER_SECOND");
        assert!(refused.retry_after.is_some_and(|wait| wait <= SECOND / 3), "{refused:?}");
        rates.take(ProjectId::new(), limit, at(0)).expect("another's are another's");
        rates.take(project, limit, at(334)).expect("a third of a second later");
        rates.take(project, limit, at(334)).expect_err("and only one");
        let rested: Vec<bool> = (0..5).map(|_| rates.take(project, limit, at(60_000)).is_ok()).collect();
        assert_eq!(rested, [true, true, true, false, false], "a rest gives no more than a second's");
        rates.forget(project);
        rates.take(project, limit, at(60_000)).expect("a limit that was gone meanwhile counts anew");
        assert_eq!(rates.0.lock().expect("unpoisoned").len(), 2);
    }
}
