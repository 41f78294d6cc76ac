//! Housekeeping: partitions are made ahead, expired keys go, and idle projects leave the routing table.
//!
//! Each step is a bounded statement that may be repeated, interrupted, or run on several nodes at once, and none hangs
//! on another's success.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::RoutingTable;
use super::writer::chain;
use crate::store::{Expiring, Result, Store};

const ROUND: Duration = Duration::from_secs(60);
/// What takes longer waits on a connection that fell silent.
const STEP_LONGEST: Duration = Duration::from_secs(30);

pub async fn run(store: Store, routing: Arc<RoutingTable>, stop: CancellationToken) {
    // The first round is at the start.
    let mut round = tokio::time::interval(ROUND);
    round.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = round.tick() => {}
            () = stop.cancelled() => return,
        }
        routing.forget_idle();
        step(&store, "making partitions", store.make_partitions()).await;
        for what in Expiring::ALL {
            forget(&store, what, &stop).await;
        }
    }
}

/// Forgets all that has expired, with as much rest as work in between; what does not go in one round goes in the next.
async fn forget(store: &Store, what: Expiring, stop: &CancellationToken) {
    let began = Instant::now();
    while began.elapsed() < ROUND {
        let batch = Instant::now();
        if step(store, "forgetting what has expired", store.forget_expired(what)).await != Some(true) {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(batch.elapsed()) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// What the step came to; none where it failed.
async fn step<T>(store: &Store, what: &'static str, step: impl Future<Output = Result<T>>) -> Option<T> {
    let done = store.in_time(STEP_LONGEST, step).await;
    done.inspect_err(|error| {
        tracing::warn!(what, error = chain(error), "housekeeping failed; the next round tries again");
    })
    .ok()
}
