//! Choosing what to claim: of what is due, oldest first, as much as there is room for, spread over endpoints.

use std::collections::{HashMap, HashSet};

use super::lane::Lane;
use super::{Lanes, State};
use crate::domain::id::{DeliveryId, EndpointId};
use crate::store::Due;

/// What a claim is to take, and what it leaves behind.
#[derive(Debug, Default)]
pub struct Choice {
    pub take: Vec<DeliveryId>,
    /// Endpoints of which something due was seen and not chosen.
    pub left: HashSet<EndpointId>,
}

/// Deliveries of one endpoint that go before those of others.
const SHARE: usize = 32;

impl Lanes {
    /// Chooses at most `most`. An endpoint of which something is left has older work in the table from now on,
    /// which newer work must not overtake.
    pub fn choose(&self, due: &[Due], most: usize) -> Choice {
        let mut state = self.lock();
        if state.closed {
            return Choice::default();
        }
        let mut left_in_all = self.limits.claimed().saturating_sub(state.all.held()).min(most);
        let mut left_for_silent = self.limits.silent_claimed().saturating_sub(state.of_silent.held());
        let mut rooms: HashMap<EndpointId, Room> = HashMap::new();
        let mut chosen = vec![false; due.len()];
        // First a share for each, then whatever fits.
        for share in [SHARE, usize::MAX] {
            let mut shares: HashMap<EndpointId, usize> = HashMap::new();
            for (one, chosen) in due.iter().zip(&mut chosen) {
                if *chosen || left_in_all == 0 {
                    continue;
                }
                let room = rooms
                    .entry(one.endpoint)
                    .or_insert_with(|| Room::of(state.lanes.get(&one.endpoint), self.limits.cap_start));
                let had = shares.entry(one.endpoint).or_default();
                let is_free = room.answers || room.is_untried || left_for_silent > 0;
                if room.places == 0 || *had >= share || !is_free {
                    continue;
                }
                left_in_all -= 1;
                if !room.answers {
                    left_for_silent = left_for_silent.saturating_sub(1);
                }
                (room.places, room.is_untried) = (room.places - 1, false);
                (*chosen, *had) = (true, *had + 1);
            }
        }
        let mut choice = Choice::default();
        for (one, chosen) in due.iter().zip(chosen) {
            if chosen {
                choice.take.push(one.id);
            } else if choice.left.insert(one.endpoint)
                && let Some(lane) = state.lanes.get_mut(&one.endpoint)
                && lane.spilled.is_none()
            {
                lane.spill();
            }
        }
        choice
    }

    /// Those of these endpoints that a claim could bring something, `most` at most.
    pub fn with_room(&self, endpoints: &[EndpointId], most: usize) -> Vec<EndpointId> {
        let state = self.lock();
        let has_room = |id: &&EndpointId| self.has_room(&state, state.lanes.get(*id));
        endpoints.iter().filter(has_room).take(most).copied().collect()
    }

    /// Endpoints whose work spilled and whose lanes have room for it, `most` at most, those that answer first.
    pub fn hungry_spilled(&self, most: usize) -> Vec<EndpointId> {
        let state = self.lock();
        let hungry = |lane: &&Lane| lane.spilled.is_some() && self.has_room(&state, Some(lane));
        let (mut first, rest): (Vec<_>, Vec<_>) =
            state.lanes.iter().filter(|(_, lane)| hungry(lane)).partition(|(_, lane)| lane.answers());
        first.extend(rest);
        first.into_iter().take(most).map(|(id, _)| *id).collect()
    }

    fn has_room(&self, state: &State, lane: Option<&Lane>) -> bool {
        let room = Room::of(lane, self.limits.cap_start);
        let for_silent = state.of_silent.held() < self.limits.silent_claimed();
        room.places > 0 && (room.answers || room.is_untried || for_silent)
    }
}

/// What a claim may bring one endpoint.
struct Room {
    places: usize,
    answers: bool,
    is_untried: bool,
}

impl Room {
    fn of(lane: Option<&Lane>, cap: usize) -> Self {
        match lane {
            Some(lane) => {
                Self { places: lane.room(), answers: lane.answers(), is_untried: lane.is_untried() }
            }
            None => Self { places: 2 * cap, answers: false, is_untried: true },
        }
    }
}
