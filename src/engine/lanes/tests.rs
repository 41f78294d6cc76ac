//! Turns, caps, spills, and the half that dead endpoints cannot take.

use super::*;
use crate::domain::attempt::ErrorClass;
use crate::domain::clock::Timestamp;
use crate::domain::delivery::Claim;
use crate::domain::event::Message;
use crate::domain::id::{DeliveryId, EventId, LeaseId, ProjectId};
use crate::store::Due;

const LIMITS: LaneLimits = LaneLimits { slots: 6, cap_start: 2, cap_min: 1, cap_max: 4, waiting: 100 };

fn job(endpoint: EndpointId, attempts: u16) -> ClaimedDelivery {
    let message = Message {
        event: EventId::new(),
        project: ProjectId::new(),
        event_type: "a".into(),
        payload: bytes::Bytes::new(),
        headers: Vec::new(),
    };
    ClaimedDelivery {
        id: DeliveryId::new(),
        endpoint,
        claim: Claim { lease: LeaseId::new(), token: 1 },
        attempts,
        budget_start: 0,
        created_at: Timestamp::now(),
        probe: None,
        start_by: None,
        again: false,
        lost: None,
        message: Arc::new(message),
    }
}

fn outcome(class: Option<ErrorClass>) -> AttemptOutcome {
    let mut outcome = AttemptOutcome::unsent(Timestamp::now(), ErrorClass::Timeout, "");
    outcome.error = class.map(|class| (class, String::new()));
    outcome
}

fn cap(fixed: u16) -> LaneRule {
    LaneRule { fixed, late: None }
}

#[test]
fn slots_go_to_lanes_in_turn_and_within_their_caps() {
    let lanes = Lanes::new(LIMITS);
    let endpoints = proven(&lanes, 2);
    let (busy, quiet) = (endpoints[0], endpoints[1]);
    lanes.push((0..10).map(|_| job(busy, 0)).collect(), |_| Some(cap(0)));
    lanes.push(vec![job(quiet, 0)], |_| Some(cap(0)));
    let started: Vec<_> = std::iter::from_fn(|| lanes.next()).map(|job| job.endpoint).collect();
    assert_eq!(started, [busy, quiet, busy], "the busy lane holds its cap of two");
    lanes.finish(busy, None);
    assert_eq!(lanes.next().map(|job| job.endpoint), Some(busy));
    assert!(lanes.next().is_none());
}

#[test]
fn first_attempts_and_retries_take_turns() {
    let lanes = Lanes::new(LaneLimits { slots: 8, cap_start: 4, ..LIMITS });
    let endpoint = EndpointId::new();
    lanes.push((0..3).map(|_| job(endpoint, 1)).chain((0..3).map(|_| job(endpoint, 0))).collect(), |_| {
        Some(cap(0))
    });
    let attempts: Vec<_> = std::iter::from_fn(|| lanes.next()).map(|job| job.attempts).collect();
    assert_eq!(attempts, [0, 1, 0, 1]);
}

#[test]
fn new_work_does_not_overtake_what_spilled() {
    let lanes = Lanes::new(LIMITS);
    let endpoint = EndpointId::new();
    let places: Vec<_> =
        (0..4).map(|_| lanes.reserve(endpoint, 0).expect("room for twice the cap")).collect();
    assert!(lanes.reserve(endpoint, 0).is_none(), "a full lane spills");
    drop(places);
    assert!(lanes.reserve(endpoint, 0).is_none(), "and stays shut while older work lies in the table");
    let seen = lanes.spilled();
    assert!(lanes.reserve(endpoint, 0).is_none());
    lanes.clear_spill(endpoint, seen[0].1);
    assert!(lanes.reserve(endpoint, 0).is_none(), "it spilled again since that look");
    for (endpoint, spill) in lanes.spilled() {
        lanes.clear_spill(endpoint, spill);
    }
    let place = lanes.reserve(endpoint, 0).expect("open again");
    place.fill(job(endpoint, 0));
    assert!(lanes.next().is_some());
}

#[test]
fn the_cap_follows_the_endpoint() {
    let lanes = Lanes::new(LIMITS);
    let endpoint = EndpointId::new();
    lanes.push((0..40).map(|_| job(endpoint, 0)).collect(), |_| Some(cap(0)));
    let start = || std::iter::from_fn(|| lanes.next()).count();
    assert_eq!(start(), 2);
    for _ in 0..2 {
        lanes.finish(endpoint, Some(&outcome(None)));
    }
    assert_eq!(start(), 4, "doubled after as many successes as its cap");
    for _ in 0..4 {
        lanes.finish(endpoint, Some(&outcome(Some(ErrorClass::Timeout))));
    }
    assert_eq!(start(), 1, "halved on each timeout, down to the least");
}

#[test]
fn a_closed_set_of_lanes_gives_back_what_waits() {
    let lanes = Lanes::new(LIMITS);
    let endpoint = EndpointId::new();
    lanes.push((0..5).map(|_| job(endpoint, 0)).collect(), |_| Some(cap(0)));
    assert!(lanes.next().is_some());
    assert_eq!(lanes.close().len(), 4);
    assert!(lanes.next().is_none() && lanes.reserve(endpoint, 0).is_none());
}

/// Endpoints that have answered, with nothing in flight.
fn proven(lanes: &Lanes, count: usize) -> Vec<EndpointId> {
    let endpoints: Vec<_> = (0..count).map(|_| EndpointId::new()).collect();
    for endpoint in &endpoints {
        lanes.push(vec![job(*endpoint, 0)], |_| Some(cap(0)));
        lanes.next().expect("a slot");
        lanes.finish(*endpoint, Some(&outcome(None)));
    }
    endpoints
}

#[test]
fn endpoints_that_do_not_answer_leave_half_of_the_slots() {
    let lanes = Lanes::new(LIMITS);
    let healthy = proven(&lanes, 2);
    for _ in 0..50 {
        let dead = EndpointId::new();
        lanes.push((0..4).map(|_| job(dead, 0)).collect(), |_| Some(cap(0)));
    }
    let started: Vec<_> = std::iter::from_fn(|| lanes.next()).map(|job| job.endpoint).collect();
    assert_eq!(started.len(), 3, "half of six, whoever waits");
    lanes.push(healthy.iter().flat_map(|id| [job(*id, 0), job(*id, 0)]).collect(), |_| Some(cap(0)));
    let started: Vec<_> = std::iter::from_fn(|| lanes.next()).map(|job| job.endpoint).collect();
    assert_eq!(started.len(), 3);
    assert!(started.iter().all(|id| healthy.contains(id)));
    // A slot that comes free goes to one that waits for it, and an endpoint that falls silent counts as such.
    lanes.finish(started[0], Some(&outcome(Some(ErrorClass::Timeout))));
    assert!(lanes.next().is_some_and(|job| healthy.contains(&job.endpoint)));
}

#[test]
fn endpoints_that_do_not_answer_leave_half_of_the_memory() {
    let lanes = Lanes::new(LIMITS);
    let healthy = proven(&lanes, 1)[0];
    let dead: Vec<_> = (0..5).map(|_| EndpointId::new()).collect();
    let mut places = Vec::new();
    for endpoint in dead.iter().cycle().take(50) {
        places.extend(lanes.reserve(*endpoint, 0));
    }
    assert_eq!(places.len(), 6, "as many as there are slots");
    assert!(lanes.reserve(healthy, 0).is_some());
    let unknown = EndpointId::new();
    places.push(lanes.reserve(unknown, 0).expect("nothing speaks against it yet"));
    assert!(lanes.reserve(unknown, 0).is_none(), "one tells whether it answers");
}

#[test]
fn loads_come_back_to_nothing() {
    let lanes = Lanes::new(LIMITS);
    let endpoints = proven(&lanes, 3);
    for round in 0..20 {
        let endpoint = endpoints[round % 3];
        lanes.push(vec![job(endpoint, 0), job(endpoint, 1)], |_| Some(cap(0)));
        drop(lanes.reserve(endpoint, 0));
        let classes = [None, Some(ErrorClass::Timeout), Some(ErrorClass::HttpStatus), Some(ErrorClass::Dns)];
        while let Some(job) = lanes.next() {
            lanes.finish(job.endpoint, Some(&outcome(classes[round % 4])));
        }
    }
    lanes.push(vec![job(endpoints[0], 0)], |_| Some(cap(0)));
    assert_eq!(lanes.clear().len(), 1);
    let state = lanes.lock();
    for load in [state.all, state.of_silent] {
        assert_eq!((load.in_flight, load.waiting), (0, 0));
    }
}

fn due(endpoint: EndpointId, count: usize) -> Vec<Due> {
    (0..count).map(|_| Due { id: DeliveryId::new(), endpoint }).collect()
}

#[test]
fn a_claim_takes_what_there_is_room_for_and_names_what_is_left() {
    let lanes = Lanes::new(LIMITS);
    let (full, open) = (EndpointId::new(), EndpointId::new());
    lanes.push((0..3).map(|_| job(full, 0)).collect(), |_| Some(cap(0)));
    let seen = [due(full, 10), due(open, 2)].concat();
    let choice = lanes.choose(&seen, 100);
    assert_eq!(choice.take, [seen[10].id, seen[11].id], "a lane that is more than half full gets nothing");
    assert_eq!(choice.left, [full].into());
    assert!(lanes.reserve(full, 0).is_none(), "its newer work must not overtake what was left");
    assert!(lanes.reserve(open, 0).is_some());
}

#[test]
fn a_claim_is_shared_before_it_is_filled() {
    let lanes = Lanes::new(LaneLimits { slots: 1000, cap_start: 100, ..LIMITS });
    let (loud, quiet) = (EndpointId::new(), EndpointId::new());
    let seen = [due(loud, 200), due(quiet, 5)].concat();
    let choice = lanes.choose(&seen, 60);
    let quiet_ones = choice.take.iter().filter(|id| seen[200..].iter().any(|one| one.id == **id)).count();
    assert_eq!((choice.take.len(), quiet_ones), (60, 5));
    assert_eq!(choice.left, [loud].into());
}

#[test]
fn claims_for_dead_endpoints_leave_room_for_others() {
    let lanes = Lanes::new(LaneLimits { slots: 10, ..LIMITS });
    let healthy = proven(&lanes, 1)[0];
    let dead: Vec<Due> = (0..3).flat_map(|_| due(EndpointId::new(), 4)).collect();
    let seen = [dead, due(healthy, 4), due(EndpointId::new(), 4)].concat();
    let choice = lanes.choose(&seen, 100);
    assert_eq!(choice.take.len(), 10 + 4 + 1, "the silent as many as slots, the lane's fill, one to try");
    lanes.push(
        choice
            .take
            .iter()
            .filter_map(|id| seen.iter().find(|one| one.id == *id))
            .map(|one| job(one.endpoint, 0))
            .collect(),
        |_| Some(cap(0)),
    );
    let names: Vec<_> = seen.iter().map(|one| one.endpoint).collect();
    assert!(lanes.with_room(&names, 100).is_empty());
    let other = EndpointId::new();
    assert_eq!(lanes.with_room(&[names[0], other], 100), [other]);
}

#[test]
fn a_fixed_cap_neither_grows_nor_shrinks() {
    let lanes = Lanes::new(LaneLimits { slots: 8, ..LIMITS });
    let endpoint = EndpointId::new();
    lanes.push((0..40).map(|_| job(endpoint, 0)).collect(), |_| Some(cap(3)));
    let start = || std::iter::from_fn(|| lanes.next()).count();
    assert_eq!(start(), 3);
    for class in [None, None, Some(ErrorClass::Timeout)] {
        lanes.finish(endpoint, Some(&outcome(class)));
    }
    assert_eq!(start(), 3);
    // No more than any endpoint may have, and by itself again once it is not fixed any more.
    lanes.push(vec![job(endpoint, 0)], |_| Some(cap(100)));
    assert_eq!(start(), LIMITS.cap_max - 3);
    for _ in 0..LIMITS.cap_max {
        lanes.finish(endpoint, None);
    }
    lanes.push(vec![job(endpoint, 0)], |_| Some(cap(0)));
    assert_eq!(start(), LIMITS.cap_start);
}

#[test]
fn a_paced_lane_starts_nothing_without_a_slot() {
    let lanes = Lanes::new(LIMITS);
    let endpoint = EndpointId::new();
    let late = std::time::Duration::from_secs(60);
    let rule = LaneRule { fixed: 4, late: Some(late) };
    lanes.push((0..4).map(|_| job(endpoint, 0)).collect(), |_| Some(rule));
    assert!(lanes.next().is_none());
    assert_eq!(lanes.wants(endpoint, rule), (4, 4));
    let now = std::time::Instant::now();
    // One is over, one has come, one is to come.
    lanes.add_slots(endpoint, vec![now - 2 * late, now, now + late]);
    assert_eq!(lanes.wants(endpoint, rule), (4, 2));
    let first = lanes.next().expect("a slot");
    assert_eq!(first.start_by, Some(now + late));
    assert!(lanes.next().is_none());
    assert_eq!(lanes.start_due(endpoint), Some(now + late));
    let id = first.id;
    lanes.put_back(first, rule);
    lanes.finish(endpoint, None);
    assert!(lanes.next().is_none(), "its slot is gone");
    lanes.unpace(endpoint);
    assert_eq!(lanes.next().map(|job| job.id), Some(id), "it comes first");
}

#[test]
fn an_endpoint_that_answers_waits_no_longer_with_the_silent_ones() {
    let lanes = Lanes::new(LIMITS);
    let healthy = EndpointId::new();
    lanes.push((0..6).map(|_| job(healthy, 0)).collect(), |_| Some(cap(0)));
    assert_eq!(
        lanes.next().map(|job| job.endpoint),
        Some(healthy),
        "its first attempt, of which nothing is known"
    );
    // Two that never answer take the other silent slots while it waits in their ring.
    let silent = [EndpointId::new(), EndpointId::new()];
    lanes.push(silent.iter().map(|endpoint| job(*endpoint, 0)).collect(), |_| Some(cap(0)));
    for _ in silent {
        assert_ne!(lanes.next().map(|job| job.endpoint), Some(healthy), "the untried go first");
    }
    assert!(lanes.next().is_none(), "all silent slots are taken");
    lanes.finish(healthy, Some(&outcome(None)));
    lanes.push(vec![job(EndpointId::new(), 0)], |_| Some(cap(0)));
    assert!(lanes.next().is_some(), "the slot that it gave back goes to the next untried one");
    assert_eq!(lanes.next().map(|job| job.endpoint), Some(healthy), "it has its own half now");
}

/// How many attempts of the one endpoint with work start, at first and after each round in which they ended like this:
/// as many as its cap, while enough work waits.
fn rounds(lanes: &Lanes, endpoint: EndpointId, ends: &[Option<ErrorClass>]) -> Vec<usize> {
    let start = || std::iter::from_fn(|| lanes.next()).count();
    let mut started = vec![start()];
    for class in ends {
        let held = started[started.len() - 1];
        match class {
            None => (0..held).for_each(|_| lanes.finish(endpoint, Some(&outcome(None)))),
            // One is enough; of the others nothing was sent.
            Some(class) => {
                lanes.finish(endpoint, Some(&outcome(Some(*class))));
                (1..held).for_each(|_| lanes.finish(endpoint, None));
            }
        }
        started.push(start());
    }
    started
}

/// The lanes of a server that is not configured, with more work of one endpoint than any test here sends.
fn usual(fixed: u16) -> (Arc<Lanes>, EndpointId) {
    let (lanes, endpoint) = (Lanes::new(LaneLimits::default()), EndpointId::new());
    lanes.push((0..3000).map(|_| job(endpoint, 0)).collect(), |_| Some(cap(fixed)));
    (lanes, endpoint)
}

#[test]
fn the_cap_starts_at_16_and_doubles_up_to_256() {
    let (lanes, endpoint) = usual(0);
    assert_eq!(rounds(&lanes, endpoint, &[None; 6]), [16, 32, 64, 128, 256, 256, 256]);
}

#[test]
fn the_cap_halves_down_to_2_and_grows_again() {
    let (lanes, endpoint) = usual(0);
    let ends = [[Some(ErrorClass::Timeout); 5].as_slice(), &[None; 3]].concat();
    assert_eq!(rounds(&lanes, endpoint, &ends), [16, 8, 4, 2, 2, 2, 4, 8, 16]);
}

#[test]
fn only_timeouts_resets_and_refusals_halve_the_cap() {
    for class in ErrorClass::ALL {
        // Without a rest, so that a new class is thought of.
        let halves = match class {
            ErrorClass::Timeout | ErrorClass::Reset | ErrorClass::Connect => true,
            ErrorClass::Dns
            | ErrorClass::BlockedAddress
            | ErrorClass::Tls
            | ErrorClass::Protocol
            | ErrorClass::HttpStatus
            | ErrorClass::Auth
            | ErrorClass::Certificate
            | ErrorClass::Cancelled => false,
        };
        let (lanes, endpoint) = usual(0);
        let expected = [16, if halves { 8 } else { 16 }];
        assert_eq!(rounds(&lanes, endpoint, &[Some(class)]), expected, "{class:?}");
    }
}

#[test]
fn the_cap_does_not_grow_where_no_work_waits() {
    let (lanes, endpoint) = (Lanes::new(LaneLimits::default()), EndpointId::new());
    lanes.push((0..16).map(|_| job(endpoint, 0)).collect(), |_| Some(cap(0)));
    assert_eq!(rounds(&lanes, endpoint, &[None]), [16, 0]);
    lanes.push((0..100).map(|_| job(endpoint, 0)).collect(), |_| Some(cap(0)));
    assert_eq!(rounds(&lanes, endpoint, &[]), [16]);
}

#[test]
fn an_endpoint_leaves_three_quarters_of_the_slots_to_others() {
    // At the end of its growth, or fixed at more than it may have.
    for fixed in [0, 1000] {
        let (lanes, busy) = usual(fixed);
        let grown = rounds(&lanes, busy, &[None; 4]);
        assert_eq!(grown.last(), Some(&(LaneLimits::default().slots / 4)), "fixed at {fixed}");
        let others = proven(&lanes, 48);
        lanes.push(others.iter().flat_map(|id| (0..16).map(|_| job(*id, 0))).collect(), |_| Some(cap(0)));
        let started: Vec<_> = std::iter::from_fn(|| lanes.next()).map(|job| job.endpoint).collect();
        assert_eq!(started.len(), 768, "fixed at {fixed}");
        assert!(!started.contains(&busy), "fixed at {fixed}");
    }
}

#[test]
fn lanes_that_had_no_work_are_forgotten_where_there_are_too_many() {
    let lanes = Lanes::new(LIMITS);
    let attempt = |endpoint, class| {
        lanes.push(vec![job(endpoint, 0)], |_| Some(cap(0)));
        assert!(lanes.next().is_some());
        lanes.finish(endpoint, Some(&outcome(class)));
    };
    let (dead, busy) = (EndpointId::new(), EndpointId::new());
    attempt(dead, Some(ErrorClass::Timeout));
    attempt(busy, None);
    for _ in 0..REMEMBERED + 8 {
        attempt(EndpointId::new(), None);
    }
    let known = || lanes.lock().lanes.len();
    let standing = |endpoint| lanes.lock().lanes.get(&endpoint).map(|lane| lane.standing);
    lanes.sweep();
    assert_eq!(known(), REMEMBERED + 10, "all had work since the last sweep");
    attempt(busy, None);
    lanes.sweep();
    assert_eq!(known(), REMEMBERED);
    assert_eq!((standing(dead), standing(busy)), (Some(Standing::Silent), Some(Standing::Answers)));
}

#[test]
fn a_lane_whose_rule_cannot_be_read_keeps_what_it_had_or_takes_one_at_a_time() {
    let lanes = Lanes::new(LaneLimits { slots: 20, cap_start: 4, ..LIMITS });
    let (known, new) = (EndpointId::new(), EndpointId::new());
    lanes.push(vec![job(known, 0)], |_| Some(cap(2)));
    for endpoint in [known, new] {
        lanes.push((0..3).map(|_| job(endpoint, 0)).collect(), |_| None);
    }
    let started: Vec<_> = std::iter::from_fn(|| lanes.next()).map(|job| job.endpoint).collect();
    let count = |endpoint| started.iter().filter(|one| **one == endpoint).count();
    assert_eq!((count(known), count(new)), (2, 1));
    lanes.push(vec![job(new, 0)], |_| Some(cap(0)));
    assert_eq!(std::iter::from_fn(|| lanes.next()).count(), 3, "its cap is the usual one again");
}
