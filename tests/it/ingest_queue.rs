//! What waits to be written is bounded, in events and in bytes: more is refused at once, and nothing is lost of what
//! was acknowledged.

use std::collections::HashSet;

use bytes::Bytes;
use hawser_client::pb::publish_event_request::Target;
use hawser_client::pb::publish_result::Result as Told;
use hawser_client::{Client, pb, reason};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::support::{Database, World, on_both};

on_both!(more_events_than_may_wait_are_refused, more_bytes_than_may_wait_are_refused);

fn event(number: usize, payload: Bytes) -> pb::PublishEventRequest {
    pb::PublishEventRequest {
        event_type: "test.event".to_owned(),
        target: Some(Target::OwnerId("acme".to_owned())),
        payload,
        idempotency_key: number.to_string(),
        ..Default::default()
    }
}

async fn batch(client: &Client, requests: Vec<pb::PublishEventRequest>) -> Result<Vec<String>, Status> {
    let request = pb::BatchPublishEventsRequest { requests, ..Default::default() };
    let reply = client.events().batch_publish_events(request).await?.into_inner();
    let accepted = reply.results.into_iter().filter_map(|one| match one.result {
        Some(Told::Receipt(receipt)) => Some(receipt.event_id),
        _ => None,
    });
    Ok(accepted.collect())
}

/// While nothing can be written, `calls` make more of it wait than may; some must be refused for that, and all of
/// them, made again, come through in the end.
async fn overfill(world: &World, calls: Vec<Vec<pb::PublishEventRequest>>) {
    let held = world.server.hold_writes().await;
    let mut waiting = tokio::task::JoinSet::new();
    let (told, mut refused) = tokio::sync::mpsc::channel(calls.len());
    for requests in &calls {
        let (client, requests, told) = (world.client.clone(), requests.clone(), told.clone());
        waiting.spawn(async move {
            let result = batch(&client, requests).await;
            if let Err(status) = &result
                && reason(status).as_deref() == Some("OVERLOADED")
            {
                told.send(status.clone()).await.expect("someone waits");
            }
            result
        });
    }
    let patience = crate::support::PATIENCE;
    let status = tokio::time::timeout(patience, refused.recv()).await.expect("refused").expect("a status");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    let retry = status.get_error_details().retry_info().and_then(|info| info.retry_delay);
    assert!(retry.is_some_and(|delay| !delay.is_zero()), "{status:?}");
    held.release().await;
    let mut acknowledged: HashSet<String> = HashSet::new();
    for result in waiting.join_all().await {
        match result {
            Ok(ids) => acknowledged.extend(ids),
            // A call is refused as a whole, or its events may or may not have been written.
            // Nor does a slow machine tell whether those that waited long were: they are published again below.
            Err(status) if status.code() == Code::Unavailable => {}
            Err(status) => assert_eq!(reason(&status).as_deref(), Some("OVERLOADED"), "{status}"),
        }
    }
    let mut all = HashSet::new();
    for requests in calls {
        let count = requests.len();
        let ids = batch(&world.client, requests).await.expect("there is room again");
        assert_eq!(ids.len(), count, "each is accepted now, or was");
        all.extend(ids);
    }
    assert!(acknowledged.is_subset(&all), "what was acknowledged is known by its key");
    let stored = world.server.sql().await.count("events").await;
    assert_eq!(usize::try_from(stored).expect("a count"), all.len(), "and is stored once");
}

async fn more_events_than_may_wait_are_refused(database: Database) {
    let world = World::new(database).await;
    let number = |call: usize, at: usize| event(call * 1000 + at, Bytes::from_static(b"{}"));
    let calls = (0..10).map(|call| (0..1000).map(|at| number(call, at)).collect()).collect();
    overfill(&world, calls).await;
}

async fn more_bytes_than_may_wait_are_refused(database: Database) {
    let world = World::new(database).await;
    let payload = Bytes::from(vec![b'x'; 1024 * 1024]);
    let calls =
        (0..10).map(|call| (0..15).map(|at| event(call * 15 + at, payload.clone())).collect()).collect();
    overfill(&world, calls).await;
}
