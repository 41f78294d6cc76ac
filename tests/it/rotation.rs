//! Rotation by hand: what it answers, what it refuses, what it keeps to itself.

use hawser_client::{Key, pb, reason};
use tonic::Code;

use crate::signing::settings;
use crate::support::secrets::{accepts, expire, list, reveal, rotate, seconds};
use crate::support::world::key;
use crate::support::{Database, Receiver, World, on_both};

on_both!(
    a_secret_retires_and_ends,
    a_sixth_live_secret_is_refused,
    a_repeated_request_returns_the_first_reply,
    a_secret_may_be_given_and_change_its_type,
    simple_signatures_warn,
    values_are_shown_to_who_may_see_them_only,
);

const URL: &str = "https://example.com/hook";

async fn a_secret_retires_and_ends(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::ok().await;
    let (endpoint, first) = world.endpoint(&receiver.url("/hook"), "").await;
    let mut watch = world.watch().await;
    let rotated = rotate(&world.client, &endpoint.id, 3600).await.expect("rotated");
    let (new, old) = (rotated.secret.expect("one"), rotated.previous.expect("one"));
    assert_eq!((new.state(), old.state()), (pb::SecretState::Current, pb::SecretState::Retiring));
    let lasts = old.expire_time.expect("an end").seconds - new.create_time.expect("a time").seconds;
    assert_eq!((lasts, new.expire_time, rotated.warning.as_str()), (3600, None, ""));
    let told = loop {
        let change = crate::support::world::next(&mut watch).await.change;
        if let Some(pb::watch_response::Change::EndpointChange(change)) = change {
            break change;
        }
    };
    assert_eq!(told.r#type(), pb::EndpointChangeType::SecretRotated);
    let told = told.endpoint.expect("an endpoint");
    assert_eq!((told.etag, told.revision), (endpoint.etag.clone(), endpoint.revision + 1));

    world.publish_to(&endpoint, b"{}").await;
    let both = receiver.wait_for_count(1).await.remove(0);
    assert!(accepts(&first, &both) && accepts(&rotated.value, &both));
    let newest = both.header("webhook-signature");
    assert!(newest.starts_with("v1,") && newest.matches(' ').count() == 1, "{newest}");

    // An end by hand is in force for what is published after the reply.
    let ended = expire(&world.client, &old.id).await.expect("ended");
    assert_eq!(ended.state(), pb::SecretState::Expired);
    assert_eq!(expire(&world.client, &old.id).await.expect("again").expire_time, ended.expire_time);
    world.publish_to(&endpoint, b"{}").await;
    let one = receiver.wait_for_count(2).await.remove(1);
    assert!(!accepts(&first, &one) && accepts(&rotated.value, &one));
    let refused = expire(&world.client, &new.id).await.expect_err("the current one");
    assert_eq!(reason(&refused).as_deref(), Some("SECRET_CURRENT"));
    let refused = reveal(&world.client, &old.id).await.expect_err("expired");
    assert_eq!(
        (refused.code(), reason(&refused).as_deref()),
        (Code::FailedPrecondition, Some("SECRET_EXPIRED"))
    );

    let listed = list(&world.client, &endpoint.id).await;
    let states: Vec<_> = listed.secrets.iter().map(|secret| (secret.id.as_str(), secret.state())).collect();
    use pb::SecretState::{Current, Expired};
    assert_eq!(states, [(new.id.as_str(), Current), (old.id.as_str(), Expired)]);
    assert_eq!(listed.next_rotation_time, None);
}

async fn a_sixth_live_secret_is_refused(database: Database) {
    let world = World::new(database).await;
    let (endpoint, _) = world.endpoint(URL, "").await;
    for _ in 0..4 {
        rotate(&world.client, &endpoint.id, 3600).await.expect("rotated");
    }
    let refused = rotate(&world.client, &endpoint.id, 3600).await.expect_err("a sixth");
    let told = (refused.code(), reason(&refused));
    assert_eq!(told, (Code::FailedPrecondition, Some("TOO_MANY_SECRETS".to_owned())));
    assert_eq!(list(&world.client, &endpoint.id).await.secrets.len(), 5, "nothing changed");
    // Without a grace there are five again, and with one once another is ended.
    rotate(&world.client, &endpoint.id, 0).await.expect("rotated");
    let secrets = list(&world.client, &endpoint.id).await.secrets;
    let retiring = |secret: &&pb::Secret| secret.state() == pb::SecretState::Retiring;
    assert_eq!(secrets.iter().filter(retiring).count(), 4);
    rotate(&world.client, &endpoint.id, 3600).await.expect_err("a sixth");
    let oldest = secrets.iter().rfind(retiring).expect("one");
    expire(&world.client, &oldest.id).await.expect("ended");
    rotate(&world.client, &endpoint.id, 3600).await.expect("room");

    // What expired is kept for a while, and not for ever.
    for secret in list(&world.client, &endpoint.id).await.secrets.iter().filter(retiring) {
        expire(&world.client, &secret.id).await.expect("ended");
    }
    for _ in 0..30 {
        rotate(&world.client, &endpoint.id, 0).await.expect("rotated");
    }
    let secrets = list(&world.client, &endpoint.id).await.secrets;
    assert_eq!(secrets.len(), 1 + 20);
    assert_eq!(secrets[0].state(), pb::SecretState::Current, "newest first");
}

async fn a_repeated_request_returns_the_first_reply(database: Database) {
    let mut world = World::new(database).await;
    let (endpoint, _) = world.endpoint(URL, "").await;
    let request = pb::RotateSecretRequest {
        endpoint_id: endpoint.id.clone(),
        request_id: "6a2d6c1e-5a0b-4f6e-9a55-3f3f9b1e8d01".to_owned(),
        ..Default::default()
    };
    let first = world.client.secrets().rotate_secret(request.clone()).await.expect("rotated").into_inner();
    rotate(&world.client, &endpoint.id, 3600).await.expect("another meanwhile");
    // It outlives a restart.
    world.server.kill().await;
    world.restart().await;
    let again = world.client.secrets().rotate_secret(request.clone()).await.expect("repeated").into_inner();
    assert_eq!(again.value, first.value);
    assert_eq!((again.secret, again.previous), (first.secret, first.previous));
    assert_eq!(list(&world.client, &endpoint.id).await.secrets.len(), 3, "it rotated once");

    let other = pb::RotateSecretRequest { grace: Some(seconds(5)), ..request.clone() };
    let refused = world.client.secrets().rotate_secret(other).await.expect_err("another request");
    assert_eq!(
        (refused.code(), reason(&refused).as_deref()),
        (Code::AlreadyExists, Some("REQUEST_ID_TAKEN"))
    );
    // Who may rotate may not thereby see what another key was shown.
    let write = key(&world.operator, &world.project, &[pb::Scope::EndpointsWrite.into()]).await;
    let writer = world.client.with_key(&Key::new(write)).expect("a key");
    let refused = writer.secrets().rotate_secret(request.clone()).await.expect_err("another key");
    assert_eq!(refused.code(), Code::AlreadyExists);
    let bad = pb::RotateSecretRequest { request_id: "one".to_owned(), ..request };
    let refused = world.client.secrets().rotate_secret(bad).await.expect_err("no UUID");
    assert_eq!(hawser_client::field_violations(&refused)[0].field, "request_id");
}

async fn a_secret_may_be_given_and_change_its_type(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::ok().await;
    let (endpoint, first) = world.endpoint(&receiver.url("/hook"), "").await;
    let request = pb::RotateSecretRequest {
        endpoint_id: endpoint.id.clone(),
        secret_type: pb::SecretType::Ed25519.into(),
        ..Default::default()
    };
    let pair = world.client.secrets().rotate_secret(request).await.expect("rotated").into_inner();
    let shown = pair.secret.expect("one");
    assert!(pair.value.starts_with("whsk_") && shown.public_key.starts_with("whpk_"));
    // The endpoint's grace, which is 24 hours.
    let lasts = pair.previous.expect("one").expire_time.expect("an end").seconds;
    assert_eq!(lasts - shown.create_time.expect("a time").seconds, 24 * 3600);
    world.publish_to(&endpoint, b"{}").await;
    let mixed = receiver.wait_for_count(1).await.remove(0);
    assert!(accepts(&first, &mixed), "the official library passes over what it does not know");
    assert!(mixed.header("webhook-signature").starts_with("v1a,"));
    // Without a word the type stays, and the public key is in the list.
    let next = rotate(&world.client, &endpoint.id, 60).await.expect("rotated");
    assert!(next.value.starts_with("whsk_") && next.value != pair.value);
    assert_eq!(list(&world.client, &endpoint.id).await.secrets[1].public_key, shown.public_key);

    let own = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let request = pb::RotateSecretRequest {
        endpoint_id: endpoint.id.clone(),
        secret: own.to_owned(),
        ..Default::default()
    };
    let given = world.client.secrets().rotate_secret(request.clone()).await.expect("rotated").into_inner();
    assert_eq!(given.value, own);
    let bad = pb::RotateSecretRequest { secret: "a-plain-text".to_owned(), ..request };
    let refused = world.client.secrets().rotate_secret(bad).await.expect_err("STANDARD");
    assert_eq!(hawser_client::field_violations(&refused)[0].field, "secret");
}

async fn simple_signatures_warn(database: Database) {
    let world = World::new(database).await;
    let signature = Some(settings(pb::SignatureScheme::Simple));
    let endpoint = pb::Endpoint { url: URL.to_owned(), signature, ..Default::default() };
    let (endpoint, _) = world.create(endpoint, &["*"]).await;
    let rotated = rotate(&world.client, &endpoint.id, 60).await.expect("rotated");
    assert!(rotated.warning.contains("newest"), "{}", rotated.warning);
    // By itself it would cut receivers off, so it does not.
    let every = Some(seconds(30 * 24 * 3600));
    let change = pb::Endpoint { id: endpoint.id, rotation_period: every, ..Default::default() };
    let request = pb::UpdateEndpointRequest { endpoint: Some(change), ..Default::default() };
    let refused = world.client.endpoints().update_endpoint(request).await.expect_err("refused");
    assert_eq!(hawser_client::field_violations(&refused)[0].field, "endpoint.rotation_period");
}

async fn values_are_shown_to_who_may_see_them_only(database: Database) {
    let world = World::new(database).await;
    let (endpoint, first) = world.endpoint(URL, "").await;
    let rotated = rotate(&world.client, &endpoint.id, 3600).await.expect("rotated");
    let listed = list(&world.client, &endpoint.id).await;
    assert_eq!(reveal(&world.client, &listed.secrets[0].id).await.expect("shown"), rotated.value);
    assert_eq!(reveal(&world.client, &listed.secrets[1].id).await.expect("shown"), first);
    let scopes: Vec<i32> = (1..=9).filter(|scope| *scope != i32::from(pb::Scope::SecretsReveal)).collect();
    let others = key(&world.operator, &world.project, &scopes).await;
    let others = world.client.with_key(&Key::new(others)).expect("a key");
    let refused = reveal(&others, &listed.secrets[0].id).await.expect_err("its own scope");
    assert_eq!(refused.code(), Code::PermissionDenied);

    let said = format!("{listed:?} {:?} {}", get(&world, &endpoint.id).await, world.server.log());
    for secret in [&first, &rotated.value] {
        assert!(!said.contains(secret.trim_start_matches("whsec_")), "{said}");
    }
    if world.server.database().url().is_none() {
        for file in ["hawser.db", "hawser.db-wal"] {
            let bytes = std::fs::read(world.server.data().join(file)).unwrap_or_default();
            for secret in [&first, &rotated.value] {
                let text = secret.trim_start_matches("whsec_").as_bytes();
                assert!(!bytes.windows(text.len()).any(|window| window == text), "{file}");
            }
        }
    }
}

async fn get(world: &World, endpoint: &str) -> pb::GetEndpointResponse {
    let request = pb::GetEndpointRequest { endpoint_id: endpoint.to_owned(), ..Default::default() };
    world.client.endpoints().get_endpoint(request).await.expect("found").into_inner()
}
