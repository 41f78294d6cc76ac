//! How a probe ends is told, once, and so is an answer of 410: by the endpoint's event, not by the delivery's as well.

use std::collections::BTreeMap;
use std::time::Duration;

use hawser_client::pb;

use crate::support::failing::{NO_BREAKER, disable, linear, until_endpoint};
use crate::support::told::{Channels, all_sent, counts};
use crate::support::world::until;
use crate::support::{Database, Receiver, Reply, World, on_both};

on_both!(the_end_of_a_probe_is_told_once);

async fn retry(world: &World, delivery: &pb::Delivery) {
    let request = pb::RetryDeliveryRequest { delivery_id: delivery.id.clone(), ..Default::default() };
    world.client.deliveries().retry_delivery(request).await.expect("a probe");
}

async fn the_end_of_a_probe_is_told_once(database: Database) {
    let channels = Channels::open(Duration::ZERO).await;
    let (world, _) = channels.world(database, &NO_BREAKER).await;
    let receiver = Receiver::scripted(|_, before| {
        Reply::status(match before {
            // Two failures switch it off, and the first probe fails.
            0..=2 => 500,
            3 => 200,
            _ => 410,
        })
    })
    .await;
    let endpoint = pb::Endpoint {
        url: receiver.url("/hook"),
        retry_policy: Some(linear(1, 50)),
        disable_policy: Some(disable(2, 0)),
        ..Default::default()
    };
    let mut watch = world.watch().await;
    let (endpoint, _) = world.create(endpoint, &["*"]).await;
    let event = world.publish_to(&endpoint, b"{}").await.event_id;
    until_endpoint(&mut watch, &endpoint.id, pb::EndpointChangeType::Disabled).await;
    let delivery = world.settled_deliveries_of(&event).await.remove(0);
    retry(&world, &delivery).await;
    until_endpoint(&mut watch, &endpoint.id, pb::EndpointChangeType::Disabled).await;
    retry(&world, &delivery).await;
    until(&mut watch, &event, pb::DeliveryStatus::Success).await;
    let gone = world.publish_to(&endpoint, b"{}").await.event_id;
    until_endpoint(&mut watch, &endpoint.id, pb::EndpointChangeType::Disabled).await;
    world.settled_deliveries_of(&gone).await;

    all_sent(&world).await;
    let told = channels.told();
    let mut told = counts(&told[3]);
    // What is told of failing on the way has tests of its own.
    told.retain(|event, _| *event != "delivery.failing" && *event != "delivery.recovered");
    let expected = [("endpoint.activated", 1), ("endpoint.created", 1), ("endpoint.disabled", 3)];
    assert_eq!(told, BTreeMap::from(expected));
}
