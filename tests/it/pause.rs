//! Pause and resume: nothing is sent while an endpoint is paused, and nothing that is held is lost.

use hawser_client::pb;

use crate::support::world::until;
use crate::support::{Database, Receiver, Reply, Server, World, on_both};

on_both!(
    paused_discards_by_default_and_retries_are_refused,
    paused_holds_where_the_project_says_so,
    queued_work_is_held_and_goes_on_after_resume,
    deleting_discards_what_is_open,
    an_owner_is_told_what_deleting_discards,
);

async fn pause(world: &World, endpoint: &pb::Endpoint) -> pb::Endpoint {
    let request = pb::PauseEndpointRequest {
        endpoint_id: endpoint.id.clone(),
        reason: "maintenance".to_owned(),
        ..Default::default()
    };
    let reply = world.client.endpoints().pause_endpoint(request).await.expect("paused").into_inner();
    reply.endpoint.expect("an endpoint")
}

async fn resume(world: &World, endpoint: &pb::Endpoint) -> pb::Endpoint {
    let request = pb::ResumeEndpointRequest { endpoint_id: endpoint.id.clone(), ..Default::default() };
    let reply = world.client.endpoints().resume_endpoint(request).await.expect("resumed").into_inner();
    reply.endpoint.expect("an endpoint")
}

async fn paused_discards_by_default_and_retries_are_refused(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::ok().await;
    let (endpoint, _) = world.endpoint(&receiver.url("/hook"), "").await;
    let paused = pause(&world, &endpoint).await;
    assert_eq!((paused.status(), paused.status_reason.as_str()), (pb::EndpointStatus::Paused, "maintenance"));
    assert_eq!(paused.etag, endpoint.etag, "the etag is over what clients set");
    assert_eq!(pause(&world, &endpoint).await.status_change_time, paused.status_change_time);

    let reply = world.publish_to(&endpoint, b"{}").await;
    assert_eq!(reply.delivery_count, 1);
    let delivery = world.deliveries_of(&reply.event_id).await.remove(0);
    assert_eq!(delivery.status(), pb::DeliveryStatus::Discarded);
    let retry = pb::RetryDeliveryRequest { delivery_id: delivery.id.clone(), ..Default::default() };
    let refused = world.client.deliveries().retry_delivery(retry.clone()).await.expect_err("paused");
    assert_eq!(hawser_client::reason(&refused).as_deref(), Some("ENDPOINT_PAUSED"));

    assert_eq!(resume(&world, &endpoint).await.status(), pb::EndpointStatus::Active);
    let mut watch = world.watch().await;
    world.client.deliveries().retry_delivery(retry).await.expect("retried");
    until(&mut watch, &reply.event_id, pb::DeliveryStatus::Success).await;
    assert_eq!(receiver.seen().len(), 1);
}

async fn paused_holds_where_the_project_says_so(database: Database) {
    let world = World::on(Server::start(database).await, pb::PausedPolicy::Hold).await;
    let receiver = Receiver::ok().await;
    let (endpoint, _) = world.endpoint(&receiver.url("/hook"), "").await;
    pause(&world, &endpoint).await;
    let mut events = Vec::new();
    for number in 0..20u8 {
        events.push(world.publish_to(&endpoint, &[number]).await.event_id);
    }
    assert_eq!(world.deliveries_of(&events[0]).await[0].status(), pb::DeliveryStatus::Scheduled);
    // Another endpoint's work passes meanwhile, and the held one's does not.
    let (other, _) = world.endpoint(&receiver.url("/other"), "").await;
    world.publish_to(&other, b"other").await;
    let seen = receiver.wait_for_count(1).await;
    assert!(seen.iter().all(|one| one.path == "/other"));

    resume(&world, &endpoint).await;
    let seen = receiver.wait_for_count(21).await;
    let mut arrived: Vec<_> = seen.iter().filter(|one| one.path == "/hook").map(|one| one.event()).collect();
    arrived.sort();
    assert_eq!(arrived, events);
}

async fn queued_work_is_held_and_goes_on_after_resume(database: Database) {
    let mut world = World::new(database).await;
    let receiver = Receiver::scripted(|_, before| Reply::status(if before == 0 { 500 } else { 200 })).await;
    // Far enough away that the pause comes first, near enough to be due soon after.
    let wait = Some(prost_types::Duration { seconds: 6, nanos: 0 });
    let backoff = pb::ExponentialBackoff { base: wait, factor: 1.0, cap: wait, jitter: Some(0.0) };
    let policy =
        pb::RetryPolicy { strategy: Some(pb::retry_policy::Strategy::Exponential(backoff)), max_attempts: 9 };
    let endpoint =
        pb::Endpoint { url: receiver.url("/hook"), retry_policy: Some(policy), ..Default::default() };
    let (endpoint, _) = world.create(endpoint, &["*"]).await;
    let mut watch = world.watch().await;
    let event = world.publish_to(&endpoint, b"{}").await.event_id;
    until(&mut watch, &event, pb::DeliveryStatus::Retry).await;
    pause(&world, &endpoint).await;
    // However far the retry was, nothing starts after the reply; a restart does not let it go either.
    let before = receiver.seen().len();
    world.server.kill().await;
    world.restart().await;
    let (other, _) = world.endpoint(&receiver.url("/other"), "").await;
    let other = world.publish_to(&other, b"other").await.event_id;
    receiver.wait_for("the other endpoint", |seen| seen.iter().any(|one| one.event() == other)).await;
    let hook =
        |seen: &[crate::support::receiver::Seen]| seen.iter().filter(|one| one.path == "/hook").count();
    assert_eq!(hook(&receiver.seen()), before);

    resume(&world, &endpoint).await;
    receiver.wait_for("the held retry", |seen| hook(seen) > before).await;
}

async fn deleting_discards_what_is_open(database: Database) {
    let world = World::on(Server::start(database).await, pb::PausedPolicy::Hold).await;
    let receiver = Receiver::ok().await;
    let (endpoint, _) = world.endpoint(&receiver.url("/hook"), "").await;
    pause(&world, &endpoint).await;
    let event = world.publish_to(&endpoint, b"{}").await.event_id;
    let mut watch = world.watch().await;
    let request = pb::DeleteEndpointRequest { endpoint_id: endpoint.id.clone(), ..Default::default() };
    world.client.endpoints().delete_endpoint(request).await.expect("deleted");
    let delivery = until(&mut watch, &event, pb::DeliveryStatus::Discarded).await;
    assert_eq!(delivery.endpoint_id, endpoint.id, "its history stays");
    assert!(receiver.seen().is_empty());
}

/// Who watches an owner is told how the work of the owner's endpoint ended that was deleted.
async fn an_owner_is_told_what_deleting_discards(database: Database) {
    let world = World::on(Server::start(database).await, pb::PausedPolicy::Hold).await;
    let receiver = Receiver::ok().await;
    let (endpoint, _) = world.endpoint(&receiver.url("/hook"), "acme").await;
    pause(&world, &endpoint).await;
    let request = pb::WatchRequest { owner_id: "acme".to_owned(), ..pb::WatchRequest::default() };
    let mut watch = world.client.watch(request).await.expect("watching");
    let event = world.publish_to(&endpoint, b"{}").await.event_id;
    until(&mut watch, &event, pb::DeliveryStatus::Scheduled).await;
    let request = pb::DeleteEndpointRequest { endpoint_id: endpoint.id.clone(), ..Default::default() };
    world.client.endpoints().delete_endpoint(request).await.expect("deleted");
    until(&mut watch, &event, pb::DeliveryStatus::Discarded).await;
}
