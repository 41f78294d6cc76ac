//! Age: records of the change log and alerts that are older than they have to be are forgotten.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::writer::chain;
use crate::domain::clock::Timestamp;
use crate::store::{Result, Store};

/// Rows forgotten in one transaction.
const BATCH: u32 = 200;
/// What takes longer waits on a connection that fell silent.
const BATCH_LONGEST: Duration = Duration::from_secs(30);

/// Forgets in bounded batches until told to stop. Any number of nodes may do so at once.
pub async fn run(store: Store, changes: Duration, alerts: Duration, stop: CancellationToken) {
    let round = (changes.min(alerts) / 10).clamp(Duration::from_secs(1), Duration::from_secs(60));
    let mut round = tokio::time::interval(round);
    round.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = round.tick() => {}
            () = stop.cancelled() => return,
        }
        if let Err(error) = trim_changes(&store, changes, &stop).await {
            tracing::warn!(
                error = chain(&error),
                "the change log was not trimmed; the next round tries again"
            );
        }
        if let Err(error) = trim_alerts(&store, alerts, &stop).await {
            tracing::warn!(error = chain(&error), "old alerts were not removed; the next round tries again");
        }
    }
}

async fn trim_changes(store: &Store, keep: Duration, stop: &CancellationToken) -> Result<()> {
    let before = Timestamp::now().minus(keep);
    while !stop.is_cancelled() && store.in_time(BATCH_LONGEST, store.forget_changes(before, BATCH)).await? {}
    Ok(())
}

async fn trim_alerts(store: &Store, keep: Duration, stop: &CancellationToken) -> Result<()> {
    let before = Timestamp::now().minus(keep);
    while !stop.is_cancelled() {
        let (forgotten, unsent) = store.in_time(BATCH_LONGEST, store.forget_alerts(before, BATCH)).await?;
        if unsent > 0 {
            tracing::warn!(alerts = unsent, "alerts were never sent, and are too old now: no process could");
        }
        if forgotten < BATCH as usize {
            break;
        }
    }
    Ok(())
}
