//! How much a project may have pending: what waits counts, also what is still to be made, and what ended does not.

use std::time::Duration;

use hawser_client::pb::publish_event_request::Target;
use hawser_client::{pb, reason};
use sqlx::Executor;

use crate::support::failing::world_with;
use crate::support::world::{publish, until};
use crate::support::{Database, Receiver, Reply, in_time, on_both, pass_time};

on_both!(
    what_ended_makes_room_at_once,
    what_is_discarded_at_birth_takes_no_room,
    what_comes_together_counts_together,
);

async fn what_ended_makes_room_at_once(database: Database) {
    let world = world_with(database, pb::PausedPolicy::Discard, &["--pending-max", "3"]).await;
    let receiver = Receiver::ok().await;
    let (endpoint, _) = world.endpoint(&receiver.url("/hook"), "").await;
    let mut watch = world.watch().await;
    // Sooner than the queue is counted again.
    for _ in 0..20 {
        let event = world.publish_to(&endpoint, b"{}").await.event_id;
        until(&mut watch, &event, pb::DeliveryStatus::Success).await;
    }
}

async fn what_is_discarded_at_birth_takes_no_room(database: Database) {
    let world = world_with(database, pb::PausedPolicy::Discard, &["--pending-max", "3"]).await;
    let (endpoint, _) = world.endpoint("http://127.0.0.1:9/", "").await;
    let request = pb::PauseEndpointRequest { endpoint_id: endpoint.id.clone(), ..Default::default() };
    world.client.endpoints().pause_endpoint(request).await.expect("paused");
    for _ in 0..20 {
        assert_eq!(world.publish_to(&endpoint, b"{}").await.delivery_count, 1);
    }
}

async fn what_comes_together_counts_together(database: Database) {
    let world = world_with(database, pb::PausedPolicy::Discard, &["--pending-max", "3"]).await;
    let receiver = Receiver::scripted(|_, _| Reply::after(Duration::from_secs(3600))).await;
    let (endpoint, _) = world.endpoint(&receiver.url("/"), "").await;
    let request = pb::PublishEventRequest {
        event_type: "test.event".to_owned(),
        target: Some(Target::EndpointId(endpoint.id.clone())),
        payload: b"{}".as_slice().into(),
        ..Default::default()
    };
    let batch = pb::BatchPublishEventsRequest { requests: vec![request; 5], ..Default::default() };
    let reply = world.client.events().batch_publish_events(batch).await.expect("taken").into_inner();
    let accepted = reply.results.iter().map(|result| match &result.result {
        Some(pb::publish_result::Result::Receipt(_)) => true,
        Some(pb::publish_result::Result::Error(_)) => false,
        None => panic!("no result"),
    });
    assert_eq!(accepted.collect::<Vec<_>>(), [true, true, true, false, false]);
}

/// Rows are to be made of it all the same, and until then it waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_to_be_made_takes_room_though_it_will_be_discarded() {
    in_time(async {
        let arguments = ["--pending-max", "50", "--fan-out-at-once", "5"];
        let world = world_with(Database::postgres().await, pb::PausedPolicy::Discard, &arguments).await;
        for number in 0..20 {
            let (endpoint, _) = world.endpoint(&format!("http://127.0.0.1:9/{number}"), "wide").await;
            let request = pb::PauseEndpointRequest { endpoint_id: endpoint.id, ..Default::default() };
            world.client.endpoints().pause_endpoint(request).await.expect("paused");
        }
        let target = || Target::OwnerId("wide".to_owned());
        let mut session = world.server.database().session().await;
        session.execute("BEGIN; LOCK TABLE deliveries IN SHARE MODE").await.expect("locked");
        for _ in 0..2 {
            assert_eq!(world.publish(target(), b"{}").await.delivery_count, 20);
        }
        let refused = publish(&world.client, target(), b"{}", "").await.expect_err("too much waits");
        assert_eq!(reason(&refused).as_deref(), Some("PENDING_DELIVERIES"));
        session.execute("COMMIT").await.expect("released");
    })
    .await;
}

/// Events that reach many endpoints count with all of them from when they are accepted, also while no delivery is made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_still_to_be_made_takes_room() {
    in_time(async {
        let arguments = ["--pending-max", "50", "--fan-out-at-once", "5"];
        let world = world_with(Database::postgres().await, pb::PausedPolicy::Discard, &arguments).await;
        let receiver = Receiver::ok().await;
        for number in 0..20 {
            world.endpoint(&receiver.url(&format!("/{number}")), "wide").await;
        }
        let target = || Target::OwnerId("wide".to_owned());
        let mut session = world.server.database().session().await;
        // Events may be accepted, and no delivery can be made of them.
        session.execute("BEGIN; LOCK TABLE deliveries IN SHARE MODE").await.expect("locked");
        for _ in 0..2 {
            assert_eq!(world.publish(target(), b"{}").await.delivery_count, 20);
        }
        // The queue is counted every five seconds.
        for (counted, later) in [("by what was accepted", 0), ("by what the database says", 7)] {
            pass_time(Duration::from_secs(later)).await;
            let refused = publish(&world.client, target(), b"{}", "").await.expect_err(counted);
            assert_eq!(reason(&refused).as_deref(), Some("PENDING_DELIVERIES"), "{counted}");
        }
        session.execute("COMMIT").await.expect("released");
        receiver.wait_for_count(40).await;
    })
    .await;
}
