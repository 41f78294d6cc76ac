//! The systemic guard: an outage of ours switches nobody off, one endpoint's own failing does.

use std::collections::{HashMap, HashSet};

use hawser_client::pb;
use hawser_client::pb::publish_event_request::Target;
use hawser_client::pb::watch_response::Change;

use crate::support::failing::{disable, get, linear, millis, refusing, until_endpoint, world_with};
use crate::support::world::next;
use crate::support::{Database, Receiver, World, on_both};

on_both!(an_outage_of_ours_switches_nobody_off);

const HOSTS: [&str; 3] = ["127.0.0.1", "127.0.0.2", "127.0.0.3"];
const ENDPOINTS: usize = 12;
/// What the policy asks for: so many failures over so many milliseconds.
const FAILURES: i32 = 5;
const SPAN: i64 = 1000;

fn at(time: Option<prost_types::Timestamp>) -> i64 {
    time.map(|time| time.seconds * 1000 + i64::from(time.nanos) / 1_000_000).expect("a time")
}

async fn create(world: &World, url: String) -> pb::Endpoint {
    let endpoint = pb::Endpoint {
        url,
        owner_id: "acme".to_owned(),
        retry_policy: Some(linear(50, 100)),
        disable_policy: Some(disable(FAILURES, SPAN)),
        http_timeout: Some(millis(5000)),
        ..Default::default()
    };
    world.create(endpoint, &["*"]).await.0
}

async fn an_outage_of_ours_switches_nobody_off(database: Database) {
    let world = world_with(database, pb::PausedPolicy::Discard, &["--breaker-pause", "1"]).await;
    let mut endpoints = Vec::new();
    for number in 0..ENDPOINTS {
        endpoints.push(create(&world, refusing(HOSTS[number % 3]).await).await);
    }
    let mut watch = world.watch().await;
    let during = world.publish(Target::OwnerId("acme".to_owned()), b"during").await;
    assert_eq!(during.delivery_count as usize, ENDPOINTS);

    // All fail more often and for longer than the policy allows.
    let mut first: HashMap<String, i64> = HashMap::new();
    let mut long: HashSet<String> = HashSet::new();
    while long.len() < ENDPOINTS {
        match next(&mut watch).await.change {
            Some(Change::Attempt(attempt)) => {
                assert_eq!(attempt.error_class(), pb::ErrorClass::Connect);
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
    for endpoint in &endpoints {
        let read = get(&world, &endpoint.id).await;
        assert_eq!((read.status(), read.consecutive_failures > FAILURES), (pb::EndpointStatus::Active, true));
    }
    let told = |log: &str| log.lines().filter(|line| line.contains("system.egress_failing")).count();
    assert_eq!(told(&world.server.log()), 1, "once, when it began");

    // The outage ends: what waited is delivered.
    let receiver = Receiver::ok().await;
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
    receiver.wait_for_count(ENDPOINTS).await;

    // Now one that fails by itself: its breaker opens, it is switched off, and the others notice nothing.
    let dead = create(&world, refusing(HOSTS[0]).await).await;
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
    assert_eq!(told(&world.server.log()), 2, "and once when it ended");
}
