//! Watch: slow readers, many streams, and keys that end.

use hawser_client::pb::publish_event_request::Target;
use hawser_client::pb::watch_request::Start;
use hawser_client::pb::watch_response::Change;
use hawser_client::{Client, Key, pb, reason};
use tonic::Code;
use tonic::transport::Endpoint;
use tonic_types::StatusExt;

use crate::support::feed::{change, eventually, from, message, open, to_the_end, told};
use crate::support::world::{key, publish};
use crate::support::{Database, PATIENCE, Receiver, Server, World, on_both, tier};

on_both!(
    a_client_that_stops_reading_is_cut_and_nobody_notices,
    a_project_has_so_many_streams,
    a_revoked_key_ends_its_streams,
    many_streams_see_an_event,
);

const LOCAL: [&str; 3] = ["--allow-http", "--allow-net", "127.0.0.0/8"];

async fn world(database: Database, arguments: &[&str]) -> World {
    let arguments = [&LOCAL, arguments].concat();
    World::on(Server::start_with(database, &arguments).await, pb::PausedPolicy::Discard).await
}

async fn a_client_that_stops_reading_is_cut_and_nobody_notices(database: Database) {
    let world = world(database, &["--watch-lag-max", "1", "--watch-streams", "2"]).await;
    let address = world.server.address();
    let receiver = Receiver::ok().await;
    let (endpoint, _) = world.endpoint(&receiver.url("/"), "").await;
    let now = || from(Start::Now(pb::StartNow {}));

    // Its window takes some hundred messages, and nothing reads them.
    let small = Endpoint::from_shared(world.server.address()).expect("an address");
    let small = small.initial_stream_window_size(65_535).initial_connection_window_size(65_535);
    let channel = small.connect().await.expect("connected");
    let client = Client::over(channel, &Key::new(world.key.clone())).expect("a client");
    let mut slow = client.watches().watch(now()).await.expect("a stream").into_inner();
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
    let (_, other) = crate::support::world::project(&world.operator, pb::PausedPolicy::Discard).await;
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
    let (_, _, status) = to_the_end(&mut ending).await;
    assert_eq!(status.code(), Code::Unauthenticated);
    world.endpoint("https://example.com/", "").await;
    change(&mut staying).await;
}

async fn many_streams_see_an_event(database: Database) {
    let world = world(database, &["--watch-streams", "2000"]).await;
    let receiver = Receiver::ok().await;
    let (endpoint, _) = world.endpoint(&receiver.url("/"), "").await;
    let count = tier(200, 1_000);
    let mut streams = Vec::with_capacity(count);
    while streams.len() < count {
        let client = Client::connect(world.server.address(), Key::new(world.key.clone())).await;
        let client = client.expect("connected");
        for _ in 0..100 {
            let stream = client.watches().watch(pb::WatchRequest::default()).await.expect("a stream");
            let mut stream = stream.into_inner();
            message(&mut stream).await;
            streams.push(stream);
        }
    }
    let event = world.publish_to(&endpoint, b"{}").await.event_id;
    let mut tasks = tokio::task::JoinSet::new();
    for mut stream in streams {
        let event = event.clone();
        tasks.spawn(async move {
            let Some(Change::DeliveryChange(created)) = change(&mut stream).await.change else {
                panic!("a delivery")
            };
            assert_eq!(created.delivery.expect("a delivery").event_id, event);
        });
    }
    let seen = tokio::time::timeout(PATIENCE, tasks.join_all()).await.expect("all in time");
    assert_eq!(seen.len(), count);
}
