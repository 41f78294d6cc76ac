//! Watch: bookmarks, which say where a stream is though it is told nothing, and streams of some endpoints only.

use std::time::Duration;

use hawser_client::pb;
use hawser_client::pb::publish_event_request::Target;
use hawser_client::pb::publish_result::Result as Told;
use hawser_client::pb::watch_request::Start;
use hawser_client::pb::watch_response::Change;
use tokio::time::Instant;
use tonic::Streaming;

use crate::support::feed::{change, from, message, open, told};
use crate::support::{Database, PATIENCE, Receiver, World, on_both};

on_both!(
    a_bookmark_comes_within_15_s_though_nothing_happens,
    a_thousand_changes_that_pass_by_bring_a_bookmark_at_once,
    endpoint_ids_show_these_endpoints_and_no_others,
);

/// The contract's bound.
const EVERY: Duration = Duration::from_secs(15);
/// For the way from the server to the test.
const SLACK: Duration = Duration::from_secs(5);

fn now() -> Start {
    Start::Now(pb::StartNow {})
}

/// The token of the next message, which must be a bookmark and come by then.
async fn bookmark(stream: &mut Streaming<pb::WatchResponse>, end: Instant) -> String {
    let message = tokio::time::timeout_at(end, stream.message()).await.expect("a bookmark in time");
    let message = message.expect("the stream goes on").expect("it does not end");
    assert!(matches!(message.change, Some(Change::Bookmark(_))), "a bookmark: {message:?}");
    message.resume_token
}

/// So many changes as they are told.
async fn next_told(stream: &mut Streaming<pb::WatchResponse>, count: usize) -> Vec<String> {
    let mut seen = Vec::with_capacity(count);
    while seen.len() < count {
        seen.extend(told(&change(stream).await));
    }
    seen
}

async fn pause(world: &World, endpoint: &pb::Endpoint) {
    let request = pb::PauseEndpointRequest { endpoint_id: endpoint.id.clone(), ..Default::default() };
    world.client.endpoints().pause_endpoint(request).await.expect("paused");
}

/// Publishes an event to an endpoint that takes it; returns its delivery's id once that has ended.
async fn deliver(world: &World, endpoint: &pb::Endpoint) -> String {
    let event = world.publish_to(endpoint, b"{}").await.event_id;
    world.settled_deliveries_of(&event).await.remove(0).id
}

async fn a_bookmark_comes_within_15_s_though_nothing_happens(database: Database) {
    const OWNER: &str = "nobody";
    let world = World::new(database).await;
    let address = world.server.address();
    let request = |start| pb::WatchRequest { owner_id: OWNER.to_owned(), ..from(start) };
    let mut quiet = open(&address, &world.key, request(now())).await.expect("a stream");
    bookmark(&mut quiet, Instant::now() + PATIENCE).await;
    let token = bookmark(&mut quiet, Instant::now() + EVERY + SLACK).await;

    let resume = request(Start::ResumeToken(token));
    let mut resumed = open(&address, &world.key, resume).await.expect("resumed");
    // The first thing that the filter shows, on both.
    let (endpoint, _) = world.endpoint("https://example.com/", OWNER).await;
    for stream in [&mut quiet, &mut resumed] {
        assert_eq!(next_told(stream, 1).await, [format!("{} Created 1 ", endpoint.id)]);
    }
}

async fn a_thousand_changes_that_pass_by_bring_a_bookmark_at_once(database: Database) {
    let world = World::new(database).await;
    let address = world.server.address();
    let receiver = Receiver::ok().await;
    let (shown, _) = world.endpoint(&receiver.url("/"), "shown").await;
    // What is published to it is discarded, so each of these events is one change.
    let (other, _) = world.endpoint("https://example.com/", "other").await;
    pause(&world, &other).await;
    let request = |start| pb::WatchRequest {
        owner_id: "shown".to_owned(),
        kinds: vec![pb::ChangeKind::Delivery.into()],
        ..from(start)
    };
    let mut stream = open(&address, &world.key, request(now())).await.expect("a stream");
    bookmark(&mut stream, Instant::now() + PATIENCE).await;
    // Too soon for the bookmark that comes when nothing happens.
    let end = Instant::now() + Duration::from_secs(10);
    for _ in 0..2 {
        discard(&world, &other, 550).await;
    }
    let token = bookmark(&mut stream, end).await;

    let resume = request(Start::ResumeToken(token));
    let mut resumed = open(&address, &world.key, resume).await.expect("resumed");
    // Whatever is told wrongly or twice comes before the second one's end.
    let mut expected = Vec::new();
    for _ in 0..2 {
        let delivery = deliver(&world, &shown).await;
        expected.push(format!("{delivery} Created Scheduled 0"));
        expected.push(format!("{delivery} Attempted Success 1"));
    }
    for stream in [&mut stream, &mut resumed] {
        assert_eq!(next_told(stream, expected.len()).await, expected);
    }
}

/// Publishes so many events in one call to an endpoint that is paused.
async fn discard(world: &World, endpoint: &pb::Endpoint, count: usize) {
    let event = pb::PublishEventRequest {
        event_type: "test.event".to_owned(),
        target: Some(Target::EndpointId(endpoint.id.clone())),
        payload: b"{}".to_vec().into(),
        ..Default::default()
    };
    let request = pb::BatchPublishEventsRequest { requests: vec![event; count], ..Default::default() };
    let reply = world.client.events().batch_publish_events(request).await.expect("taken").into_inner();
    let accepted = reply.results.iter().filter(|one| matches!(one.result, Some(Told::Receipt(_)))).count();
    assert_eq!(accepted, count);
}

async fn endpoint_ids_show_these_endpoints_and_no_others(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::ok().await;
    let (shown, _) = world.endpoint(&receiver.url("/shown"), "acme").await;
    let (other, _) = world.endpoint(&receiver.url("/other"), "acme").await;
    let request = pb::WatchRequest { endpoint_ids: vec![shown.id.clone()], ..from(now()) };
    let mut stream = open(&world.server.address(), &world.key, request).await.expect("a stream");
    message(&mut stream).await;
    let mut expected = Vec::new();
    for _ in 0..20 {
        deliver(&world, &other).await;
        let delivery = deliver(&world, &shown).await;
        let attempt = world.attempts_of(&delivery).await.remove(0).id;
        expected.push(format!("{delivery} Created Scheduled 0"));
        expected.push(format!("{delivery} Attempted Success 1"));
        expected.push(format!("{delivery} attempt 1 {attempt}"));
    }
    pause(&world, &other).await;
    pause(&world, &shown).await;
    expected.push(format!("{} Paused 2 ", shown.id));
    assert_eq!(next_told(&mut stream, expected.len()).await, expected);
}
