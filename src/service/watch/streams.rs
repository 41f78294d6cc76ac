//! The open streams: how many there may be, and which of them are to end although nobody asks them for
//! their next message.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::feed::{Feed, READ_LONGEST};
use crate::domain::error::{Error, ErrorKind, Result};
use crate::domain::id::{KeyId, ProjectId};
use crate::store::Store;

/// Why a stream is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum End {
    /// Its client takes nothing.
    TooSlow = 1,
    /// Its key expired or was revoked.
    Key = 2,
}

/// What others than its client may know of a stream. Times are the feed's, in microseconds.
pub struct OpenStream {
    pub key: KeyId,
    pub wants_attempts: bool,
    /// When it was last asked for a message or, while it waits for one, woken and asked again.
    asked_at: AtomicU64,
    /// It was asked, and there was nothing yet.
    waits: AtomicBool,
    /// It reads from the store, and nobody can say what there will be to take.
    reads: AtomicBool,
    /// Since when a round saw that it does not take what there is; 0 where it does.
    behind_since: AtomicU64,
    end: AtomicU8,
}

impl OpenStream {
    fn new(key: KeyId, wants_attempts: bool) -> Self {
        // Not asked yet, so that a client that never takes anything is found too.
        Self {
            key,
            wants_attempts,
            asked_at: AtomicU64::new(0),
            waits: AtomicBool::new(false),
            reads: AtomicBool::new(false),
            behind_since: AtomicU64::new(0),
            end: AtomicU8::new(0),
        }
    }

    /// Its transport has room and asks; `waits` says that there was nothing yet.
    pub fn asked(&self, now: u64, waits: bool) {
        self.asked_at.store(now, Ordering::Release);
        self.waits.store(waits, Ordering::Release);
        self.behind_since.store(0, Ordering::Release);
    }

    fn read_begins(&self) {
        self.reads.store(true, Ordering::Release);
    }

    /// There is something to take, and it did not ask since.
    fn read_ended(&self) {
        self.waits.store(false, Ordering::Release);
        self.reads.store(false, Ordering::Release);
    }

    /// For how long it has been seen not to take what there is, though rounds came by. A stream that has room
    /// asks again at once after a message and whenever it is woken; `woken_at` is when that was last.
    pub fn behind_for(&self, now: u64, woken_at: u64) -> Duration {
        let is_behind =
            !self.waits.load(Ordering::Acquire) || self.asked_at.load(Ordering::Acquire) < woken_at;
        if !is_behind || self.reads.load(Ordering::Acquire) {
            self.behind_since.store(0, Ordering::Release);
            return Duration::ZERO;
        }
        match self.behind_since.compare_exchange(0, now, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Duration::ZERO,
            Err(since) => Duration::from_micros(now.saturating_sub(since)),
        }
    }

    /// The first reason stays.
    pub fn finish(&self, end: End) -> bool {
        self.end.compare_exchange(0, end as u8, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    pub fn ended(&self) -> Option<End> {
        match self.end.load(Ordering::Acquire) {
            1 => Some(End::TooSlow),
            2 => Some(End::Key),
            _ => None,
        }
    }
}

/// A stream's place among the open ones, given back when dropped.
pub struct Seat {
    pub feed: Arc<Feed>,
    pub stream: Arc<OpenStream>,
    /// Rings when there may be something new, or the stream is to end.
    pub wake: watch::Receiver<()>,
    project: ProjectId,
    number: u64,
}

impl Feed {
    /// Takes a place for a new stream.
    pub fn enter(self: &Arc<Self>, project: ProjectId, key: KeyId, wants_attempts: bool) -> Result<Seat> {
        let mut log = self.log();
        if log.streams >= super::STREAMS_MAX {
            let message = format!("this server has {} Watch streams, which is all it takes", log.streams);
            let mut error = Error::new(ErrorKind::ResourceExhausted, "TOO_MANY_STREAMS", message);
            error.retry_after = Some(Duration::from_secs(5));
            return Err(error);
        }
        let limit = self.settings.streams_per_project;
        let streams = &mut log.project(project).streams;
        // Those that were told to end free their places, whether or not their clients heard it.
        // Only so many of them, because those whose clients do not hear it hold their places on the server.
        let running = || streams.values().filter(|one| one.ended().is_none()).count();
        if streams.len() >= 2 * limit || (streams.len() >= limit && running() >= limit) {
            let message =
                format!("the project has {limit} Watch streams on this server, which is all it may");
            return Err(Error::quota("WATCH_STREAMS", project, message));
        }
        let number = self.next_number();
        let stream = Arc::new(OpenStream::new(key, wants_attempts));
        streams.insert(number, stream.clone());
        let wake = log.project(project).wake.subscribe();
        log.streams += 1;
        self.metrics().streams.inc();
        if log.streams == 1 {
            self.first_stream.notify_one();
        }
        drop(log);
        Ok(Seat { feed: self.clone(), stream, wake, project, number })
    }
}

impl Seat {
    /// Reads from the store when it is the stream's turn: a thousand streams that are behind must not take all
    /// connections. In a task of its own, because a stream whose client has no room is not polled, and would
    /// hold its turn and its connection for as long.
    pub async fn read<T, F>(&self, reading: impl FnOnce(Store) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let (feed, stream) = (self.feed.clone(), self.stream.clone());
        let reading = reading(feed.store().clone());
        stream.read_begins();
        let task = tokio::spawn(async move {
            let found = match feed.permit().await {
                Ok(_permit) => feed.store().in_time(READ_LONGEST, reading).await,
                Err(error) => Err(error),
            };
            stream.read_ended();
            found
        });
        AbortOnDropHandle::new(task).await.map_err(Error::internal)?
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut log = self.feed.log();
        log.streams -= 1;
        self.feed.metrics().streams.dec();
        let project = log.project(self.project);
        project.streams.remove(&self.number);
        if project.streams.is_empty() {
            log.projects.remove(&self.project);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_behind_while_it_does_not_take_what_there_is() {
        let stream = OpenStream::new(KeyId::new(), true);
        let behind = |now, woken_at| stream.behind_for(now, woken_at).as_micros();
        assert_eq!((behind(10, 0), behind(15, 0)), (0, 5), "never asked");
        stream.asked(20, true);
        assert_eq!((behind(30, 0), behind(1000, 19)), (0, 0), "it waits, and was not woken since");
        assert_eq!((behind(40, 25), behind(47, 46)), (0, 7), "woken, and not asked again");
        stream.asked(50, false);
        assert_eq!((behind(60, 46), behind(64, 46)), (0, 4), "it was given a message and does not ask again");
        stream.read_begins();
        assert_eq!((behind(61, 46), behind(64, 46)), (0, 0), "the store is to blame");
        stream.read_ended();
        assert_eq!((behind(62, 46), behind(64, 46)), (0, 2), "it was read, and is not taken");
        stream.asked(65, true);
        assert_eq!((behind(70, 46), behind(80, 46)), (0, 0), "caught up");
        assert!(stream.finish(End::TooSlow) && !stream.finish(End::Key));
        assert_eq!(stream.ended(), Some(End::TooSlow));
    }
}
