//! SIGTERM under load: a bounded end, nothing lost, nothing repeated that ended in time.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use hawser_client::pb;
use hawser_client::pb::publish_event_request::Target;
use tokio::sync::Mutex;

use crate::support::failing::{linear, next_attempt, world_with};
use crate::support::world::publish;
use crate::support::{Database, Desk, Receiver, Reply, World, on_both, tier};

on_both!(
    sigterm_under_load_loses_and_repeats_nothing,
    an_attempt_that_hangs_does_not_hold_up_the_end,
    nothing_is_claimed_while_calls_end,
);

async fn sigterm_under_load_loses_and_repeats_nothing(database: Database) {
    let mut world = World::new(database).await;
    let receiver = Receiver::scripted(|_, _| Reply::after(Duration::from_millis(20))).await;
    let (endpoint, _) = world.endpoint(&receiver.url("/hook"), "acme").await;
    let acknowledged = Arc::<Mutex<HashSet<String>>>::default();
    for round in 0..tier(2, 10) {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..16 {
            let (client, endpoint) = (world.client.clone(), endpoint.id.clone());
            let acknowledged = acknowledged.clone();
            tasks.spawn(async move {
                // Until the server stops.
                while let Ok(reply) = publish(&client, Target::EndpointId(endpoint.clone()), b"{}", "").await
                {
                    acknowledged.lock().await.insert(reply.event_id);
                }
            });
        }
        let wanted = receiver.seen().len() + 200;
        receiver.wait_for_count(wanted).await;
        assert!(world.server.terminate().await.success(), "round {round}: {}", world.server.log());
        tasks.join_all().await;
        world.restart().await;
    }
    let acknowledged = acknowledged.lock().await;
    let seen = receiver.wait_for_events(acknowledged.iter()).await;
    let ids: HashSet<_> = seen.iter().map(|one| one.event()).collect();
    assert_eq!(seen.len(), ids.len(), "attempts that ended within the drain time are not repeated");
}

async fn an_attempt_that_hangs_does_not_hold_up_the_end(database: Database) {
    let mut world = world_with(database, pb::PausedPolicy::Discard, &["--drain", "1"]).await;
    let desk = Desk::open().await;
    let minute = Some(prost_types::Duration { seconds: 60, nanos: 0 });
    let endpoint = pb::Endpoint { url: desk.url("/hook"), http_timeout: minute, ..Default::default() };
    let (endpoint, _) = world.create(endpoint, &["*"]).await;
    let event = world.publish_to(&endpoint, b"{}").await.event_id;
    let delivery = world.deliveries_of(&event).await.remove(0).id;
    let hanging = desk.request(&delivery).await;
    assert!(world.server.terminate().await.success(), "{}", world.server.log());
    world.restart().await;
    // Had the server waited for it, it would be recorded as a TIMEOUT, and this the second.
    let again = desk.request(&delivery).await;
    assert_eq!((hanging.attempt, again.attempt), (1, 1), "what did not end is attempted again");
}

/// A call that takes its time holds the server for some seconds after SIGTERM. What becomes due meanwhile is left to the next.
async fn nothing_is_claimed_while_calls_end(database: Database) {
    let mut world = world_with(database, pb::PausedPolicy::Discard, &[]).await;
    let mut stream = world.watch().await;
    let receiver = Receiver::scripted(|_, _| Reply::status(500)).await;
    let retries = Some(linear(4_000, 3));
    let endpoint = pb::Endpoint { url: receiver.url("/hook"), retry_policy: retries, ..Default::default() };
    let (endpoint, _) = world.create(endpoint, &["*"]).await;
    let silent = Receiver::scripted(|_, _| Reply::after(Duration::from_secs(60))).await;
    let (slow, _) = world.endpoint(&silent.url("/hook"), "").await;
    let client = world.client.clone();
    let ping = tokio::spawn(async move {
        let request = pb::PingEndpointRequest { endpoint_id: slow.id, ..Default::default() };
        client.endpoints().ping_endpoint(request).await
    });
    silent.wait_for_count(1).await;
    world.publish_to(&endpoint, b"{}").await;
    next_attempt(&mut stream, &endpoint.id).await;
    assert!(world.server.terminate().await.success(), "{}", world.server.log());
    assert!(ping.await.expect("not cancelled").is_err(), "it lasted until it was cut");
    assert_eq!(receiver.seen().len(), 1, "the retry that became due meanwhile was not claimed");
}
