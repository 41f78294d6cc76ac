//! Lanes of endpoints with a rate limit: what they want of the pacer, and the slots that it gives them.

use std::time::Instant;

use super::{LaneRule, Lanes, count};
use crate::domain::id::EndpointId;
use crate::store::ClaimedDelivery;

impl Lanes {
    /// Deliveries that the lane has room for, and those in it that want slots; none while nothing more could start.
    pub fn wants(&self, endpoint: EndpointId, rule: LaneRule) -> (usize, usize) {
        let mut state = self.lock();
        let lane = state.lane(endpoint, self.limits);
        lane.follow(rule, self.limits);
        if lane.in_flight >= lane.cap {
            return (0, 0);
        }
        // What has a slot starts soon, so a lane that answers may hold more than others.
        let most = 2 * if lane.answers() { self.limits.cap_max } else { lane.cap };
        (most.saturating_sub(lane.held()), lane.wanting())
    }

    /// Whether anything of it is in memory.
    pub fn waits(&self, endpoint: EndpointId) -> bool {
        let state = self.lock();
        state.lanes.get(&endpoint).is_some_and(|lane| lane.in_flight + lane.held() > 0)
    }

    /// Slots that are the lane's from now on, in their order.
    pub fn add_slots(&self, endpoint: EndpointId, slots: Vec<Instant>) {
        let mut state = self.lock();
        if let Some(lane) = state.lanes.get_mut(&endpoint) {
            lane.add_slots(slots);
        }
        state.offer(endpoint);
    }

    /// Lets the lane have its turn, now that a slot has come; says when the next one comes.
    pub fn start_due(&self, endpoint: EndpointId) -> Option<Instant> {
        let mut state = self.lock();
        state.offer(endpoint);
        state.lanes.get(&endpoint)?.next_slot()
    }

    /// What waits in the lane needs no slots any more.
    pub fn unpace(&self, endpoint: EndpointId) {
        let mut state = self.lock();
        if let Some(lane) = state.lanes.get_mut(&endpoint) {
            lane.unpace();
        }
        state.offer(endpoint);
    }

    /// Gives back what waits for a slot that is not even reserved.
    pub fn take_slotless(&self, endpoint: EndpointId) -> Vec<ClaimedDelivery> {
        let mut waiting = Vec::new();
        count(&mut self.lock(), endpoint, |lane| waiting = lane.drain_slotless());
        waiting
    }

    /// Takes back a delivery that has no slot or missed it; it is the first to have another.
    pub fn put_back(&self, job: ClaimedDelivery, rule: LaneRule) {
        let mut state = self.lock();
        let endpoint = job.endpoint;
        state.lane(endpoint, self.limits).follow(rule, self.limits);
        count(&mut state, endpoint, |lane| lane.push_back_in(job));
        state.offer(endpoint);
    }
}
