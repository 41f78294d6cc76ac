//! What operators are told of the engine's state: read now and then, so that the hot path pays nothing for it.
//! Any node may tell the database's part; it is the same for all.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::writer::chain;
use super::{OUTCOME_QUEUE, Publish, Shared, intake};
use crate::store::Store;

/// What memory knows, and what the database is asked for.
const MEMORY_EVERY: Duration = Duration::from_secs(1);
const DATABASE_EVERY: u32 = 5;
/// What takes longer waits on a connection that fell silent.
const READ_LONGEST: Duration = Duration::from_secs(10);

pub async fn run(
    store: Store,
    shared: Arc<Shared>,
    publishes: tokio::sync::mpsc::WeakSender<Publish>,
    stop: CancellationToken,
) {
    let metrics = shared.metrics.clone();
    let mut rounds = (0..DATABASE_EVERY).cycle();
    loop {
        tokio::select! {
            () = tokio::time::sleep(MEMORY_EVERY) => {}
            () = stop.cancelled() => return,
        }
        let engine = &metrics.engine;
        let (waiting, in_flight) = shared.lanes.load();
        engine.waiting("lanes", waiting as u64);
        engine.waiting("in_flight", in_flight as u64);
        engine.outcomes_waiting.set(count(OUTCOME_QUEUE.saturating_sub(shared.outcomes.capacity())));
        if let Some(publishes) = publishes.upgrade() {
            engine.events_waiting.set(count(intake::QUEUE.saturating_sub(publishes.capacity())));
        }
        engine.lease_seconds.set(shared.keeper.left().as_secs_f64());
        engine.breakers_open.set(count(shared.breakers.known_open()));
        engine.egress_failing.set(i64::from(shared.guard.egress_failing()));
        metrics.database.pools(&store.pool_use());
        if rounds.next() == Some(0) {
            match store.in_time(READ_LONGEST, store.queue_gauges()).await {
                Ok(queue) => {
                    engine.waiting("due", queue.due);
                    engine.oldest_due_seconds.set(Duration::from_millis(queue.oldest_due_ms).as_secs_f64());
                }
                Err(error) => tracing::debug!(error = chain(&error), "the queue could not be measured"),
            }
        }
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
