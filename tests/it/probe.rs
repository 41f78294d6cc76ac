//! PENDING: a retry of one delivery of an INACTIVE endpoint probes it, and its end decides, whatever happens to the
//! process that makes the attempt.

use hawser_client::pb::{self, watch_response::Change};
use hawser_client::{WatchStream, reason};
use tonic::{Code, Status};

use crate::support::failing::{NO_BREAKER, deliveries_in, disable, get, linear, until_endpoint, world_with};
use crate::support::world::{next, until};
use crate::support::{Answer, Database, Desk, Server, World, in_time, on_both};

on_both!(
    a_probe_that_succeeds_switches_on,
    a_probe_that_fails_is_not_sent_again,
    a_probe_waits_for_what_is_in_flight,
    a_probed_endpoint_can_be_deleted,
    a_probe_that_dies_with_its_process_ends,
);

/// A short lease, so that tests need not wait long for its end.
const ARGUMENTS: [&str; 4] = [NO_BREAKER[0], NO_BREAKER[1], "--lease", "3"];

async fn retry(world: &World, delivery: &str) -> Result<pb::Delivery, Status> {
    let request = pb::RetryDeliveryRequest { delivery_id: delivery.to_owned(), ..Default::default() };
    let reply = world.client.deliveries().retry_delivery(request).await?.into_inner();
    Ok(reply.delivery.expect("a delivery"))
}

/// The next delivery of this event that Watch tells.
async fn created(watch: &mut WatchStream, event: &str) -> pb::Delivery {
    until_change(watch, event, pb::DeliveryChangeType::Created).await
}

async fn until_change(watch: &mut WatchStream, event: &str, kind: pb::DeliveryChangeType) -> pb::Delivery {
    loop {
        if let Some(Change::DeliveryChange(change)) = next(watch).await.change {
            let is_kind = change.r#type() == kind;
            let delivery = change.delivery.expect("a delivery");
            if delivery.event_id == event && is_kind {
                return delivery;
            }
        }
    }
}

async fn endpoint(world: &World, desk: &Desk) -> pb::Endpoint {
    let endpoint = pb::Endpoint {
        url: desk.url("/hook"),
        owner_id: "acme".to_owned(),
        retry_policy: Some(linear(1, 50)),
        disable_policy: Some(disable(2, 0)),
        ..Default::default()
    };
    world.create(endpoint, &["*"]).await.0
}

/// An INACTIVE endpoint with two failures, and the delivery that they discarded.
async fn inactive(world: &World, desk: &Desk, watch: &mut WatchStream) -> (pb::Endpoint, pb::Delivery) {
    let endpoint = endpoint(world, desk).await;
    let event = world.publish_to(&endpoint, b"{}").await.event_id;
    let delivery = created(watch, &event).await;
    for _ in 0..2 {
        desk.request(&delivery.id).await.answer(Answer::Status(500));
    }
    let discarded = until(watch, &event, pb::DeliveryStatus::Discarded).await;
    let told = until_endpoint(watch, &endpoint.id, pb::EndpointChangeType::Disabled).await;
    assert_eq!(told.consecutive_failures, 2);
    (told, discarded)
}

async fn refused_while_pending(world: &World, endpoint: &str, delivery: &str) {
    let id = endpoint.to_owned();
    let pause = pb::PauseEndpointRequest { endpoint_id: id.clone(), ..Default::default() };
    let resume = pb::ResumeEndpointRequest { endpoint_id: id.clone(), ..Default::default() };
    let activate = pb::ActivateEndpointRequest { endpoint_id: id, ..Default::default() };
    let mut endpoints = world.client.endpoints();
    for refused in [
        endpoints.pause_endpoint(pause).await.expect_err("pause"),
        endpoints.resume_endpoint(resume).await.expect_err("resume"),
        endpoints.activate_endpoint(activate).await.expect_err("activate"),
        retry(world, delivery).await.expect_err("a second retry"),
    ] {
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert_eq!(reason(&refused).as_deref(), Some("ENDPOINT_PENDING"));
    }
}

async fn a_probe_that_succeeds_switches_on(database: Database) {
    let world = world_with(database, pb::PausedPolicy::Hold, &ARGUMENTS).await;
    let desk = Desk::open().await;
    let mut watch = world.watch().await;
    let (endpoint, delivery) = inactive(&world, &desk, &mut watch).await;
    let other = world.publish_to(&endpoint, b"{}").await.event_id;
    let other = created(&mut watch, &other).await;
    assert_eq!(other.status(), pb::DeliveryStatus::Discarded);

    let probing = retry(&world, &delivery.id).await.expect("a probe");
    let open = [pb::DeliveryStatus::Scheduled, pb::DeliveryStatus::Processing];
    assert!(open.contains(&probing.status()), "{probing:?}");
    let told = until_endpoint(&mut watch, &endpoint.id, pb::EndpointChangeType::Probing).await;
    assert_eq!((told.status(), told.consecutive_failures), (pb::EndpointStatus::Pending, 2));
    assert!(told.status_reason.contains(&delivery.id), "{}", told.status_reason);
    let probe = desk.request(&delivery.id).await;
    assert_eq!(probe.attempt, 3);
    assert_eq!(get(&world, &endpoint.id).await.status(), pb::EndpointStatus::Pending);
    let list = pb::ListEndpointsRequest { status: pb::EndpointStatus::Pending.into(), ..Default::default() };
    let listed = world.client.endpoints().list_endpoints(list).await.expect("listed").into_inner();
    assert_eq!(listed.endpoints.len(), 1);
    refused_while_pending(&world, &endpoint.id, &other.id).await;
    let meanwhile = world.publish_to(&endpoint, b"{}").await.event_id;
    assert_eq!(created(&mut watch, &meanwhile).await.status(), pb::DeliveryStatus::Discarded);

    probe.answer(Answer::Status(204));
    let ended = until_change(&mut watch, &delivery.event_id, pb::DeliveryChangeType::Attempted).await;
    assert_eq!((ended.status(), ended.attempt_count), (pb::DeliveryStatus::Success, 3));
    let told = until_endpoint(&mut watch, &endpoint.id, pb::EndpointChangeType::Recovered).await;
    assert_eq!((told.status(), told.consecutive_failures), (pb::EndpointStatus::Active, 0));
    let read = get(&world, &endpoint.id).await;
    assert_eq!((read.status(), read.consecutive_failures), (pb::EndpointStatus::Active, 0));
    assert_eq!(read.circuit.expect("a circuit").state(), pb::CircuitState::Closed);
    // Nothing that was discarded is sent by itself; what comes after is.
    let after = world.publish_to(&endpoint, b"{}").await.event_id;
    desk.request(&created(&mut watch, &after).await.id).await.answer(Answer::Status(204));
    until(&mut watch, &after, pb::DeliveryStatus::Success).await;
    assert_eq!(deliveries_in(&world, &endpoint.id, &[pb::DeliveryStatus::Discarded]).await.len(), 2);
    assert!(!desk.has_more(&other.id));
}

async fn a_probe_that_fails_is_not_sent_again(database: Database) {
    let world = world_with(database, pb::PausedPolicy::Discard, &ARGUMENTS).await;
    let desk = Desk::open().await;
    let mut watch = world.watch().await;
    let (endpoint, delivery) = inactive(&world, &desk, &mut watch).await;
    for (attempt, answer, cause) in [
        (3, Answer::Status(500), "the probe failed: answered 500"),
        (4, Answer::HangUp, "the probe failed: "),
        (5, Answer::Status(410), "the probe failed: answered 410"),
    ] {
        retry(&world, &delivery.id).await.expect("a probe");
        let probe = desk.request(&delivery.id).await;
        assert_eq!(probe.attempt, attempt);
        probe.answer(answer);
        let ended = until_change(&mut watch, &delivery.event_id, pb::DeliveryChangeType::Attempted).await;
        assert_eq!((ended.status(), ended.attempt_count), (pb::DeliveryStatus::Failed, attempt));
        assert!(ended.next_attempt_time.is_none());
        let told = until_endpoint(&mut watch, &endpoint.id, pb::EndpointChangeType::Disabled).await;
        assert!(told.status_reason.starts_with(cause), "{}", told.status_reason);
        assert_eq!((told.status(), told.consecutive_failures), (pb::EndpointStatus::Inactive, attempt));
        assert_eq!(get(&world, &endpoint.id).await.consecutive_failures, attempt);
    }
    retry(&world, &delivery.id).await.expect("a probe");
    desk.request(&delivery.id).await.answer(Answer::Status(200));
    until_endpoint(&mut watch, &endpoint.id, pb::EndpointChangeType::Recovered).await;
    assert_eq!(world.attempts_of(&delivery.id).await.len(), 6);
}

async fn a_probe_waits_for_what_is_in_flight(database: Database) {
    let world = world_with(database, pb::PausedPolicy::Discard, &ARGUMENTS).await;
    let desk = Desk::open().await;
    let mut watch = world.watch().await;
    let endpoint = endpoint(&world, &desk).await;
    let mut deliveries = Vec::new();
    for _ in 0..2 {
        let event = world.publish_to(&endpoint, b"{}").await.event_id;
        deliveries.push(created(&mut watch, &event).await);
    }
    let slow = desk.request(&deliveries[0].id).await;
    desk.request(&deliveries[1].id).await.answer(Answer::Status(410));
    until_endpoint(&mut watch, &endpoint.id, pb::EndpointChangeType::Disabled).await;
    let refused = retry(&world, &deliveries[1].id).await.expect_err("an old attempt is in flight");
    assert_eq!(
        (refused.code(), reason(&refused).as_deref()),
        (Code::Unavailable, Some("ENDPOINT_DISCARDING"))
    );
    slow.answer(Answer::Status(500));
    let ended = until_change(&mut watch, &deliveries[0].event_id, pb::DeliveryChangeType::Attempted).await;
    assert_eq!(ended.status(), pb::DeliveryStatus::Discarded);
    retry(&world, &deliveries[1].id).await.expect("a probe");
    desk.request(&deliveries[1].id).await.answer(Answer::Status(200));
    until_endpoint(&mut watch, &endpoint.id, pb::EndpointChangeType::Recovered).await;
    assert!(!desk.has_more(&deliveries[0].id));
}

async fn a_probed_endpoint_can_be_deleted(database: Database) {
    let world = world_with(database, pb::PausedPolicy::Discard, &ARGUMENTS).await;
    let desk = Desk::open().await;
    let mut watch = world.watch().await;
    for (answer, status) in [(200, pb::DeliveryStatus::Success), (500, pb::DeliveryStatus::Discarded)] {
        let (endpoint, delivery) = inactive(&world, &desk, &mut watch).await;
        retry(&world, &delivery.id).await.expect("a probe");
        let probe = desk.request(&delivery.id).await;
        let delete = pb::DeleteEndpointRequest { endpoint_id: endpoint.id, ..Default::default() };
        world.client.endpoints().delete_endpoint(delete).await.expect("deleted");
        probe.answer(Answer::Status(answer));
        let ended = until_change(&mut watch, &delivery.event_id, pb::DeliveryChangeType::Attempted).await;
        assert_eq!(ended.status(), status);
    }
}

/// What Watch and reads tell once a dead process's probe ended, and that another can be made.
async fn ended_and_made_again(world: &World, desk: &Desk, endpoint: &pb::Endpoint, delivery: &pb::Delivery) {
    let earliest = pb::watch_request::Start::Earliest(pb::StartEarliest {});
    let request = pb::WatchRequest { start: Some(earliest), ..Default::default() };
    let mut watch = world.client.watch(request).await.expect("watching");
    let ended = until_change(&mut watch, &delivery.event_id, pb::DeliveryChangeType::Cancelled).await;
    assert_eq!((ended.status(), ended.attempt_count), (pb::DeliveryStatus::Failed, 2));
    assert_eq!(ended.last_error_class(), pb::ErrorClass::Cancelled);
    let told = until_endpoint(&mut watch, &endpoint.id, pb::EndpointChangeType::Disabled).await;
    assert_eq!((told.status(), told.consecutive_failures), (pb::EndpointStatus::Inactive, 2));
    let read = world.deliveries_of(&delivery.event_id).await.remove(0);
    assert_eq!(read, ended);

    retry(world, &delivery.id).await.expect("another probe");
    desk.request(&delivery.id).await.answer(Answer::Status(200));
    let told = until_endpoint(&mut watch, &endpoint.id, pb::EndpointChangeType::Recovered).await;
    assert_eq!(told.status(), pb::EndpointStatus::Active);
}

async fn a_probe_that_dies_with_its_process_ends(database: Database) {
    let mut world = world_with(database, pb::PausedPolicy::Discard, &ARGUMENTS).await;
    let desk = Desk::open().await;
    let mut watch = world.watch().await;
    let (endpoint, delivery) = inactive(&world, &desk, &mut watch).await;
    retry(&world, &delivery.id).await.expect("a probe");
    let _probe = desk.request(&delivery.id).await;
    drop(watch);
    world.server.kill().await;
    world.restart().await;
    ended_and_made_again(&world, &desk, &endpoint, &delivery).await;
    assert!(!desk.has_more(&delivery.id), "it was not sent again by itself");
}

/// The node that probes sleeps through its lease's end; another ends the probe, and what the first one says when it
/// wakes changes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_node_ends_the_probe_of_one_that_sleeps() {
    in_time(async {
        let mut world = world_with(Database::postgres().await, pb::PausedPolicy::Discard, &ARGUMENTS).await;
        let desk = Desk::open().await;
        let mut watch = world.watch().await;
        let (endpoint, delivery) = inactive(&world, &desk, &mut watch).await;
        retry(&world, &delivery.id).await.expect("a probe");
        let probe = desk.request(&delivery.id).await;
        let other = world.server.join().await;
        world.server.signal("STOP").await;
        let there = world.client_of(&other).await;
        let here = std::mem::replace(&mut world.client, there);
        ended_and_made_again(&world, &desk, &endpoint, &delivery).await;
        // The sleeper wakes to a success, and records the attempt.
        probe.answer(Answer::Status(200));
        world.server.signal("CONT").await;
        let attempts = "SELECT COUNT(*) FROM attempts";
        other.database().until("its attempt is kept", attempts, 4).await;
        let read = world.deliveries_of(&delivery.event_id).await.remove(0);
        assert_eq!((read.status(), read.attempt_count), (pb::DeliveryStatus::Success, 3));
        let states = "SELECT COUNT(*) FROM endpoints WHERE status <> 1";
        other.database().until("it is ACTIVE", states, 0).await;
        drop((here, watch));
    })
    .await;
}

/// A probe that was asked for on one node, which dies before it claimed it, is made by another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_node_makes_a_probe_that_nobody_holds() {
    in_time(async {
        let world = world_with(Database::postgres().await, pb::PausedPolicy::Discard, &ARGUMENTS).await;
        let desk = Desk::open().await;
        let mut watch = world.watch().await;
        let (endpoint, delivery) = inactive(&world, &desk, &mut watch).await;
        let other: Server = world.server.join().await;
        retry(&world, &delivery.id).await.expect("a probe");
        let probe = desk.request(&delivery.id).await;
        // As if it had died before the claim.
        let mut session = world.server.sql().await;
        world.server.signal("STOP").await;
        session.run("UPDATE queue SET claimed_by = NULL").await;
        desk.request(&delivery.id).await.answer(Answer::Status(200));
        let until_active = "SELECT COUNT(*) FROM endpoints WHERE status = 1";
        other.database().until("it is ACTIVE", until_active, 1).await;
        world.server.signal("CONT").await;
        probe.answer(Answer::Status(500));
        other.database().until("both are kept", "SELECT COUNT(*) FROM attempts", 4).await;
        assert_eq!(get(&world, &endpoint.id).await.status(), pb::EndpointStatus::Active);
    })
    .await;
}
