//! Upkeep: work that was held goes on after resume, old idempotency keys go, partitions are made ahead.
//!
//! Each is a bounded statement that finds its own work, so it may be repeated, interrupted, or run on several
//! nodes at once.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::doorbell::Doorbell;
use super::writer::chain;
use crate::domain::id::EndpointId;
use crate::store::{Lane, Result, Store};

/// The slow round, which also finds what a process that ended left undone.
const ROUND: Duration = Duration::from_secs(60);
const UNPARK_BATCH: u32 = 500;

pub async fn run(
    store: Store,
    mut resumed: mpsc::Receiver<EndpointId>,
    claims: Arc<Doorbell>,
    stop: CancellationToken,
) {
    // The first round is at the start.
    let mut round = tokio::time::interval(ROUND);
    round.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let endpoint = tokio::select! {
            Some(endpoint) = resumed.recv() => Some(endpoint),
            _ = round.tick() => None,
            () = stop.cancelled() => return,
        };
        if let Err(error) = unpark(&store, endpoint, &claims, &stop).await {
            tracing::warn!(error = chain(&error), "held work could not be let go; the next round will");
        }
        if endpoint.is_none()
            && let Err(error) = tidy(&store).await
        {
            tracing::warn!(error = chain(&error), "upkeep failed; the next round tries again");
        }
    }
}

/// In bounded batches, each a transaction of its own.
async fn unpark(
    store: &Store,
    endpoint: Option<EndpointId>,
    claims: &Doorbell,
    stop: &CancellationToken,
) -> Result<()> {
    while !stop.is_cancelled() {
        let mut tx = store.begin(Lane::Engine).await?;
        let moved = tx.unpark(endpoint, UNPARK_BATCH).await?;
        tx.commit().await?;
        if moved > 0 {
            claims.ring();
        }
        if moved < u64::from(UNPARK_BATCH) {
            break;
        }
    }
    Ok(())
}

async fn tidy(store: &Store) -> Result<()> {
    store.make_partitions().await?;
    store.forget_expired_keys().await?;
    store.checkpoint().await
}
