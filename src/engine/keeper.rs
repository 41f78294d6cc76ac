//! The lease keeper: renews the process's lease, frees those of dead processes, and says whether this process
//! may still send.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::writer::chain;
use crate::domain::id::LeaseId;
use crate::store::{LEASE_LIFE, Lease, Result, Store};

/// No attempt starts in the last part of a lease.
const MARGIN: Duration = Duration::from_secs(2);

/// The process's lease as workers see it.
pub struct Keeper {
    state: Mutex<State>,
    lease: tokio::sync::Mutex<Option<Lease>>,
}

struct State {
    id: LeaseId,
    /// Counted from before the renewal was asked for, so never later than the database counts.
    send_until: Instant,
}

impl Keeper {
    /// Takes the first lease and frees what dead processes hold.
    pub async fn start(store: &Store, node: &str) -> Result<Arc<Self>> {
        let asked = Instant::now();
        let lease = store.take_lease(node).await?;
        let freed = store.free_dead_leases(lease.id).await?;
        if freed > 0 {
            tracing::info!(deliveries = freed, "took over deliveries of a process that ended");
        }
        let state = State { id: lease.id, send_until: asked + LEASE_LIFE - MARGIN };
        Ok(Arc::new(Self { state: Mutex::new(state), lease: tokio::sync::Mutex::new(Some(lease)) }))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lease to claim under.
    pub fn lease(&self) -> LeaseId {
        self.state().id
    }

    /// Whether an attempt under this claim's lease may start now.
    pub fn may_send(&self, claimed_under: LeaseId) -> bool {
        let state = self.state();
        state.id == claimed_under && Instant::now() < state.send_until
    }

    /// For how long attempts may still start without a renewal.
    pub fn left(&self) -> Duration {
        self.state().send_until.saturating_duration_since(Instant::now())
    }

    fn renewed(&self, id: LeaseId, asked: Instant) {
        let mut state = self.state();
        state.id = id;
        state.send_until = asked + LEASE_LIFE - MARGIN;
    }

    /// Gives the lease back at the end.
    pub async fn end(&self, store: &Store) {
        if let Some(lease) = self.lease.lock().await.take()
            && let Err(error) = store.drop_lease(lease).await
        {
            tracing::warn!(error = chain(&error), "the lease could not be given back; it will lapse");
        }
    }
}

/// Renews at a third of the lease's life, and looks for dead processes as often.
pub async fn run(store: Store, shared: Arc<Shared>, node: String, stop: CancellationToken) {
    let keeper = shared.keeper.clone();
    loop {
        // While the engine drains, its claims must stand: the lease is kept until the end of the attempts.
        tokio::select! {
            () = tokio::time::sleep(LEASE_LIFE / 3) => {}
            () = drained(&shared, &stop) => return,
        }
        // A connection that hangs must not hold the renewal for ever.
        match tokio::time::timeout(LEASE_LIFE / 3, renew(&store, &shared, &keeper, &node)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = chain(&error), "the lease could not be renewed");
                continue;
            }
            Err(_) => {
                tracing::warn!("the lease could not be renewed in time");
                continue;
            }
        }
        match store.free_dead_leases(keeper.lease()).await {
            Ok(0) => {}
            Ok(freed) => {
                tracing::info!(deliveries = freed, "took over deliveries of a process that ended");
                shared.claims.ring();
            }
            Err(error) => tracing::warn!(error = chain(&error), "looking for dead processes failed"),
        }
    }
}

async fn drained(shared: &Shared, stop: &CancellationToken) {
    stop.cancelled().await;
    shared.attempts.wait().await;
}

async fn renew(store: &Store, shared: &Shared, keeper: &Keeper, node: &str) -> Result<()> {
    let mut held = keeper.lease.lock().await;
    let asked = Instant::now();
    if let Some(lease) = held.as_mut() {
        if store.renew_lease(lease).await? {
            keeper.renewed(lease.id, asked);
            return Ok(());
        }
        tracing::error!(lease = %lease.id, "the lease lapsed; what it held is given up");
    }
    // A lapsed lease is never revived: its claims are others' now.
    *held = None;
    drop(shared.lanes.clear());
    let asked = Instant::now();
    let fresh = store.take_lease(node).await?;
    keeper.renewed(fresh.id, asked);
    *held = Some(fresh);
    shared.claims.ring();
    Ok(())
}
