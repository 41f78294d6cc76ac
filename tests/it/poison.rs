//! What the database refuses fails alone: the events and outcomes that share its turn do not notice.
//!
//! Validation lets nothing through that the databases refuse by themselves, so the test's own database is given a
//! trigger that does.

use std::collections::HashSet;

use hawser_client::pb;
use hawser_client::pb::publish_event_request::Target;
use tonic::Code;

use crate::support::world::{publish, until};
use crate::support::{Database, Receiver, Reply, World, on_both};

on_both!(a_refused_event_fails_alone, a_refused_outcome_is_recorded_without_what_was_received);

const POISON: &str = "poison";
/// The same in hexadecimal, as both databases read bytes.
const POISON_HEX: &str = "706f69736f6e";

async fn refuse_poison(world: &World, table: &str, column: &str) {
    let mut sql = world.server.sql().await;
    let condition = sql.bytes_equal(column, POISON_HEX);
    sql.refuse(table, &condition, "no_poison").await;
}

async fn a_refused_event_fails_alone(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::ok().await;
    world.endpoint(&receiver.url("/hook"), "acme").await;
    refuse_poison(&world, "events", "payload").await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..200 {
        let client = world.client.clone();
        tasks.spawn(async move {
            let bad = number % 70 == 35;
            let payload = if bad { POISON.to_owned() } else { number.to_string() };
            let key = format!("key-{number}");
            (bad, publish(&client, Target::OwnerId("acme".to_owned()), payload.as_bytes(), &key).await)
        });
    }
    let mut accepted = HashSet::new();
    let mut refused = 0;
    for (bad, result) in tasks.join_all().await {
        match result {
            Ok(receipt) => {
                assert!(!bad, "it was acknowledged though nothing of it is stored");
                accepted.insert(receipt.event_id);
            }
            Err(status) => {
                assert!(bad, "it failed with another: {status}");
                assert_eq!(status.code(), Code::Internal, "{status}");
                refused += 1;
            }
        }
    }
    assert_eq!((accepted.len(), refused), (197, 3));
    let seen = receiver.wait_for_count(197).await;
    assert_eq!(seen.iter().map(|one| one.event()).collect::<HashSet<_>>(), accepted);
    // In one batch, where the order within a turn is known.
    let request = |payload: &str| pb::PublishEventRequest {
        event_type: "a.b".to_owned(),
        target: Some(Target::OwnerId("acme".to_owned())),
        payload: payload.to_owned().into(),
        ..Default::default()
    };
    let requests = (0..100).map(|number| request(if number == 99 || number < 2 { POISON } else { "good" }));
    let batch = pb::BatchPublishEventsRequest { requests: requests.collect(), ..Default::default() };
    let results =
        world.client.events().batch_publish_events(batch).await.expect("taken").into_inner().results;
    let refused: Vec<usize> = results
        .iter()
        .enumerate()
        .filter(|(_, result)| matches!(result.result, Some(pb::publish_result::Result::Error(_))))
        .map(|(place, _)| place)
        .collect();
    assert_eq!(refused, [0, 1, 99]);
    receiver.wait_for_count(197 + 97).await;
}

async fn a_refused_outcome_is_recorded_without_what_was_received(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::scripted(|seen, _| Reply {
        body: if seen.path == "/bad" { POISON.into() } else { "good".into() },
        ..Reply::status(200)
    })
    .await;
    let (good, _) = world.endpoint(&receiver.url("/good"), "acme").await;
    let (bad, _) = world.endpoint(&receiver.url("/bad"), "acme").await;
    refuse_poison(&world, "attempts", "response_body").await;
    let mut watch = world.watch().await;
    let mut events = Vec::new();
    for _ in 0..50 {
        events.push(world.publish(Target::OwnerId("acme".to_owned()), b"{}").await.event_id);
    }
    // In this order: the last one's success says nothing of the others', so each is looked at below.
    until(&mut watch, &events[49], pb::DeliveryStatus::Success).await;
    for event in &events {
        for delivery in world.settled_deliveries_of(event).await {
            assert_eq!(delivery.status(), pb::DeliveryStatus::Success, "{delivery:?}");
            let attempts = world.attempts_of(&delivery.id).await;
            let [attempt] = attempts.as_slice() else { panic!("one attempt: {attempts:?}") };
            assert_eq!(attempt.status_code, Some(200));
            if delivery.endpoint_id == bad.id {
                assert!(attempt.response_body.is_empty() && attempt.response_body_truncated);
            } else {
                assert_eq!(
                    (delivery.endpoint_id.as_str(), attempt.response_body.as_ref()),
                    (good.id.as_str(), b"good".as_slice())
                );
            }
        }
    }
    assert_eq!(receiver.seen().len(), 100, "nothing was sent twice");
}
