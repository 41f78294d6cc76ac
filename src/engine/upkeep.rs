//! Upkeep: queued work follows its endpoint's state.
//!
//! Endpoints take turns, one bounded batch each, so that none waits for the end of another's backlog. The slow round
//! takes part in the same way, and finds what nobody was told of: what a process that ended left undone, and what was
//! too much at once. Each batch finds its own work, so it may be repeated, interrupted, or done on several nodes at once.

mod turns;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Shared;
use super::writer::chain;
use crate::domain::id::EndpointId;
use crate::store::{Lane, Result, Store, StoreError};
use turns::Turns;

const ROUND: Duration = Duration::from_secs(60);
/// Rows of one turn.
const BATCH: u32 = 500;
/// Endpoints that the round has among those whose turn comes.
const ROUND_AT_ONCE: usize = 64;
/// Endpoints with queued work that one look for deleted ones goes over.
const WALKED: u32 = 1000;
/// What takes longer waits on a connection that fell silent.
const STEP_LONGEST: Duration = Duration::from_secs(30);

/// No endpoint is before it.
const START: EndpointId = EndpointId::from_uuid(Uuid::nil());

/// How far the slow round has come.
enum Round {
    /// Among endpoints whose state says that their work may have to move.
    Unaligned(Option<EndpointId>),
    /// Among those with work, for the ones that are deleted.
    Deleted(EndpointId),
    Over,
}

struct Upkeep {
    store: Store,
    shared: Arc<Shared>,
    turns: Turns,
    round: Round,
}

pub async fn run(
    store: Store,
    mut changed: mpsc::Receiver<EndpointId>,
    shared: Arc<Shared>,
    stop: CancellationToken,
) {
    let mut upkeep = Upkeep { store, shared, turns: Turns::default(), round: Round::Over };
    // The first round is at the start.
    let mut round = tokio::time::interval(ROUND);
    round.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            Some(endpoint) = changed.recv(), if upkeep.turns.have_room() => upkeep.turns.add(endpoint),
            _ = round.tick() => upkeep.begin_round(),
            () = std::future::ready(()), if upkeep.has_work() => upkeep.turn().await,
        }
    }
}

impl Upkeep {
    /// One that is under way goes on.
    fn begin_round(&mut self) {
        if matches!(self.round, Round::Over) {
            self.round = Round::Unaligned(None);
        }
    }

    fn has_work(&self) -> bool {
        !matches!(self.round, Round::Over) || !self.turns.is_empty()
    }

    /// Lets the round find more, if it is its time, and moves a batch of whoever is next.
    async fn turn(&mut self) {
        if self.turns.len() < ROUND_AT_ONCE
            && let Err(error) = self.walk().await
        {
            tracing::warn!(
                error = chain(&error),
                "queued work was not looked through; the next round does it"
            );
            self.round = Round::Over;
        }
        let Some(endpoint) = self.turns.next() else { return };
        match self.align(endpoint).await {
            Ok(true) => self.turns.add(endpoint),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%endpoint, error = chain(&error), "queued work was not moved; the next round does it");
            }
        }
    }

    /// A step of the round.
    async fn walk(&mut self) -> Result<()> {
        let store = &self.store;
        self.round = match self.round {
            Round::Over => Round::Over,
            Round::Unaligned(after) => {
                match store.in_time(STEP_LONGEST, store.unaligned_after(after)).await? {
                    Some(found) => {
                        self.turns.add(found);
                        Round::Unaligned(Some(found))
                    }
                    None => Round::Deleted(START),
                }
            }
            Round::Deleted(after) => {
                let looking = store.deleted_with_work(after, WALKED);
                let (found, next) = store.in_time(STEP_LONGEST, looking).await?;
                found.into_iter().for_each(|endpoint| self.turns.add(endpoint));
                next.map_or(Round::Over, Round::Deleted)
            }
        };
        Ok(())
    }

    /// Brings some of an endpoint's queued work in line with its state; says whether there may be more.
    async fn align(&self, endpoint: EndpointId) -> Result<bool> {
        let step = async {
            let mut tx = self.store.begin(Lane::Engine).await?;
            let aligned = tx.align(endpoint, BATCH).await?;
            tx.commit().await?;
            Ok::<_, StoreError>(aligned)
        };
        let aligned = self.store.in_time(STEP_LONGEST, step).await?;
        if aligned.due {
            self.shared.claims.ring();
        }
        // What was parked for slots before, the pacer finds by itself: told of it each time, it would ask back where this
        // node's routes are behind.
        if aligned.rows > 0
            && let Some(project) = aligned.paced
        {
            self.shared.pacer.tell(project, endpoint);
        }
        Ok(aligned.rows >= u64::from(BATCH))
    }
}
