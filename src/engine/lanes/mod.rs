//! Lanes: one bounded queue in memory per endpoint with work, and slots given to lanes in turn.
//!
//! A lane holds at most twice its in-flight cap, so a dead endpoint keeps only its few slots and the rest of
//! its work lies in the table. The cap follows the endpoint: it doubles while attempts succeed and work
//! waits, and halves on a timeout, a reset or a refusal.
//!
//! Endpoints whose last attempt got no answer, or that have made none yet, may hold their slots for as long as
//! their timeouts. All together they get half of the slots and half of the memory, so that any number of dead
//! endpoints leaves the other half to those that answer. One of which nothing is known has its first delivery
//! in memory all the same, and the next of those slots.

mod choice;
mod lane;
mod paced;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

pub use choice::Choice;
use lane::{Lane, Ring, Standing};

use crate::domain::attempt::AttemptOutcome;
use crate::domain::id::EndpointId;
use crate::domain::routing::EndpointRoute;
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

impl LaneLimits {
    /// Slots of all endpoints together that do not answer.
    const fn silent_slots(self) -> usize {
        self.slots.div_ceil(2)
    }

    /// Deliveries in memory, waiting or in flight, to which claims may fill up: of all, and of those endpoints.
    const fn claimed(self) -> usize {
        2 * self.slots
    }

    const fn silent_claimed(self) -> usize {
        self.slots
    }
}

/// What an endpoint's settings say about its lane.
#[derive(Clone, Copy, Debug, Default)]
pub struct LaneRule {
    /// Its own cap; 0 where the cap follows the endpoint.
    pub fixed: u16,
    /// How much later than its slot an attempt may start; none where there is no rate limit.
    pub late: Option<Duration>,
}

impl LaneRule {
    pub fn of(route: &EndpointRoute) -> Self {
        Self { fixed: route.max_in_flight, late: route.rate_limit.map(|limit| limit.late()) }
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
    /// Lanes with work and room under their cap, in turn: those that answer, and the others. One that changes over
    /// leaves a ticket behind that is not good any more.
    answering: VecDeque<(EndpointId, u64)>,
    silent: VecDeque<(EndpointId, u64)>,
    tickets: u64,
    /// Whether the next slot is for one of the others, where both wait.
    silent_next: bool,
    all: Load,
    /// The part of it that is of lanes that do not answer.
    of_silent: Load,
    /// The last claim left due work behind.
    more_due: bool,
    closed: bool,
}

#[derive(Clone, Copy, Default)]
struct Load {
    in_flight: usize,
    waiting: usize,
}

impl Load {
    const fn held(self) -> usize {
        self.in_flight + self.waiting
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
        state.give_back(self.endpoint);
        state.push(job, self.lanes.limits);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.filled {
            self.lanes.lock().give_back(self.endpoint);
        }
    }
}

/// A change of a lane, with what it does to the loads.
fn count(state: &mut State, endpoint: EndpointId, change: impl FnOnce(&mut Lane)) {
    let Some(lane) = state.lanes.get_mut(&endpoint) else { return };
    let before = (lane.answers(), lane.in_flight, lane.held());
    change(lane);
    let after = (lane.answers(), lane.in_flight, lane.held());
    for (load, is_silent) in [(&mut state.all, false), (&mut state.of_silent, true)] {
        let counts = |answers: bool| usize::from(!(is_silent && answers));
        load.in_flight = load.in_flight + counts(after.0) * after.1 - counts(before.0) * before.1;
        load.waiting = load.waiting + counts(after.0) * after.2 - counts(before.0) * before.2;
    }
}

impl State {
    fn push(&mut self, job: ClaimedDelivery, limits: LaneLimits) {
        let endpoint = job.endpoint;
        self.lane(endpoint, limits);
        count(self, endpoint, |lane| lane.push(job));
        self.offer(endpoint);
    }

    fn lane(&mut self, endpoint: EndpointId, limits: LaneLimits) -> &mut Lane {
        let lane = self.lanes.entry(endpoint).or_insert_with(|| Lane::new(limits.cap_start));
        lane.used = true;
        lane
    }

    fn give_back(&mut self, endpoint: EndpointId) {
        count(self, endpoint, |lane| lane.reserved -= 1);
    }

    /// Puts a lane in its ring if it has work and room.
    fn offer(&mut self, endpoint: EndpointId) {
        let Some(lane) = self.lanes.get_mut(&endpoint) else { return };
        let ring = if lane.answers() { Ring::Answering } else { Ring::Silent };
        let has_place = lane.place.is_some_and(|(at, _)| at == ring);
        if has_place || lane.waiting() == 0 || lane.in_flight >= lane.cap || !lane.has_turn() {
            return;
        }
        self.tickets += 1;
        lane.place = Some((ring, self.tickets));
        let entry = (endpoint, self.tickets);
        match lane.standing {
            Standing::Answers => self.answering.push_back(entry),
            // Nothing speaks against it yet.
            Standing::Unknown if lane.in_flight == 0 => self.silent.push_front(entry),
            Standing::Unknown | Standing::Silent => self.silent.push_back(entry),
        }
    }

    /// The next lane in turn, out of the ring that may have a slot.
    fn next_ready(&mut self, limits: LaneLimits) -> Option<(EndpointId, u64)> {
        let silent_may = self.of_silent.in_flight < limits.silent_slots() && !self.silent.is_empty();
        let take_silent = silent_may && (self.silent_next || self.answering.is_empty());
        self.silent_next = !take_silent;
        if take_silent { self.silent.pop_front() } else { self.answering.pop_front() }
    }

    fn drain(&mut self) -> Vec<ClaimedDelivery> {
        let mut drained = Vec::new();
        let endpoints: Vec<_> = self.lanes.keys().copied().collect();
        for endpoint in endpoints {
            count(self, endpoint, |lane| {
                if lane.waiting() > 0 {
                    lane.spill();
                }
                drained.extend(lane.drain());
            });
        }
        drained
    }
}

/// Lanes without work that are remembered for what is known of their endpoints.
const REMEMBERED: usize = 10_000;

impl Lanes {
    pub fn new(limits: LaneLimits) -> Arc<Self> {
        Arc::new(Self { limits, state: Mutex::default(), room: Notify::new() })
    }

    /// Nothing here panics while it holds the lock, so a poisoned one is sound.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a place for a new delivery to an endpoint with this cap of its own (0: none), unless the lane is full
    /// or older work of the endpoint lies in the table; then the delivery must lie there too.
    pub fn reserve(self: &Arc<Self>, endpoint: EndpointId, fixed: u16) -> Option<Reservation> {
        let mut state = self.lock();
        let limits = self.limits;
        let no_room = state.closed || state.all.waiting >= limits.waiting;
        let no_room_for_silent = state.of_silent.held() >= limits.silent_claimed();
        let lane = state.lane(endpoint, limits);
        lane.follow(LaneRule { fixed, late: None }, limits);
        let no_room = no_room || (no_room_for_silent && !lane.answers() && !lane.is_untried());
        if no_room || lane.spilled.is_some() || lane.is_full() {
            lane.spill();
            return None;
        }
        count(&mut state, endpoint, |lane| lane.reserved += 1);
        drop(state);
        Some(Reservation { lanes: self.clone(), endpoint, filled: false })
    }

    /// Takes claimed deliveries in. `rule` says what their endpoints' settings say; none where they cannot be read now: a
    /// lane that is known goes by what it knew, and one that is new takes one at a time until it is told.
    pub fn push(
        &self,
        claimed: Vec<ClaimedDelivery>,
        mut rule: impl FnMut(&ClaimedDelivery) -> Option<LaneRule>,
    ) {
        let mut state = self.lock();
        for job in claimed {
            let is_new = !state.lanes.contains_key(&job.endpoint);
            let careful = is_new.then_some(LaneRule { fixed: 1, late: None });
            if let Some(rule) = rule(&job).or(careful) {
                state.lane(job.endpoint, self.limits).follow(rule, self.limits);
            }
            state.push(job, self.limits);
        }
    }

    /// The next delivery to attempt, with a slot; lanes take turns.
    pub fn next(&self) -> Option<ClaimedDelivery> {
        let mut state = self.lock();
        if state.closed || state.all.in_flight >= self.limits.slots {
            return None;
        }
        loop {
            let (endpoint, ticket) = state.next_ready(self.limits)?;
            let mut next = None;
            count(&mut state, endpoint, |lane| {
                if lane.place.is_none_or(|(_, last)| last != ticket) {
                    return;
                }
                lane.place = None;
                if lane.in_flight < lane.cap {
                    next = lane.pop();
                    lane.in_flight += usize::from(next.is_some());
                }
            });
            state.offer(endpoint);
            if next.is_some() {
                return next;
            }
        }
    }

    /// Gives a slot back and lets the endpoint's cap follow the outcome; none where nothing was sent.
    pub fn finish(&self, endpoint: EndpointId, outcome: Option<&AttemptOutcome>) {
        let mut state = self.lock();
        let limits = self.limits;
        let (mut hungry, mut spilled) = (true, false);
        count(&mut state, endpoint, |lane| {
            lane.in_flight -= 1;
            hungry = lane.is_hungry();
            spilled = lane.spilled.is_some();
            if let Some(outcome) = outcome {
                lane.adapt(outcome, limits);
            }
            if lane.is_idle() {
                lane.rest();
            }
        });
        state.offer(endpoint);
        let few = state.all.waiting + state.all.in_flight <= limits.slots / 2;
        let wanted = hungry && state.more_due && (spilled || few);
        drop(state);
        if wanted {
            self.room.notify_one();
        }
    }

    /// Waits until slots came free while the table holds more.
    pub async fn room(&self) {
        self.room.notified().await;
    }

    /// Deliveries that wait here, and those in flight.
    pub fn load(&self) -> (usize, usize) {
        let state = self.lock();
        (state.all.waiting, state.all.in_flight)
    }

    /// Notes whether the last claim left due work behind.
    pub fn set_more_due(&self, more: bool) {
        self.lock().more_due = more;
    }

    /// Notes that due work of this endpoint lies in the table.
    pub fn spill(&self, endpoint: EndpointId) {
        let mut state = self.lock();
        state.lane(endpoint, self.limits).spill();
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

    /// Forgets lanes without work where there are too many, so that memory follows the endpoints in use: those that had
    /// none since the last sweep either, and of those that do not answer no more than it must, since they would begin
    /// among those of which nothing is known.
    pub fn sweep(&self) {
        let mut state = self.lock();
        let idle = state.lanes.values().filter(|lane| lane.is_idle()).count();
        let mut excess = idle.saturating_sub(REMEMBERED);
        for silent_too in [false, true] {
            state.lanes.retain(|_, lane| {
                let may_go =
                    lane.is_idle() && !lane.used && (silent_too || lane.standing != Standing::Silent);
                let goes = excess > 0 && may_go;
                excess -= usize::from(goes);
                !goes
            });
        }
        for lane in state.lanes.values_mut() {
            lane.used = !lane.is_idle();
        }
    }

    /// Gives back what waits for this endpoint, because nothing more is to be sent to it now.
    pub fn take(&self, endpoint: EndpointId) -> Vec<ClaimedDelivery> {
        let mut waiting = Vec::new();
        count(&mut self.lock(), endpoint, |lane| waiting.extend(lane.drain()));
        waiting
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
