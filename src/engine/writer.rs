//! The writers: one transaction per turn for all that waited while the last one ran. There is no timer.
//!
//! A turn that fails because the database is away answers its publishers UNAVAILABLE, and keeps its outcomes
//! for the next. One that fails for another reason is taken apart, until only the culprit is refused.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::breakers::Closing;
use super::ingest::{self, Verdict};
use super::intake::Publish;
use super::turn::{Batch, Inbox, TURN_BYTES, TURN_EVENTS, TURN_OUTCOMES, recv};
use super::{Shared, failures, worker};
use crate::domain::clock::Timestamp;
use crate::domain::delivery::DeliveryStatus;
use crate::domain::error::Error;
use crate::domain::id::LeaseId;
use crate::store::{Aftermath, Claimed, FinishedAttempt, Next, Result, Store, StoreError};

const TURN_LONGEST: Duration = Duration::from_secs(15);
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_LONGEST: Duration = Duration::from_secs(2);
/// When a delivery is attempted again whose outcome the database refused.
const REFUSED_AGAIN: Duration = Duration::from_secs(60);

/// What a turn's transaction came to.
#[derive(Default)]
struct Written {
    verdicts: Vec<Verdict>,
    /// None where nothing was asked for, or the lease was given up.
    claimed: Option<Claimed>,
    aftermath: Aftermath,
    /// Keeps attempts from endpoints that it switched off until the routes say so too.
    closing: Option<Closing>,
    /// Deliveries that ended without an attempt.
    discarded: u64,
}

/// Writes turns until it is told to stop and everything that waited is written.
pub struct Writer {
    store: Store,
    shared: std::sync::Arc<Shared>,
    inbox: Inbox,
    /// What could not be written, for the next turn.
    held: Batch,
    backoff: Option<Duration>,
    retry_at: Instant,
    stop: CancellationToken,
    stopping: bool,
}

impl Writer {
    pub fn new(store: Store, shared: std::sync::Arc<Shared>, inbox: Inbox, stop: CancellationToken) -> Self {
        let (held, retry_at) = (Batch::default(), Instant::now());
        Self { store, shared, inbox, held, backoff: None, retry_at, stop, stopping: false }
    }

    pub async fn run(mut self) {
        while let Some(batch) = self.gather().await {
            self.turn(batch).await;
        }
    }

    /// Waits for work, then takes all that is there; none when no more can come.
    async fn gather(&mut self) -> Option<Batch> {
        let mut batch = std::mem::take(&mut self.held);
        // Held outcomes wait out the back-off; events do not, so that they are answered.
        let mut waiting_to_retry = self.backoff.is_some() && batch.outcomes() > 0;
        while batch.publishes.is_empty()
            && batch.claim.is_none()
            && (batch.outcomes() == 0 || waiting_to_retry)
        {
            if self.inbox.is_closed() {
                if batch.is_empty() {
                    return None;
                }
                tokio::time::sleep_until(self.retry_at).await;
                break;
            }
            let take_outcomes = batch.outcomes() < TURN_OUTCOMES;
            tokio::select! {
                publish = recv(&mut self.inbox.publishes) => match publish {
                    Some(publish) => batch.publish(publish),
                    None => self.inbox.publishes = None,
                },
                outcome = recv(&mut self.inbox.outcomes), if take_outcomes => match outcome {
                    Some(outcome) => batch.outcome(outcome),
                    None => self.inbox.outcomes = None,
                },
                claim = recv(&mut self.inbox.claims) => match claim {
                    Some(claim) => batch.claim = Some(claim),
                    None => self.inbox.claims = None,
                },
                () = tokio::time::sleep_until(self.retry_at), if waiting_to_retry => waiting_to_retry = false,
                () = self.stop.cancelled(), if !self.stopping => {
                    self.stopping = true;
                    self.inbox.close();
                }
            }
        }
        while batch.publishes.len() < TURN_EVENTS && batch.bytes < TURN_BYTES {
            match self.inbox.publishes.as_mut().map(mpsc::Receiver::try_recv) {
                Some(Ok(publish)) if batch.has_room_for(&publish) => batch.publish(publish),
                Some(Ok(publish)) => {
                    self.held.publish(publish);
                    break;
                }
                _ => break,
            }
        }
        while batch.outcomes() < TURN_OUTCOMES {
            match self.inbox.outcomes.as_mut().map(mpsc::Receiver::try_recv) {
                Some(Ok(outcome)) => batch.outcome(outcome),
                _ => break,
            }
        }
        if batch.claim.is_none() {
            batch.claim = self.inbox.claims.as_mut().and_then(|claims| claims.try_recv().ok());
        }
        Some(batch)
    }

    /// Writes a batch as a whole; where the database refuses that, in parts, until only what is at fault is left.
    async fn turn(&mut self, batch: Batch) {
        let newer = self.take_held_publishes();
        // A list and no recursion: each level would take its share of the stack.
        let mut parts = vec![batch];
        while let Some(mut part) = parts.pop() {
            if !part.publishes.is_empty() {
                // What an earlier part left for later keeps its place.
                part.go_first(self.take_held_publishes());
            }
            if let Some((part, error)) = self.try_turn(part).await {
                match part.apart() {
                    Ok(smaller) => parts.extend(smaller.into_iter().rev()),
                    Err(culprit) => self.give_up(culprit, error).await,
                }
            }
        }
        for publish in newer {
            self.held.publish(publish);
        }
    }

    /// One transaction; gives the batch back if it cannot be written as it is.
    async fn try_turn(&mut self, batch: Batch) -> Option<(Batch, StoreError)> {
        // A connection that hangs must not hold everyone for ever; what it did shows when it is tried again. On SQLite
        // this ends only the wait for the connection: a statement there keeps this thread until the disk answers.
        let lease = self.shared.keeper.lease();
        let started = Instant::now();
        let written = self.store.in_time(TURN_LONGEST, self.write(lease, &batch)).await;
        self.measure(&batch, written.as_ref().ok(), started.elapsed());
        if let Err(error) = &written
            && error.is_ambiguous()
            && (!batch.publishes.is_empty() || batch.claim.is_some())
        {
            // It may have claimed what nobody here knows of.
            self.shared.keeper.give_up(lease);
        }
        match written {
            Ok(written) => {
                self.backoff = None;
                if batch.claim.is_some() && written.claimed.is_none() {
                    self.shared.keeper.give_up(lease);
                }
                self.uncount(&batch, &written);
                failures::obey(&self.shared, written.aftermath).await;
                drop(written.closing);
                self.settle(batch, written.verdicts, written.claimed);
                None
            }
            Err(error) if error.is_transient() => {
                self.postpone(batch, error);
                None
            }
            Err(error) => Some((batch, error)),
        }
    }

    fn measure(&self, batch: &Batch, written: Option<&Written>, took: Duration) {
        let engine = &self.shared.metrics.engine;
        engine.turn(batch.publishes.len(), batch.outcomes(), took);
        let Some(written) = written else {
            engine.turns_failed.inc();
            return;
        };
        for status in [DeliveryStatus::Success, DeliveryStatus::Failed, DeliveryStatus::Discarded] {
            let ended = written.aftermath.ended.iter().filter(|(_, ended)| *ended == status).count() as u64;
            let discarded = if status == DeliveryStatus::Discarded { written.discarded } else { 0 };
            engine.ended(status.as_str(), ended + discarded);
        }
    }

    /// What ended is pending no more.
    fn uncount(&self, batch: &Batch, written: &Written) {
        let ended = written.aftermath.ended.iter().map(|(project, _)| *project);
        self.shared.pending.remove(ended.chain(batch.discarded.iter().map(|one| one.project)));
    }

    /// The turn's transaction.
    async fn write(&self, lease: LeaseId, batch: &Batch) -> Result<Written> {
        let mut written = Written::default();
        let mut tx = self.store.begin(self.inbox.lane).await?;
        if !batch.publishes.is_empty() {
            written.verdicts = ingest::write(&mut tx, &self.shared, lease, &batch.publishes).await?;
        }
        if !batch.discarded.is_empty() {
            written.discarded = tx.discard(&batch.discarded).await?;
        }
        if !batch.finished.is_empty() {
            let rules = failures::rules(&self.shared);
            written.aftermath = tx.finish_attempts(&batch.finished, &rules).await?;
            written.closing = failures::close(&self.shared, &written.aftermath);
        }
        if !batch.released.is_empty() {
            for closed in tx.release(&batch.released).await? {
                self.shared.breakers.close(closed);
            }
        }
        if let Some(call) = &batch.claim {
            written.claimed = match tx.claim(lease, &call.request).await {
                Err(StoreError::LeaseGone) => None,
                claimed => Some(claimed?),
            };
        }
        tx.commit().await?;
        Ok(written)
    }

    /// After the commit: work goes to its lanes, and everyone who waits is told.
    fn settle(&mut self, mut batch: Batch, verdicts: Vec<Verdict>, claimed: Option<Claimed>) {
        let (mut spilled, mut expands) = (false, false);
        for (publish, verdict) in std::mem::take(&mut batch.publishes).into_iter().zip(verdicts) {
            let answer = match verdict {
                Verdict::Answer(answer) => answer,
                Verdict::Accepted { receipt, open, jobs, spilled: behind, paced, expands: wide } => {
                    let project = publish.event.message.project;
                    expands |= wide;
                    self.shared.pending.add(project, open);
                    spilled |= !behind.is_empty();
                    // Again, now that it is committed: a look at the table in between did not see it.
                    for endpoint in behind {
                        self.shared.lanes.spill(endpoint);
                    }
                    for endpoint in paced {
                        self.shared.pacer.tell(project, endpoint);
                    }
                    for (reservation, job) in jobs {
                        reservation.fill(job);
                    }
                    Ok(receipt)
                }
                Verdict::Later => {
                    self.held.publish(publish);
                    continue;
                }
                Verdict::Unread(version) => {
                    self.shared.aside.put(publish, version);
                    continue;
                }
            };
            // Whoever stopped waiting finds the event all the same.
            let _gone = publish.reply.send(answer);
        }
        if let Some(call) = batch.claim.take() {
            let _gone = call.reply.send(claimed.ok_or(StoreError::LeaseGone));
        }
        if expands {
            self.shared.expansions.notify_one();
        }
        if spilled {
            self.shared.claims.ring();
        }
        self.ring(&batch);
    }

    /// Those are told who take up what goes on later, now that it is committed.
    fn ring(&self, batch: &Batch) {
        for one in &batch.finished {
            match one.next {
                Next::Retry(due) if one.limited => {
                    // The database's millisecond must have begun.
                    let wait = due.since(Timestamp::now()) + Duration::from_millis(1);
                    let (project, endpoint) = (one.attempt.project, one.attempt.endpoint);
                    self.shared.pacer.tell_at(project, endpoint, std::time::Instant::now() + wait);
                }
                Next::Retry(due) => self.shared.claims.ring_at(due),
                _ => {}
            }
        }
        for due in batch.released.iter().filter_map(|one| one.due) {
            self.shared.claims.ring_at(due);
        }
        worker::pump(&self.shared);
    }

    fn take_held_publishes(&mut self) -> Vec<Publish> {
        self.held.bytes = 0;
        std::mem::take(&mut self.held.publishes)
    }

    /// The database is away: whoever can ask again is told so, and what was sent is kept.
    fn postpone(&mut self, batch: Batch, error: StoreError) {
        tracing::warn!(error = chain(&error), "the database is not available");
        for publish in batch.publishes {
            let _gone = publish.reply.send(Err(Error::unavailable(
                "the event may or may not have been accepted; publish it again with an idempotency key",
            )));
        }
        if let Some(call) = batch.claim {
            let _gone = call.reply.send(Err(error));
        }
        let backoff = self.backoff.map_or(BACKOFF_FIRST, |backoff| (backoff * 2).min(BACKOFF_LONGEST));
        self.backoff = Some(backoff);
        self.retry_at = Instant::now() + backoff;
        self.held.finished.extend(batch.finished);
        self.held.released.extend(batch.released);
        self.held.discarded.extend(batch.discarded);
    }

    /// Refuses the culprit.
    async fn give_up(&mut self, batch: Batch, error: StoreError) {
        tracing::error!(error = chain(&error), "a write was refused by the database");
        if let Some(call) = batch.claim {
            let _gone = call.reply.send(Err(error));
        }
        for publish in batch.publishes {
            let cause = anyhow::anyhow!("the database refused the event");
            let _gone = publish.reply.send(Err(Error::internal(cause)));
        }
        let finished = batch.finished.into_iter().map(FinishedAttempt::without_capture).collect();
        let rest =
            Batch { finished, released: batch.released, discarded: batch.discarded, ..Batch::default() };
        if rest.outcomes() > 0 {
            self.write_plain(rest).await;
        }
    }

    /// The last try, without what the receiver sent. What is refused even so is given back, to be taken up again after
    /// a while: at least once.
    async fn write_plain(&mut self, batch: Batch) {
        let lease = self.shared.keeper.lease();
        let started = Instant::now();
        let written = self.store.in_time(TURN_LONGEST, self.write(lease, &batch)).await;
        self.measure(&batch, written.as_ref().ok(), started.elapsed());
        let error = match written {
            Ok(written) => {
                self.uncount(&batch, &written);
                failures::obey(&self.shared, written.aftermath).await;
                drop(written.closing);
                self.ring(&batch);
                return;
            }
            Err(error) if error.is_transient() => return self.postpone(batch, error),
            Err(error) => error,
        };
        tracing::error!(error = chain(&error), outcomes = batch.outcomes(), "outcomes could not be written");
        let released = batch.given_back(Timestamp::now().plus(REFUSED_AGAIN));
        let batch = Batch { released, ..Batch::default() };
        match self.store.in_time(TURN_LONGEST, self.write(lease, &batch)).await {
            Ok(_) => self.ring(&batch),
            Err(error) if error.is_transient() => self.postpone(batch, error),
            Err(error) => {
                tracing::error!(
                    error = chain(&error),
                    "claims could not be given back; their lease is given up"
                );
                // Or they would stay for as long as it is renewed.
                for one in batch.released {
                    self.shared.keeper.give_up(one.claim.lease);
                }
            }
        }
    }
}

/// An error with its causes, for the log.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
