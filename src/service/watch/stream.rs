//! One stream's place in the log, and its next message.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::details::Details;
use super::feed::POLL;
use super::filter::WatchFilter;
use super::log::{Entry, Look};
use super::streams::{End, Seat};
use super::token::{Place, Tokens};
use super::{Payload, WatchItem, WatchPayload, too_old};
use crate::domain::change::{Change, Cursor, DeliveryChange};
use crate::domain::clock::Timestamp;
use crate::domain::endpoint::Endpoint;
use crate::domain::error::{Error, ErrorKind, RESUME_TOKEN, Result};
use crate::domain::id::ProjectId;
use crate::store::Reads;
use crate::store::snapshot;

/// What a stream that is behind the ring reads at once, and holds until its client takes it.
const CATCH_UP: u32 = 64;
const CATCH_UP_BYTES: u32 = 64 << 10;
const BOOKMARK_EVERY: Duration = Duration::from_secs(15);
/// Changes of the project that may go by unmatched without a bookmark.
const BOOKMARK_AFTER: u32 = 1000;

/// One stream. It holds a cursor, and while it is not caught up a bounded piece of the log.
pub struct Watcher {
    pub(super) seat: Seat,
    pub(super) project: ProjectId,
    pub(super) filter: WatchFilter,
    tokens: Tokens,
    pub(super) place: Place,
    /// Endpoints of the snapshot that were read and not sent.
    pub(super) endpoints: VecDeque<Endpoint>,
    /// Records that were read and not sent in full.
    pub(super) records: VecDeque<Arc<Entry>>,
    /// What the next changes are sent with.
    pub(super) details: Details,
    passed: u32,
    bookmark_at: Instant,
}

/// What the records at hand give.
enum Step {
    Item(WatchItem),
    /// The next change needs details that are not read yet.
    Details,
    /// Many changes went by; look around before going on.
    Passed,
    /// All records at hand are done.
    Done,
}

/// What one place of a record holds for the stream.
enum Shown {
    Payload(WatchPayload),
    Nothing,
    /// Details that are not read yet say so.
    Unknown,
}

impl Watcher {
    pub(super) fn new(
        seat: Seat,
        project: ProjectId,
        filter: WatchFilter,
        tokens: Tokens,
        place: Place,
    ) -> Self {
        Self {
            seat,
            project,
            filter,
            tokens,
            place,
            endpoints: VecDeque::new(),
            records: VecDeque::new(),
            details: Details::default(),
            passed: 0,
            bookmark_at: Instant::now(),
        }
    }

    /// To go on with after what was returned last.
    pub fn token(&self) -> String {
        self.tokens.seal(self.place)
    }

    /// The next message, to be asked for when the client has room for it. May be dropped while it waits and
    /// called again: nothing is taken before it is returned.
    pub async fn next(&mut self) -> Result<WatchItem> {
        let (feed, stream) = (self.seat.feed.clone(), self.seat.stream.clone());
        let mut finding = std::pin::pin!(self.find());
        std::future::poll_fn(|context| {
            let found = finding.as_mut().poll(context);
            stream.asked(feed.now(), found.is_pending());
            found
        })
        .await
    }

    async fn find(&mut self) -> Result<WatchItem> {
        loop {
            self.may_go_on()?;
            if self.passed >= BOOKMARK_AFTER || Instant::now() >= self.bookmark_at {
                return Ok(self.bookmark(false));
            }
            if self.place.snapshot.is_some() {
                if self.endpoints.is_empty() {
                    self.read_endpoints().await?;
                }
                return Ok(self.next_endpoint());
            }
            match self.step()? {
                Step::Item(item) => return Ok(item),
                Step::Passed => continue,
                Step::Details => {
                    self.read_details().await?;
                    continue;
                }
                Step::Done => {}
            }
            self.seat.wake.mark_unchanged();
            let look = self.seat.feed.log().look(self.project, self.place.cursor);
            let mut until = self.bookmark_at;
            match look {
                Look::Next(entry) => {
                    self.records.push_back(entry);
                    continue;
                }
                Look::CaughtUp(head) => self.place.cursor = self.place.cursor.max(Cursor::after(head)),
                Look::Behind => {
                    if self.catch_up().await? {
                        continue;
                    }
                    until = until.min(Instant::now() + POLL);
                }
            }
            tokio::select! {
                _ = self.seat.wake.changed() => {}
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }

    fn may_go_on(&self) -> Result<()> {
        match self.seat.stream.ended() {
            None => Ok(()),
            Some(End::Key) => {
                let message = "the key expired or was revoked";
                Err(Error::new(ErrorKind::Unauthenticated, "INVALID_KEY", message))
            }
            Some(End::TooSlow) => {
                let message = "the client did not take what there was to send; resume with the last token";
                let error = Error::new(ErrorKind::ResourceExhausted, "WATCH_TOO_SLOW", message);
                Err(error.with(RESUME_TOKEN, self.token()))
            }
        }
    }

    /// A message for the present place.
    pub(super) fn item(&mut self, payload: WatchPayload, at: Timestamp) -> WatchItem {
        self.passed = 0;
        self.bookmark_at = Instant::now() + BOOKMARK_EVERY;
        WatchItem { payload, token: self.token(), at }
    }

    pub(super) fn bookmark(&mut self, snapshot_end: bool) -> WatchItem {
        self.item(WatchPayload::Bookmark { snapshot_end }, Timestamp::now())
    }

    /// Reads what follows from the store; says whether anything does.
    async fn catch_up(&mut self) -> Result<bool> {
        let cursor = self.place.cursor;
        self.seat.feed.metrics().catch_ups.inc();
        let reading = self.seat.read(async move |store| {
            Ok(match store.changes(Reads::Callers, cursor, CATCH_UP, CATCH_UP_BYTES).await? {
                Some(page) => Ok(page.records),
                None => Err(store.log_bounds(Reads::Callers).await?.floor),
            })
        });
        let records = reading.await?.map_err(|floor| too_old(&self.tokens, floor))?;
        let entries = records.into_iter().map(|record| Arc::new(Entry::new(record, HashMap::new())));
        self.records = entries.collect();
        Ok(!self.records.is_empty())
    }

    /// Goes on in the records at hand, up to the next message.
    fn step(&mut self) -> Result<Step> {
        while let Some(entry) = self.records.front().cloned() {
            let record = &entry.record;
            let mut place = self.next_place(record.position);
            while let Some(at) = place.filter(|_| entry.concerns(self.project)) {
                let Some(change) = record.changes.get(at as usize / 2) else { break };
                let skip = (at | 1).checked_add(1);
                if change.project() != self.project {
                    place = skip;
                } else if !self.filter.matches(change) {
                    place = skip;
                    self.passed += 1;
                    if self.passed >= BOOKMARK_AFTER {
                        self.place.cursor = Cursor { position: record.position, index: at | 1 };
                        return Ok(Step::Passed);
                    }
                } else {
                    match self.shown(&entry, change, at)? {
                        Shown::Nothing => place = at.checked_add(1),
                        Shown::Unknown => {
                            if let Some(index) = at.checked_sub(1) {
                                self.place.cursor = Cursor { position: record.position, index };
                            }
                            return Ok(Step::Details);
                        }
                        Shown::Payload(payload) => {
                            self.place.cursor = self.cursor_at(&entry, change, at);
                            return Ok(Step::Item(self.item(payload, record.committed_at)));
                        }
                    }
                }
            }
            self.place.cursor = Cursor::after(record.position);
            self.records.pop_front();
        }
        Ok(Step::Done)
    }

    /// The first place of a record that was not seen; none where it was seen as a whole.
    pub(super) fn next_place(&self, position: i64) -> Option<u32> {
        if self.place.cursor.position == position { self.place.cursor.index.checked_add(1) } else { Some(0) }
    }

    /// The cursor right after a place. At the record's end it needs the record no longer.
    fn cursor_at(&self, entry: &Entry, change: &Change, at: u32) -> Cursor {
        let attempt_follows = match change {
            Change::Delivery(change) => at.is_multiple_of(2) && self.filter.shows_attempt(change),
            Change::Endpoint(_) => false,
        };
        let is_last = at as usize / 2 + 1 == entry.record.changes.len();
        if is_last && !attempt_follows {
            return Cursor::after(entry.record.position);
        }
        Cursor { position: entry.record.position, index: at }
    }

    /// Each change has two places: its own, and its attempt's.
    fn shown(&self, entry: &Entry, change: &Change, at: u32) -> Result<Shown> {
        Ok(match change {
            Change::Endpoint(change) if at.is_multiple_of(2) => {
                let endpoint = Box::new(snapshot::read(&change.snapshot)?);
                Shown::Payload(WatchPayload::Endpoint(change.kind, endpoint))
            }
            Change::Delivery(change) if at.is_multiple_of(2) => self.delivery(change),
            Change::Delivery(change) => self.attempt(entry, change),
            Change::Endpoint(_) => Shown::Nothing,
        })
    }

    fn delivery(&self, change: &DeliveryChange) -> Shown {
        if !self.filter.shows_delivery(change) {
            return Shown::Nothing;
        }
        let payload = if self.filter.shows_payload(change) {
            match self.details.payloads.get(&change.event) {
                None => return Shown::Unknown,
                Some(None) => Payload::Omitted,
                Some(Some(payload)) => Payload::Inline(payload.clone()),
            }
        } else {
            Payload::NotAsked
        };
        Shown::Payload(WatchPayload::Delivery(Box::new(change.clone()), payload))
    }

    fn attempt(&self, entry: &Entry, change: &DeliveryChange) -> Shown {
        let Some(id) = change.attempt.filter(|_| self.filter.shows_attempt(change)) else {
            return Shown::Nothing;
        };
        let known = entry.attempts.get(&id).map(Some);
        match known.or_else(|| self.details.attempts.get(&id).map(Option::as_ref)) {
            None => Shown::Unknown,
            Some(None) => Shown::Nothing,
            Some(Some(attempt)) => Shown::Payload(WatchPayload::Attempt(attempt.clone())),
        }
    }
}
