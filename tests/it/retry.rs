//! Failures are retried, recorded, and given up in the end; a retry by hand starts anew.

use hawser_client::{pb, reason};
use tonic::Code;

use crate::support::world::{quick_retries, until};
use crate::support::{Database, Receiver, Reply, World, on_both};

on_both!(
    failures_are_retried_under_one_id,
    a_spent_budget_fails_and_can_be_retried_by_hand,
    gone_ends_at_once,
    redirects_are_not_followed,
    broken_connections_are_retried,
);

async fn failures_are_retried_under_one_id(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::scripted(|_, before| Reply::status(if before < 2 { 500 } else { 200 })).await;
    let (endpoint, _) = world.endpoint(&receiver.url("/hook"), "").await;
    let mut watch = world.watch().await;
    let event = world.publish_to(&endpoint, b"{\"once\":true}").await.event_id;
    let delivery = until(&mut watch, &event, pb::DeliveryStatus::Success).await;
    assert_eq!(delivery.attempt_count, 3);

    let seen = receiver.seen();
    assert_eq!(seen.len(), 3);
    assert!(seen.iter().all(|one| one.event() == event && one.body == "{\"once\":true}"));
    assert!(seen.iter().all(|one| one.header("hawser-delivery-id") == delivery.id));
    let numbers: Vec<_> = seen.iter().map(|one| one.header("hawser-attempt")).collect();
    assert_eq!(numbers, ["1", "2", "3"]);
    let attempts = world.attempts_of(&delivery.id).await;
    let statuses: Vec<_> = attempts.iter().map(|attempt| attempt.status_code).collect();
    assert_eq!(statuses, [Some(500), Some(500), Some(200)]);
    assert_eq!(attempts[0].error_class(), pb::ErrorClass::HttpStatus);

    let request = pb::GetEndpointRequest { endpoint_id: endpoint.id, ..Default::default() };
    let endpoint = world.client.endpoints().get_endpoint(request).await.expect("found").into_inner().endpoint;
    let endpoint = endpoint.expect("an endpoint");
    assert_eq!(endpoint.consecutive_failures, 0);
    assert_eq!(endpoint.last_response.expect("answered").status_code, Some(200));
}

async fn a_spent_budget_fails_and_can_be_retried_by_hand(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::scripted(|_, before| Reply::status(if before < 3 { 503 } else { 200 })).await;
    let endpoint = pb::Endpoint {
        url: receiver.url("/hook"),
        retry_policy: Some(quick_retries(2)),
        ..Default::default()
    };
    let (endpoint, _) = world.create(endpoint, &["*"]).await;
    let mut watch = world.watch().await;
    let event = world.publish_to(&endpoint, b"{}").await.event_id;
    let failed = until(&mut watch, &event, pb::DeliveryStatus::Failed).await;
    assert_eq!((failed.attempt_count, failed.last_status_code), (2, Some(503)));

    let request = pb::GetEndpointRequest { endpoint_id: endpoint.id, ..Default::default() };
    let endpoint = world.client.endpoints().get_endpoint(request).await.expect("found").into_inner().endpoint;
    assert_eq!(endpoint.expect("an endpoint").consecutive_failures, 2);

    let retry = pb::RetryDeliveryRequest { delivery_id: failed.id.clone(), ..Default::default() };
    let reopened =
        world.client.deliveries().retry_delivery(retry.clone()).await.expect("retried").into_inner();
    assert!(reopened.delivery.expect("a delivery").end_time.is_none());
    let ended = until(&mut watch, &event, pb::DeliveryStatus::Success).await;
    assert_eq!((ended.id, ended.attempt_count), (failed.id, 4));
    assert!(receiver.seen().iter().all(|one| one.event() == event));

    let again = world.client.deliveries().retry_delivery(retry).await.expect_err("it succeeded");
    assert_eq!(again.code(), Code::FailedPrecondition);
    assert_eq!(reason(&again).as_deref(), Some("DELIVERY_NOT_ENDED"));
}

async fn gone_ends_at_once(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::scripted(|_, _| Reply::status(410)).await;
    let (endpoint, _) = world.endpoint(&receiver.url("/hook"), "").await;
    let mut watch = world.watch().await;
    let event = world.publish_to(&endpoint, b"{}").await.event_id;
    let failed = until(&mut watch, &event, pb::DeliveryStatus::Failed).await;
    assert_eq!((failed.attempt_count, receiver.seen().len()), (1, 1));
}

async fn redirects_are_not_followed(database: Database) {
    let world = World::new(database).await;
    let elsewhere = Receiver::ok().await;
    let target = elsewhere.url("/elsewhere");
    let receiver = Receiver::scripted(move |_, before| match before {
        0 => Reply { headers: vec![("location", target.clone())], ..Reply::status(307) },
        _ => Reply::status(200),
    })
    .await;
    let (endpoint, _) = world.endpoint(&receiver.url("/hook"), "").await;
    let mut watch = world.watch().await;
    let event = world.publish_to(&endpoint, b"{}").await.event_id;
    let delivery = until(&mut watch, &event, pb::DeliveryStatus::Success).await;
    assert_eq!(delivery.attempt_count, 2);
    assert!(elsewhere.seen().is_empty());
}

async fn broken_connections_are_retried(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::scripted(|_, before| Reply { hang_up: before == 0, ..Reply::status(200) }).await;
    let (endpoint, _) = world.endpoint(&receiver.url("/hook"), "").await;
    let mut watch = world.watch().await;
    let event = world.publish_to(&endpoint, b"{}").await.event_id;
    let delivery = until(&mut watch, &event, pb::DeliveryStatus::Success).await;
    let attempts = world.attempts_of(&delivery.id).await;
    assert_eq!(attempts.len(), 2);
    assert_eq!(attempts[0].error_class(), pb::ErrorClass::Reset);
    assert_eq!(attempts[0].status_code, None);
}
