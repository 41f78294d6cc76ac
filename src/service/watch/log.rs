//! The newest records in memory, and which projects' streams they concern.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use tokio::sync::watch;

use super::streams::OpenStream;
use crate::domain::change::{Change, ChangeRecord, Cursor};
use crate::domain::delivery::Attempt;
use crate::domain::id::{AttemptId, ProjectId};

/// Records kept for streams that keep up.
const RING: usize = 1024;
/// And what they may weigh.
const RING_BYTES: usize = 16 << 20;

/// A record with what was read along with it for all streams at once.
pub struct Entry {
    pub record: ChangeRecord,
    pub attempts: HashMap<AttemptId, Arc<Attempt>>,
    projects: Vec<ProjectId>,
}

impl Entry {
    pub fn new(record: ChangeRecord, attempts: HashMap<AttemptId, Arc<Attempt>>) -> Self {
        let mut projects: Vec<ProjectId> = record.changes.iter().map(Change::project).collect();
        projects.sort_unstable();
        projects.dedup();
        Self { record, attempts, projects }
    }

    pub fn concerns(&self, project: ProjectId) -> bool {
        self.projects.binary_search(&project).is_ok()
    }

    /// Roughly what it takes in memory.
    fn weight(&self) -> usize {
        self.record.weight() + self.attempts.values().map(|attempt| attempt.weight()).sum::<usize>()
    }
}

/// What the ring has for a stream.
pub enum Look {
    Next(Arc<Entry>),
    /// Nothing concerns it up to this position.
    CaughtUp(i64),
    /// It reaches back less far than the stream's cursor, or is not filled yet.
    Behind,
}

/// The ring, and the open streams by project.
#[derive(Default)]
pub struct Log {
    ring: VecDeque<(Arc<Entry>, usize)>,
    weight: usize,
    /// The ring holds every record after this position; none while nobody reads.
    base: Option<i64>,
    /// And up to this one.
    head: i64,
    pub projects: HashMap<ProjectId, ProjectStreams>,
    /// Projects whose streams have news that they were not woken for.
    news: Vec<ProjectId>,
    pub streams: usize,
}

/// One project's open streams.
pub struct ProjectStreams {
    /// No record after this position, up to the head, concerns the project.
    last: i64,
    has_news: bool,
    /// When its streams were last woken, by the feed's time.
    pub woken_at: u64,
    pub wake: watch::Sender<()>,
    pub streams: HashMap<u64, Arc<OpenStream>>,
}

impl Log {
    /// The project's streams, if need be as new ones.
    pub fn project(&mut self, project: ProjectId) -> &mut ProjectStreams {
        // What came before is unknown, so any of it may concern the project.
        let last = self.head;
        self.projects.entry(project).or_insert_with(|| ProjectStreams {
            last,
            has_news: false,
            woken_at: 0,
            wake: watch::Sender::new(()),
            streams: HashMap::new(),
        })
    }

    /// Up to where the ring is filled; none where it has no beginning.
    pub fn filled(&self) -> Option<i64> {
        self.base.map(|_| self.head)
    }

    /// Begins with what follows `position`.
    pub fn begin(&mut self, position: i64) {
        self.clear();
        self.base = Some(position);
        self.head = position;
        for (id, project) in &mut self.projects {
            project.last = position;
            project.has_news = true;
            self.news.push(*id);
        }
    }

    pub fn clear(&mut self) {
        self.ring.clear();
        self.news.clear();
        (self.base, self.weight) = (None, 0);
    }

    /// Adds the record that follows the head.
    pub fn push(&mut self, entry: Entry) {
        self.head = entry.record.position;
        for id in &entry.projects {
            if let Some(project) = self.projects.get_mut(id) {
                project.last = self.head;
                if !std::mem::replace(&mut project.has_news, true) {
                    self.news.push(*id);
                }
            }
        }
        let weight = entry.weight();
        self.weight += weight;
        self.ring.push_back((Arc::new(entry), weight));
        while self.ring.len() > RING || self.weight > RING_BYTES {
            let Some((oldest, weight)) = self.ring.pop_front() else { break };
            self.base = Some(oldest.record.position);
            self.weight -= weight;
        }
    }

    pub fn has_news(&self) -> bool {
        !self.news.is_empty()
    }

    /// Wakes the streams of projects that have news; says how many.
    pub fn tell(&mut self, now: u64) -> usize {
        let mut woken = 0;
        for id in self.news.drain(..) {
            if let Some(project) = self.projects.get_mut(&id) {
                project.has_news = false;
                project.woken_at = now;
                project.wake.send_replace(());
                woken += project.streams.len();
            }
        }
        woken
    }

    /// The next record after the cursor that concerns the project.
    pub fn look(&self, project: ProjectId, cursor: Cursor) -> Look {
        let Some(base) = self.base else { return Look::Behind };
        let last = self.projects.get(&project).map_or(i64::MAX, |streams| streams.last);
        if cursor.has_passed(last) {
            return Look::CaughtUp(self.head);
        }
        if !cursor.has_passed(base) {
            return Look::Behind;
        }
        let seen = |entry: &Arc<Entry>| {
            let position = entry.record.position;
            position < cursor.position || (position == cursor.position && cursor.is_whole())
        };
        let start = self.ring.partition_point(|(entry, _)| seen(entry));
        let next = self.ring.range(start..).find(|(entry, _)| entry.concerns(project));
        next.map_or(Look::CaughtUp(self.head), |(entry, _)| Look::Next(entry.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::change::{EndpointChange, EndpointChangeKind};
    use crate::domain::clock::Timestamp;
    use crate::domain::id::EndpointId;

    fn entry(position: i64, project: ProjectId) -> Entry {
        let change = Change::Endpoint(EndpointChange {
            kind: EndpointChangeKind::Updated,
            project,
            endpoint: EndpointId::new(),
            owner: None,
            snapshot: String::new(),
        });
        let record = ChangeRecord { position, committed_at: Timestamp::now(), changes: vec![change] };
        Entry::new(record, HashMap::new())
    }

    fn position(look: Look) -> Result<i64, Option<i64>> {
        match look {
            Look::Next(entry) => Ok(entry.record.position),
            Look::CaughtUp(head) => Err(Some(head)),
            Look::Behind => Err(None),
        }
    }

    #[test]
    fn a_stream_is_given_the_next_record_of_its_project_or_told_where_it_stands() {
        let (a, b, late) = (ProjectId::new(), ProjectId::new(), ProjectId::new());
        let mut log = Log::default();
        log.project(a);
        log.project(b);
        assert_eq!(position(log.look(a, Cursor::after(0))), Err(None), "nothing is known yet");
        log.begin(10);
        assert_eq!(log.tell(1), 0, "no stream to wake");
        assert_eq!(position(log.look(a, Cursor::after(10))), Err(Some(10)));
        assert_eq!(position(log.look(a, Cursor::after(9))), Err(None), "before the ring");
        let inside = Cursor { position: 10, index: 0 };
        assert_eq!(position(log.look(a, inside)), Err(None), "needs the rest of a record before the ring");

        // Positions have holes.
        log.push(entry(12, a));
        log.push(entry(15, b));
        log.push(entry(16, a));
        log.project(late);
        assert_eq!(position(log.look(a, Cursor::after(10))), Ok(12));
        assert_eq!(position(log.look(a, Cursor { position: 12, index: 0 })), Ok(12));
        assert_eq!(position(log.look(a, Cursor::after(12))), Ok(16));
        assert_eq!(position(log.look(a, Cursor::after(16))), Err(Some(16)));
        assert_eq!(position(log.look(a, Cursor::after(20))), Err(Some(16)), "ahead of the reader");
        // What nothing of its own follows is passed over at once.
        assert_eq!(position(log.look(b, Cursor::after(15))), Err(Some(16)));
        // One that came later does not know what was before the ring.
        assert_eq!(position(log.look(late, Cursor::after(9))), Err(None));
        assert_eq!(position(log.look(late, Cursor::after(10))), Err(Some(16)));

        // What leaves the ring is in the store only, but who needs nothing of it is not behind.
        for position in 17..17 + RING as i64 {
            log.push(entry(position, a));
        }
        let head = 16 + RING as i64;
        assert_eq!(position(log.look(a, Cursor::after(15))), Err(None));
        assert_eq!(position(log.look(a, Cursor::after(16))), Ok(17));
        assert_eq!(position(log.look(b, Cursor::after(15))), Err(Some(head)));
    }

    #[test]
    fn only_streams_of_projects_with_news_are_woken() {
        let (a, b) = (ProjectId::new(), ProjectId::new());
        let mut log = Log::default();
        let (wake_a, wake_b) = (log.project(a).wake.subscribe(), log.project(b).wake.subscribe());
        log.begin(0);
        log.tell(1);
        let (mut wake_a, mut wake_b) = (wake_a, wake_b);
        wake_a.mark_unchanged();
        wake_b.mark_unchanged();
        log.push(entry(1, a));
        assert!(log.has_news());
        log.tell(1);
        assert!(!log.has_news());
        assert_eq!((wake_a.has_changed().ok(), wake_b.has_changed().ok()), (Some(true), Some(false)));
    }
}
