//! The systemic guard: an outage of ours switches nobody off, one endpoint's own failing does.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use hawser_client::WatchStream;
use hawser_client::pb;
use hawser_client::pb::publish_event_request::Target;
use hawser_client::pb::watch_response::Change;
use serde_json::json;

use crate::oauth2::{endpoint, oauth2, shared};
use crate::support::failing::{
    NO_BREAKER, disable, get, linear, millis, refusing, until_endpoint, world_with,
};
use crate::support::scrape::reaches;
use crate::support::token_server::TokenServer;
use crate::support::world::next;
use crate::support::{Database, PATIENCE, Receiver, Reply, Server, World, on_both, pass_time};

on_both!(
    an_outage_of_ours_switches_nobody_off,
    receivers_that_never_answer_are_an_outage_of_ours,
    an_outage_of_ours_is_one_however_long_sending_rests,
    what_asked_no_receiver_shows_nothing,
);

const HOSTS: [&str; 3] = ["127.0.0.1", "127.0.0.2", "127.0.0.3"];
const ENDPOINTS: usize = 12;
/// What the policy asks for: so many failures over so many milliseconds.
const FAILURES: i32 = 5;
const SPAN: i64 = 1000;

fn at(time: Option<prost_types::Timestamp>) -> i64 {
    time.map(|time| time.seconds * 1000 + i64::from(time.nanos) / 1_000_000).expect("a time")
}

fn asking(url: String, failures: i32) -> pb::Endpoint {
    pb::Endpoint {
        url,
        owner_id: "acme".to_owned(),
        retry_policy: Some(linear(50, 100)),
        disable_policy: Some(disable(failures, SPAN)),
        http_timeout: Some(millis(5000)),
        ..Default::default()
    }
}

async fn create(world: &World, url: String, failures: i32) -> pb::Endpoint {
    world.create(asking(url, failures), &["*"]).await.0
}

/// How often these servers said that it began or ended, since each one's last start.
fn told(servers: &[&Server]) -> usize {
    let said = |server: &Server| server.log().matches("system.egress_failing").count();
    servers.iter().map(|server| said(server)).sum()
}

/// Waits until they said so this often.
async fn until_told(servers: &[&Server], times: usize) {
    let waiting = async {
        while told(servers) < times {
            // A log cannot be awaited.
            pass_time(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("it is told in time");
    assert_eq!(told(servers), times);
}

/// Has them all answer, each under a path of its own.
async fn move_to(world: &World, endpoints: &[pb::Endpoint], receiver: &Receiver) {
    for (number, endpoint) in endpoints.iter().enumerate() {
        let moved = pb::Endpoint {
            id: endpoint.id.clone(),
            url: receiver.url(&format!("/{number}")),
            ..Default::default()
        };
        let update_mask = Some(prost_types::FieldMask { paths: vec!["url".to_owned()] });
        let request = pb::UpdateEndpointRequest { endpoint: Some(moved), update_mask, ..Default::default() };
        world.client.endpoints().update_endpoint(request).await.expect("updated");
    }
}

/// Waits until all have failed in this way more often and for longer than the policy allows; no endpoint changes.
async fn all_fail_for_too_long(watch: &mut WatchStream, class: pb::ErrorClass) {
    let mut first: HashMap<String, i64> = HashMap::new();
    let mut long: HashSet<String> = HashSet::new();
    while long.len() < ENDPOINTS {
        match next(watch).await.change {
            Some(Change::Attempt(attempt)) => {
                assert_eq!(attempt.error_class(), class);
                let now = at(attempt.start_time);
                let since = *first.entry(attempt.endpoint_id.clone()).or_insert(now);
                if attempt.number > FAILURES && now - since > SPAN {
                    long.insert(attempt.endpoint_id);
                }
            }
            Some(Change::EndpointChange(change)) => panic!("{:?} of {:?}", change.r#type(), change.endpoint),
            _ => {}
        }
    }
}

async fn all_go_on_failing(world: &World, endpoints: &[pb::Endpoint]) {
    for endpoint in endpoints {
        let read = get(world, &endpoint.id).await;
        assert_eq!((read.status(), read.consecutive_failures > FAILURES), (pb::EndpointStatus::Active, true));
    }
}

async fn an_outage_of_ours_switches_nobody_off(database: Database) {
    let world = world_with(database, pb::PausedPolicy::Discard, &["--breaker-pause", "1"]).await;
    let mut endpoints = Vec::new();
    for number in 0..ENDPOINTS {
        endpoints.push(create(&world, refusing(HOSTS[number % 3]), FAILURES).await);
    }
    let mut watch = world.watch().await;
    let during = world.publish(Target::OwnerId("acme".to_owned()), b"during").await;
    assert_eq!(during.delivery_count as usize, ENDPOINTS);

    all_fail_for_too_long(&mut watch, pb::ErrorClass::Connect).await;
    all_go_on_failing(&world, &endpoints).await;
    until_told(&[&world.server], 1).await;
    reaches(&world, "hawser_egress_failing", 1.0).await;

    // The outage ends: what waited is delivered.
    let receiver = Receiver::ok().await;
    move_to(&world, &endpoints, &receiver).await;
    receiver.wait_for_count(ENDPOINTS).await;
    until_told(&[&world.server], 2).await;
    reaches(&world, "hawser_egress_failing", 0.0).await;

    // Now one that fails by itself: its breaker opens, it is switched off, and the others notice nothing.
    let dead = create(&world, refusing(HOSTS[0]), FAILURES).await;
    let mut opened = false;
    let mut published = 0;
    let mut watch = world.watch().await;
    let mut events = HashSet::new();
    loop {
        let reply = world.publish(Target::OwnerId("acme".to_owned()), b"after").await;
        assert_eq!(reply.delivery_count as usize, ENDPOINTS + 1);
        published += 1;
        events.insert(reply.event_id);
        receiver.wait_for_count(ENDPOINTS + published * ENDPOINTS).await;
        let read = get(&world, &dead.id).await;
        opened |= read.circuit.expect("a circuit").state() == pb::CircuitState::Open;
        if read.status() == pb::EndpointStatus::Inactive {
            break;
        }
    }
    assert!(opened, "its breaker opened before");
    let disabled = until_endpoint(&mut watch, &dead.id, pb::EndpointChangeType::Disabled).await;
    assert!(disabled.status_reason.ends_with("connection refused"), "{}", disabled.status_reason);
    for endpoint in &endpoints {
        let read = get(&world, &endpoint.id).await;
        assert_eq!((read.status(), read.consecutive_failures), (pb::EndpointStatus::Active, 0));
    }
    assert_eq!(told(&[&world.server]), 2, "once when it began, and once when it ended");
}

/// The same where connections are taken and nothing is ever said on them, as behind a network that swallows answers.
async fn receivers_that_never_answer_are_an_outage_of_ours(database: Database) {
    let world = world_with(database, pb::PausedPolicy::Discard, &["--breaker-pause", "1"]).await;
    let mut silent = Vec::new();
    for host in HOSTS {
        let address = format!("{host}:0");
        // Longer than any test lasts.
        silent.push(Receiver::listen(&address, None, |_, _| Reply::after(Duration::from_secs(3600))).await);
    }
    let mut endpoints = Vec::new();
    for number in 0..ENDPOINTS {
        let url = silent[number % 3].url(&format!("/{number}"));
        let endpoint = pb::Endpoint { http_timeout: Some(millis(1000)), ..asking(url, FAILURES) };
        endpoints.push(world.create(endpoint, &["*"]).await.0);
    }
    let mut watch = world.watch().await;
    let during = world.publish(Target::OwnerId("acme".to_owned()), b"during").await;
    assert_eq!(during.delivery_count as usize, ENDPOINTS);
    all_fail_for_too_long(&mut watch, pb::ErrorClass::Timeout).await;
    all_go_on_failing(&world, &endpoints).await;
    until_told(&[&world.server], 1).await;
    reaches(&world, "hawser_egress_failing", 1.0).await;

    // It ends by answers, and nothing of it stays.
    let receiver = Receiver::ok().await;
    move_to(&world, &endpoints, &receiver).await;
    receiver.wait_for_count(ENDPOINTS).await;
    until_told(&[&world.server], 2).await;
    reaches(&world, "hawser_egress_failing", 0.0).await;
    for endpoint in &endpoints {
        assert_eq!(get(&world, &endpoint.id).await.status(), pb::EndpointStatus::Active);
    }
}

/// A token server that refuses them all is no outage of ours: endpoints are switched off as their policy says.
async fn what_asked_no_receiver_shows_nothing(database: Database) {
    let world = world_with(database, pb::PausedPolicy::Discard, &NO_BREAKER).await;
    let tokens = TokenServer::granting(json!(3600)).await;
    tokens.fail(true);
    let mut watch = world.watch().await;
    for number in 0..ENDPOINTS {
        let asked = endpoint(refusing(HOSTS[number % 3]), oauth2(tokens.url(), shared("secret", false)));
        let wanted = pb::Endpoint {
            owner_id: "acme".to_owned(),
            retry_policy: Some(linear(50, 100)),
            disable_policy: Some(disable(2, SPAN)),
            ..asked
        };
        world.create(wanted, &["*"]).await;
    }
    world.publish(Target::OwnerId("acme".to_owned()), b"{}").await;
    let mut disabled = HashSet::new();
    while disabled.len() < ENDPOINTS {
        if let Some(Change::EndpointChange(change)) = next(&mut watch).await.change
            && change.r#type() == pb::EndpointChangeType::Disabled
        {
            let endpoint = change.endpoint.expect("an endpoint");
            assert!(endpoint.status_reason.contains("no token"), "{}", endpoint.status_reason);
            disabled.insert(endpoint.id);
        }
    }
    assert_eq!(told(&[&world.server]), 0);
}

/// Waits until each endpoint's delivery has had this many attempts.
async fn until_attempts(world: &World, count: i32) {
    let mut watch = world.watch().await;
    let request = pb::ListDeliveriesRequest { page_size: 1000, ..Default::default() };
    let listed = world.client.deliveries().list_deliveries(request).await.expect("listed").into_inner();
    let mut missing: HashSet<String> = listed
        .deliveries
        .into_iter()
        .filter(|delivery| delivery.attempt_count < count)
        .map(|delivery| delivery.id)
        .collect();
    while !missing.is_empty() {
        match next(&mut watch).await.change {
            Some(Change::Attempt(attempt)) if attempt.number >= count => {
                missing.remove(&attempt.delivery_id);
            }
            Some(Change::EndpointChange(change)) => panic!("{:?} of {:?}", change.r#type(), change.endpoint),
            _ => {}
        }
    }
}

/// Rests become longer than the time in which attempts count, one process forgets all of it, and on PostgreSQL
/// another one makes a part of the attempts.
async fn an_outage_of_ours_is_one_however_long_sending_rests(database: Database) {
    let arguments = ["--breaker-pause", "1", "--egress-window", "2"];
    let mut world = world_with(database, pb::PausedPolicy::Discard, &arguments).await;
    let other = match world.server.database().url() {
        Some(_) => Some(world.server.join().await),
        None => None,
    };
    let mut endpoints = Vec::new();
    for number in 0..ENDPOINTS {
        // Two failures a second apart: any moment that is not recognised would do.
        endpoints.push(create(&world, refusing(HOSTS[number % 3]), 2).await);
    }
    world.publish(Target::OwnerId("acme".to_owned()), b"during").await;
    let servers: Vec<&Server> = [&world.server].into_iter().chain(&other).collect();
    until_told(&servers, 1).await;
    // Five attempts opened the breaker; before the eighth it rests for 4 s.
    until_attempts(&world, 7).await;
    assert_eq!(told(&servers), 1);
    world.server.kill().await;
    world.restart().await;
    until_attempts(&world, 8).await;
    for endpoint in &endpoints {
        assert_eq!(get(&world, &endpoint.id).await.status(), pb::EndpointStatus::Active);
    }
    // It ends by answers.
    let servers: Vec<&Server> = [&world.server].into_iter().chain(&other).collect();
    let before = told(&servers);
    assert!(before <= 1, "it began once");
    let receiver = Receiver::ok().await;
    move_to(&world, &endpoints, &receiver).await;
    receiver.wait_for_count(ENDPOINTS).await;
    until_told(&servers, before + 1).await;
    for endpoint in &endpoints {
        assert_eq!(get(&world, &endpoint.id).await.status(), pb::EndpointStatus::Active);
    }
}
