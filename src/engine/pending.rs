//! How much each project has queued, so that none fills the store for all.
//!
//! A count that every publish and outcome kept would be a row that all of them fight for. So the queue is counted now
//! and then, and between two counts what this node accepts is added and what its attempts end is taken off. What other nodes
//! do meanwhile, and what upkeep ends, is seen at the next count.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::writer::chain;
use crate::domain::error::{Error, Result};
use crate::domain::id::ProjectId;
use crate::store::Store;

const ROUND: Duration = Duration::from_secs(5);
/// Counting a long queue takes at most this part of the time.
const REST: u32 = 20;
const COUNT_LONGEST: Duration = Duration::from_secs(10);

/// Open deliveries by project, as far as is known.
pub struct Pending {
    max: u64,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    open: HashMap<ProjectId, u64>,
    /// What came and ended since the count began that is under way. What the count sees of it, because it waited for its
    /// connection, is there twice until the next one.
    meanwhile: HashMap<ProjectId, i64>,
}

impl Known {
    fn change(&mut self, project: ProjectId, by: i64) {
        let open = self.open.entry(project).or_default();
        *open = open.saturating_add_signed(by);
        *self.meanwhile.entry(project).or_default() += by;
    }
}

impl Pending {
    pub fn new(max: u64) -> Self {
        Self { max, known: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses more work for a project that has as much as it may, with what is about to be added.
    pub fn check(&self, project: ProjectId, about: usize, more: usize) -> Result<()> {
        let pending = self.known().open.get(&project).copied().unwrap_or_default();
        let pending = pending.saturating_add(about as u64);
        if more == 0 || pending.saturating_add(more as u64) <= self.max {
            return Ok(());
        }
        let message =
            format!("the project has {pending} deliveries pending; at most {} are allowed", self.max);
        Err(Error::quota("PENDING_DELIVERIES", project, message))
    }

    /// Notes deliveries that were accepted.
    pub fn add(&self, project: ProjectId, more: u64) {
        if more > 0 {
            self.known().change(project, i64::try_from(more).unwrap_or(i64::MAX));
        }
    }

    /// Notes deliveries that ended, each by its project.
    pub fn remove(&self, ended: impl Iterator<Item = ProjectId>) {
        let mut known = self.known();
        for project in ended {
            known.change(project, -1);
        }
    }

    fn count_begins(&self) {
        self.known().meanwhile.clear();
    }

    fn counted(&self, open: HashMap<ProjectId, u64>) {
        let mut known = self.known();
        known.open = open;
        for (project, by) in std::mem::take(&mut known.meanwhile) {
            known.change(project, by);
        }
    }
}

/// Counts until told to stop.
pub async fn run(store: Store, shared: Arc<Shared>, stop: CancellationToken) {
    let mut pause = Duration::ZERO;
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return,
        }
        let started = Instant::now();
        shared.pending.count_begins();
        match store.in_time(COUNT_LONGEST, store.count_pending()).await {
            Ok(counted) => {
                let engine = &shared.metrics.engine;
                engine.waiting("paused", counted.paused);
                engine.waiting("breaker", counted.breaker);
                engine.waiting("rate_limit", counted.rate_limit);
                shared.pending.counted(counted.by_project);
            }
            Err(error) => tracing::warn!(error = chain(&error), "pending deliveries could not be counted"),
        }
        pause = ROUND.max(started.elapsed() * REST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_has_no_more_pending_than_it_may() {
        let (pending, project) = (Pending::new(10), ProjectId::new());
        assert!(pending.check(project, 0, 10).is_ok());
        assert!(pending.check(project, 6, 4).is_ok());
        assert!(pending.check(project, 6, 5).is_err());
        pending.add(project, 9);
        assert!(pending.check(project, 0, 1).is_ok());
        let refused = pending.check(project, 0, 2).expect_err("too many");
        assert_eq!(refused.reason, "PENDING_DELIVERIES");
        pending.remove([project].into_iter());
        assert!(pending.check(project, 0, 2).is_ok(), "what ended makes room");
        pending.remove([project; 20].into_iter());
        assert!(pending.check(project, 0, 11).is_err(), "and no more than there was");
        pending.add(project, 4);
        pending.count_begins();
        pending.add(project, 2);
        pending.remove([project].into_iter());
        pending.counted(HashMap::from([(project, 4)]));
        assert!(pending.check(project, 0, 5).is_ok(), "4, and 1 more while they were counted");
        assert!(pending.check(project, 0, 6).is_err(), "4, and 1 more while they were counted");
        assert!(pending.check(project, 0, 0).is_ok(), "what makes no delivery is no burden");
        assert!(pending.check(ProjectId::new(), 0, 10).is_ok(), "another's are another's");
    }
}
