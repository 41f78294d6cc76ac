//! What a writer works on: the inbox that its work comes from, and the batch that one turn takes of it.

use tokio::sync::{mpsc, oneshot};

use super::intake::Publish;
use crate::domain::clock::Timestamp;
use crate::domain::delivery::Probe;
use crate::store::{ClaimRequest, Claimed, Discarded, FinishedAttempt, Hold, Lane, Released, Result};

/// What became of a claimed delivery.
pub enum Outcome {
    Finished(Box<FinishedAttempt>),
    Released(Released),
    Discarded(Box<Discarded>),
}

/// A claim, and who waits for it.
pub struct ClaimCall {
    pub request: ClaimRequest,
    pub reply: oneshot::Sender<Result<Claimed>>,
}

/// Where a writer's work comes from; none where another writer takes that kind.
pub struct Inbox {
    pub publishes: Option<mpsc::Receiver<Publish>>,
    pub outcomes: Option<mpsc::Receiver<Outcome>>,
    pub claims: Option<mpsc::Receiver<ClaimCall>>,
    pub lane: Lane,
}

impl Inbox {
    pub fn all(
        publishes: mpsc::Receiver<Publish>,
        outcomes: mpsc::Receiver<Outcome>,
        claims: mpsc::Receiver<ClaimCall>,
    ) -> Self {
        Self {
            publishes: Some(publishes),
            outcomes: Some(outcomes),
            claims: Some(claims),
            lane: Lane::Ingest,
        }
    }

    pub fn publishes(publishes: mpsc::Receiver<Publish>) -> Self {
        Self { publishes: Some(publishes), outcomes: None, claims: None, lane: Lane::Ingest }
    }

    pub fn outcomes(outcomes: mpsc::Receiver<Outcome>) -> Self {
        Self { publishes: None, outcomes: Some(outcomes), claims: None, lane: Lane::Engine }
    }

    pub fn claims(claims: mpsc::Receiver<ClaimCall>) -> Self {
        Self { publishes: None, outcomes: None, claims: Some(claims), lane: Lane::Engine }
    }

    /// Takes no more in; what already waits is still received.
    pub fn close(&mut self) {
        if let Some(publishes) = &mut self.publishes {
            publishes.close();
        }
        if let Some(outcomes) = &mut self.outcomes {
            outcomes.close();
        }
        if let Some(claims) = &mut self.claims {
            claims.close();
        }
    }

    pub fn is_closed(&self) -> bool {
        self.publishes.is_none() && self.outcomes.is_none() && self.claims.is_none()
    }
}

/// The most that one turn takes.
pub const TURN_EVENTS: usize = 512;
pub const TURN_BYTES: usize = 8 * 1024 * 1024;
pub const TURN_OUTCOMES: usize = 512;

/// One turn's work.
#[derive(Default)]
pub struct Batch {
    pub publishes: Vec<Publish>,
    pub bytes: usize,
    pub finished: Vec<FinishedAttempt>,
    pub released: Vec<Released>,
    pub discarded: Vec<Discarded>,
    pub claim: Option<ClaimCall>,
}

impl Batch {
    pub fn publish(&mut self, publish: Publish) {
        self.bytes += publish.event.message.payload.len();
        self.publishes.push(publish);
    }

    /// A payload larger than a turn goes alone.
    pub fn has_room_for(&self, publish: &Publish) -> bool {
        self.publishes.is_empty() || self.bytes + publish.event.message.payload.len() <= TURN_BYTES
    }

    pub fn outcome(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Finished(one) => self.finished.push(*one),
            Outcome::Released(one) => self.released.push(one),
            Outcome::Discarded(one) => self.discarded.push(*one),
        }
    }

    pub fn outcomes(&self) -> usize {
        self.finished.len() + self.released.len() + self.discarded.len()
    }

    /// Puts events before its own.
    pub fn go_first(&mut self, earlier: Vec<Publish>) {
        if earlier.is_empty() {
            return;
        }
        let own = std::mem::replace(&mut self.publishes, earlier);
        self.publishes.extend(own);
        self.bytes = self.publishes.iter().map(|publish| publish.event.message.payload.len()).sum();
    }

    /// Its claims given back, not to be taken up again before that time.
    pub fn given_back(&self, due: Timestamp) -> Vec<Released> {
        let finished = self.finished.iter().map(|one| Released {
            delivery: one.attempt.delivery,
            endpoint: one.attempt.endpoint,
            claim: one.claim,
            hold: if one.probe == Some(Probe::Endpoint) { Hold::Probe } else { Hold::No },
            due: Some(due),
        });
        let discarded = self.discarded.iter().map(|one| Released {
            delivery: one.delivery,
            endpoint: one.endpoint,
            claim: one.claim,
            hold: Hold::No,
            due: Some(due),
        });
        let released = self.released.iter().map(|one| Released { due: Some(due), ..*one });
        finished.chain(discarded).chain(released).collect()
    }

    /// In smaller parts: by kind, then in halves. The batch itself where it is one thing.
    pub fn apart(self) -> std::result::Result<Vec<Self>, Self> {
        let kinds = [self.publishes.len(), self.finished.len(), self.released.len(), self.discarded.len()];
        let several =
            kinds.iter().filter(|count| **count > 0).count() + usize::from(self.claim.is_some()) > 1;
        if !several && kinds.iter().sum::<usize>() < 2 {
            return Err(self);
        }
        let Self { publishes, finished, released, discarded, claim, .. } = self;
        let mut parts = vec![Self { claim, ..Self::default() }];
        for finished in halves(finished, several) {
            parts.push(Self { finished, ..Self::default() });
        }
        for released in halves(released, several) {
            parts.push(Self { released, ..Self::default() });
        }
        for discarded in halves(discarded, several) {
            parts.push(Self { discarded, ..Self::default() });
        }
        for publishes in halves(publishes, several) {
            let mut part = Self::default();
            part.go_first(publishes);
            parts.push(part);
        }
        parts.retain(|part| !part.is_empty());
        Ok(parts)
    }

    pub fn is_empty(&self) -> bool {
        self.publishes.is_empty() && self.outcomes() == 0 && self.claim.is_none()
    }
}

fn halves<T>(mut first: Vec<T>, whole: bool) -> [Vec<T>; 2] {
    let second = if whole { Vec::new() } else { first.split_off(first.len() / 2) };
    [first, second]
}

/// Receives, or waits for ever where another writer takes that kind.
pub async fn recv<T>(receiver: &mut Option<mpsc::Receiver<T>>) -> Option<T> {
    match receiver {
        Some(receiver) => receiver.recv().await,
        None => std::future::pending().await,
    }
}
