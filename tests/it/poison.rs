//! What the database refuses fails alone: the events and outcomes that share its turn do not notice.
//!
//! Validation lets nothing through that the databases refuse by themselves, so the test's own database is given a
//! trigger that does.

use std::collections::HashSet;

use hawser_client::pb;
use hawser_client::pb::publish_event_request::Target;
use tonic::Code;

use crate::support::desk::Held;
use crate::support::world::{publish, until};
use crate::support::{Answer, Database, Desk, Receiver, Reply, World, in_time, on_both, pass_time};

on_both!(
    a_refused_event_fails_alone,
    a_refused_outcome_is_recorded_without_what_was_received,
    an_outcome_that_is_refused_whole_is_given_back,
    a_claim_that_cannot_be_given_back_does_not_rest,
    a_project_that_cannot_be_read_stands_alone,
    a_change_is_in_force_though_its_routes_cannot_be_read,
);

const POISON: &str = "poison";
/// The same in hexadecimal, as both databases read bytes.
const POISON_HEX: &str = "706f69736f6e";
/// Has every node read all routes of every project again.
const READ_AGAIN: &str =
    "UPDATE projects SET routing_version = routing_version + 1, routing_base = routing_version + 1";

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

async fn a_project_that_cannot_be_read_stands_alone(database: Database) {
    let mut world = World::new(database).await;
    let receiver = Receiver::ok().await;
    let (endpoint, _) = world.endpoint(&receiver.url("/hook"), "acme").await;
    let (_, key) = crate::support::world::project(&world.operator, pb::PausedPolicy::Discard).await;
    let foreign = world.client.with_key(&hawser_client::Key::new(key.clone())).expect("a key");
    let broken = pb::Endpoint { url: receiver.url("/broken"), ..Default::default() };
    let request = pb::CreateEndpointRequest { endpoint: Some(broken), ..Default::default() };
    let broken = foreign.endpoints().create_endpoint(request).await.expect("created").into_inner();
    let broken = Target::EndpointId(broken.endpoint.expect("an endpoint").id);

    // As a later version might have written it.
    let mut sql = world.server.sql().await;
    sql.run("UPDATE endpoints SET disable_policy = '{\"of\": \"the future\"}' WHERE url LIKE '%/broken'")
        .await;
    sql.run(READ_AGAIN).await;
    // So long that a node which could not confirm its routes would start nothing.
    pass_time(std::time::Duration::from_secs(6)).await;
    publish(&foreign, broken.clone(), b"{}", "").await.expect_err("its project cannot be read");
    world.publish_to(&endpoint, b"before").await;
    receiver.wait_for_count(1).await;
    world.server.kill().await;
    world.restart().await;
    world.publish_to(&endpoint, b"after").await;
    receiver.wait_for_count(2).await;

    let foreign = world.client.with_key(&hawser_client::Key::new(key)).expect("a key");
    sql.run("UPDATE endpoints SET disable_policy = NULL WHERE url LIKE '%/broken'").await;
    sql.run(READ_AGAIN).await;
    publish(&foreign, broken, b"{}", "").await.expect("it can be read again");
    receiver.wait_for_count(3).await;
}

async fn an_outcome_that_is_refused_whole_is_given_back(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::scripted(|_, _| Reply::status(418)).await;
    let (endpoint, _) = world.endpoint(&receiver.url("/hook"), "acme").await;
    let mut sql = world.server.sql().await;
    sql.refuse("attempts", "NEW.status_code = 418", "no_teapots").await;
    let event = world.publish_to(&endpoint, b"{}").await.event_id;
    receiver.wait_for_count(1).await;
    let given_back = async {
        while world.deliveries_of(&event).await[0].status() != pb::DeliveryStatus::Scheduled {
            pass_time(std::time::Duration::from_millis(20)).await;
        }
    };
    in_time(given_back).await;
    let delivery = world.deliveries_of(&event).await.remove(0);
    assert_eq!(
        (delivery.attempt_count, receiver.seen().len()),
        (0, 1),
        "nothing of it is recorded, and it waits"
    );
}

/// Two events of an endpoint that has one attempt at a time: the first is under way, and the second waits behind it.
async fn one_behind_the_other(world: &World, desk: &Desk) -> (pb::Endpoint, Held, pb::Delivery) {
    let endpoint = pb::Endpoint { url: desk.url("/hook"), max_in_flight: 1, ..Default::default() };
    let (endpoint, _) = world.create(endpoint, &["*"]).await;
    let first = world.publish_to(&endpoint, b"{}").await.event_id;
    let first = desk.request(&world.deliveries_of(&first).await[0].id).await;
    let second = world.publish_to(&endpoint, b"{}").await.event_id;
    let second = world.deliveries_of(&second).await.remove(0);
    assert_eq!(second.status(), pb::DeliveryStatus::Processing);
    (endpoint, first, second)
}

async fn a_claim_that_cannot_be_given_back_does_not_rest(database: Database) {
    let world = World::new(database).await;
    let desk = Desk::open().await;
    let (endpoint, first, second) = one_behind_the_other(&world, &desk).await;
    let mut sql = world.server.sql().await;
    // 6 is DISCARDED, which it is to become; nor may it be given back for later.
    sql.refuse_change("deliveries", "NEW.status = 6", "no_discards").await;
    sql.refuse_change("queue", "NEW.due_at > OLD.due_at", "no_delays").await;
    let delete = pb::DeleteEndpointRequest { endpoint_id: endpoint.id, ..Default::default() };
    world.client.endpoints().delete_endpoint(delete).await.expect("deleted");
    first.answer(Answer::Status(200));
    let refused = async {
        while !world.server.log().contains("claims could not be given back") {
            pass_time(std::time::Duration::from_millis(20)).await;
        }
    };
    in_time(refused).await;
    // Giving it back stays impossible: only the end of its lease frees it, and whoever claims it then may end it.
    sql.allow("deliveries", "no_discards").await;
    sql.until_numbers("SELECT COUNT(*) FROM queue", &[0]).await;
    let second = world.deliveries_of(&second.event_id).await.remove(0);
    assert_eq!(second.status(), pb::DeliveryStatus::Discarded);
}

async fn a_change_is_in_force_though_its_routes_cannot_be_read(database: Database) {
    let world = World::new(database).await;
    let desk = Desk::open().await;
    let (endpoint, first, second) = one_behind_the_other(&world, &desk).await;
    world.endpoint(&desk.url("/broken"), "acme").await;
    let mut sql = world.server.sql().await;
    sql.run("UPDATE endpoints SET disable_policy = '{\"of\": \"the future\"}' WHERE url LIKE '%/broken'")
        .await;
    sql.run(READ_AGAIN).await;
    let pause = pb::PauseEndpointRequest { endpoint_id: endpoint.id.clone(), ..Default::default() };
    world
        .client
        .endpoints()
        .pause_endpoint(pause)
        .await
        .expect("it is in force, though its routes cannot be read");
    // 2 is PAUSED.
    assert_eq!(sql.count("endpoints WHERE status = 2").await, 1, "it was committed");
    first.answer(Answer::Status(200));
    sql.until_numbers("SELECT COUNT(*) FROM queue WHERE claimed_by IS NULL", &[1]).await;
    assert!(!desk.has_more(&second.id), "it was not sent");

    sql.run("UPDATE endpoints SET disable_policy = NULL WHERE url LIKE '%/broken'").await;
    sql.run(READ_AGAIN).await;
    let resume = pb::ResumeEndpointRequest { endpoint_id: endpoint.id, ..Default::default() };
    world.client.endpoints().resume_endpoint(resume).await.expect("resumed");
    desk.request(&second.id).await.answer(Answer::Status(200));
}
