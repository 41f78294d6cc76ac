//! The records that this process committed last, so that its feed need not read back what was in memory a moment
//! before. A saving only: whatever is not here, the feed reads from the change log.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Store;
use crate::domain::change::ChangeRecord;
use crate::domain::delivery::Attempt;

/// Bytes that are kept for the feed, which takes them within a moment.
const KEPT: usize = 8 << 20;

/// A record with the attempts that it tells of.
pub struct Committed {
    pub record: ChangeRecord,
    pub attempts: Vec<Arc<Attempt>>,
}

impl Committed {
    /// Roughly what it takes in memory.
    fn size(&self) -> usize {
        let attempts: usize = self.attempts.iter().map(|attempt| attempt.weight()).sum();
        self.record.weight() + attempts
    }
}

#[derive(Default)]
struct Kept {
    by_position: BTreeMap<i64, Committed>,
    size: usize,
}

/// Records by position.
#[derive(Default)]
pub struct Recent {
    wanted: AtomicBool,
    /// Another process told of a commit of its own.
    others: AtomicBool,
    kept: Mutex<Kept>,
}

impl Recent {
    fn take(&self, after: i64) -> Vec<Committed> {
        let mut kept = self.kept();
        let mut taken = Vec::new();
        let mut next = after + 1;
        while let Some(first) = kept.by_position.first_entry().filter(|first| *first.key() <= next) {
            let committed = first.remove();
            kept.size -= committed.size();
            if committed.record.position == next {
                next += 1;
                taken.push(committed);
            }
        }
        taken
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }

    pub(super) fn hear_of_others(&self) {
        self.others.store(true, Ordering::Release);
    }

    pub(super) fn add(&self, committed: Committed) {
        let mut kept = self.kept();
        kept.size += committed.size();
        kept.by_position.insert(committed.record.position, committed);
        while kept.size > KEPT {
            let Some((_, oldest)) = kept.by_position.pop_first() else { break };
            kept.size -= oldest.size();
        }
    }
}

impl Store {
    /// Keeps what is committed from now on, or lets it go.
    pub fn keep_recent(&self, wanted: bool) {
        let recent = &self.inner.recent;
        recent.wanted.store(wanted, Ordering::Relaxed);
        if !wanted {
            *recent.kept() = Kept::default();
        }
    }

    /// The records that follow this position without a hole, as far as this process committed them: positions are drawn one
    /// by one, each only when all before it are visible, so none can come in between later. And whether other processes
    /// were heard of since this was last asked, so that the log may hold more.
    pub fn take_recent(&self, after: i64) -> (Vec<Committed>, bool) {
        let others = self.inner.recent.others.swap(false, Ordering::AcqRel);
        (self.inner.recent.take(after), others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::change::{Change, EndpointChange, EndpointChangeKind};
    use crate::domain::clock::Timestamp;
    use crate::domain::id::{EndpointId, ProjectId};

    fn committed(position: i64, snapshot: usize) -> Committed {
        let change = Change::Endpoint(EndpointChange {
            kind: EndpointChangeKind::Updated,
            project: ProjectId::new(),
            endpoint: EndpointId::new(),
            owner: None,
            snapshot: " ".repeat(snapshot),
        });
        let record = ChangeRecord { position, committed_at: Timestamp::now(), changes: vec![change] };
        Committed { record, attempts: Vec::new() }
    }

    fn positions(taken: &[Committed]) -> Vec<i64> {
        taken.iter().map(|one| one.record.position).collect()
    }

    #[test]
    fn only_what_follows_without_a_hole_is_taken_and_what_is_passed_goes() {
        let recent = Recent::default();
        // Two transactions may tell in another order than they committed in.
        for position in [5, 4, 7, 8] {
            recent.add(committed(position, 0));
        }
        assert_eq!(positions(&recent.take(2)), [] as [i64; 0], "3 is another's");
        assert_eq!(positions(&recent.take(3)), [4, 5], "6 is another's");
        assert_eq!(positions(&recent.take(7)), [8], "7 was read from the log");
        let kept = recent.kept();
        assert_eq!((kept.by_position.len(), kept.size), (0, 0));
    }

    #[test]
    fn what_nobody_takes_is_bounded() {
        let recent = Recent::default();
        for position in 1..=20 {
            recent.add(committed(position, 1 << 20));
        }
        let oldest = recent.kept().by_position.keys().next().copied().expect("some are kept");
        let taken = positions(&recent.take(oldest - 1));
        assert!(!taken.is_empty() && taken.len() < 8, "{taken:?}");
        assert_eq!(taken.last(), Some(&20), "the oldest went");
    }
}
