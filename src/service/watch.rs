//! Watch: the change log as streams.
//!
//! One reader per process follows the log while anyone watches, and keeps the newest records in a ring. A
//! stream takes from the ring, or from the store where it is behind it. Only committed records are read, in
//! the order of commits, so a stream has no gap and no repeat, whatever process it resumes on.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Services;
use crate::domain::change::{Change, ChangeRecord, Cursor, DeliveryChange, EndpointChangeKind};
use crate::domain::clock::Timestamp;
use crate::domain::delivery::Attempt;
use crate::domain::endpoint::Endpoint;
use crate::domain::error::{Error, ErrorKind, Result};
use crate::domain::id::{AttemptId, EndpointId, ProjectId};
use crate::domain::principal::{Principal, Scope};
use crate::domain::subscription::EventTypePattern;
use crate::store::{ChangesFrom, Store, snapshot};

/// Records kept in memory for streams that keep up.
const RING: usize = 1024;
/// Records read at once.
const PAGE: u32 = 64;
/// Other processes' commits are found by this at the latest.
const POLL: Duration = Duration::from_millis(500);
const BOOKMARK_EVERY: Duration = Duration::from_secs(15);
/// Changes that may go by unmatched without a bookmark.
const BOOKMARK_AFTER: u32 = 1000;
const KEY_CHECK_EVERY: Duration = Duration::from_secs(30);

/// Where a stream begins.
#[derive(Clone, Debug)]
pub enum Start {
    Now,
    Token(String),
}

/// What a stream shows. Empty lists and none mean everything.
#[derive(Clone, Debug, Default)]
pub struct WatchFilter {
    pub endpoints: Vec<EndpointId>,
    pub owner: Option<String>,
    pub event_types: Vec<EventTypePattern>,
    pub no_endpoint_changes: bool,
    pub no_delivery_changes: bool,
    pub no_attempts: bool,
}

/// One message of a stream.
pub struct WatchItem {
    pub payload: WatchPayload,
    pub token: String,
    pub at: Timestamp,
}

pub enum WatchPayload {
    Endpoint(EndpointChangeKind, Box<Endpoint>),
    Delivery(Box<DeliveryChange>),
    Attempt(Box<Attempt>),
    Bookmark,
}

/// The process's reader of the change log.
pub struct Feed {
    store: Store,
    ring: Mutex<Ring>,
    /// The position up to which the ring is filled.
    head: watch::Sender<i64>,
    readers: AtomicUsize,
    first_reader: tokio::sync::Notify,
}

#[derive(Default)]
struct Ring {
    records: VecDeque<Arc<ChangeRecord>>,
    /// The ring holds every record after this position; none where the reader rests.
    base: Option<i64>,
}

impl Feed {
    pub fn new(store: Store) -> Arc<Self> {
        Arc::new(Self {
            store,
            ring: Mutex::default(),
            head: watch::Sender::new(0),
            readers: AtomicUsize::new(0),
            first_reader: tokio::sync::Notify::new(),
        })
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows the log until told to stop; rests while nobody watches.
    pub async fn run(&self, stop: CancellationToken) {
        let mut commits = self.store.commits();
        while !stop.is_cancelled() {
            if self.readers.load(Ordering::Acquire) == 0 {
                *self.ring() = Ring::default();
                tokio::select! {
                    () = self.first_reader.notified() => {}
                    () = stop.cancelled() => return,
                }
            }
            commits.mark_unchanged();
            match self.advance().await {
                Ok(true) => continue,
                Ok(false) => {}
                Err(error) => tracing::warn!(error = %error, "the change log could not be read"),
            }
            tokio::select! {
                _ = commits.changed() => {}
                () = tokio::time::sleep(POLL) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Reads what is new; says whether there may be more at once.
    async fn advance(&self) -> Result<bool> {
        let from = self.ring().base.map(|base| self.ring_end(base));
        let from = match from {
            Some(from) => from,
            None => {
                let last = self.store.last_position().await?;
                self.ring().base = Some(last);
                self.head.send_replace(last);
                return Ok(true);
            }
        };
        let records = self.store.changes(ChangesFrom::After(from), PAGE).await?;
        let Some(last) = records.last().map(|record| record.position) else { return Ok(false) };
        let full = records.len() == PAGE as usize;
        let mut ring = self.ring();
        for record in records {
            ring.records.push_back(Arc::new(record));
        }
        while ring.records.len() > RING {
            ring.base = ring.records.pop_front().map(|record| record.position);
        }
        drop(ring);
        self.head.send_replace(last);
        Ok(full)
    }

    fn ring_end(&self, base: i64) -> i64 {
        (*self.head.borrow()).max(base)
    }

    /// Records from the cursor's on, as far as the ring has them; none where it does not reach back so far.
    fn recent(&self, cursor: Cursor) -> Option<Vec<Arc<ChangeRecord>>> {
        let ring = self.ring();
        let base = ring.base?;
        let whole = cursor.index == u32::MAX;
        if cursor.position < base || (cursor.position == base && !whole) {
            return None;
        }
        let start = ring.records.partition_point(|record| record.position < cursor.position);
        let recent =
            ring.records.iter().skip(start).filter(|record| !whole || record.position > cursor.position);
        Some(recent.take(PAGE as usize).cloned().collect())
    }

    async fn records(&self, cursor: Cursor) -> Result<Vec<Arc<ChangeRecord>>> {
        if let Some(recent) = self.recent(cursor) {
            return Ok(recent);
        }
        let from = if cursor.index == u32::MAX {
            ChangesFrom::After(cursor.position)
        } else {
            ChangesFrom::At(cursor.position)
        };
        Ok(self.store.changes(from, PAGE).await?.into_iter().map(Arc::new).collect())
    }
}

/// One stream's place in the log.
pub struct Watcher {
    services: Services,
    principal: Principal,
    project: ProjectId,
    filter: WatchFilter,
    endpoints: HashSet<EndpointId>,
    context: [String; 2],
    head: watch::Receiver<i64>,
    cursor: Cursor,
    ready: VecDeque<WatchItem>,
    unmatched: u32,
    bookmark_at: Instant,
    key_check_at: Instant,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.services.feed.readers.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Services {
    /// Begins a stream. Its first message is a bookmark, so that there is a token from the start.
    pub async fn watch(
        &self,
        principal: &Principal,
        project: Option<ProjectId>,
        start: Start,
        filter: WatchFilter,
    ) -> Result<Watcher> {
        let project = self.project_of(principal, project, Scope::Watch).await?;
        let context = [project.to_string(), filter_hash(&filter)];
        let cursor = match start {
            Start::Now => Cursor::after(self.store.last_position().await?),
            Start::Token(token) => self.read_token(&token, &context)?,
        };
        if self.feed.readers.fetch_add(1, Ordering::AcqRel) == 0 {
            self.feed.first_reader.notify_one();
        }
        let now = Instant::now();
        Ok(Watcher {
            services: self.clone(),
            principal: principal.clone(),
            project,
            endpoints: filter.endpoints.iter().copied().collect(),
            filter,
            context,
            head: self.feed.head.subscribe(),
            cursor,
            ready: VecDeque::new(),
            unmatched: 0,
            bookmark_at: now,
            key_check_at: now + KEY_CHECK_EVERY,
        })
    }

    fn read_token(&self, token: &str, context: &[String; 2]) -> Result<Cursor> {
        let refused = || {
            Error::invalid(
                "resume_token",
                "is not a token of this project with these filters, or was damaged",
            )
        };
        let context = ["watch", context[0].as_str(), context[1].as_str()];
        let bytes = self.store.token_key().open(token, &context).ok_or_else(refused)?;
        let (incarnation, rest) = bytes.split_first_chunk::<16>().ok_or_else(refused)?;
        let (position, rest) = rest.split_first_chunk::<8>().ok_or_else(refused)?;
        let index: [u8; 4] = rest.try_into().map_err(|_| refused())?;
        if Uuid::from_bytes(*incarnation) != self.store.incarnation() {
            let message = "the token was made by another database, before a restore or a replacement";
            return Err(Error::new(ErrorKind::FailedPrecondition, "DATABASE_CHANGED", message));
        }
        Ok(Cursor { position: i64::from_be_bytes(*position), index: u32::from_be_bytes(index) })
    }
}

impl Watcher {
    /// The next message. Safe to call again after it was dropped while it waited.
    pub async fn next(&mut self) -> Result<WatchItem> {
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Ok(item);
            }
            let now = Instant::now();
            if now >= self.key_check_at {
                self.check_key().await?;
            }
            if now >= self.bookmark_at || self.unmatched >= BOOKMARK_AFTER {
                return Ok(self.bookmark());
            }
            self.head.mark_unchanged();
            let records = self.services.feed.records(self.cursor).await?;
            if records.is_empty() {
                tokio::select! {
                    _ = self.head.changed() => {}
                    () = tokio::time::sleep_until(self.bookmark_at.min(self.key_check_at)) => {}
                }
                continue;
            }
            self.take(&records).await?;
        }
    }

    fn bookmark(&mut self) -> WatchItem {
        self.bookmark_at = Instant::now() + BOOKMARK_EVERY;
        self.unmatched = 0;
        WatchItem { payload: WatchPayload::Bookmark, token: self.token_at(self.cursor), at: Timestamp::now() }
    }

    async fn check_key(&mut self) -> Result<()> {
        self.key_check_at = Instant::now() + KEY_CHECK_EVERY;
        if self.services.is_still_valid(&self.principal).await? {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Unauthenticated, "INVALID_KEY", "the key expired or was revoked"))
    }

    /// Turns records into messages and moves the cursor behind them.
    async fn take(&mut self, records: &[Arc<ChangeRecord>]) -> Result<()> {
        let mut attempts = self.attempts_of(records).await?;
        let mut ready = VecDeque::new();
        let mut cursor = self.cursor;
        for record in records {
            for (index, change) in (0u32..).zip(&record.changes) {
                // Each change has two places: its own, and its attempt's.
                let places = [
                    Cursor { position: record.position, index: 2 * index },
                    Cursor { position: record.position, index: 2 * index + 1 },
                ];
                if !self.matches(change) {
                    self.unmatched += 1;
                    continue;
                }
                let payloads = [self.payload(change)?, self.attempt(change, &mut attempts)];
                for (place, payload) in places.into_iter().zip(payloads) {
                    let Some(payload) = payload.filter(|_| place > cursor) else { continue };
                    let token = self.token_at(place);
                    ready.push_back(WatchItem { payload, token, at: record.committed_at });
                }
            }
            cursor = Cursor::after(record.position);
        }
        if !ready.is_empty() {
            self.unmatched = 0;
            self.bookmark_at = Instant::now() + BOOKMARK_EVERY;
        }
        // Nothing was awaited since the first change was taken: all of it happens or none.
        self.cursor = cursor;
        self.ready = ready;
        Ok(())
    }

    /// The rows of the attempts that this stream will show.
    async fn attempts_of(&self, records: &[Arc<ChangeRecord>]) -> Result<HashMap<AttemptId, Attempt>> {
        if self.filter.no_attempts {
            return Ok(HashMap::new());
        }
        let ids: Vec<AttemptId> = records
            .iter()
            .flat_map(|record| &record.changes)
            .filter(|change| self.matches(change))
            .filter_map(|change| match change {
                Change::Delivery(change) => change.attempt,
                Change::Endpoint(_) => None,
            })
            .collect();
        Ok(self.services.store.attempts_by_id(&ids).await?)
    }

    fn matches(&self, change: &Change) -> bool {
        let (endpoint, owner, event_type) = match change {
            Change::Delivery(change) => (change.endpoint, &change.owner, Some(&change.event_type)),
            Change::Endpoint(change) => (change.endpoint, &change.owner, None),
        };
        let type_matches = match event_type {
            Some(event_type) if !self.filter.event_types.is_empty() => {
                self.filter.event_types.iter().any(|pattern| pattern.matches(event_type))
            }
            _ => true,
        };
        change.project() == self.project
            && (self.endpoints.is_empty() || self.endpoints.contains(&endpoint))
            && (self.filter.owner.is_none() || self.filter.owner.as_deref() == owner.as_deref())
            && type_matches
    }

    fn payload(&self, change: &Change) -> Result<Option<WatchPayload>> {
        Ok(match change {
            Change::Delivery(change) if !self.filter.no_delivery_changes => {
                Some(WatchPayload::Delivery(Box::new(change.clone())))
            }
            Change::Endpoint(change) if !self.filter.no_endpoint_changes => {
                Some(WatchPayload::Endpoint(change.kind, Box::new(snapshot::read(&change.snapshot)?)))
            }
            _ => None,
        })
    }

    fn attempt(&self, change: &Change, attempts: &mut HashMap<AttemptId, Attempt>) -> Option<WatchPayload> {
        let Change::Delivery(change) = change else { return None };
        let attempt = attempts.remove(&change.attempt?)?;
        Some(WatchPayload::Attempt(Box::new(attempt)))
    }

    fn token_at(&self, cursor: Cursor) -> String {
        let store = &self.services.store;
        let mut bytes = store.incarnation().as_bytes().to_vec();
        bytes.extend_from_slice(&cursor.position.to_be_bytes());
        bytes.extend_from_slice(&cursor.index.to_be_bytes());
        store.token_key().seal(&bytes, &["watch", &self.context[0], &self.context[1]])
    }
}

/// Stands for a filter in a token's context.
fn filter_hash(filter: &WatchFilter) -> String {
    let mut endpoints: Vec<String> = filter.endpoints.iter().map(ToString::to_string).collect();
    endpoints.sort_unstable();
    let mut types: Vec<String> = filter.event_types.iter().map(ToString::to_string).collect();
    types.sort_unstable();
    let kinds = (filter.no_endpoint_changes, filter.no_delivery_changes, filter.no_attempts);
    let text = format!("{endpoints:?} {:?} {types:?} {kinds:?}", filter.owner);
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}
