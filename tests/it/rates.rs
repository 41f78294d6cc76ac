//! Rate limits: how often attempts start, over all nodes, by the start times that are stored. The one place where a
//! count over time is what is tested.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hawser_client::pb::publish_event_request::Target;
use hawser_client::{Client, pb};

use crate::support::failing::{NO_BREAKER, get, next_attempt, world_with};
use crate::support::server::is_optimised;
use crate::support::web;
use crate::support::world::{publish, until};
use crate::support::{Database, Receiver, Reply, Server, World, in_time, on_both, pass_time, tier};

on_both!(
    twenty_a_second,
    five_hundred_a_second,
    a_pause_gives_a_burst,
    a_limit_can_be_set_and_lifted_while_work_waits,
    a_slow_limits_wait_ends_with_it,
    retries_wait_for_slots_too,
);

/// How long work waits, and the length over which at least 95 % of the limit must be used.
const LENGTH: Duration = Duration::from_secs(12);
const MEASURED: i64 = 10_000;

fn limit(requests: i32, burst: i32) -> pb::RateLimit {
    pb::RateLimit { requests, per: Some(prost_types::Duration { seconds: 1, nanos: 0 }), burst }
}

async fn endpoint(world: &World, receiver: &Receiver, limit: Option<pb::RateLimit>) -> pb::Endpoint {
    let endpoint = pb::Endpoint { url: receiver.url("/hook"), rate_limit: limit, ..Default::default() };
    world.create(endpoint, &["*"]).await.0
}

async fn publish_batches(world: &World, endpoint: &str, count: usize) {
    publish_through(std::slice::from_ref(&world.client), endpoint, count).await;
}

/// In batches, by one client after the other.
async fn publish_through(clients: &[Client], endpoint: &str, count: usize) {
    let event = |_| pb::PublishEventRequest {
        event_type: "test.event".to_owned(),
        target: Some(Target::EndpointId(endpoint.to_owned())),
        payload: b"{}".to_vec().into(),
        ..Default::default()
    };
    for (start, client) in (0..count).step_by(100).zip(clients.iter().cycle()) {
        let requests = (start..count.min(start + 100)).map(event).collect();
        let request = pb::BatchPublishEventsRequest { requests, ..Default::default() };
        client.events().batch_publish_events(request).await.expect("published");
    }
}

/// Attempts that a node has made since it started.
async fn attempts_of(node: &Server) -> f64 {
    let (_, text) = web::get(node.admin(), "/metrics").await;
    let made = text.lines().filter(|line| line.starts_with("hawser_attempts_total{"));
    made.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
}

/// At no time more than `most` in any `length`, both in milliseconds.
fn at_most(starts: &[i64], most: usize, length: i64, what: &str) {
    for window in starts.windows(most + 1) {
        let span = window[most] - window[0];
        assert!(span >= length, "{what}: {} in {span} ms", most + 1);
    }
}

// An unoptimised server and receiver among other tests may want for processors at 500/s, as they would without a limit.
// There only the stored start times are judged; how much of the limit is used at that rate, and what arrives, where the
// tests are optimised (scripts/test, stage faults).

/// One at a time: what is measured is the server, not how many of them fit on the machine.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Keeps work waiting on these nodes and judges by what is stored, and at the receiver.
async fn judge(world: &World, nodes: &[Server], rate: usize) {
    let _turn = TURN.lock().await;
    let arrivals = Arc::<Mutex<Vec<Instant>>>::default();
    let seen = arrivals.clone();
    let receiver = Receiver::scripted(move |_, _| {
        seen.lock().expect("unpoisoned").push(Instant::now());
        Reply::status(204)
    })
    .await;
    let endpoint = endpoint(world, &receiver, Some(limit(i32::try_from(rate).expect("small"), 0))).await;
    assert_eq!(endpoint.rate_limit.map(|limit| limit.burst), Some(1));
    let pause = pb::PauseEndpointRequest { endpoint_id: endpoint.id.clone(), ..Default::default() };
    world.client.endpoints().pause_endpoint(pause).await.expect("paused");
    let count = rate * LENGTH.as_secs() as usize;
    let mut clients = vec![world.client.clone()];
    for node in nodes {
        clients.push(world.client_of(node).await);
    }
    publish_through(&clients, &endpoint.id, count + 2 * rate).await;
    let resume = pb::ResumeEndpointRequest { endpoint_id: endpoint.id.clone(), ..Default::default() };
    world.client.endpoints().resume_endpoint(resume).await.expect("resumed");
    receiver.wait_for_count(count).await;

    let mut sql = world.server.sql().await;
    let mut starts = sql.numbers("SELECT started_at FROM attempts ORDER BY started_at").await;
    at_most(&starts, rate + 1, 1000, "attempts");
    // The newest may not be written yet.
    let end = starts.last().expect("attempts") - 1000;
    starts.retain(|start| *start <= end);
    let mut least = usize::MAX;
    for (at, start) in starts.iter().enumerate().filter(|(_, start)| **start + MEASURED <= end) {
        let within = starts[at..].iter().take_while(|other| **other < start + MEASURED).count();
        least = least.min(within);
    }
    println!("{rate}/s on {} nodes: at least {least} in 10 s", nodes.len() + 1);
    assert!(least < usize::MAX, "work waited for long enough");
    assert_eq!(sql.count("attempts WHERE number > 1 OR error_class IS NOT NULL").await, 0);
    assert_eq!(sql.count("deliveries WHERE attempts > 1").await, 0, "waiting costs no attempt");
    // Or it would be the limit of one that is looked at.
    let mut shares = Vec::new();
    for node in [&world.server].into_iter().chain(nodes) {
        shares.push(attempts_of(node).await);
    }
    println!("attempts of each node: {shares:?}");
    assert!(shares.iter().filter(|share| **share > 0.0).count() >= shares.len().min(2), "{shares:?}");
    // 95 % is promised, and asked of a machine that does nothing else. A debug build gets nowhere near 500/s beside others.
    let share = if is_optimised() { tier(90, 95) } else { 80 };
    if rate <= 100 || is_optimised() {
        assert!(least * 100 >= rate * 10 * share, "{least} in 10 s of {}", rate * 10);
        let arrivals = arrivals.lock().expect("unpoisoned").clone();
        let arrivals: Vec<i64> = arrivals.iter().map(|at| (*at - arrivals[0]).as_millis() as i64).collect();
        at_most(&arrivals, rate + 2, 1000, "arrivals");
    }
}

async fn world(database: Database) -> World {
    world_with(database, pb::PausedPolicy::Hold, &NO_BREAKER).await
}

async fn twenty_a_second(database: Database) {
    judge(&world(database).await, &[], 20).await;
}

async fn five_hundred_a_second(database: Database) {
    judge(&world(database).await, &[], 500).await;
}

async fn three_nodes(rate: usize) {
    let world = world(Database::postgres().await).await;
    let nodes = [world.server.join().await, world.server.join().await];
    judge(&world, &nodes, rate).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_a_second_on_three_nodes() {
    in_time(three_nodes(20)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_a_second_on_three_nodes() {
    in_time(three_nodes(500)).await;
}

async fn a_pause_gives_a_burst(database: Database) {
    let world = world(database).await;
    let receiver = Receiver::ok().await;
    // The slower the limit, the later an attempt may still take its slot.
    let minute = pb::RateLimit { per: Some(prost_types::Duration { seconds: 60, nanos: 0 }), ..limit(1, 5) };
    let endpoint = endpoint(&world, &receiver, Some(minute)).await;
    publish_batches(&world, &endpoint.id, 8).await;
    receiver.wait_for_count(5).await;
    assert_eq!(receiver.quiet_for(Duration::from_secs(2)).await.len(), 5);
    let mut sql = world.server.sql().await;
    sql.until_numbers("SELECT COUNT(*) FROM attempts", &[5]).await;
    let starts = sql.numbers("SELECT started_at FROM attempts ORDER BY started_at").await;
    assert!(starts[4] - starts[0] < 1000, "five at once: {starts:?}");
}

async fn change_limit(world: &World, endpoint: &str, limit: Option<pb::RateLimit>) {
    let endpoint = pb::Endpoint { id: endpoint.to_owned(), rate_limit: limit, ..Default::default() };
    let update_mask = Some(prost_types::FieldMask { paths: vec!["rate_limit".to_owned()] });
    let request = pb::UpdateEndpointRequest { endpoint: Some(endpoint), update_mask, ..Default::default() };
    world.client.endpoints().update_endpoint(request).await.expect("changed");
}

/// What one an hour (or a day) has waiting goes by the limit that comes after it, and not by its next hour.
async fn a_slow_limits_wait_ends_with_it(database: Database) {
    let world = world(database).await;
    let receiver = Receiver::ok().await;
    let per = |seconds| prost_types::Duration { seconds, nanos: 0 };
    let slow = |seconds| Some(pb::RateLimit { requests: 1, per: Some(per(seconds)), burst: 1 });
    let endpoint = endpoint(&world, &receiver, slow(3600)).await;
    publish_batches(&world, &endpoint.id, 30).await;
    receiver.wait_for_count(1).await;
    // All that waits is in the table, and its next slot an hour away.
    assert_eq!(receiver.quiet_for(Duration::from_secs(2)).await.len(), 1);
    change_limit(&world, &endpoint.id, Some(limit(10, 1))).await;
    receiver.wait_for_count(30).await;

    // Lifted and set again, without a start in between.
    change_limit(&world, &endpoint.id, slow(24 * 3600)).await;
    publish_batches(&world, &endpoint.id, 10).await;
    receiver.wait_for_count(31).await;
    let pause = pb::PauseEndpointRequest { endpoint_id: endpoint.id.clone(), ..Default::default() };
    world.client.endpoints().pause_endpoint(pause).await.expect("paused");
    change_limit(&world, &endpoint.id, None).await;
    change_limit(&world, &endpoint.id, Some(limit(10, 1))).await;
    let resume = pb::ResumeEndpointRequest { endpoint_id: endpoint.id.clone(), ..Default::default() };
    world.client.endpoints().resume_endpoint(resume).await.expect("resumed");
    receiver.wait_for_count(40).await;

    let mut sql = world.server.sql().await;
    let written = async {
        while sql.count("attempts").await < 40 {
            pass_time(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(crate::support::PATIENCE, written).await.expect("all are written");
    let starts = sql.numbers("SELECT started_at FROM attempts ORDER BY started_at").await;
    at_most(&starts, 11, 1000, "attempts");
}

async fn a_limit_can_be_set_and_lifted_while_work_waits(database: Database) {
    let world = world(database).await;
    let receiver = Receiver::ok().await;
    let endpoint = endpoint(&world, &receiver, Some(limit(1, 0))).await;
    publish_batches(&world, &endpoint.id, 300).await;
    receiver.wait_for_count(2).await;
    change_limit(&world, &endpoint.id, None).await;
    // At one a second this would take five minutes.
    receiver.wait_for_count(300).await;
    assert!(get(&world, &endpoint.id).await.rate_limit.is_none());
    change_limit(&world, &endpoint.id, Some(limit(5, 0))).await;
    let from = receiver.seen().len();
    publish_batches(&world, &endpoint.id, 12).await;
    receiver.wait_for_count(from + 12).await;
    let mut sql = world.server.sql().await;
    let starts = sql.numbers("SELECT started_at FROM attempts ORDER BY started_at DESC LIMIT 11").await;
    let starts: Vec<i64> = starts.into_iter().rev().collect();
    at_most(&starts, 6, 1000, "attempts");
}

async fn retries_wait_for_slots_too(database: Database) {
    let world = world(database).await;
    let receiver = Receiver::scripted(|_, before| Reply::status(if before < 6 { 500 } else { 204 })).await;
    let endpoint = pb::Endpoint {
        url: receiver.url("/hook"),
        rate_limit: Some(limit(4, 0)),
        retry_policy: Some(crate::support::failing::linear(1, 20)),
        ..Default::default()
    };
    let endpoint = world.create(endpoint, &["*"]).await.0;
    let mut watch = world.watch().await;
    let event =
        publish(&world.client, Target::EndpointId(endpoint.id.clone()), b"{}", "").await.expect("published");
    next_attempt(&mut watch, &endpoint.id).await;
    let delivery = until(&mut watch, &event.event_id, pb::DeliveryStatus::Success).await;
    assert_eq!(delivery.attempt_count, 7);
    let mut sql = world.server.sql().await;
    let starts = sql.numbers("SELECT started_at FROM attempts ORDER BY started_at").await;
    assert_eq!(starts.len(), 7);
    at_most(&starts, 5, 1000, "attempts");
}
