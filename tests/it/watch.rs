//! Watch: filters, tokens, and what changes carry.

use hawser_client::pb::watch_request::Start;
use hawser_client::pb::watch_response::Change;
use hawser_client::{Client, field_violations, pb};

use crate::support::world::next;
use crate::support::{Database, Receiver, World, on_both};

on_both!(
    filters_show_what_they_name,
    tokens_are_bound_to_project_filter_and_key,
    endpoint_changes_carry_the_endpoint,
    an_endpoint_that_changes_its_owner_is_told_to_both,
);

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

/// To those who watch the one it is gone, and to those who watch the other it is there.
async fn an_endpoint_that_changes_its_owner_is_told_to_both(database: Database) {
    let world = World::new(database).await;
    let (endpoint, _) = world.endpoint("https://example.com/", "alpha").await;
    let of = |owner: &str| pb::WatchRequest { owner_id: owner.to_owned(), ..Default::default() };
    let mut streams = Vec::new();
    for owner in ["alpha", "beta", ""] {
        let mut stream = world.client.watch(of(owner)).await.expect("a stream");
        next(&mut stream).await;
        streams.push(stream);
    }
    let (old_url, new_url) = (endpoint.url.clone(), "https://example.com/beta".to_owned());
    let id = endpoint.id.clone();
    let moved = pb::Endpoint { owner_id: "beta".to_owned(), url: new_url.clone(), ..endpoint.clone() };
    let request = pb::UpdateEndpointRequest {
        endpoint: Some(moved),
        update_mask: Some(prost_types::FieldMask { paths: vec!["owner_id".to_owned(), "url".to_owned()] }),
        ..Default::default()
    };
    world.client.endpoints().update_endpoint(request).await.expect("updated");
    let delete = pb::DeleteEndpointRequest { endpoint_id: id.clone(), ..Default::default() };
    world.client.endpoints().delete_endpoint(delete).await.expect("deleted");
    world.endpoint("https://example.com/last", "alpha").await;

    use pb::EndpointChangeType::{Created, Deleted, Updated};
    let told = [
        vec![(Deleted, old_url, 2), (Created, "https://example.com/last".to_owned(), 1)],
        vec![(Updated, new_url.clone(), 2), (Deleted, new_url.clone(), 3)],
        vec![
            (Updated, new_url.clone(), 2),
            (Deleted, new_url, 3),
            (Created, "https://example.com/last".to_owned(), 1),
        ],
    ];
    for (stream, told) in streams.iter_mut().zip(told) {
        for expected in told {
            let message = next(stream).await;
            let Some(Change::EndpointChange(change)) = message.change else { panic!("{message:?}") };
            let endpoint = change.endpoint.as_ref().expect("an endpoint");
            assert_eq!((change.r#type(), endpoint.url.clone(), endpoint.revision), expected);
        }
    }
}
