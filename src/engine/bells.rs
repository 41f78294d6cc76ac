//! Bells between nodes: one task sends what this process's commits rang, one hears the others' and wakes
//! whoever it concerns. Both begin anew by themselves when their connection is gone; meanwhile polls carry on.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Shared;
use super::writer::chain;
use crate::store::{Bells, Result, Store};

/// At most so many messages a second go out; what rings meanwhile shares the next.
const PACE: Duration = Duration::from_millis(20);
const RETRY: Duration = Duration::from_secs(1);
/// A message that is not sent by then, or a connection that is not proved alive, is given up.
const PATIENCE: Duration = Duration::from_secs(5);

/// Sends until told to stop, then what is still to be said.
pub async fn send(store: Store, shared: Arc<Shared>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        match send_over_one_connection(&store, &shared, &stop).await {
            Ok(()) => return,
            Err(error) => tracing::warn!(error = chain(&error), "other nodes cannot be rung; their polls do"),
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            () = stop.cancelled() => {}
        }
    }
}

async fn send_over_one_connection(store: &Store, shared: &Shared, stop: &CancellationToken) -> Result<()> {
    let connected = store.in_time(PATIENCE, store.ringer()).await?;
    let Some(mut ringer) = connected else {
        stop.cancelled().await;
        return Ok(());
    };
    loop {
        let bells = tokio::select! {
            biased;
            bells = store.rung_here() => bells,
            () = stop.cancelled() => return Ok(()),
        };
        if let Err(error) = store.in_time(PATIENCE, ringer.ring(bells)).await {
            store.ring_later(bells);
            return Err(error);
        }
        shared.metrics.engine.bells_rung.inc();
        if !stop.is_cancelled() {
            tokio::time::sleep(PACE).await;
        }
    }
}

/// Listens until told to stop.
pub async fn hear(store: Store, shared: Arc<Shared>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let heard = tokio::select! {
            heard = hear_over_one_connection(&store, &shared) => heard,
            () = stop.cancelled() => return,
        };
        match heard {
            Ok(()) => return stop.cancelled().await,
            Err(error) => {
                tracing::warn!(error = chain(&error), "other nodes cannot be heard; polls carry on")
            }
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            () = stop.cancelled() => {}
        }
    }
}

/// Ends well only where there are no other nodes to hear.
async fn hear_over_one_connection(store: &Store, shared: &Shared) -> Result<()> {
    let Some(mut listener) = store.in_time(PATIENCE, store.listen()).await? else { return Ok(()) };
    // What was rung before this connection was not heard.
    let mut bells = Bells::ALL;
    loop {
        if bells.has(Bells::DUE) {
            shared.claims.ring();
        }
        if bells.has(Bells::CHANGES) {
            store.committed_elsewhere();
        }
        if bells.has(Bells::ROUTES) {
            shared.versions.ring();
        }
        bells = listener.next(PATIENCE).await?;
        shared.metrics.engine.bells_heard.inc();
    }
}
