//! Keeps SQLite's write-ahead log short, beside the commits: moved as it grows, emptied when nobody writes.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::writer::chain;
use crate::store::{Checkpoints, Result, Store};

/// Between two looks at the log while there are commits.
const PACE: Duration = Duration::from_millis(100);
/// Without a commit for so long, nobody writes.
const QUIET: Duration = Duration::from_secs(5);
/// The slow round: a lease is renewed without anybody being told.
const ROUND: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_secs(5);

/// Until `end`, which comes after the last outcomes are written. On PostgreSQL it only waits.
pub async fn run(store: Store, end: CancellationToken) {
    while !end.is_cancelled() {
        if let Err(error) = keep_short(&store, &end).await {
            tracing::warn!(error = chain(&error), "the database's log could not be moved; tried again");
            pause(RETRY, &end).await;
        }
    }
}

async fn keep_short(store: &Store, end: &CancellationToken) -> Result<()> {
    let Some(mut checkpoints) = store.checkpoints().await? else {
        end.cancelled().await;
        return Ok(());
    };
    let mut empty = false;
    while !end.is_cancelled() {
        let written = tokio::select! {
            () = store.written() => true,
            () = pause(if empty { ROUND } else { QUIET }, end) => false,
        };
        if written {
            empty = false;
            pause(PACE, end).await;
        }
        if written || empty {
            checkpoints.advance().await?;
        } else {
            empty = checkpoints.empty().await?;
        }
    }
    finish(checkpoints).await
}

/// What is left is moved before the connections close, so that whoever copies the file has all of it.
async fn finish(mut checkpoints: Checkpoints) -> Result<()> {
    if !checkpoints.empty().await? {
        tracing::debug!("the database's log is still read from; it is moved at the next start");
    }
    checkpoints.close().await
}

/// Waits, unless it ends.
async fn pause(time: Duration, end: &CancellationToken) {
    tokio::select! {
        () = tokio::time::sleep(time) => {}
        () = end.cancelled() => {}
    }
}
