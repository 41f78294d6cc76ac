//! Upkeep: queued work follows its endpoint's state, old idempotency keys go, partitions are made ahead.
//!
//! Each is a bounded statement that finds its own work, so it may be repeated, interrupted, or run on several
//! nodes at once.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::writer::chain;
use crate::domain::id::EndpointId;
use crate::store::{Lane, Result, Store, StoreError};

/// The slow round, which also finds what a process that ended left undone.
const ROUND: Duration = Duration::from_secs(60);
const BATCH: u32 = 500;
/// What takes longer waits on a connection that fell silent.
const STEP_LONGEST: Duration = Duration::from_secs(30);

pub async fn run(
    store: Store,
    mut changed: mpsc::Receiver<EndpointId>,
    shared: Arc<Shared>,
    stop: CancellationToken,
) {
    // The first round is at the start.
    let mut round = tokio::time::interval(ROUND);
    round.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let endpoint = tokio::select! {
            Some(endpoint) = changed.recv() => Some(endpoint),
            _ = round.tick() => None,
            () = stop.cancelled() => return,
        };
        let aligned = match endpoint {
            Some(endpoint) => align(&store, endpoint, &shared, &stop).await,
            None => align_all(&store, &shared, &stop).await,
        };
        if let Err(error) = aligned {
            tracing::warn!(error = chain(&error), "queued work was not moved; the next round does it");
        }
        if endpoint.is_none()
            && let Err(error) = tidy(&store).await
        {
            tracing::warn!(error = chain(&error), "upkeep failed; the next round tries again");
        }
    }
}

/// Brings an endpoint's queued work in line with its state, in bounded batches, each a transaction of its own.
async fn align(store: &Store, endpoint: EndpointId, shared: &Shared, stop: &CancellationToken) -> Result<()> {
    while !stop.is_cancelled() {
        let step = async {
            let mut tx = store.begin(Lane::Engine).await?;
            let aligned = tx.align(endpoint, BATCH).await?;
            tx.commit().await?;
            Ok::<_, StoreError>(aligned)
        };
        let aligned = store.in_time(STEP_LONGEST, step).await?;
        if aligned.due {
            shared.claims.ring();
        }
        if let Some(project) = aligned.paced {
            shared.pacer.tell(project, endpoint);
        }
        if aligned.rows < u64::from(BATCH) {
            break;
        }
    }
    Ok(())
}

async fn align_all(store: &Store, shared: &Shared, stop: &CancellationToken) -> Result<()> {
    let mut last = None;
    while let Some(endpoint) = store.in_time(STEP_LONGEST, store.unaligned_after(last)).await? {
        // One that cannot be read does not keep the others waiting.
        if let Err(error) = align(store, endpoint, shared, stop).await {
            tracing::warn!(%endpoint, error = chain(&error), "queued work was not moved");
        }
        if stop.is_cancelled() {
            break;
        }
        last = Some(endpoint);
    }
    Ok(())
}

async fn tidy(store: &Store) -> Result<()> {
    store.in_time(STEP_LONGEST, store.make_partitions()).await?;
    store.in_time(STEP_LONGEST, store.forget_expired_keys()).await
}
