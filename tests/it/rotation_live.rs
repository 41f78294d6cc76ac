//! Rotation while deliveries flow: during a grace receivers accept them with either secret, nothing is lost, and what
//! rotates by itself does so once, on one node, whatever is restarted.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hawser_client::pb::watch_response::Change;
use hawser_client::{Client, pb};
use tokio_util::sync::CancellationToken;

use crate::support::secrets::{accepts, list, reveal, rotate, seconds};
use crate::support::world::{next, publish};
use crate::support::{Database, PATIENCE, Receiver, Reply, Server, World, on_both, pass_time};

on_both!(both_secrets_are_accepted_during_a_grace, a_period_rotates_without_a_failed_verification);

/// Publishes one event after the other until told to stop; returns their ids, and when the call of each began.
async fn load(client: Client, endpoint: String, stop: CancellationToken) -> Vec<(String, Instant)> {
    let mut events = Vec::new();
    while !stop.is_cancelled() {
        let target = pb::publish_event_request::Target::EndpointId(endpoint.clone());
        let began = Instant::now();
        events.push((publish(&client, target, b"{}", "").await.expect("published").event_id, began));
        // A steady stream, rather than as much as the machine can.
        pass_time(Duration::from_millis(10)).await;
    }
    events
}

fn millis(time: &prost_types::Timestamp) -> i64 {
    time.seconds * 1000 + i64::from(time.nanos) / 1_000_000
}

/// When the only attempt of each event's only delivery started.
async fn started(world: &World, events: impl IntoIterator<Item = &String>) -> HashMap<String, i64> {
    let mut started = HashMap::new();
    for event in events {
        let deliveries = world.settled_deliveries_of(event).await;
        let [delivery] = deliveries.as_slice() else { panic!("one delivery: {deliveries:?}") };
        assert_eq!((delivery.status(), delivery.attempt_count), (pb::DeliveryStatus::Success, 1));
        let attempt = world.attempts_of(&delivery.id).await.remove(0);
        started.insert(event.clone(), millis(&attempt.start_time.expect("a time")));
    }
    started
}

async fn both_secrets_are_accepted_during_a_grace(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::ok().await;
    let (endpoint, old) = world.endpoint(&receiver.url("/hook"), "").await;
    let stop = CancellationToken::new();
    // On PostgreSQL the second of them goes through a node that did not rotate.
    let other = match world.server.database().url() {
        Some(_) => Some(world.server.join().await),
        None => None,
    };
    let there = match &other {
        Some(node) => world.client_of(node).await,
        None => world.client.clone(),
    };
    let loads = [world.client.clone(), there]
        .map(|client| tokio::spawn(load(client, endpoint.id.clone(), stop.clone())));
    receiver.wait_for_count(20).await;
    let before = receiver.seen().len();
    let rotated = rotate(&world.client, &endpoint.id, 3).await.expect("rotated");
    let (new, made) = (rotated.value, millis(&rotated.secret.expect("one").create_time.expect("a time")));
    let ends = millis(&rotated.previous.expect("one").expire_time.expect("an end"));
    assert_eq!(ends - made, 3000);
    let replied = Instant::now();
    // Until the old one is seen to have ended, and some more.
    receiver
        .wait_for("the end of the grace", |seen| seen.last().is_some_and(|one| !accepts(&old, one)))
        .await;
    let ended = receiver.seen().len();
    receiver.wait_for_count(ended + 20).await;
    stop.cancel();
    let mut events = HashMap::new();
    for load in loads {
        let of_one = load.await.expect("it ends");
        assert!(of_one.iter().any(|(_, began)| *began > replied), "each published after the reply");
        events.extend(of_one);
    }
    let started = started(&world, events.keys()).await;

    let seen = receiver.seen();
    assert_eq!(seen.len(), events.len(), "nothing is lost, nothing repeated");
    let mut during = 0;
    for (index, one) in seen.iter().enumerate() {
        let at = started[&one.event()];
        // A signature is made a moment before its attempt is said to have started.
        if at < ends {
            assert!(accepts(&old, one), "the old secret, {} ms before its end", ends - at);
        }
        if at > ends + 1000 {
            assert!(!accepts(&old, one), "the old secret, {} ms after its end", at - ends);
        }
        if index < before {
            assert!(!accepts(&new, one), "a secret that was not made yet");
        }
        // From the reply on, whichever node it was published through, the new secret alone is enough.
        if events[&one.event()] > replied {
            assert!(accepts(&new, one), "the new secret, {} ms after the rotation", at - made);
        }
        during += usize::from(accepts(&old, one) && accepts(&new, one));
    }
    assert!(during > 20, "{during} deliveries that both accept");
}

/// A receiver that knows one secret at a time, and refuses what that does not verify.
async fn strict(current: Arc<Mutex<String>>) -> Receiver {
    Receiver::scripted(move |request, _| {
        let secret = current.lock().expect("unpoisoned").clone();
        Reply::status(if accepts(&secret, request) { 204 } else { 401 })
    })
    .await
}

/// Keeps the receiver's secret as its owner would: asks now and then which is the current one.
async fn follow(client: Client, endpoint: String, current: Arc<Mutex<String>>, stop: CancellationToken) {
    let mut known = String::new();
    while !stop.is_cancelled() {
        let newest = list(&client, &endpoint).await.secrets.remove(0);
        if newest.id != known {
            *current.lock().expect("unpoisoned") = reveal(&client, &newest.id).await.expect("shown");
            known = newest.id;
        }
        pass_time(Duration::from_millis(500)).await;
    }
}

async fn automatic(world: &World, url: &str, period: i64, grace: i64) -> (pb::Endpoint, String) {
    let endpoint = pb::Endpoint {
        url: url.to_owned(),
        rotation_period: Some(seconds(period)),
        rotation_grace: Some(seconds(grace)),
        ..Default::default()
    };
    world.create(endpoint, &["*"]).await
}

async fn server(database: Database) -> Server {
    let arguments = ["--allow-http", "--allow-net", "127.0.0.0/8", "--rotation-period-min", "1"];
    Server::start_with(database, &arguments).await
}

async fn a_period_rotates_without_a_failed_verification(database: Database) {
    let world = World::on(server(database).await, pb::PausedPolicy::Discard).await;
    let current = Arc::<Mutex<String>>::default();
    let receiver = strict(current.clone()).await;
    let (endpoint, first) = automatic(&world, &receiver.url("/hook"), 2, 8).await;
    *current.lock().expect("unpoisoned") = first.clone();
    let mut watch = world.watch().await;
    let stop = CancellationToken::new();
    let owner =
        tokio::spawn(follow(world.client.clone(), endpoint.id.clone(), current.clone(), stop.clone()));
    let load = tokio::spawn(load(world.client.clone(), endpoint.id.clone(), stop.clone()));
    let mut rotations = 0;
    while rotations < 3 {
        if let Some(Change::EndpointChange(change)) = next(&mut watch).await.change {
            rotations += usize::from(change.r#type() == pb::EndpointChangeType::SecretRotated);
        }
    }
    stop.cancel();
    owner.await.expect("it ends");
    let events: Vec<String> = load.await.expect("it ends").into_iter().map(|(event, _)| event).collect();
    // Each was accepted at its first attempt.
    started(&world, &events).await;
    // They came while its secret changed, and the newest is signed by all that are not over.
    assert_ne!(*current.lock().expect("unpoisoned"), first);
    let last = receiver.seen().pop().expect("one").header("webhook-signature");
    assert!(last.split(' ').count() >= 3, "{last}");

    let request = pb::ListAuditEventsRequest {
        resource: endpoint.id.clone(),
        action: "AutoRotateSecret".to_owned(),
        ..Default::default()
    };
    let audit = world.client.audit().list_audit_events(request).await.expect("listed").into_inner();
    assert!(audit.audit_events.len() >= 3);
    assert!(
        audit.audit_events.iter().all(|event| event.api_key_id.is_empty() && event.after.contains("sec_"))
    );
}

on_both!(a_planned_rotation_survives_a_crash);

async fn a_planned_rotation_survives_a_crash(database: Database) {
    let mut world = World::on(server(database).await, pb::PausedPolicy::Discard).await;
    let (endpoint, _) = automatic(&world, "https://example.com/hook", 3, 1).await;
    let planned = list(&world.client, &endpoint.id).await;
    let made = planned.secrets[0].create_time.expect("a time").seconds;
    assert_eq!(planned.next_rotation_time.expect("planned").seconds - made, 3);
    world.server.kill().await;
    world.restart().await;
    until_rotated(&world.client, &endpoint.id, 2).await;

    // Switched off, it is not planned any more; switched on again, at once, since the secret is older than that.
    let update = |period: i64| {
        let change = pb::Endpoint {
            id: endpoint.id.clone(),
            rotation_period: Some(seconds(period)),
            ..Default::default()
        };
        let request = pb::UpdateEndpointRequest { endpoint: Some(change), ..Default::default() };
        let mut endpoints = world.client.endpoints();
        async move { endpoints.update_endpoint(request).await }
    };
    update(0).await.expect("off");
    assert_eq!(list(&world.client, &endpoint.id).await.next_rotation_time, None);
    pass_time(Duration::from_millis(1100)).await;
    let before = list(&world.client, &endpoint.id).await.secrets.len();
    update(1).await.expect("on");
    until_rotated(&world.client, &endpoint.id, before + 1).await;
    let refused = update(366 * 24 * 3600).await.expect_err("too long");
    assert_eq!(hawser_client::field_violations(&refused)[0].field, "endpoint.rotation_period");
}

async fn until_rotated(client: &Client, endpoint: &str, count: usize) {
    let rotated = async {
        while list(client, endpoint).await.secrets.len() < count {
            pass_time(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, rotated).await.expect("it rotates in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_rotate_once_and_sign_alike() {
    let world = World::on(server(Database::postgres().await).await, pb::PausedPolicy::Discard).await;
    let receiver = Receiver::ok().await;
    let (endpoint, _) = automatic(&world, &receiver.url("/hook"), 1, 2).await;
    // They look at what is due when they start, so that all three wait for the same moments from then on.
    let nodes = [world.server.join().await, world.server.join().await];
    until_rotated(&world.client, &endpoint.id, 6).await;
    let change =
        pb::Endpoint { id: endpoint.id.clone(), rotation_period: Some(seconds(0)), ..Default::default() };
    let request = pb::UpdateEndpointRequest { endpoint: Some(change), ..Default::default() };
    world.client.endpoints().update_endpoint(request).await.expect("off");
    let mut made: Vec<i64> = list(&world.client, &endpoint.id)
        .await
        .secrets
        .iter()
        .map(|secret| millis(secret.create_time.as_ref().expect("a time")))
        .collect();
    made.sort_unstable();
    assert!(made.windows(2).all(|pair| pair[1] - pair[0] >= 1000), "one rotation a period: {made:?}");

    // What is published on any node after the reply of another is signed by the new secret.
    for (asked, node) in [(0, 1), (1, 0)] {
        let client = world.client_of(&nodes[asked]).await;
        let rotated = rotate(&client, &endpoint.id, 0).await.expect("rotated");
        let other = world.client_of(&nodes[node]).await;
        let target = pb::publish_event_request::Target::EndpointId(endpoint.id.clone());
        let event = publish(&other, target, b"{}", "").await.expect("published").event_id;
        let seen = receiver.wait_for("it", |seen| seen.iter().any(|one| one.event() == event)).await;
        let one = seen.iter().find(|one| one.event() == event).expect("it");
        assert!(accepts(&rotated.value, one), "{:?}", one.headers);
    }
}
