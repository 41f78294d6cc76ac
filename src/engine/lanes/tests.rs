use super::*;
use crate::domain::clock::Timestamp;
use crate::domain::delivery::Claim;
use crate::domain::event::Message;
use crate::domain::id::{DeliveryId, EventId, LeaseId, ProjectId};

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
        probe: false,
        message: Arc::new(message),
    }
}

fn outcome(class: Option<ErrorClass>) -> AttemptOutcome {
    let mut outcome = AttemptOutcome::unsent(Timestamp::now(), ErrorClass::Timeout, "");
    outcome.error = class.map(|class| (class, String::new()));
    outcome
}

#[test]
fn slots_go_to_lanes_in_turn_and_within_their_caps() {
    let lanes = Lanes::new(LIMITS);
    let (busy, quiet) = (EndpointId::new(), EndpointId::new());
    lanes.push((0..10).map(|_| job(busy, 0)).collect(), |_| 0);
    lanes.push(vec![job(quiet, 0)], |_| 0);
    let started: Vec<_> = std::iter::from_fn(|| lanes.next()).map(|job| job.endpoint).collect();
    assert_eq!(started, [busy, quiet, busy], "the busy lane holds its cap of two");
    lanes.finish(busy, None);
    assert_eq!(lanes.next().map(|job| job.endpoint), Some(busy));
    assert!(lanes.next().is_none());
}

#[test]
fn first_attempts_and_retries_take_turns() {
    let lanes = Lanes::new(LaneLimits { cap_start: 4, ..LIMITS });
    let endpoint = EndpointId::new();
    lanes.push((0..3).map(|_| job(endpoint, 1)).chain((0..3).map(|_| job(endpoint, 0))).collect(), |_| 0);
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
    lanes.push((0..40).map(|_| job(endpoint, 0)).collect(), |_| 0);
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
    lanes.push((0..5).map(|_| job(endpoint, 0)).collect(), |_| 0);
    assert!(lanes.next().is_some());
    assert_eq!(lanes.close().len(), 4);
    assert!(lanes.next().is_none() && lanes.reserve(endpoint, 0).is_none());
}

#[test]
fn a_fixed_cap_neither_grows_nor_shrinks() {
    let lanes = Lanes::new(LIMITS);
    let endpoint = EndpointId::new();
    lanes.push((0..40).map(|_| job(endpoint, 0)).collect(), |_| 3);
    let start = || std::iter::from_fn(|| lanes.next()).count();
    assert_eq!(start(), 3);
    for class in [None, None, Some(ErrorClass::Timeout)] {
        lanes.finish(endpoint, Some(&outcome(class)));
    }
    assert_eq!(start(), 3);
    // No more than any endpoint may have, and by itself again once it is not fixed any more.
    lanes.push(vec![job(endpoint, 0)], |_| 100);
    assert_eq!(start(), LIMITS.cap_max - 3);
    for _ in 0..LIMITS.cap_max {
        lanes.finish(endpoint, None);
    }
    lanes.push(vec![job(endpoint, 0)], |_| 0);
    assert_eq!(start(), LIMITS.cap_start);
}
