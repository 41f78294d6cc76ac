//! The age of the change log: what is older than it has to be is forgotten.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::writer::chain;
use crate::domain::clock::Timestamp;
use crate::store::{Result, Store};

/// Records forgotten in one transaction.
const BATCH: u32 = 200;
/// What takes longer waits on a connection that fell silent.
const BATCH_LONGEST: Duration = Duration::from_secs(30);

/// Forgets in bounded batches until told to stop. Any number of nodes may do so at once.
pub async fn run(store: Store, keep: Duration, stop: CancellationToken) {
    let round = (keep / 10).clamp(Duration::from_secs(1), Duration::from_secs(60));
    let mut round = tokio::time::interval(round);
    round.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = round.tick() => {}
            () = stop.cancelled() => return,
        }
        if let Err(error) = trim(&store, keep, &stop).await {
            tracing::warn!(
                error = chain(&error),
                "the change log was not trimmed; the next round tries again"
            );
        }
    }
}

async fn trim(store: &Store, keep: Duration, stop: &CancellationToken) -> Result<()> {
    let keep = i64::try_from(keep.as_millis()).unwrap_or(i64::MAX);
    let before = Timestamp::from_millis(Timestamp::now().as_millis().saturating_sub(keep));
    while !stop.is_cancelled() && store.in_time(BATCH_LONGEST, store.forget_changes(before, BATCH)).await? {}
    Ok(())
}
