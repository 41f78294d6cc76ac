//! The circuit breaker: sending rests after failures in a row, one attempt probes, and nothing is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hawser_client::pb;
use hawser_client::pb::publish_event_request::Target;

use crate::support::failing::{deliveries_in, get, linear, next_attempt, until_all, world_with};
use crate::support::world::{publish, until};
use crate::support::{Database, Receiver, Reply, World, in_time, on_both};

on_both!(
    sending_rests_until_one_attempt_probes,
    a_probe_that_dies_with_its_process_is_made_again,
    a_resumed_endpoint_starts_with_a_closed_breaker,
    deleting_discards_what_rests,
    a_probe_that_is_called_off_lets_it_rest_again,
    what_can_never_be_sent_takes_no_probes_turn,
    a_retry_under_a_rate_limit_is_there_to_probe_with,
);

/// Three failures open it, for so many seconds at first.
async fn world(database: Database, pause: &str) -> World {
    let arguments = ["--breaker-failures", "3", "--breaker-pause", pause];
    world_with(database, pb::PausedPolicy::Discard, &arguments).await
}

async fn endpoint(world: &World, receiver: &Receiver) -> pb::Endpoint {
    let endpoint =
        pb::Endpoint { url: receiver.url("/hook"), retry_policy: Some(linear(20, 50)), ..Default::default() };
    world.create(endpoint, &["*"]).await.0
}

fn state(endpoint: &pb::Endpoint) -> pb::CircuitState {
    endpoint.circuit.expect("a circuit").state()
}

/// Publishes one event and waits until its third failure has opened the breaker.
async fn open(world: &World, endpoint: &pb::Endpoint) -> String {
    let mut watch = world.watch().await;
    let event = world.publish_to(endpoint, b"first").await.event_id;
    while next_attempt(&mut watch, &endpoint.id).await.number < 3 {}
    let read = get(world, &endpoint.id).await;
    assert_eq!((read.status(), state(&read)), (pb::EndpointStatus::Active, pb::CircuitState::Open));
    assert!(read.circuit.and_then(|circuit| circuit.until).is_some());
    event
}

async fn sending_rests_until_one_attempt_probes(database: Database) {
    let world = world(database, "4").await;
    // Three fail, the fourth is the probe and takes its time.
    let receiver = Receiver::scripted(|_, before| match before {
        0..3 => Reply::status(500),
        3 => Reply::after(Duration::from_secs(4)),
        _ => Reply::status(204),
    })
    .await;
    let endpoint = endpoint(&world, &receiver).await;
    let mut watch = world.watch().await;
    let mut events = vec![open(&world, &endpoint).await];
    let rested = get(&world, &endpoint.id).await.circuit.and_then(|circuit| circuit.until);
    // New work waits with the old, and keeps its status and its attempts.
    for _ in 0..20 {
        events.push(world.publish_to(&endpoint, b"{}").await.event_id);
    }
    receiver.wait_for_count(4).await;
    let read = get(&world, &endpoint.id).await;
    assert_eq!(state(&read), pb::CircuitState::HalfOpen);
    let waiting = deliveries_in(&world, &endpoint.id, &[pb::DeliveryStatus::Scheduled]).await;
    assert!(waiting.len() >= 19 && waiting.iter().all(|one| one.attempt_count == 0));
    until_all(&mut watch, &events, pb::DeliveryStatus::Success).await;
    let attempts = attempts_in_turn(&world, &events).await;
    assert_eq!((attempts.len(), receiver.seen().len()), (3 + 21, 3 + 21), "the probe is one of them");
    let probe = &attempts[3];
    assert!(started(probe) >= millis_of(rested.expect("an end of the rest")), "sending rested");
    assert!(started(&attempts[4]) >= ended(probe), "and until the probe had ended");
    let read = get(&world, &endpoint.id).await;
    assert_eq!((state(&read), read.consecutive_failures), (pb::CircuitState::Closed, 0));
}

/// All attempts made for these events, in the order in which they began.
async fn attempts_in_turn(world: &World, events: &[String]) -> Vec<pb::Attempt> {
    let mut attempts = Vec::new();
    for event in events {
        for delivery in world.deliveries_of(event).await {
            attempts.extend(world.attempts_of(&delivery.id).await);
        }
    }
    attempts.sort_by_key(started);
    attempts
}

fn millis_of(time: prost_types::Timestamp) -> i64 {
    time.seconds * 1000 + i64::from(time.nanos) / 1_000_000
}

fn started(attempt: &pb::Attempt) -> i64 {
    millis_of(attempt.start_time.expect("a time"))
}

fn ended(attempt: &pb::Attempt) -> i64 {
    let total = attempt.timings.and_then(|timings| timings.total).expect("a time");
    started(attempt) + total.seconds * 1000 + i64::from(total.nanos) / 1_000_000
}

async fn a_probe_that_dies_with_its_process_is_made_again(database: Database) {
    let mut world = world(database, "2").await;
    let receiver = Receiver::scripted(|_, before| match before {
        0..3 => Reply::status(500),
        3 => Reply::after(Duration::from_secs(20)),
        _ => Reply::status(204),
    })
    .await;
    let endpoint = endpoint(&world, &receiver).await;
    let event = open(&world, &endpoint).await;
    receiver.wait_for_count(4).await;
    world.server.kill().await;
    world.restart().await;
    let mut watch = world.watch().await;
    receiver.wait_for_count(5).await;
    if world.deliveries_of(&event).await[0].status() != pb::DeliveryStatus::Success {
        until(&mut watch, &event, pb::DeliveryStatus::Success).await;
    }
    assert_eq!(state(&get(&world, &endpoint.id).await), pb::CircuitState::Closed);
}

async fn a_resumed_endpoint_starts_with_a_closed_breaker(database: Database) {
    let world = world(database, "60").await;
    let healthy = Arc::<AtomicBool>::default();
    let is_healthy = healthy.clone();
    let receiver = Receiver::scripted(move |_, _| {
        Reply::status(if is_healthy.load(Ordering::SeqCst) { 200 } else { 500 })
    })
    .await;
    let endpoint = endpoint(&world, &receiver).await;
    let mut watch = world.watch().await;
    let event = open(&world, &endpoint).await;
    let id = endpoint.id.clone();
    let pause = pb::PauseEndpointRequest { endpoint_id: id.clone(), ..Default::default() };
    world.client.endpoints().pause_endpoint(pause).await.expect("paused");
    healthy.store(true, Ordering::SeqCst);
    let resume = pb::ResumeEndpointRequest { endpoint_id: id, ..Default::default() };
    let resumed = world.client.endpoints().resume_endpoint(resume).await.expect("resumed").into_inner();
    let resumed = resumed.endpoint.expect("an endpoint");
    assert_eq!((state(&resumed), resumed.consecutive_failures), (pb::CircuitState::Closed, 0));
    until(&mut watch, &event, pb::DeliveryStatus::Success).await;
}

async fn deleting_discards_what_rests(database: Database) {
    let world = world(database, "60").await;
    let receiver = Receiver::scripted(|_, _| Reply::status(500)).await;
    let endpoint = endpoint(&world, &receiver).await;
    let mut watch = world.watch().await;
    let mut events = vec![open(&world, &endpoint).await];
    for _ in 0..5 {
        events.push(world.publish_to(&endpoint, b"{}").await.event_id);
    }
    let delete = pb::DeleteEndpointRequest { endpoint_id: endpoint.id, ..Default::default() };
    world.client.endpoints().delete_endpoint(delete).await.expect("deleted");
    until_all(&mut watch, &events, pb::DeliveryStatus::Discarded).await;
}

/// Where the endpoint's breaker stands: how often it opened, and until when it rests.
async fn breaker(session: &mut sqlx::PgConnection) -> (i16, i64) {
    let sql = "SELECT breaker_opens, breaker_until FROM endpoint_health WHERE breaker_until IS NOT NULL";
    sqlx::query_as(sql).fetch_one(session).await.expect("it is open")
}

/// However many nodes there are: one probe after each rest, and each failed one makes the next longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_attempt_probes_over_all_nodes() {
    in_time(async {
        let world = world(Database::postgres().await, "1").await;
        let other = world.server.join().await;
        let there = world.client_of(&other).await;
        let healthy = Arc::<AtomicBool>::default();
        let is_healthy = healthy.clone();
        let receiver = Receiver::scripted(move |_, _| {
            Reply::status(if is_healthy.load(Ordering::SeqCst) { 204 } else { 500 })
        })
        .await;
        let endpoint = endpoint(&world, &receiver).await;
        let mut watch = world.watch().await;
        let mut events = Vec::new();
        for client in [&world.client, &there] {
            for _ in 0..10 {
                let target = Target::EndpointId(endpoint.id.clone());
                events.push(publish(client, target, b"{}", "").await.expect("published").event_id);
            }
        }
        // Once all of it rests, neither node has any more that began before the breaker opened.
        let resting = "SELECT COUNT(*) FROM queue WHERE parked = 2 AND claimed_by IS NULL";
        other.database().until("all of it rests", resting, 20).await;
        let mut session = other.database().session().await;
        let (opens, first_rest) = breaker(&mut session).await;
        let at_third = format!("SELECT COUNT(*) FROM endpoint_health WHERE breaker_opens >= {}", opens + 2);
        other.database().until("two probes fail", &at_third, 1).await;
        let (third, last_rest) = breaker(&mut session).await;
        healthy.store(true, Ordering::SeqCst);
        until_all(&mut watch, &events, pb::DeliveryStatus::Success).await;

        let attempts = attempts_in_turn(&world, &events).await;
        let probes: Vec<_> =
            attempts.iter().filter(|one| (first_rest..last_rest).contains(&started(one))).collect();
        assert_eq!(
            probes.len(),
            usize::try_from(third - opens).expect("more"),
            "one after each rest: {probes:?}"
        );
        for pair in probes.windows(2) {
            let rest = 1000_i64 << opens.min(4);
            assert!(started(pair[1]) >= ended(pair[0]) + rest, "and a longer rest after each: {probes:?}");
        }
        let closed = attempts.iter().filter(|one| one.status_code == Some(204)).count();
        assert_eq!(closed, events.len(), "each was sent once when it closed");
    })
    .await;
}

/// The event of what rests does not read, so its attempt is called off and says nothing of the endpoint.
async fn a_probe_that_is_called_off_lets_it_rest_again(database: Database) {
    let world = world(database, "600").await;
    let receiver = Receiver::scripted(|_, _| Reply::status(500)).await;
    let endpoint = endpoint(&world, &receiver).await;
    let mut watch = world.watch().await;
    open(&world, &endpoint).await;
    while next_attempt(&mut watch, &endpoint.id).await.number < 3 {}
    let mut sql = world.server.sql().await;
    sql.run("UPDATE events SET headers = 'no headers'").await;
    sql.run("UPDATE endpoint_health SET breaker_until = 1").await;
    let probe = next_attempt(&mut watch, &endpoint.id).await;
    assert_eq!((probe.number, probe.error_class()), (4, pb::ErrorClass::Cancelled));
    // By then its outcome is written.
    sql.until_numbers("SELECT COUNT(*) FROM endpoint_health WHERE breaker_until > 1", &[1]).await;
    let read = get(&world, &endpoint.id).await;
    assert_eq!((state(&read), read.consecutive_failures), (pb::CircuitState::Open, 3));
}

async fn what_can_never_be_sent_takes_no_probes_turn(database: Database) {
    let world = world(database, "600").await;
    let receiver = Receiver::scripted(|_, _| Reply::status(500)).await;
    let endpoint = endpoint(&world, &receiver).await;
    open(&world, &endpoint).await;
    world.publish_to(&endpoint, b"second").await;
    let mut sql = world.server.sql().await;
    sql.until_numbers("SELECT COUNT(*) FROM queue WHERE claimed_by IS NULL", &[2]).await;
    sql.run("DELETE FROM events").await;
    sql.run("UPDATE endpoint_health SET breaker_until = 1").await;
    // Neither waits for ten minutes behind the other.
    sql.until_numbers("SELECT COUNT(*) FROM queue", &[0]).await;
    assert_eq!(receiver.seen().len(), 3);
}

/// What a person retries of an endpoint with a rate limit is what its breaker probes with, once that has rested.
async fn a_retry_under_a_rate_limit_is_there_to_probe_with(database: Database) {
    let arguments = ["--breaker-failures", "1", "--breaker-pause", "1"];
    let world = world_with(database, pb::PausedPolicy::Discard, &arguments).await;
    let receiver = Receiver::scripted(|_, before| Reply::status(if before == 0 { 500 } else { 204 })).await;
    let per = Some(prost_types::Duration { seconds: 1, nanos: 0 });
    let endpoint = pb::Endpoint {
        url: receiver.url("/hook"),
        retry_policy: Some(linear(20, 1)),
        rate_limit: Some(pb::RateLimit { requests: 10, per, burst: 1 }),
        ..Default::default()
    };
    let endpoint = world.create(endpoint, &["*"]).await.0;
    let mut watch = world.watch().await;
    let event = world.publish_to(&endpoint, b"{}").await.event_id;
    let failed = until(&mut watch, &event, pb::DeliveryStatus::Failed).await;
    assert_eq!(state(&get(&world, &endpoint.id).await), pb::CircuitState::Open);
    let retry = pb::RetryDeliveryRequest { delivery_id: failed.id, ..Default::default() };
    world.client.deliveries().retry_delivery(retry).await.expect("retried");
    // The slow round comes a minute after the start.
    let sent = until(&mut watch, &event, pb::DeliveryStatus::Success);
    tokio::time::timeout(Duration::from_secs(30), sent).await.expect("it is the probe");
}
