//! Watch: every change once and in order, across cuts and restarts; filters; tokens.

use std::collections::HashMap;

use hawser_client::pb::publish_event_request::Target;
use hawser_client::pb::watch_request::Start;
use hawser_client::pb::watch_response::Change;
use hawser_client::{Client, field_violations, pb};

use crate::support::world::{next, publish, quick_retries};
use crate::support::{Database, PATIENCE, Receiver, Reply, World, on_both, tier};

on_both!(
    a_stream_cut_at_random_sees_each_change_once_and_in_order,
    filters_show_what_they_name,
    tokens_are_bound_to_project_filter_and_key,
    endpoint_changes_carry_the_endpoint,
);

/// A message without its token, which differs between filters, or none for bookmarks.
fn told(message: &pb::WatchResponse) -> Option<String> {
    match message.change.as_ref()? {
        Change::Bookmark(_) => None,
        Change::DeliveryChange(change) => {
            let delivery = change.delivery.as_ref()?;
            Some(format!("{} {:?} {}", delivery.id, delivery.status(), delivery.attempt_count))
        }
        Change::Attempt(attempt) => Some(format!("{} attempt {}", attempt.delivery_id, attempt.number)),
        Change::EndpointChange(change) => {
            Some(format!("{} {:?}", change.endpoint.as_ref()?.id, change.r#type()))
        }
    }
}

/// Reads until so many changes came; whenever `cut` says so after a message, the connection is dropped and the
/// stream resumed on a new one.
async fn follow(world: &World, start: Start, changes: usize, mut cut: impl FnMut() -> bool) -> Vec<String> {
    let (mut start, mut seen) = (start, Vec::new());
    while seen.len() < changes {
        let key = hawser_client::Key::new(world.key.clone());
        let client = Client::connect(world.server.address(), key).await.expect("connected");
        let request = pb::WatchRequest { start: Some(start.clone()), ..Default::default() };
        let mut stream = client.watches().watch(request).await.expect("a stream").into_inner();
        while seen.len() < changes {
            let message = tokio::time::timeout(PATIENCE, stream.message()).await;
            let message = message.unwrap_or_else(|_| panic!("{} of {changes} changes came", seen.len()));
            let message = message.expect("goes on").expect("does not end");
            start = Start::ResumeToken(message.resume_token.clone());
            seen.extend(told(&message));
            if cut() {
                break;
            }
        }
    }
    seen
}

async fn a_stream_cut_at_random_sees_each_change_once_and_in_order(database: Database) {
    let world = World::new(database).await;
    let receiver =
        Receiver::scripted(|_, before| Reply::status(if before % 7 == 3 { 500 } else { 204 })).await;
    // A budget that no run of failures can spend.
    let endpoint = pb::Endpoint {
        url: receiver.url("/hook"),
        retry_policy: Some(quick_retries(100)),
        ..Default::default()
    };
    let (endpoint, _) = world.create(endpoint, &["*"]).await;
    let mut first = world.watch().await;
    let start = Start::ResumeToken(first.resume_token().expect("a token").to_owned());
    let events = tier(1_000, 5_000);
    // Two that are cut at random places, and one that never is.
    let random = || {
        let mut generator = rand::rng();
        move || rand::RngExt::random_range(&mut generator, 0..20) == 0
    };
    let publishing = async {
        let mut tasks = tokio::task::JoinSet::new();
        for worker in 0..8 {
            let (client, endpoint) = (world.client.clone(), endpoint.id.clone());
            tasks.spawn(async move {
                for _ in (worker..events).step_by(8) {
                    let target = Target::EndpointId(endpoint.clone());
                    publish(&client, target, b"{}", "").await.expect("published");
                }
            });
        }
        tasks.join_all().await;
    };
    // The reference ends when every delivery did; then it is known how many changes there are.
    let reference = async {
        let (mut seen, mut ended) = (Vec::new(), 0);
        while ended < events {
            let message = next(&mut first).await;
            if let Some(Change::DeliveryChange(change)) = &message.change {
                let status = change.delivery.as_ref().expect("a delivery").status();
                ended += usize::from(status == pb::DeliveryStatus::Success);
            }
            seen.extend(told(&message));
        }
        // The last delivery's attempt follows it.
        seen.extend(told(&next(&mut first).await));
        seen
    };
    let ((), reference) = tokio::join!(publishing, reference);
    let count = reference.len();
    let (one, two) =
        tokio::join!(follow(&world, start.clone(), count, random()), follow(&world, start, count, random()),);
    assert_eq!(one, reference);
    assert_eq!(two, reference);

    // Each delivery's own story is in order.
    let mut attempts: HashMap<&str, i32> = HashMap::new();
    for line in reference.iter().filter(|line| line.contains(" attempt ")) {
        let (delivery, number) = line.split_once(" attempt ").expect("an attempt");
        let last = attempts.entry(delivery).or_default();
        *last += 1;
        assert_eq!(*last, number.parse::<i32>().expect("a number"), "{line}");
    }
    assert_eq!(attempts.len(), events);
}

async fn filters_show_what_they_name(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::ok().await;
    let (a, _) = world.endpoint(&receiver.url("/a"), "alpha").await;
    let (b, _) = world.endpoint(&receiver.url("/b"), "beta").await;
    let filtered = pb::WatchRequest {
        owner_id: "alpha".to_owned(),
        kinds: vec![pb::ChangeKind::Attempt.into()],
        event_types: vec!["test.*".to_owned()],
        ..Default::default()
    };
    let mut stream = world.client.watch(filtered).await.expect("a stream");
    next(&mut stream).await;
    world.publish_to(&b, b"1").await;
    let event = world.publish_to(&a, b"2").await.event_id;
    let message = next(&mut stream).await;
    let Some(Change::Attempt(attempt)) = message.change else { panic!("an attempt: {message:?}") };
    assert_eq!((attempt.event_id, attempt.endpoint_id), (event, a.id));
}

async fn tokens_are_bound_to_project_filter_and_key(database: Database) {
    let world = World::new(database).await;
    let stream = world.watch().await;
    let token = stream.resume_token().expect("a token").to_owned();
    let resume = |token: String, owner: &str| pb::WatchRequest {
        start: Some(Start::ResumeToken(token)),
        owner_id: owner.to_owned(),
        ..Default::default()
    };
    world.client.watches().watch(resume(token.clone(), "")).await.expect("its own");
    let (_, key) = crate::support::world::project(&world.operator, pb::PausedPolicy::Discard).await;
    let other = world.client.with_key(&hawser_client::Key::new(key)).expect("a key");
    for refused in [
        world.client.watches().watch(resume(token.clone(), "acme")).await,
        world.client.watches().watch(resume(format!("{token}A"), "")).await,
        world.client.watches().watch(resume("nonsense".to_owned(), "")).await,
        other.watches().watch(resume(token.clone(), "")).await,
    ] {
        let status = refused.expect_err("a foreign token");
        assert_eq!(field_violations(&status)[0].field, "resume_token", "{status}");
    }
}

async fn endpoint_changes_carry_the_endpoint(database: Database) {
    let mut world = World::new(database).await;
    let mut stream = world.watch().await;
    let header = pb::Header { name: "x-api-key".to_owned(), value: "canary".to_owned() };
    let endpoint =
        pb::Endpoint { url: "https://example.com/".to_owned(), headers: vec![header], ..Default::default() };
    let (endpoint, _) = world.create(endpoint, &["*"]).await;
    let pause = pb::PauseEndpointRequest { endpoint_id: endpoint.id.clone(), ..Default::default() };
    world.client.endpoints().pause_endpoint(pause).await.expect("paused");
    // The client's stream goes on over a restart of the server.
    let mut told = Vec::new();
    let message = next(&mut stream).await;
    assert!(!format!("{message:?}").contains("canary"));
    told.push(message);
    world.server.terminate().await;
    let address = world.server.address();
    assert!(Client::connect(address, hawser_client::Key::default()).await.is_err());
    world.restart().await;
    let delete = pb::DeleteEndpointRequest { endpoint_id: endpoint.id.clone(), ..Default::default() };
    world.client.endpoints().delete_endpoint(delete).await.expect("deleted");
    let token = told[0].resume_token.clone();
    let request = pb::WatchRequest { start: Some(Start::ResumeToken(token)), ..Default::default() };
    let mut resumed = world.client.watch(request).await.expect("a stream");
    while told.len() < 3 {
        let message = next(&mut resumed).await;
        if !matches!(message.change, Some(Change::Bookmark(_))) {
            told.push(message);
        }
    }
    let kinds: Vec<_> = told
        .iter()
        .map(|message| match &message.change {
            Some(Change::EndpointChange(change)) => {
                assert_eq!(change.endpoint.as_ref().expect("an endpoint").id, endpoint.id);
                change.r#type()
            }
            other => panic!("an endpoint change: {other:?}"),
        })
        .collect();
    use pb::EndpointChangeType as Type;
    assert_eq!(kinds, [Type::Created, Type::Paused, Type::Deleted]);
}
