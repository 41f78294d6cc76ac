//! The claimer: fetches due work for free slots. Doorbells make it quick; the slow round alone would do.
//!
//! It looks first, chooses what there is room for, and then claims exactly that: what is full costs the writers
//! nothing. Where all that is oldest is of endpoints that have enough, it looks past them, endpoint by endpoint,
//! so that no backlog hides another's work.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::lanes::Choice;
use super::turn::ClaimCall;
use super::writer::chain;
use super::{Shared, worker};
use crate::domain::clock::Timestamp;
use crate::domain::id::EndpointId;
use crate::store::{ClaimRequest, Due, Hold, Result, Store};

/// The slow round.
const ROUND: Duration = Duration::from_millis(500);
/// A lane that had no work for so long may be forgotten.
const SWEEP: Duration = Duration::from_secs(10);
/// Deliveries in one claim.
const CLAIM: usize = 256;
/// Due deliveries to choose from.
const SEEN: u32 = 512;
/// Endpoints that one look past a backlog goes over, in so many steps; those that it asks for, and how much of each.
const WALKED: u32 = 1000;
const WALKS: usize = 8;
const ASKED: usize = 64;
const SEEN_OF_EACH: u32 = 16;
/// Before another try where other nodes took what was chosen.
const CONTENDED: Duration = Duration::from_millis(10);
/// A look that takes longer waits on a connection that fell silent.
const LOOK_LONGEST: Duration = Duration::from_secs(5);
/// No endpoint is before it.
const START: EndpointId = EndpointId::from_uuid(Uuid::nil());

pub async fn run(store: Store, shared: Arc<Shared>, calls: mpsc::Sender<ClaimCall>, stop: CancellationToken) {
    let mut claimer = Claimer { store, shared: shared.clone(), calls, walked: START };
    let mut swept_at = Instant::now();
    while !stop.is_cancelled() {
        if swept_at.elapsed() >= SWEEP {
            shared.lanes.sweep();
            swept_at = Instant::now();
        }
        match claimer.claim().await {
            Ok(true) => continue,
            Ok(false) => {}
            Err(error) => tracing::warn!(error = chain(&error), "claiming due work failed"),
        }
        tokio::select! {
            () = shared.claims.wait(ROUND) => {}
            () = shared.lanes.room() => {}
            () = stop.cancelled() => {}
        }
    }
}

struct Claimer {
    store: Store,
    shared: Arc<Shared>,
    calls: mpsc::Sender<ClaimCall>,
    /// How far the looks past backlogs have come.
    walked: EndpointId,
}

/// What a look found to claim.
#[derive(Default)]
struct Found {
    choice: Choice,
    /// Due work was seen that is not chosen, or there may be more that was not seen.
    more: bool,
    /// Endpoints of which everything due is chosen; all others, where `all_seen`, have nothing due.
    drained: HashSet<EndpointId>,
    all_seen: bool,
}

impl Found {
    fn is_drained(&self, endpoint: EndpointId) -> bool {
        self.drained.contains(&endpoint) || (self.all_seen && !self.choice.left.contains(&endpoint))
    }
}

impl Claimer {
    /// One claim; says whether another may find more at once.
    async fn claim(&mut self) -> Result<bool> {
        // Nothing could be sent, so it would only be given back.
        if !self.shared.may_start(self.shared.keeper.lease()) {
            return Ok(false);
        }
        // Before the look, so that it clears no spill that it cannot have seen.
        let spilled = self.shared.lanes.spilled();
        let store = self.store.clone();
        let found = store.in_time(LOOK_LONGEST, self.look()).await?;
        self.shared.lanes.set_more_due(found.more);
        let asked = found.choice.take.len();
        let mut claimed = 0;
        if asked > 0 {
            let request = ClaimRequest { ids: found.choice.take.clone(), hold: Hold::No };
            let (reply, answer) = oneshot::channel();
            if self.calls.send(ClaimCall { request, reply }).await.is_err() {
                return Ok(false);
            }
            let Ok(answer) = answer.await else { return Ok(false) };
            let taken = answer?;
            claimed = taken.deliveries.len();
            self.shared.metrics.engine.claims.inc();
            self.shared.metrics.engine.claimed.inc_by(claimed as u64);
            self.shared.take_in(taken).await;
            worker::pump(&self.shared);
        }
        for (endpoint, spill) in spilled {
            if found.is_drained(endpoint) {
                self.shared.lanes.clear_spill(endpoint, spill);
            }
        }
        if claimed < asked {
            self.shared.claims.ring_at(Timestamp::now().plus(CONTENDED));
        }
        Ok(claimed > 0 && found.more)
    }

    async fn look(&mut self) -> Result<Found> {
        let due = self.store.due(SEEN).await?;
        let choice = self.shared.lanes.choose(&due, CLAIM);
        let all_seen = due.len() < SEEN as usize;
        if all_seen || choice.take.len() >= CLAIM / 2 {
            let more = !all_seen || !choice.left.is_empty();
            return Ok(Found { choice, more, drained: HashSet::new(), all_seen });
        }
        self.look_past(due).await
    }

    /// The oldest are of endpoints that have enough. Others have their turn, whatever lies before theirs.
    async fn look_past(&mut self, mut due: Vec<Due>) -> Result<Found> {
        let mut endpoints = self.shared.lanes.hungry_spilled(ASKED);
        endpoints.extend(self.walk().await?);
        endpoints.sort_unstable();
        endpoints.dedup();
        let seen: HashSet<_> = due.iter().map(|one| one.id).collect();
        let theirs = self.store.due_of(&endpoints, Hold::No, SEEN_OF_EACH).await?;
        let mut counts: HashMap<EndpointId, u32> = HashMap::new();
        for one in &theirs {
            *counts.entry(one.endpoint).or_default() += 1;
        }
        due.extend(theirs.into_iter().filter(|one| !seen.contains(&one.id)));
        let choice = self.shared.lanes.choose(&due, CLAIM);
        let is_whole = |endpoint: &EndpointId| counts.get(endpoint).is_none_or(|count| *count < SEEN_OF_EACH);
        let drained = endpoints.into_iter().filter(|id| is_whole(id) && !choice.left.contains(id)).collect();
        Ok(Found { choice, more: true, drained, all_seen: false })
    }

    /// The next endpoints that have due work and room for it.
    async fn walk(&mut self) -> Result<Vec<EndpointId>> {
        let mut found = Vec::new();
        for _ in 0..WALKS {
            let (waiting, next) = self.store.endpoints_with_due_work(self.walked, WALKED).await?;
            found.extend(self.shared.lanes.with_room(&waiting, ASKED - found.len()));
            if let Some(last) = found.last().filter(|_| found.len() >= ASKED) {
                self.walked = *last;
                break;
            }
            self.walked = next.unwrap_or(START);
            if next.is_none() {
                break;
            }
        }
        Ok(found)
    }
}
