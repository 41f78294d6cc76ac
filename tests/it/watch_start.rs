//! Watch: where a stream can begin, and what it can carry.

use std::collections::BTreeMap;

use hawser_client::pb::publish_event_request::Target;
use hawser_client::pb::watch_request::Start;
use hawser_client::pb::watch_response::Change;
use hawser_client::{Client, Key, pb, reason};
use sqlx::Executor;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::support::feed::{change, eventually, from, message, open, told};
use crate::support::world::key;
use crate::support::{Database, Receiver, Server, World, in_time, on_both};

on_both!(
    earliest_begins_with_the_oldest_change_that_is_kept,
    a_snapshot_and_what_follows_make_the_present_state,
    a_token_that_is_too_old_is_refused_with_the_earliest,
    payloads_come_inline_for_those_who_may_read_events,
);

fn earliest() -> pb::WatchRequest {
    from(Start::Earliest(pb::StartEarliest {}))
}

fn resume(token: &str) -> pb::WatchRequest {
    from(Start::ResumeToken(token.to_owned()))
}

async fn pause(world: &World, endpoint: &pb::Endpoint) {
    let request = pb::PauseEndpointRequest { endpoint_id: endpoint.id.clone(), ..Default::default() };
    world.client.endpoints().pause_endpoint(request).await.expect("paused");
}

async fn delete(world: &World, endpoint: &pb::Endpoint) {
    let request = pb::DeleteEndpointRequest { endpoint_id: endpoint.id.clone(), ..Default::default() };
    world.client.endpoints().delete_endpoint(request).await.expect("deleted");
}

async fn earliest_begins_with_the_oldest_change_that_is_kept(database: Database) {
    let world = World::new(database).await;
    let (a, _) = world.endpoint("https://example.com/a", "acme").await;
    let (b, _) = world.endpoint("https://example.com/b", "").await;
    pause(&world, &a).await;
    let mut stream = open(&world.server.address(), &world.key, earliest()).await.expect("a stream");
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.extend(told(&change(&mut stream).await));
    }
    assert_eq!(
        seen,
        [format!("{} Created 1 ", a.id), format!("{} Created 1 ", b.id), format!("{} Paused 2 ", a.id)]
    );
}

/// What a client knows of the endpoints: the revision and the state of each.
#[derive(Default)]
struct Known(BTreeMap<String, (i64, i32)>);

impl Known {
    /// Applies a change as the contract says; true at the snapshot's end.
    fn apply(&mut self, message: &pb::WatchResponse) -> bool {
        match message.change.as_ref().expect("a change") {
            Change::Bookmark(bookmark) => return bookmark.snapshot_end,
            Change::EndpointChange(change) => {
                let endpoint = change.endpoint.as_ref().expect("an endpoint");
                if self.0.get(&endpoint.id).is_some_and(|(revision, _)| endpoint.revision <= *revision) {
                    return false;
                }
                if change.r#type() == pb::EndpointChangeType::Deleted {
                    self.0.remove(&endpoint.id);
                } else {
                    self.0.insert(endpoint.id.clone(), (endpoint.revision, endpoint.status));
                }
            }
            _ => {}
        }
        false
    }
}

async fn a_snapshot_and_what_follows_make_the_present_state(database: Database) {
    let world = World::new(database).await;
    let mut endpoints = Vec::new();
    // More than the server reads at once.
    for number in 0..120 {
        endpoints.push(world.endpoint(&format!("https://example.com/{number}"), "acme").await.0);
    }
    world.endpoint("https://example.com/other", "other").await;
    pause(&world, &endpoints[1]).await;

    let address = world.server.address();
    let snapshot = |start| pb::WatchRequest { owner_id: "acme".to_owned(), ..from(start) };
    let request = snapshot(Start::Snapshot(pb::StartSnapshot {}));
    let mut stream = open(&address, &world.key, request).await.expect("a stream");
    let (mut known, mut token) = (Known::default(), String::new());
    for _ in 0..50 {
        let message = message(&mut stream).await;
        if let Some(Change::EndpointChange(change)) = &message.change {
            assert_eq!(change.r#type(), pb::EndpointChangeType::Snapshot);
        }
        assert!(!known.apply(&message), "not its end");
        token = message.resume_token;
    }
    drop(stream);
    // A bookmark, then 49 endpoints. The cut is in the middle, and life goes on meanwhile: changes of what was
    // shown, of what is still to be shown, and of what is not there any more when its turn comes.
    assert_eq!(known.0.len(), 49);
    assert_eq!(known.0[&endpoints[1].id], (2, pb::EndpointStatus::Paused.into()));
    pause(&world, &endpoints[0]).await;
    pause(&world, &endpoints[110]).await;
    delete(&world, &endpoints[2]).await;
    delete(&world, &endpoints[111]).await;
    endpoints.push(world.endpoint("https://example.com/new", "acme").await.0);

    let request = snapshot(Start::ResumeToken(token));
    let mut stream = open(&address, &world.key, request).await.expect("resumed");
    let mut shown = 0;
    loop {
        let message = message(&mut stream).await;
        shown += usize::from(told(&message).is_some());
        if known.apply(&message) {
            break;
        }
    }
    // It went on, and did not begin again: 71 were left, one of them is gone, one is new.
    assert_eq!(shown, 71);
    // Those that happened meanwhile are all told.
    let mut live = Vec::new();
    for _ in 0..5 {
        let message = change(&mut stream).await;
        live.extend(told(&message));
        known.apply(&message);
    }
    assert_eq!(live[0], format!("{} Paused 2 ", endpoints[0].id));
    assert!(live[4].contains("Created"), "{live:?}");

    let request =
        pb::ListEndpointsRequest { owner_id: "acme".to_owned(), page_size: 1000, ..Default::default() };
    let listed = world.client.endpoints().list_endpoints(request).await.expect("listed").into_inner();
    let present: BTreeMap<String, (i64, i32)> = listed
        .endpoints
        .into_iter()
        .map(|endpoint| (endpoint.id, (endpoint.revision, endpoint.status)))
        .collect();
    assert_eq!(present.len(), 119);
    assert_eq!(known.0, present);
}

fn earliest_of(status: &Status) -> String {
    let details = status.get_error_details();
    details.error_info().expect("details").metadata.get("earliest_token").expect("a token").clone()
}

async fn a_token_that_is_too_old_is_refused_with_the_earliest(database: Database) {
    let arguments = ["--allow-http", "--allow-net", "127.0.0.0/8", "--changes-retention", "1"];
    let world = World::on(Server::start_with(database, &arguments).await, pb::PausedPolicy::Discard).await;
    let address = world.server.address();
    let mut stream = open(&address, &world.key, from(Start::Now(pb::StartNow {}))).await.expect("a stream");
    let old = message(&mut stream).await.resume_token;
    world.endpoint("https://example.com/a", "").await;
    let (last, _) = world.endpoint("https://example.com/b", "").await;
    change(&mut stream).await;
    let newest = change(&mut stream).await;

    let refused =
        eventually("the log is trimmed", async || match open(&address, &world.key, resume(&old)).await {
            Ok(_) => Err("still kept"),
            Err(status) => Ok(status),
        })
        .await;
    assert_eq!((refused.code(), reason(&refused).as_deref()), (Code::OutOfRange, Some("TOKEN_TOO_OLD")));
    // The comfortable client says so too, instead of trying again.
    let refused_again = world.client.watch(resume(&old)).await.err().expect("refused");
    assert_eq!(refused_again.code(), Code::OutOfRange);

    // The newest change is always kept: the earliest token and EARLIEST tell it, and its own token goes on.
    let expected = Some(format!("{} Created 1 ", last.id));
    for request in [resume(&earliest_of(&refused)), earliest()] {
        let mut stream = open(&address, &world.key, request).await.expect("a stream");
        assert_eq!(told(&change(&mut stream).await), expected);
    }
    open(&address, &world.key, resume(&newest.resume_token)).await.expect("up to date");
}

/// As after a restore from a backup: the log is shorter than the token knows it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_from_beyond_the_log_is_refused() {
    in_time(async {
        let world = World::new(Database::postgres().await).await;
        let mut stream = world.watch().await;
        world.endpoint("https://example.com/a", "").await;
        crate::support::world::next(&mut stream).await;
        let token = stream.resume_token().expect("a token").to_owned();
        let mut session = world.server.database().session().await;
        session.execute("DELETE FROM changes").await.expect("deleted");
        let refused = world.client.watch(resume(&token)).await.err().expect("refused");
        assert_eq!(
            (refused.code(), reason(&refused).as_deref()),
            (Code::FailedPrecondition, Some("DATABASE_CHANGED"))
        );
    })
    .await;
}

async fn payloads_come_inline_for_those_who_may_read_events(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::ok().await;
    let (endpoint, _) = world.endpoint(&receiver.url("/"), "").await;
    let asked = pb::WatchRequest { include_payload: true, ..Default::default() };
    let mut stream = world.client.watch(asked.clone()).await.expect("a stream");
    crate::support::world::next(&mut stream).await;
    world.publish_to(&endpoint, b"small").await;
    world.publish_to(&endpoint, &vec![b'x'; 64 << 10]).await;
    world.publish(Target::EndpointId(endpoint.id.clone()), &vec![b'x'; (64 << 10) + 1]).await;
    let mut payloads = Vec::new();
    while payloads.len() < 3 {
        let Some(Change::DeliveryChange(change)) = crate::support::world::next(&mut stream).await.change
        else {
            continue;
        };
        if change.r#type() == pb::DeliveryChangeType::Created {
            payloads.push((change.payload.map(|payload| payload.len()), change.payload_omitted));
        } else {
            assert_eq!((change.payload, change.payload_omitted), (None, false));
        }
    }
    assert_eq!(payloads, [(Some(5), false), (Some(64 << 10), false), (None, true)]);

    let only_watch = key(&world.operator, &world.project, &[pb::Scope::Watch.into()]).await;
    let client = Client::connect(world.server.address(), Key::new(only_watch)).await.expect("connected");
    let refused = client.watch(asked).await.err().expect("refused");
    assert_eq!(refused.code(), Code::PermissionDenied);
    client.watch(pb::WatchRequest::default()).await.expect("without payloads it may");
}
