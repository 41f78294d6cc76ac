//! The lease keeper: renews the process's lease, frees those of dead processes, and says whether this process
//! may still send.
//!
//! A lease is given up when it lapsed, as soon as its session ends, and when a commit that claimed under it was
//! not answered: such claims may exist without anyone here who knows of them. A new lease is taken, and all that
//! the old one held is freed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::uptime::Uptime;
use super::writer::chain;
use crate::domain::id::LeaseId;
use crate::store::{Lease, Result, Store};

/// How soon after a failure the next try follows.
const RETRY: Duration = Duration::from_millis(500);
/// However long a lease lasts, a session that died without a word is missed after this.
const RENEW_LATEST: Duration = Duration::from_secs(5);
/// Freeing looks through the whole queue.
const FREEING_LONGEST: Duration = Duration::from_secs(90);

/// The process's lease as workers see it.
pub struct Keeper {
    life: Duration,
    state: Mutex<State>,
    lease: tokio::sync::Mutex<Option<Lease>>,
    /// Rings when the lease was given up.
    given_up: Notify,
    /// Rings when an old lease waits to be freed.
    old: Notify,
}

struct State {
    id: LeaseId,
    /// Counted from before the renewal was asked for, and through any sleep of the machine, so never later than the
    /// database counts.
    send_until: Uptime,
    given_up: bool,
    /// Leases of this process that were given up and may still hold claims.
    old: Vec<LeaseId>,
}

impl Keeper {
    /// Takes the first lease and frees what dead processes hold.
    pub async fn start(store: &Store, node: &str, life: Duration) -> Result<Arc<Self>> {
        let asked = Uptime::now();
        let lease = store.take_lease(node, life).await?;
        match store.free_dead_leases(lease.id).await {
            Ok(0) => {}
            Ok(freed) => tracing::info!(deliveries = freed, "took over deliveries of a process that ended"),
            Err(error) if store.has_single_writer() => return Err(error),
            // Another process may be busy with the same; the next round looks again.
            Err(error) => tracing::warn!(error = chain(&error), "looking for dead processes failed"),
        }
        let send_until = asked.plus(life - margin(life));
        let state = State { id: lease.id, send_until, given_up: false, old: Vec::new() };
        Ok(Arc::new(Self {
            life,
            state: Mutex::new(state),
            lease: tokio::sync::Mutex::new(Some(lease)),
            given_up: Notify::new(),
            old: Notify::new(),
        }))
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
        state.id == claimed_under && Uptime::now() < state.send_until
    }

    /// For how long attempts may still start without a renewal.
    pub fn left(&self) -> Duration {
        self.state().send_until.since(Uptime::now())
    }

    /// From now on nothing is sent under this lease, and a new one is taken.
    pub fn give_up(&self, lease: LeaseId) {
        let mut state = self.state();
        if state.id == lease && !state.given_up {
            state.send_until = Uptime::now();
            state.given_up = true;
            drop(state);
            self.given_up.notify_one();
        }
    }

    /// Waits for the end of the lease's session, upon which it is given up: others may free its claims from then on.
    async fn session_ended(&self) {
        let mut held = self.lease.lock().await;
        let Some(lease) = held.as_mut() else { return std::future::pending().await };
        lease.session_ended().await;
        tracing::warn!(lease = %lease.id, "the database ended the session of the lease");
        self.give_up(lease.id);
    }

    fn is_given_up(&self) -> bool {
        self.state().given_up
    }

    fn renewed(&self, asked: Uptime) {
        let mut state = self.state();
        if !state.given_up {
            state.send_until = asked.plus(self.life - margin(self.life));
        }
    }

    fn replaced(&self, id: LeaseId, asked: Uptime) {
        let mut state = self.state();
        let old = std::mem::replace(&mut state.id, id);
        state.old.push(old);
        state.send_until = asked.plus(self.life - margin(self.life));
        state.given_up = false;
        drop(state);
        self.old.notify_one();
    }

    /// Gives the lease back at the end.
    pub async fn end(&self, store: &Store) {
        let Some(lease) = self.lease.lock().await.take() else { return };
        if let Err(error) = store.in_time(self.life, store.drop_lease(lease)).await {
            tracing::warn!(error = chain(&error), "the lease could not be given back; it will lapse");
        }
    }

    async fn renew(&self, store: &Store, shared: &Shared, node: &str) -> Result<()> {
        let mut held = self.lease.lock().await;
        if !self.is_given_up()
            && let Some(lease) = held.as_mut()
        {
            let asked = Uptime::now();
            if store.renew_lease(lease).await? {
                self.renewed(asked);
                return Ok(());
            }
            self.give_up(lease.id);
        }
        // A lapsed lease is never revived: its claims are others' now.
        if let Some(lease) = held.take() {
            tracing::warn!(lease = %lease.id, "the lease is given up, and with it what it held");
        }
        drop(shared.lanes.clear());
        let asked = Uptime::now();
        let fresh = store.take_lease(node, self.life).await?;
        self.replaced(fresh.id, asked);
        *held = Some(fresh);
        shared.claims.ring();
        Ok(())
    }

    /// Frees this process's old leases, then those of dead processes, of which SQLite has none after the start.
    async fn free(&self, store: &Store) -> Result<u64> {
        let old = self.state().old.clone();
        let mut freed = 0;
        for id in old {
            freed += store.free_own_lease(id).await?;
            self.state().old.retain(|other| *other != id);
        }
        if store.has_single_writer() {
            return Ok(freed);
        }
        let own = self.lease();
        Ok(freed + store.free_dead_leases(own).await?)
    }
}

/// No attempt starts in the last part of a lease: 2 of 15 seconds.
fn margin(life: Duration) -> Duration {
    life * 2 / 15
}

/// Renews at a third of the lease's life, or after a few seconds, until `end`: while the engine drains, its claims
/// must stand.
pub async fn run(store: Store, shared: Arc<Shared>, node: String, end: CancellationToken) {
    let keeper = shared.keeper.clone();
    let round = (keeper.life / 3).min(RENEW_LATEST);
    let mut pause = round;
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = keeper.session_ended() => {}
            () = keeper.given_up.notified() => {}
            () = end.cancelled() => return,
        }
        // A connection that hangs must not hold the renewal for ever.
        pause = match store.in_time(round, keeper.renew(&store, &shared, &node)).await {
            Ok(()) => round,
            Err(error) => {
                tracing::warn!(error = chain(&error), "the lease could not be renewed");
                RETRY.min(round)
            }
        };
    }
}

/// Looks for leases to free at a third of a lease's life.
pub async fn free(store: Store, shared: Arc<Shared>, stop: CancellationToken) {
    let keeper = shared.keeper.clone();
    let third = keeper.life / 3;
    let mut pause = third;
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = keeper.old.notified() => {}
            () = stop.cancelled() => return,
        }
        pause = match store.in_time(FREEING_LONGEST, keeper.free(&store)).await {
            Ok(0) => third,
            Ok(freed) => {
                tracing::info!(deliveries = freed, "took over deliveries of a process that ended");
                shared.claims.ring();
                third
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), "looking for dead processes failed");
                RETRY.min(third)
            }
        };
    }
}
