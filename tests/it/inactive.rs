//! INACTIVE: endpoints that fail too often are switched off, and switched on again by hand.

use std::time::Duration;

use hawser_client::{pb, reason};
use tonic::Code;

use crate::support::failing::{
    NO_BREAKER, activate, deliveries_in, disable, get, linear, next_attempt, until_all, until_endpoint,
    world_with,
};
use crate::support::world::until;
use crate::support::{Database, Receiver, Reply, World, on_both};

on_both!(
    the_policy_switches_off_and_activate_on,
    the_failures_must_span_the_time_too,
    any_success_starts_the_count_anew,
    gone_switches_off_even_where_the_policy_is_off,
    queued_work_is_discarded_at_once_and_for_good,
    attempts_in_flight_end_as_they_end,
    retries_of_a_deleted_endpoint_do_not_wait_to_be_due,
);

async fn failing(world: &World, receiver: &Receiver, policy: pb::DisablePolicy) -> pb::Endpoint {
    let endpoint = pb::Endpoint {
        url: receiver.url("/hook"),
        owner_id: "acme".to_owned(),
        retry_policy: Some(linear(40, 50)),
        disable_policy: Some(policy),
        ..Default::default()
    };
    world.create(endpoint, &["*"]).await.0
}

async fn the_policy_switches_off_and_activate_on(database: Database) {
    let world = world_with(database, pb::PausedPolicy::Discard, &NO_BREAKER).await;
    let receiver = Receiver::scripted(|_, before| Reply::status(if before < 4 { 500 } else { 200 })).await;
    let endpoint = failing(&world, &receiver, disable(4, 0)).await;
    let mut watch = world.watch().await;
    let event = world.publish_to(&endpoint, b"{}").await.event_id;
    let delivery = until(&mut watch, &event, pb::DeliveryStatus::Discarded).await;
    assert_eq!((delivery.attempt_count, delivery.last_status_code), (4, Some(500)));
    let told = until_endpoint(&mut watch, &endpoint.id, pb::EndpointChangeType::Disabled).await;
    let reason_told = told.status_reason.as_str();
    assert!(reason_told.starts_with("4 attempts failed in a row over "), "{reason_told}");
    assert!(reason_told.ends_with("; the last: answered 500"), "{reason_told}");
    let read = get(&world, &endpoint.id).await;
    assert_eq!((read.status(), read.status_reason.as_str()), (pb::EndpointStatus::Inactive, reason_told));
    assert_eq!((read.consecutive_failures, read.etag.as_str()), (4, endpoint.etag.as_str()));
    assert_ne!(read.status_change_time, endpoint.status_change_time);
    let list = pb::ListEndpointsRequest { status: pb::EndpointStatus::Inactive.into(), ..Default::default() };
    let listed = world.client.endpoints().list_endpoints(list).await.expect("listed").into_inner();
    assert_eq!(listed.endpoints, [read]);

    // Nothing is sent, and neither Pause nor Resume changes that.
    let while_off = world.publish_to(&endpoint, b"{}").await;
    assert_eq!(while_off.delivery_count, 1);
    assert_eq!(world.deliveries_of(&while_off.event_id).await[0].status(), pb::DeliveryStatus::Discarded);
    let id = endpoint.id.clone();
    let pause = pb::PauseEndpointRequest { endpoint_id: id.clone(), ..Default::default() };
    let resume = pb::ResumeEndpointRequest { endpoint_id: id.clone(), ..Default::default() };
    let retry = pb::RetryDeliveryRequest { delivery_id: delivery.id, ..Default::default() };
    for refused in [
        world.client.endpoints().pause_endpoint(pause).await.expect_err("pause"),
        world.client.endpoints().resume_endpoint(resume).await.expect_err("resume"),
    ] {
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert_eq!(reason(&refused).as_deref(), Some("ENDPOINT_INACTIVE"));
    }

    let on = activate(&world, &id).await;
    assert_eq!((on.status(), on.consecutive_failures), (pb::EndpointStatus::Active, 0));
    assert_eq!(activate(&world, &id).await, on, "idempotent");
    until_endpoint(&mut watch, &id, pb::EndpointChangeType::Activated).await;
    let after = world.publish_to(&endpoint, b"{}").await.event_id;
    until(&mut watch, &after, pb::DeliveryStatus::Success).await;
    // What was discarded is sent when someone asks for it, and not before.
    assert_eq!(receiver.seen().len(), 5);
    world.client.deliveries().retry_delivery(retry).await.expect("retried");
    until(&mut watch, &event, pb::DeliveryStatus::Success).await;
}

async fn the_failures_must_span_the_time_too(database: Database) {
    let world = world_with(database, pb::PausedPolicy::Discard, &NO_BREAKER).await;
    let receiver = Receiver::scripted(|_, _| Reply::status(500)).await;
    let endpoint = failing(&world, &receiver, disable(2, 700)).await;
    let mut watch = world.watch().await;
    world.publish_to(&endpoint, b"{}").await;
    let first = next_attempt(&mut watch, &endpoint.id).await.start_time.expect("a time");
    let told = until_endpoint(&mut watch, &endpoint.id, pb::EndpointChangeType::Disabled).await;
    let changed = told.status_change_time.expect("a time");
    let after = (changed.seconds - first.seconds) * 1000 + i64::from(changed.nanos - first.nanos) / 1_000_000;
    assert!(after >= 700, "{after} ms after the first attempt");
    assert!(told.consecutive_failures >= 2, "{}", told.status_reason);
}

async fn any_success_starts_the_count_anew(database: Database) {
    let world = world_with(database, pb::PausedPolicy::Discard, &NO_BREAKER).await;
    let receiver =
        Receiver::scripted(|_, before| Reply::status(if before % 3 < 2 { 500 } else { 200 })).await;
    let endpoint = failing(&world, &receiver, disable(3, 0)).await;
    let mut watch = world.watch().await;
    for _ in 0..4 {
        let event = world.publish_to(&endpoint, b"{}").await.event_id;
        assert_eq!(until(&mut watch, &event, pb::DeliveryStatus::Success).await.attempt_count, 3);
    }
    assert_eq!(get(&world, &endpoint.id).await.status(), pb::EndpointStatus::Active);
}

async fn gone_switches_off_even_where_the_policy_is_off(database: Database) {
    let world = world_with(database, pb::PausedPolicy::Discard, &NO_BREAKER).await;
    let receiver = Receiver::scripted(|_, before| Reply::status(if before < 8 { 500 } else { 410 })).await;
    let off = pb::DisablePolicy { off: true, ..disable(1, 0) };
    let endpoint = failing(&world, &receiver, off).await;
    let mut watch = world.watch().await;
    let event = world.publish_to(&endpoint, b"{}").await.event_id;
    let failed = until(&mut watch, &event, pb::DeliveryStatus::Failed).await;
    assert_eq!(failed.attempt_count, 9, "eight failures did not switch it off");
    let told = until_endpoint(&mut watch, &endpoint.id, pb::EndpointChangeType::Disabled).await;
    assert_eq!(told.status_reason, "the receiver answered 410 Gone");
}

/// More than upkeep moves in one step.
const BACKLOG: usize = 1_100;

async fn queued_work_is_discarded_at_once_and_for_good(database: Database) {
    let world = world_with(database, pb::PausedPolicy::Hold, &NO_BREAKER).await;
    let receiver = Receiver::scripted(|one, before| match before {
        _ if one.body == "after" => Reply::status(200),
        0 => Reply::status(410),
        _ => Reply { delay: Duration::from_millis(500), ..Reply::status(500) },
    })
    .await;
    let endpoint = failing(&world, &receiver, disable(20, 3_600_000)).await;
    let id = endpoint.id.clone();
    let pause = pb::PauseEndpointRequest { endpoint_id: id.clone(), ..Default::default() };
    world.client.endpoints().pause_endpoint(pause).await.expect("paused");
    let mut publishing = tokio::task::JoinSet::new();
    for part in 0..8 {
        let (client, target) = (world.client.clone(), id.clone());
        publishing.spawn(async move {
            let mut events = Vec::new();
            for _ in (part..BACKLOG).step_by(8) {
                let target = pb::publish_event_request::Target::EndpointId(target.clone());
                let reply = crate::support::world::publish(&client, target, b"{}", "").await;
                events.push(reply.expect("published").event_id);
            }
            events
        });
    }
    let events: Vec<String> = publishing.join_all().await.concat();
    let mut watch = world.watch().await;
    let resume = pb::ResumeEndpointRequest { endpoint_id: id.clone(), ..Default::default() };
    world.client.endpoints().resume_endpoint(resume).await.expect("resumed");
    until_endpoint(&mut watch, &id, pb::EndpointChangeType::Disabled).await;
    // However far the rows are, no reader sees anything that could still be sent.
    let open = [pb::DeliveryStatus::Scheduled, pb::DeliveryStatus::Retry];
    assert_eq!(deliveries_in(&world, &id, &open).await, []);
    let discarded = deliveries_in(&world, &id, &[pb::DeliveryStatus::Discarded]).await;
    assert!(discarded.len() > 900 && discarded.iter().all(|one| one.next_attempt_time.is_none()));

    let on = activate(&world, &id).await;
    assert_eq!(on.status(), pb::EndpointStatus::Active);
    let sent = receiver.seen().len();
    assert!(sent < 100, "{sent} were sent");
    let ended = [pb::DeliveryStatus::Discarded, pb::DeliveryStatus::Failed];
    let ended: Vec<_> = deliveries_in(&world, &id, &ended).await;
    assert_eq!(ended.len(), 1000, "a full page; the rest is on the next");
    assert_eq!(deliveries_in(&world, &id, &open).await, []);
    let after = world.publish_to(&endpoint, b"after").await.event_id;
    until(&mut watch, &after, pb::DeliveryStatus::Success).await;
    assert_eq!(receiver.seen().len(), sent + 1, "only what came after is sent");
    for event in [&events[0], &events[BACKLOG - 1]] {
        let status = world.deliveries_of(event).await[0].status();
        assert!(matches!(status, pb::DeliveryStatus::Discarded | pb::DeliveryStatus::Failed), "{status:?}");
    }
}

async fn attempts_in_flight_end_as_they_end(database: Database) {
    let world = world_with(database, pb::PausedPolicy::Discard, &NO_BREAKER).await;
    let receiver = Receiver::scripted(|one, _| match &one.body[..] {
        b"slow success" => Reply::after(Duration::from_secs(5)),
        b"slow failure" => Reply { delay: Duration::from_secs(5), ..Reply::status(500) },
        _ => Reply::status(410),
    })
    .await;
    let endpoint = failing(&world, &receiver, disable(20, 3_600_000)).await;
    let mut watch = world.watch().await;
    let success = world.publish_to(&endpoint, b"slow success").await.event_id;
    let failure = world.publish_to(&endpoint, b"slow failure").await.event_id;
    receiver.wait_for_count(2).await;
    world.publish_to(&endpoint, b"gone").await;
    until_endpoint(&mut watch, &endpoint.id, pb::EndpointChangeType::Disabled).await;
    let mut ends = std::collections::HashMap::new();
    while ends.len() < 2 {
        let message = crate::support::world::next(&mut watch).await;
        if let Some(pb::watch_response::Change::DeliveryChange(change)) = message.change {
            let delivery = change.delivery.expect("a delivery");
            if [&success, &failure].contains(&&delivery.event_id) {
                ends.insert(delivery.event_id.clone(), (delivery.status(), delivery.attempt_count));
            }
        }
    }
    assert_eq!(ends[&success], (pb::DeliveryStatus::Success, 1));
    assert_eq!(ends[&failure], (pb::DeliveryStatus::Discarded, 1));
    assert_eq!(get(&world, &endpoint.id).await.status(), pb::EndpointStatus::Inactive);
}

async fn retries_of_a_deleted_endpoint_do_not_wait_to_be_due(database: Database) {
    let world = world_with(database, pb::PausedPolicy::Discard, &NO_BREAKER).await;
    let receiver = Receiver::scripted(|_, _| Reply::status(500)).await;
    let endpoint = pb::Endpoint {
        url: receiver.url("/hook"),
        retry_policy: Some(linear(3_600_000, 3)),
        ..Default::default()
    };
    let (endpoint, _) = world.create(endpoint, &["*"]).await;
    let mut watch = world.watch().await;
    let event = world.publish_to(&endpoint, b"{}").await.event_id;
    until(&mut watch, &event, pb::DeliveryStatus::Retry).await;
    let delete = pb::DeleteEndpointRequest { endpoint_id: endpoint.id, ..Default::default() };
    world.client.endpoints().delete_endpoint(delete).await.expect("deleted");
    assert_eq!(world.deliveries_of(&event).await[0].status(), pb::DeliveryStatus::Discarded);
    until_all(&mut watch, &[event], pb::DeliveryStatus::Discarded).await;
}
