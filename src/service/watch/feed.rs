//! The process's one reader of the change log, and the rounds that end streams which must not go on.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::WatchSettings;
use super::log::{Entry, Log};
use super::streams::End;
use crate::domain::change::{Change, ChangeRecord, Cursor};
use crate::domain::clock::Timestamp;
use crate::domain::delivery::Attempt;
use crate::domain::error::{Error, Result};
use crate::domain::id::{AttemptId, KeyId, ProjectId};
use crate::metrics::{FeedMetrics, Metrics};
use crate::store::{Committed, Reads, Store};

/// Records read at once, and the encoded bytes they may have.
const PAGE: u32 = 64;
const PAGE_BYTES: u32 = 256 << 10;
/// Other processes' commits are found by this at the latest.
pub const POLL: Duration = Duration::from_millis(500);
/// What waking a stream costs. The next round of waking waits for as long as the last one took by this, so that
/// ten thousand streams are woken five times a second and a few at once.
const WAKE_COST: Duration = Duration::from_micros(20);
/// Timers are no finer; shorter waits are none.
const WAKE_PAUSE_MIN: Duration = Duration::from_millis(1);
/// A read that takes longer waits on a connection that fell silent.
pub const READ_LONGEST: Duration = Duration::from_secs(10);
const KEY_CHECK_EVERY: Duration = Duration::from_secs(5);
/// How often operators are told how far behind it is.
const MEASURE_EVERY: Duration = Duration::from_secs(1);

/// The process's reader of the change log.
pub struct Feed {
    store: Store,
    pub settings: WatchSettings,
    log: Mutex<Log>,
    pub first_stream: Notify,
    store_reads: Semaphore,
    numbers: AtomicU64,
    /// What was written before this moment is read, by [`Feed::now`]; 0 while nobody watches.
    complete_until: AtomicU64,
    started: Instant,
    metrics: Arc<Metrics>,
}

impl Feed {
    pub fn new(store: Store, settings: WatchSettings, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            store,
            store_reads: Semaphore::new(settings.store_reads.max(1)),
            settings,
            log: Mutex::default(),
            first_stream: Notify::new(),
            numbers: AtomicU64::new(0),
            complete_until: AtomicU64::new(0),
            started: Instant::now(),
            metrics,
        })
    }

    pub fn metrics(&self) -> &FeedMetrics {
        &self.metrics.feed
    }

    pub fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Microseconds, of no meaning but among themselves.
    pub fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    pub fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Follows the log and looks after the streams until told to stop.
    pub async fn run(&self, stop: CancellationToken) {
        tokio::join!(self.follow(&stop), self.measure(&stop), self.end_slow(&stop), self.end_revoked(&stop));
    }

    /// Rests while nobody watches.
    async fn follow(&self, stop: &CancellationToken) {
        let mut commits = self.store.commits();
        let mut wake_at = Instant::now();
        while !stop.is_cancelled() {
            if self.rests() {
                tokio::select! {
                    () = self.first_stream.notified() => continue,
                    () = stop.cancelled() => return,
                }
            }
            commits.mark_unchanged();
            let looked_at = self.now();
            let more = match self.advance().await {
                Ok(more) => {
                    if !more {
                        self.complete_until(looked_at);
                    }
                    more
                }
                Err(error) => {
                    tracing::warn!(error = %error, cause = ?error.cause, "the change log could not be read");
                    false
                }
            };
            if self.log().has_news() && Instant::now() >= wake_at {
                let cost = WAKE_COST * u32::try_from(self.log().tell(self.now())).unwrap_or(u32::MAX);
                if cost >= WAKE_PAUSE_MIN {
                    wake_at = Instant::now() + cost;
                }
            }
            if more {
                continue;
            }
            let pause = if self.log().has_news() { wake_at } else { Instant::now() + POLL };
            tokio::select! {
                _ = commits.changed() => {}
                () = tokio::time::sleep_until(pause) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    fn complete_until(&self, at: u64) {
        self.complete_until.fetch_max(at.max(1), Ordering::Relaxed);
    }

    /// Says how far behind it is, also while a look does not end or fails.
    async fn measure(&self, stop: &CancellationToken) {
        while pause(MEASURE_EVERY, stop).await {
            let behind = match self.complete_until.load(Ordering::Relaxed) {
                0 => Duration::ZERO,
                until => Duration::from_micros(self.now().saturating_sub(until)),
            };
            self.metrics().behind(behind);
        }
    }

    /// Lets go of the ring where no stream is open.
    fn rests(&self) -> bool {
        let mut log = self.log();
        let rests = log.streams == 0;
        if rests {
            log.clear();
            self.complete_until.store(0, Ordering::Relaxed);
        } else if self.complete_until.load(Ordering::Relaxed) == 0 {
            // What came before is no concern of the first stream's.
            self.complete_until(self.now());
        }
        self.store.keep_recent(!rests);
        rests
    }

    /// Reads what is new; says whether there may be more at once.
    async fn advance(&self) -> Result<bool> {
        let filled = self.log().filled();
        let Some(from) = filled else {
            let last = self.store.in_time(READ_LONGEST, self.store.log_bounds(Reads::Own)).await?.last;
            self.log().begin(last);
            return Ok(true);
        };
        let (recent, others) = self.store.take_recent(from);
        if !recent.is_empty() {
            self.push(recent);
            return Ok(others);
        }
        let reading = self.store.changes(Reads::Own, Cursor::after(from), PAGE, PAGE_BYTES);
        let Some(page) = self.store.in_time(READ_LONGEST, reading).await? else {
            // Its streams find their own way, or learn that they are too late.
            tracing::warn!("the reader of the change log fell behind what is kept, and begins anew");
            self.log().clear();
            return Ok(true);
        };
        let wanted = self.projects_that_want_attempts();
        let mut attempts = self.attempts(&page.records, |change| wanted.contains(&change.project())).await?;
        let read = page.records.into_iter().map(|record| {
            let attempts = attempt_ids(&record.changes).filter_map(|id| attempts.remove(&id)).collect();
            Committed { record, attempts }
        });
        self.push(read);
        Ok(page.full)
    }

    /// Adds the records that follow.
    fn push(&self, records: impl IntoIterator<Item = Committed>) {
        let now = Timestamp::now();
        let mut log = self.log();
        for Committed { record, attempts } in records {
            let lag = now.since(record.committed_at);
            self.metrics().read(record.position, lag);
            self.complete_until(
                self.now().saturating_sub(u64::try_from(lag.as_micros()).unwrap_or(u64::MAX)),
            );
            let attempts = attempts.into_iter().map(|attempt| (attempt.id, attempt)).collect();
            log.push(Entry::new(record, attempts));
        }
    }

    fn projects_that_want_attempts(&self) -> HashSet<ProjectId> {
        let log = self.log();
        let wants =
            log.projects.iter().filter(|(_, one)| one.streams.values().any(|stream| stream.wants_attempts));
        wants.map(|(id, _)| *id).collect()
    }

    /// The rows of attempts that the changes tell of.
    async fn attempts(
        &self,
        records: &[ChangeRecord],
        wanted: impl Fn(&Change) -> bool,
    ) -> Result<HashMap<AttemptId, Arc<Attempt>>> {
        let changes = records.iter().flat_map(|record| &record.changes).filter(|change| wanted(change));
        let ids: Vec<AttemptId> = attempt_ids(changes).collect();
        Ok(self.store.in_time(READ_LONGEST, self.store.attempts_by_id(Reads::Own, &ids)).await?)
    }

    /// Leave to read from the store. Streams that are behind take turns, so that a thousand of them do not take
    /// all connections.
    pub async fn permit(&self) -> Result<SemaphorePermit<'_>> {
        self.store_reads.acquire().await.map_err(Error::internal)
    }

    /// Ends the streams whose clients take nothing.
    async fn end_slow(&self, stop: &CancellationToken) {
        let limit = self.settings.lag_max;
        let round = (limit / 4).clamp(Duration::from_millis(100), Duration::from_secs(1));
        while pause(round, stop).await {
            let log = self.log();
            let now = self.now();
            for project in log.projects.values() {
                for stream in project.streams.values() {
                    if stream.behind_for(now, project.woken_at) > limit && stream.finish(End::TooSlow) {
                        self.metrics().cut("slow");
                        tracing::debug!("a Watch stream is ended because its client takes nothing");
                    }
                }
            }
        }
    }

    /// Ends the streams whose keys expired or were revoked, by one query for all of them.
    async fn end_revoked(&self, stop: &CancellationToken) {
        while pause(KEY_CHECK_EVERY, stop).await {
            let keys: HashSet<KeyId> = {
                let log = self.log();
                let streams = log.projects.values().flat_map(|project| project.streams.values());
                streams.map(|stream| stream.key).collect()
            };
            if keys.is_empty() {
                continue;
            }
            let checking = self.store.valid_keys(&keys, Timestamp::now());
            let valid = match self.store.in_time(READ_LONGEST, checking).await {
                Ok(valid) => valid,
                Err(error) => {
                    // Without the store there is nothing to tell them either.
                    tracing::warn!(error = %error, "the keys of Watch streams could not be checked");
                    continue;
                }
            };
            let log = self.log();
            for project in log.projects.values() {
                let mut ended = false;
                for stream in project.streams.values() {
                    // A key that came while the query ran is checked by the next round.
                    let revoked = keys.contains(&stream.key) && !valid.contains(&stream.key);
                    if revoked && stream.finish(End::Key) {
                        self.metrics().cut("key");
                        ended = true;
                    }
                }
                if ended {
                    project.wake.send_replace(());
                }
            }
        }
    }
}

/// Waits; false when told to stop.
async fn pause(time: Duration, stop: &CancellationToken) -> bool {
    tokio::select! {
        () = tokio::time::sleep(time) => true,
        () = stop.cancelled() => false,
    }
}

fn attempt_ids<'a>(changes: impl IntoIterator<Item = &'a Change>) -> impl Iterator<Item = AttemptId> {
    changes.into_iter().filter_map(|change| match change {
        Change::Delivery(change) => change.attempt,
        Change::Endpoint(_) => None,
    })
}
