//! Lanes: one bounded queue in memory per endpoint with work, and slots given to lanes in turn.
//!
//! A lane holds at most twice its in-flight cap, so a dead endpoint keeps only its few slots and the rest of
//! its work lies in the table. The cap follows the endpoint: it doubles while attempts succeed and work
//! waits, and halves on a timeout, a reset or a refusal.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::domain::attempt::{AttemptOutcome, ErrorClass};
use crate::domain::id::EndpointId;
use crate::store::ClaimedDelivery;

/// How much may be in flight and in memory.
#[derive(Clone, Copy, Debug)]
pub struct LaneLimits {
    /// Attempts in flight in this process.
    pub slots: usize,
    /// Where an endpoint's in-flight cap begins.
    pub cap_start: usize,
    pub cap_min: usize,
    pub cap_max: usize,
    /// Deliveries waiting in memory, over all lanes.
    pub waiting: usize,
}

impl Default for LaneLimits {
    fn default() -> Self {
        Self { slots: 1024, cap_start: 16, cap_min: 2, cap_max: 256, waiting: 8192 }
    }
}

/// All lanes of this process.
pub struct Lanes {
    limits: LaneLimits,
    state: Mutex<State>,
    /// Rings when slots came free while the table holds more.
    room: Notify,
}

#[derive(Default)]
struct State {
    lanes: HashMap<EndpointId, Lane>,
    /// Lanes with work and room under their cap, each once, in turn.
    ready: VecDeque<EndpointId>,
    in_flight: usize,
    waiting: usize,
    /// The last claim left due work behind.
    more_due: bool,
    closed: bool,
}

struct Lane {
    fresh: VecDeque<ClaimedDelivery>,
    retries: VecDeque<ClaimedDelivery>,
    /// Whether the next one comes from the retries, where both wait.
    retry_next: bool,
    reserved: usize,
    in_flight: usize,
    cap: usize,
    /// The endpoint's own cap; 0 where it follows the endpoint.
    fixed: u16,
    /// Successes in a row since the cap last changed.
    successes: usize,
    is_ready: bool,
    /// Older work lies in the table; newer must not overtake it. Grows, so that a look clears what it has seen.
    spilled: Option<u64>,
    spills: u64,
}

impl Lane {
    fn new(cap: usize) -> Self {
        Self {
            fresh: VecDeque::new(),
            retries: VecDeque::new(),
            retry_next: false,
            reserved: 0,
            in_flight: 0,
            cap,
            fixed: 0,
            successes: 0,
            is_ready: false,
            spilled: None,
            spills: 0,
        }
    }

    /// Takes over the endpoint's own cap, if it has one.
    fn fix(&mut self, fixed: u16, limits: LaneLimits) {
        if fixed > 0 {
            self.cap = usize::from(fixed).min(limits.cap_max);
        } else if self.fixed > 0 {
            self.cap = limits.cap_start;
        }
        self.fixed = fixed;
    }

    fn waiting(&self) -> usize {
        self.fresh.len() + self.retries.len()
    }

    fn is_full(&self) -> bool {
        self.waiting() + self.reserved >= 2 * self.cap
    }

    /// Whether a claim may bring it more: only when half empty, so that claims come in batches.
    fn is_hungry(&self) -> bool {
        self.waiting() + self.reserved <= self.cap
    }

    fn spill(&mut self) {
        self.spills += 1;
        self.spilled = Some(self.spills);
    }

    fn push(&mut self, job: ClaimedDelivery) {
        if job.attempts == job.budget_start {
            self.fresh.push_back(job);
        } else {
            self.retries.push_back(job);
        }
    }

    /// First attempts and retries in turn, so that neither waits behind the other's backlog.
    fn pop(&mut self) -> Option<ClaimedDelivery> {
        let (first, second) = if self.retry_next {
            (&mut self.retries, &mut self.fresh)
        } else {
            (&mut self.fresh, &mut self.retries)
        };
        self.retry_next = !self.retry_next;
        first.pop_front().or_else(|| second.pop_front())
    }

    fn is_idle(&self) -> bool {
        self.in_flight == 0 && self.reserved == 0 && self.waiting() == 0 && self.spilled.is_none()
    }
}

/// A place in a lane, kept for a delivery that is being written. Dropped unfilled, it is given back.
pub struct Reservation {
    lanes: Arc<Lanes>,
    endpoint: EndpointId,
    filled: bool,
}

impl Reservation {
    /// Puts the delivery in its place, now that it is durable.
    pub fn fill(mut self, job: ClaimedDelivery) {
        self.filled = true;
        let mut state = self.lanes.lock();
        if let Some(lane) = state.lanes.get_mut(&self.endpoint) {
            lane.reserved -= 1;
        }
        state.waiting -= 1;
        state.push(job, self.lanes.limits);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.filled {
            return;
        }
        let mut state = self.lanes.lock();
        state.waiting -= 1;
        if let Some(lane) = state.lanes.get_mut(&self.endpoint) {
            lane.reserved -= 1;
        }
    }
}

impl State {
    fn push(&mut self, job: ClaimedDelivery, limits: LaneLimits) {
        let endpoint = job.endpoint;
        self.lane(endpoint, limits).push(job);
        self.waiting += 1;
        self.offer(endpoint);
    }

    fn lane(&mut self, endpoint: EndpointId, limits: LaneLimits) -> &mut Lane {
        self.lanes.entry(endpoint).or_insert_with(|| Lane::new(limits.cap_start))
    }

    /// Puts a lane in the ring if it has work and room.
    fn offer(&mut self, endpoint: EndpointId) {
        let Some(lane) = self.lanes.get_mut(&endpoint) else { return };
        if !lane.is_ready && lane.waiting() > 0 && lane.in_flight < lane.cap {
            lane.is_ready = true;
            self.ready.push_back(endpoint);
        }
    }
}

impl Lanes {
    pub fn new(limits: LaneLimits) -> Arc<Self> {
        Arc::new(Self { limits, state: Mutex::default(), room: Notify::new() })
    }

    /// Nothing here panics while it holds the lock, so a poisoned one is sound.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a place for a new delivery to an endpoint with this cap of its own (0: none), unless the lane is full or older work of the endpoint lies in the
    /// table; then the delivery must lie there too.
    pub fn reserve(self: &Arc<Self>, endpoint: EndpointId, fixed: u16) -> Option<Reservation> {
        let mut state = self.lock();
        let closed = state.closed || state.waiting >= self.limits.waiting;
        let lane = state.lane(endpoint, self.limits);
        lane.fix(fixed, self.limits);
        if closed || lane.spilled.is_some() || lane.is_full() {
            lane.spill();
            return None;
        }
        lane.reserved += 1;
        state.waiting += 1;
        drop(state);
        Some(Reservation { lanes: self.clone(), endpoint, filled: false })
    }

    /// Takes claimed deliveries in. `fixed` says which cap of its own an endpoint has.
    pub fn push(&self, claimed: Vec<ClaimedDelivery>, fixed: impl Fn(&ClaimedDelivery) -> u16) {
        let mut state = self.lock();
        for job in claimed {
            let fixed = fixed(&job);
            state.lane(job.endpoint, self.limits).fix(fixed, self.limits);
            state.push(job, self.limits);
        }
    }

    /// The next delivery to attempt, with a slot; lanes take turns.
    pub fn next(&self) -> Option<ClaimedDelivery> {
        let mut state = self.lock();
        if state.closed || state.in_flight >= self.limits.slots {
            return None;
        }
        loop {
            let endpoint = state.ready.pop_front()?;
            let Some(lane) = state.lanes.get_mut(&endpoint) else { continue };
            lane.is_ready = false;
            let Some(job) = lane.pop() else { continue };
            lane.in_flight += 1;
            state.in_flight += 1;
            state.waiting -= 1;
            state.offer(endpoint);
            return Some(job);
        }
    }

    /// Gives a slot back and lets the endpoint's cap follow the outcome; none where nothing was sent.
    pub fn finish(&self, endpoint: EndpointId, outcome: Option<&AttemptOutcome>) {
        let mut state = self.lock();
        state.in_flight -= 1;
        let limits = self.limits;
        let mut hungry = true;
        if let Some(lane) = state.lanes.get_mut(&endpoint) {
            lane.in_flight -= 1;
            hungry = lane.is_hungry();
            if let Some(outcome) = outcome {
                adapt(lane, outcome, limits);
            }
            if lane.is_idle() && (lane.cap == limits.cap_start || lane.fixed > 0) {
                state.lanes.remove(&endpoint);
            }
        }
        state.offer(endpoint);
        let wanted = hungry && state.more_due && state.waiting + state.in_flight <= limits.slots / 2;
        drop(state);
        if wanted {
            self.room.notify_one();
        }
    }

    /// Waits until slots came free while the table holds more.
    pub async fn room(&self) {
        self.room.notified().await;
    }

    /// How many deliveries a claim may take, and the endpoints that have enough and must be passed over.
    pub fn claimable(&self) -> (usize, Vec<EndpointId>) {
        let state = self.lock();
        if state.closed {
            return (0, Vec::new());
        }
        let free = (2 * self.limits.slots).saturating_sub(state.waiting + state.in_flight);
        let full = state.lanes.iter().filter(|(_, lane)| !lane.is_hungry()).map(|(id, _)| *id).collect();
        (free, full)
    }

    /// Notes whether the last claim left due work behind.
    pub fn set_more_due(&self, more: bool) {
        self.lock().more_due = more;
    }

    /// Endpoints whose work spilled into the table, with the spill that a look at the table may clear.
    pub fn spilled(&self) -> Vec<(EndpointId, u64)> {
        let state = self.lock();
        state.lanes.iter().filter_map(|(id, lane)| lane.spilled.map(|spill| (*id, spill))).collect()
    }

    /// The table holds no due work of this endpoint any more, unless it spilled again since.
    pub fn clear_spill(&self, endpoint: EndpointId, spill: u64) {
        let mut state = self.lock();
        if let Some(lane) = state.lanes.get_mut(&endpoint)
            && lane.spilled == Some(spill)
        {
            lane.spilled = None;
        }
    }

    /// Forgets lanes without work, so that memory follows the endpoints in use.
    pub fn sweep(&self) {
        self.lock().lanes.retain(|_, lane| !lane.is_idle());
    }

    /// Deliveries that wait here, and those in flight.
    pub fn load(&self) -> (usize, usize) {
        let state = self.lock();
        (state.waiting, state.in_flight)
    }

    /// Starts nothing more, and gives back what waits. Attempts in flight go on.
    pub fn close(&self) -> Vec<ClaimedDelivery> {
        let mut state = self.lock();
        state.closed = true;
        state.drain()
    }

    /// Gives back what waits, because the lease it is held under lapsed: it lies in the table now.
    pub fn clear(&self) -> Vec<ClaimedDelivery> {
        self.lock().drain()
    }
}

impl Lanes {
    /// Gives back what waits for this endpoint, because nothing more is to be sent to it now.
    pub fn take(&self, endpoint: EndpointId) -> Vec<ClaimedDelivery> {
        let mut state = self.lock();
        let Some(lane) = state.lanes.get_mut(&endpoint) else { return Vec::new() };
        let waiting: Vec<_> = lane.fresh.drain(..).chain(lane.retries.drain(..)).collect();
        state.waiting -= waiting.len();
        waiting
    }
}

impl State {
    fn drain(&mut self) -> Vec<ClaimedDelivery> {
        let mut waiting = Vec::new();
        for lane in self.lanes.values_mut().filter(|lane| lane.waiting() > 0) {
            lane.spill();
            waiting.extend(lane.fresh.drain(..).chain(lane.retries.drain(..)));
        }
        self.waiting -= waiting.len();
        waiting
    }
}

fn adapt(lane: &mut Lane, outcome: &AttemptOutcome, limits: LaneLimits) {
    if lane.fixed > 0 {
        return;
    }
    let strained =
        matches!(outcome.error, Some((ErrorClass::Timeout | ErrorClass::Reset | ErrorClass::Connect, _)));
    if strained {
        lane.cap = (lane.cap / 2).max(limits.cap_min);
        lane.successes = 0;
    } else if outcome.is_success() {
        lane.successes += 1;
        if lane.successes >= lane.cap && lane.waiting() > 0 {
            lane.cap = (lane.cap * 2).min(limits.cap_max);
            lane.successes = 0;
        }
    }
}

#[cfg(test)]
mod tests;
