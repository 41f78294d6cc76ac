//! A connection that the receiver had closed says nothing about the endpoint: the attempt is made again at once.

use hawser_client::pb;

use crate::support::failing::{disable, get, linear, until_all};
use crate::support::scrape::reaches;
use crate::support::secrets::seconds;
use crate::support::stale::StaleReceiver;
use crate::support::world::until;
use crate::support::{Database, World, on_both};

on_both!(
    a_stale_connection_costs_nothing,
    the_second_stale_connection_counts,
    an_answer_that_broke_off_counts,
    what_needs_a_far_slot_waits_for_it_in_the_table,
);

/// One attempt is all it has, and one failure would switch it off.
async fn fragile(world: &World, url: String) -> pb::Endpoint {
    let endpoint = pb::Endpoint {
        url,
        retry_policy: Some(linear(10, 1)),
        disable_policy: Some(disable(1, 0)),
        ..Default::default()
    };
    world.create(endpoint, &["*"]).await.0
}

async fn a_stale_connection_costs_nothing(database: Database) {
    let world = World::new(database).await;
    let receiver = StaleReceiver::start(1).await;
    let endpoint = fragile(&world, receiver.url()).await;
    let mut watch = world.watch().await;
    let first = world.publish_to(&endpoint, b"1").await.event_id;
    until(&mut watch, &first, pb::DeliveryStatus::Success).await;

    let second = world.publish_to(&endpoint, b"2").await.event_id;
    let between = until(&mut watch, &second, pb::DeliveryStatus::Retry).await;
    assert_eq!(between.attempt_count, 1);
    let delivery = until(&mut watch, &second, pb::DeliveryStatus::Success).await;
    assert_eq!(delivery.attempt_count, 2);
    assert_eq!(receiver.attempts_of(&second), [("1".to_owned(), false), ("2".to_owned(), true)]);
    let attempts = world.attempts_of(&delivery.id).await;
    let told: Vec<_> = attempts.iter().map(|one| (one.number, one.error_class(), one.status_code)).collect();
    let (reset, none) = (pb::ErrorClass::Reset, pb::ErrorClass::Unspecified);
    assert_eq!(told, [(1, reset, None), (2, none, Some(204))]);
    assert!(attempts[0].timings.expect("timings").reused && !attempts[1].timings.expect("timings").reused);

    let endpoint = get(&world, &endpoint.id).await;
    assert_eq!((endpoint.status(), endpoint.consecutive_failures), (pb::EndpointStatus::Active, 0));
}

/// The receiver had begun to answer, so it had not closed the connection before.
async fn an_answer_that_broke_off_counts(database: Database) {
    let world = World::new(database).await;
    let receiver = StaleReceiver::parting_with(1, b"HTTP/1.1 20").await;
    let endpoint = fragile(&world, receiver.url()).await;
    let mut watch = world.watch().await;
    let first = world.publish_to(&endpoint, b"1").await.event_id;
    until(&mut watch, &first, pb::DeliveryStatus::Success).await;
    let second = world.publish_to(&endpoint, b"2").await.event_id;
    let delivery = until(&mut watch, &second, pb::DeliveryStatus::Failed).await;
    assert_eq!(receiver.attempts_of(&second), [("1".to_owned(), false)]);
    let attempts = world.attempts_of(&delivery.id).await;
    let timings = attempts[0].timings.expect("timings");
    assert!(timings.reused && timings.first_byte.is_some(), "{:?}", attempts[0]);
    assert_eq!((attempts[0].error_class(), attempts[0].status_code), (pb::ErrorClass::Reset, None));
}

async fn the_second_stale_connection_counts(database: Database) {
    let world = World::new(database).await;
    let receiver = StaleReceiver::start(2).await;
    let endpoint = fragile(&world, receiver.url()).await;
    let mut watch = world.watch().await;
    let first = world.publish_to(&endpoint, b"1").await.event_id;
    let second = world.publish_to(&endpoint, b"2").await.event_id;
    until_all(&mut watch, &[first, second], pb::DeliveryStatus::Success).await;
    let third = world.publish_to(&endpoint, b"3").await.event_id;
    let delivery = until(&mut watch, &third, pb::DeliveryStatus::Failed).await;
    assert_eq!(delivery.attempt_count, 2);
    assert_eq!(receiver.attempts_of(&third), [("1".to_owned(), false), ("2".to_owned(), false)]);
    let endpoint = get(&world, &endpoint.id).await;
    assert_eq!((endpoint.status(), endpoint.consecutive_failures), (pb::EndpointStatus::Inactive, 1));
}

/// The attempt that is made again is another start, and the limit's next one is half a minute away: for so long no node
/// keeps the delivery to itself.
async fn what_needs_a_far_slot_waits_for_it_in_the_table(database: Database) {
    let world = World::new(database).await;
    let receiver = StaleReceiver::start(1).await;
    let slow = pb::RateLimit { requests: 1, per: Some(seconds(30)), burst: 2 };
    let endpoint = pb::Endpoint { url: receiver.url(), rate_limit: Some(slow), ..Default::default() };
    let (endpoint, _) = world.create(endpoint, &["*"]).await;
    let mut watch = world.watch().await;
    let first = world.publish_to(&endpoint, b"1").await.event_id;
    until(&mut watch, &first, pb::DeliveryStatus::Success).await;
    let second = world.publish_to(&endpoint, b"2").await.event_id;
    until(&mut watch, &second, pb::DeliveryStatus::Retry).await;
    reaches(&world, "hawser_deliveries_waiting{state=\"rate_limit\"}", 1.0).await;
    assert_eq!(receiver.attempts_of(&second), [("1".to_owned(), false)]);
}
