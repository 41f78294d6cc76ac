//! The records that this process committed last, so that its feed need not read back what was in memory a moment
//! before. A saving only: whatever is not here, the feed reads from the change log.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Store;
use crate::domain::change::ChangeRecord;
use crate::domain::delivery::Attempt;

/// Changes and attempts that are kept for the feed, which takes them within a moment.
const KEPT: usize = 16_384;

/// A record with the attempts that it tells of.
pub struct Committed {
    pub record: ChangeRecord,
    pub attempts: Vec<Arc<Attempt>>,
}

impl Committed {
    fn size(&self) -> usize {
        1 + self.record.changes.len() + self.attempts.len()
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
        let mut kept = self.inner.recent.kept();
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
        (taken, others)
    }
}
