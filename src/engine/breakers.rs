//! Circuit breakers: which are open, as this process knows, and the probes of those that have rested.
//!
//! The truth lies in the store, where outcomes open and close them. What is known here only spares attempts: a
//! node that does not know yet learns from its own failing outcome, or within a second.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::probes::{self, Wanted};
use super::writer::chain;
use super::{Shared, worker};
use crate::domain::id::EndpointId;
use crate::store::{Result, Store};

/// What takes longer waits on a connection that fell silent.
const LOOK_LONGEST: Duration = Duration::from_secs(10);
const ROUND: Duration = Duration::from_secs(1);
/// Open breakers that are known at once; what is beyond is learned by failing.
const KNOWN_MAX: u32 = 50_000;
/// Probes started in one round.
const PROBES_MAX: u32 = 256;

/// The open breakers that this process knows of.
#[derive(Default)]
pub struct Breakers {
    state: Mutex<State>,
    /// Of both; so that nothing is locked while there is none.
    count: AtomicUsize,
}

#[derive(Default)]
struct State {
    open: HashSet<EndpointId>,
    /// Endpoints that a transaction of this process is switching off.
    closing: HashSet<EndpointId>,
    /// Grows with every change, so that a look at the store that is older than one is not taken over.
    changes: u64,
}

impl Breakers {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing but a probe may be sent to this endpoint now.
    pub fn is_open(&self, endpoint: EndpointId) -> bool {
        if self.count.load(Ordering::Acquire) == 0 {
            return false;
        }
        let state = self.lock();
        state.open.contains(&endpoint) || state.closing.contains(&endpoint)
    }

    /// How many are open.
    pub fn known_open(&self) -> usize {
        self.lock().open.len()
    }

    fn count(&self, state: &State) {
        self.count.store(state.open.len() + state.closing.len(), Ordering::Release);
    }

    pub fn open(&self, endpoint: EndpointId) {
        let mut state = self.lock();
        if state.open.insert(endpoint) {
            state.changes += 1;
        }
        self.count(&state);
    }

    pub fn close(&self, endpoint: EndpointId) {
        let mut state = self.lock();
        if state.open.remove(&endpoint) {
            state.changes += 1;
        }
        self.count(&state);
    }

    fn begin_closing(&self, endpoints: &[EndpointId]) {
        let mut state = self.lock();
        state.closing.extend(endpoints);
        self.count(&state);
    }

    fn end_closing(&self, endpoints: &[EndpointId]) {
        let mut state = self.lock();
        state.closing.retain(|closing| !endpoints.contains(closing));
        self.count(&state);
    }

    fn changes(&self) -> u64 {
        self.lock().changes
    }

    /// Takes over what the store said, unless something changed here since the look.
    fn replace(&self, open: HashSet<EndpointId>, looked_at: u64) {
        let mut state = self.lock();
        if state.changes == looked_at {
            state.open = open;
            self.count(&state);
        }
    }
}

/// Keeps attempts from endpoints from before the commit that switches them off until the routes say so, or until it is
/// dropped because they stay ACTIVE.
pub struct Closing {
    shared: Arc<Shared>,
    endpoints: Vec<EndpointId>,
}

impl Closing {
    pub fn new(shared: Arc<Shared>, endpoints: Vec<EndpointId>) -> Self {
        shared.breakers.begin_closing(&endpoints);
        Self { shared, endpoints }
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        self.shared.breakers.end_closing(&self.endpoints);
    }
}

pub async fn run(store: Store, shared: Arc<Shared>, stop: CancellationToken) {
    let mut round = tokio::time::interval(ROUND);
    round.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = round.tick() => {}
            () = stop.cancelled() => return,
        }
        if let Err(error) = look(&store, &shared, &stop).await {
            tracing::warn!(error = chain(&error), "breakers could not be read; the next round tries again");
        }
    }
}

async fn look(store: &Store, shared: &Arc<Shared>, stop: &CancellationToken) -> Result<()> {
    let looked_at = shared.breakers.changes();
    let open = store.in_time(LOOK_LONGEST, store.open_breakers(KNOWN_MAX)).await?;
    let none = open.is_empty();
    shared.breakers.replace(open, looked_at);
    if none {
        return Ok(());
    }
    for endpoint in store.in_time(LOOK_LONGEST, store.due_breakers(PROBES_MAX)).await? {
        if stop.is_cancelled() {
            return Ok(());
        }
        match probe(store, shared, endpoint).await {
            // It concerns this one alone.
            Err(error) if !error.is_transient() => {
                tracing::warn!(%endpoint, error = chain(&error), "an open breaker could not be probed");
            }
            probed => probed?,
        }
    }
    Ok(())
}

async fn probe(store: &Store, shared: &Arc<Shared>, endpoint: EndpointId) -> Result<()> {
    if let Some(claimed) = probes::claim(store, shared, Wanted::Breaker(endpoint)).await? {
        tracing::debug!(%endpoint, "an attempt probes an open breaker");
        shared.take_in(claimed).await;
        worker::pump(shared);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_look_does_not_undo_what_was_learned_since() {
        let breakers = Breakers::default();
        let (known, learned) = (EndpointId::new(), EndpointId::new());
        breakers.replace(HashSet::from([known]), breakers.changes());
        assert!(breakers.is_open(known) && !breakers.is_open(learned));
        let looked_at = breakers.changes();
        breakers.open(learned);
        breakers.close(known);
        breakers.replace(HashSet::from([known]), looked_at);
        assert!(breakers.is_open(learned) && !breakers.is_open(known));
        breakers.replace(HashSet::new(), breakers.changes());
        assert!(!breakers.is_open(learned));
    }
    #[test]
    fn what_is_being_switched_off_is_shut_whatever_a_look_says() {
        let breakers = Breakers::default();
        let (closing, resting) = (EndpointId::new(), EndpointId::new());
        breakers.begin_closing(&[closing]);
        assert!(breakers.is_open(closing));
        breakers.replace(HashSet::from([resting]), breakers.changes());
        breakers.close(closing);
        assert!(breakers.is_open(closing) && breakers.is_open(resting));
        assert_eq!(breakers.known_open(), 1, "it has no open breaker");
        breakers.end_closing(&[closing]);
        assert!(!breakers.is_open(closing) && breakers.is_open(resting));
        breakers.close(resting);
        assert_eq!(breakers.count.load(Ordering::Acquire), 0);
    }
}
