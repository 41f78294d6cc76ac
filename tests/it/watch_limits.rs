//! Watch: slow readers, many streams, and keys that end.

use std::time::Duration;

use hawser_client::pb::publish_event_request::Target;
use hawser_client::pb::watch_request::Start;
use hawser_client::pb::watch_response::Change;
use hawser_client::{Client, Key, pb, reason};
use tonic::transport::Endpoint;
use tonic::{Code, Streaming};
use tonic_types::StatusExt;

use crate::support::feed::{change, eventually, from, message, open, to_the_end, told};
use crate::support::scrape::value;
use crate::support::world::{key, project, publish};
use crate::support::{Database, PATIENCE, Receiver, Server, World, on_both, tier, web};

on_both!(
    a_client_that_stops_reading_is_cut_and_nobody_notices,
    a_reader_that_is_slow_is_served_from_the_store,
    a_project_has_so_many_streams,
    a_revoked_key_ends_its_streams,
    many_streams_see_an_event,
);

const LOCAL: [&str; 3] = ["--allow-http", "--allow-net", "127.0.0.0/8"];

async fn world(database: Database, arguments: &[&str]) -> World {
    let arguments = [&LOCAL, arguments].concat();
    World::on(Server::start_with(database, &arguments).await, pb::PausedPolicy::Discard).await
}

/// A client whose window takes some hundred messages.
async fn narrow(world: &World) -> Client {
    let small = Endpoint::from_shared(world.server.address()).expect("an address");
    let small = small.initial_stream_window_size(65_535).initial_connection_window_size(65_535);
    let channel = small.connect().await.expect("connected");
    Client::over(channel, &Key::new(world.key.clone())).expect("a client")
}

/// How often streams have read the store by themselves.
async fn catch_ups(world: &World) -> f64 {
    const SERIES: &str = "hawser_watch_catch_ups_total";
    let (_, text) = web::get(world.server.admin(), "/metrics").await;
    value(&text, SERIES).unwrap_or_else(|| panic!("{SERIES}\n{text}"))
}

/// The event of the next change, which must tell of a new delivery.
async fn new_event(stream: &mut Streaming<pb::WatchResponse>) -> String {
    match change(stream).await.change {
        Some(Change::DeliveryChange(change)) if change.r#type() == pb::DeliveryChangeType::Created => {
            change.delivery.expect("a delivery").event_id
        }
        other => panic!("a new delivery: {other:?}"),
    }
}

async fn a_client_that_stops_reading_is_cut_and_nobody_notices(database: Database) {
    let world = world(database, &["--watch-lag-max", "1", "--watch-streams", "2"]).await;
    let address = world.server.address();
    let receiver = Receiver::ok().await;
    let (endpoint, _) = world.endpoint(&receiver.url("/"), "").await;
    let now = || from(Start::Now(pb::StartNow {}));

    // Nothing reads it.
    let mut slow = narrow(&world).await.watches().watch(now()).await.expect("a stream").into_inner();
    let mut good = open(&address, &world.key, now()).await.expect("a stream");
    message(&mut good).await;

    let events = tier(500, 2_000);
    let publishing = async {
        let mut tasks = tokio::task::JoinSet::new();
        for worker in 0..4 {
            let (client, endpoint) = (world.client.clone(), endpoint.id.clone());
            tasks.spawn(async move {
                for _ in (worker..events).step_by(4) {
                    let target = Target::EndpointId(endpoint.clone());
                    publish(&client, target, b"{}", "").await.expect("published");
                }
            });
        }
        tasks.join_all().await;
    };
    // Each event is a creation, a change to SUCCESS, and an attempt.
    let reading = async {
        let mut seen = Vec::new();
        while seen.len() < 3 * events {
            seen.extend(told(&change(&mut good).await));
        }
        seen
    };
    let ((), reference) = tokio::join!(publishing, reading);

    // The place of the stream that was cut is free, though its client did not hear of it.
    let third = eventually("the slow stream is cut", || open(&address, &world.key, now()));
    drop(third.await);
    let (mut seen, token, status) = to_the_end(&mut slow).await;
    assert_eq!(
        (status.code(), reason(&status).as_deref()),
        (Code::ResourceExhausted, Some("WATCH_TOO_SLOW"))
    );
    assert!(seen.len() < reference.len(), "it was cut before the end");
    let details = status.get_error_details();
    assert_eq!(details.error_info().expect("details").metadata["resume_token"], token);
    let resume = from(Start::ResumeToken(token));
    let mut resumed = eventually("a place", || open(&address, &world.key, resume.clone())).await;
    while seen.len() < reference.len() {
        seen.extend(told(&change(&mut resumed).await));
    }
    assert!(seen == reference, "after resuming it knows what the other knows");
    // The good reader's stream still lives.
    world.publish_to(&endpoint, b"one more").await;
    change(&mut good).await;
}

async fn a_reader_that_is_slow_is_served_from_the_store(database: Database) {
    // Time for a machine that is slow itself: what the reader takes shows only when half its window is free again.
    let world = world(database, &["--watch-lag-max", "60"]).await;
    let (endpoint, _) = world.endpoint("https://example.com/", "").await;
    // Nothing is attempted, so each publish is one record with one change.
    let pause = pb::PauseEndpointRequest { endpoint_id: endpoint.id.clone(), ..Default::default() };
    world.client.endpoints().pause_endpoint(pause).await.expect("paused");
    let request = from(Start::Now(pb::StartNow {}));
    let mut slow = narrow(&world).await.watches().watch(request).await.expect("a stream").into_inner();
    let event = world.publish_to(&endpoint, b"{}").await.event_id;
    assert_eq!(new_event(&mut slow).await, event);
    // The first stream reads the store until the common reader has begun.
    let before = catch_ups(&world).await;

    // It takes one in ten, and the window some hundreds: in the end it lacks far more than the 1,024 that memory holds.
    let (mut published, mut seen) = (Vec::new(), Vec::new());
    for number in 0..tier(2_200, 20_000) {
        published.push(world.publish_to(&endpoint, b"{}").await.event_id);
        if number % 10 == 0 {
            seen.push(new_event(&mut slow).await);
        }
    }
    while seen.len() < published.len() {
        seen.push(new_event(&mut slow).await);
    }
    assert!(seen == published, "each once, in the order in which they were published");
    // One more may belong to its beginning; what memory does not hold takes several, of 64 records each.
    let after = catch_ups(&world).await;
    assert!(after >= before + 2.0, "it fell behind what memory holds: {before} {after}");
    // It was not cut, and nothing is left over.
    let event = world.publish_to(&endpoint, b"{}").await.event_id;
    assert_eq!(new_event(&mut slow).await, event);
}

async fn a_project_has_so_many_streams(database: Database) {
    let world = world(database, &["--watch-streams", "3"]).await;
    let address = world.server.address();
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(open(&address, &world.key, pb::WatchRequest::default()).await.expect("a stream"));
    }
    let refused = open(&address, &world.key, pb::WatchRequest::default()).await.expect_err("one too many");
    assert_eq!(
        (refused.code(), reason(&refused).as_deref()),
        (Code::ResourceExhausted, Some("WATCH_STREAMS"))
    );
    let details = refused.get_error_details();
    assert_eq!(details.quota_failure().expect("details").violations[0].subject, world.project);
    assert!(details.retry_info().expect("details").retry_delay.is_some());
    // Another project has its own, and a stream that ends makes room.
    let (_, other) = project(&world.operator, pb::PausedPolicy::Discard).await;
    open(&address, &other, pb::WatchRequest::default()).await.expect("another project's");
    streams.pop();
    eventually("room", || open(&address, &world.key, pb::WatchRequest::default())).await;
}

async fn a_revoked_key_ends_its_streams(database: Database) {
    let world = world(database, &[]).await;
    let doomed = key(&world.operator, &world.project, &[pb::Scope::Watch.into()]).await;
    let request = pb::ListApiKeysRequest { project_id: world.project.clone(), ..Default::default() };
    let listed = world.operator.projects().list_api_keys(request).await.expect("listed").into_inner();
    let id = listed.api_keys.last().expect("the newest").id.clone();
    let address = world.server.address();
    let mut ending = open(&address, &doomed, pb::WatchRequest::default()).await.expect("a stream");
    let mut staying = open(&address, &world.key, pb::WatchRequest::default()).await.expect("a stream");
    message(&mut ending).await;
    message(&mut staying).await;

    let revoke = pb::RevokeApiKeyRequest { api_key_id: id };
    world.operator.projects().revoke_api_key(revoke).await.expect("revoked");
    // The contract's bound.
    let ended = tokio::time::timeout(Duration::from_secs(60), to_the_end(&mut ending)).await;
    let (_, _, status) = ended.expect("it ends within 60 s");
    assert_eq!(status.code(), Code::Unauthenticated);
    world.endpoint("https://example.com/", "").await;
    change(&mut staying).await;
}

/// A project with an endpoint that takes what comes.
struct Tenant {
    key: Key,
    client: Client,
    endpoint: String,
}

async fn tenant(world: &World, receiver: &Receiver) -> Tenant {
    let (_, key) = project(&world.operator, pb::PausedPolicy::Discard).await;
    let key = Key::new(key);
    let client = world.client.with_key(&key).expect("a key");
    let endpoint = pb::Endpoint { url: receiver.url("/"), ..Default::default() };
    let request = pb::CreateEndpointRequest { endpoint: Some(endpoint), ..Default::default() };
    let created = client.endpoints().create_endpoint(request).await.expect("created").into_inner();
    Tenant { key, client, endpoint: created.endpoint.expect("an endpoint").id }
}

async fn many_streams_see_an_event(database: Database) {
    let world = world(database, &[]).await;
    let receiver = Receiver::ok().await;
    // In the end each project has as many streams as it may.
    let (count, projects) = (tier(200, 10_000), tier(2, 10));
    let mut tenants = Vec::with_capacity(projects);
    for _ in 0..projects {
        tenants.push(tenant(&world, &receiver).await);
    }
    let mut streams = Vec::with_capacity(count);
    while streams.len() < count {
        let connection = Client::connect(world.server.address(), Key::default()).await.expect("connected");
        for _ in 0..200 {
            let place = streams.len() % projects;
            let client = connection.with_key(&tenants[place].key).expect("a key");
            let stream = client.watches().watch(pb::WatchRequest::default()).await.expect("a stream");
            let mut stream = stream.into_inner();
            message(&mut stream).await;
            streams.push((place, stream));
        }
    }
    let before = catch_ups(&world).await;
    let mut events = Vec::with_capacity(projects);
    for Tenant { client, endpoint, .. } in &tenants {
        let target = Target::EndpointId(endpoint.clone());
        events.push(publish(client, target, b"{}", "").await.expect("published").event_id);
    }
    let mut tasks = tokio::task::JoinSet::new();
    for (place, mut stream) in streams {
        let event = events[place].clone();
        tasks.spawn(async move {
            assert_eq!(new_event(&mut stream).await, event);
            let attempted = change(&mut stream).await.change;
            assert!(matches!(attempted, Some(Change::DeliveryChange(_))), "{attempted:?}");
            match change(&mut stream).await.change {
                Some(Change::Attempt(attempt)) => assert_eq!(attempt.event_id, event),
                other => panic!("an attempt: {other:?}"),
            }
            stream
        });
    }
    let seen = tokio::time::timeout(PATIENCE, tasks.join_all()).await.expect("all in time");
    assert_eq!(seen.len(), count);
    // One reader read for all of them.
    assert_eq!(catch_ups(&world).await, before, "no stream read the store by itself");
}
