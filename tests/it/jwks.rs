//! The key set of an endpoint: what a receiver needs to verify by, and nothing else.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use ed25519_dalek::{Signature, Verifier, VerifyingKey};
use hawser_client::pb;
use http::{Request, StatusCode};
use http_body_util::Full;
use serde_json::Value;

use crate::support::feed::eventually;
use crate::support::receiver::Seen;
use crate::support::secrets::rotate;
use crate::support::web::{get, send};
use crate::support::{Database, Receiver, World, on_both};

on_both!(a_key_set_follows_rotations, what_has_no_public_key_is_not_found);

async fn ed25519(world: &World, url: &str) -> pb::CreateEndpointResponse {
    let endpoint = pb::Endpoint { url: url.to_owned(), ..Default::default() };
    let request = pb::CreateEndpointRequest {
        endpoint: Some(endpoint),
        secret_type: pb::SecretType::Ed25519.into(),
        ..Default::default()
    };
    world.client.endpoints().create_endpoint(request).await.expect("created").into_inner()
}

fn path(endpoint: &str) -> String {
    format!("/endpoints/{endpoint}/.well-known/jwks.json")
}

fn key(jwk: &Value) -> VerifyingKey {
    let x = URL_SAFE_NO_PAD.decode(jwk["x"].as_str().expect("x")).expect("base64url");
    VerifyingKey::from_bytes(&x.try_into().expect("32 bytes")).expect("a key")
}

/// Whether any of a request's signatures is by that key.
fn verifies(jwk: &Value, request: &Seen) -> bool {
    let signed = format!("{}.{}.", request.event(), request.header("webhook-timestamp"));
    let signed = [signed.as_bytes(), &request.body].concat();
    request.header("webhook-signature").split(' ').any(|one| {
        let value = one.strip_prefix("v1a,").expect("v1a");
        let signature = Signature::from_slice(&STANDARD.decode(value).expect("base64")).expect("64 bytes");
        key(jwk).verify(&signed, &signature).is_ok()
    })
}

async fn a_key_set_follows_rotations(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::ok().await;
    let made = ed25519(&world, &receiver.url("/hook")).await;
    let endpoint = made.endpoint.expect("one");
    let portal = world.server.portal().to_owned();
    let keys = || async {
        let (status, text) = get(&portal, &path(&endpoint.id)).await;
        assert_eq!(status, StatusCode::OK, "{text}");
        let set: Value = serde_json::from_str(&text).expect("JSON");
        set["keys"].as_array().expect("keys").clone()
    };
    let first = keys().await;
    let [only] = first.as_slice() else { panic!("one key: {first:?}") };
    let members: Vec<&str> = only.as_object().expect("a JWK").keys().map(String::as_str).collect();
    assert_eq!(members, ["alg", "crv", "kid", "kty", "use", "x"], "public members only");
    assert_eq!(made.public_key, format!("whpk_{}", STANDARD.encode(key(only).as_bytes())));

    let rotated = rotate(&world.client, &endpoint.id, 3600).await.expect("rotated");
    let new = rotated.secret.expect("one").id;
    let both = eventually("the new key", || async {
        let keys = keys().await;
        if keys.len() == 2 { Ok(keys) } else { Err(keys) }
    })
    .await;
    assert_eq!((both[0]["kid"].as_str(), &both[1]), (Some(new.as_str()), only), "the current one first");
    world.publish_to(&endpoint, b"{}").await;
    let seen = receiver.wait_for_count(1).await.remove(0);
    assert!(both.iter().all(|jwk| verifies(jwk, &seen)));

    // Without a grace the older one is gone at once; the retiring one stays.
    rotate(&world.client, &endpoint.id, 0).await.expect("rotated");
    let after = eventually("the newest key", || async {
        let keys = keys().await;
        if keys[0]["kid"].as_str() == Some(&new) { Err(keys) } else { Ok(keys) }
    })
    .await;
    assert!(after.len() == 2 && after[1] == *only, "{after:?}");

    // It may be kept, and asked for again by its tag.
    let ask = |tag: Option<String>| {
        let mut request = Request::get(path(&endpoint.id)).header("host", &portal);
        if let Some(tag) = tag {
            request = request.header("if-none-match", tag);
        }
        send(&portal, request.body(Full::<Bytes>::default()).expect("a request"))
    };
    let whole = ask(None).await;
    let header = |name: &str| whole.headers[name].to_str().expect("text").to_owned();
    assert_eq!(header("content-type"), "application/jwk-set+json");
    assert_eq!(header("cache-control"), "public, max-age=60");
    let known = ask(Some(format!("\"other\", {}", header("etag")))).await;
    assert_eq!((known.status, known.text().await.as_str()), (StatusCode::NOT_MODIFIED, ""));
    assert_eq!(ask(Some("\"other\"".to_owned())).await.status, StatusCode::OK);
}

async fn what_has_no_public_key_is_not_found(database: Database) {
    let world = World::new(database).await;
    let (hmac, _) = world.endpoint("https://example.com/hook", "").await;
    let gone = ed25519(&world, "https://example.com/hook").await.endpoint.expect("one").id;
    let delete = pb::DeleteEndpointRequest { endpoint_id: gone.clone(), ..Default::default() };
    world.client.endpoints().delete_endpoint(delete).await.expect("deleted");
    let portal = world.server.portal();
    for id in [hmac.id.as_str(), &gone, "ep_01h2e8kqvbfwea724h75qc655w", "nonsense", "..%2f"] {
        let (status, text) = get(portal, &path(id)).await;
        assert_eq!((status, text.as_str()), (StatusCode::NOT_FOUND, ""), "{id}");
    }
    assert_eq!(get(portal, "/metrics").await.0, StatusCode::NOT_FOUND, "not the admin's");
}
