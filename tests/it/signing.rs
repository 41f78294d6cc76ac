//! What receivers verify: every scheme as its specification says, over the bytes that arrive.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, Verifier, VerifyingKey};
use hawser_client::{field_violations, pb, reason};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Sha256, Sha512};
use tonic::{Code, Status};

use crate::support::receiver::Seen;
use crate::support::{Database, Receiver, World, on_both};

on_both!(
    every_scheme_verifies,
    ed25519_needs_only_the_public_key,
    settings_and_secrets_must_fit,
    a_signature_is_not_overwritten_or_recorded,
);

pub fn settings(scheme: pb::SignatureScheme) -> pb::SignatureSettings {
    pb::SignatureSettings { scheme: scheme.into(), ..Default::default() }
}

async fn create(
    world: &World,
    url: &str,
    signature: Option<pb::SignatureSettings>,
    secret: &str,
    secret_type: pb::SecretType,
) -> Result<pb::CreateEndpointResponse, Status> {
    let endpoint = pb::Endpoint { url: url.to_owned(), signature, ..Default::default() };
    let request = pb::CreateEndpointRequest {
        endpoint: Some(endpoint),
        secret: secret.to_owned(),
        secret_type: secret_type.into(),
        ..Default::default()
    };
    Ok(world.client.endpoints().create_endpoint(request).await?.into_inner())
}

/// An HMAC as its definition says, apart from the server's code.
fn mac(hash: pb::SignatureHash, encoding: pb::SignatureEncoding, key: &str, text: &[u8]) -> String {
    let bytes = match hash {
        pb::SignatureHash::Sha512 => {
            let mac = Hmac::<Sha512>::new_from_slice(key.as_bytes()).expect("any key");
            mac.chain_update(text).finalize().into_bytes().to_vec()
        }
        _ => {
            let mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).expect("any key");
            mac.chain_update(text).finalize().into_bytes().to_vec()
        }
    };
    match encoding {
        pb::SignatureEncoding::Base64 => STANDARD.encode(bytes),
        _ => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}

async fn every_scheme_verifies(database: Database) {
    use pb::{SignatureEncoding as Encoding, SignatureHash as Hash, SignatureScheme as Scheme};
    let world = World::new(database).await;
    let receiver = Receiver::ok().await;
    let secret = "a text of another system's making";
    let secret = secret.replace(' ', "-");
    for (scheme, hash, encoding, header) in [
        (Scheme::Advanced, Hash::Unspecified, Encoding::Unspecified, ""),
        (Scheme::Advanced, Hash::Sha512, Encoding::Base64, "X-Shop-Signature"),
        (Scheme::Simple, Hash::Unspecified, Encoding::Unspecified, ""),
        (Scheme::Simple, Hash::Sha256, Encoding::Base64, "X-Shop-Signature"),
        (Scheme::Simple, Hash::Sha512, Encoding::Hex, ""),
    ] {
        let signature = pb::SignatureSettings {
            scheme: scheme.into(),
            header: header.to_owned(),
            hash: hash.into(),
            encoding: encoding.into(),
        };
        let url = receiver.url("/hook");
        let made = create(&world, &url, Some(signature), &secret, pb::SecretType::Unspecified).await;
        let made = made.expect("created");
        assert_eq!(made.secret, secret);
        let endpoint = made.endpoint.expect("an endpoint");
        let shown = endpoint.signature.clone().expect("settings");
        assert!(shown.hash != 0 && shown.encoding != 0 && !shown.header.is_empty(), "what holds is told");

        let body = b" { \"a\" : 1 }\n\xff";
        let event = world.publish_to(&endpoint, body).await.event_id;
        let seen = receiver.wait_for("it", |seen| seen.iter().any(|one| one.event() == event)).await;
        let seen: &Seen = seen.iter().find(|one| one.event() == event).expect("it");
        assert_eq!(seen.header("webhook-signature"), "", "only its own scheme's header");
        let header = if header.is_empty() { "x-hawser-signature" } else { header };
        let value = seen.header(header);
        if scheme == Scheme::Simple {
            assert_eq!(value, mac(hash, encoding, &secret, body));
        } else {
            let at = seen.header("webhook-timestamp");
            let text = [at.as_bytes(), b",", body].concat();
            assert_eq!(value, format!("t={at},v1={}", mac(hash, encoding, &secret, &text)));
        }
    }
}

async fn ed25519_needs_only_the_public_key(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::ok().await;
    let made =
        create(&world, &receiver.url("/hook"), None, "", pb::SecretType::Ed25519).await.expect("created");
    assert!(made.secret.starts_with("whsk_"), "the private key, once");
    let endpoint = made.endpoint.expect("an endpoint");
    let public = made.public_key.strip_prefix("whpk_").expect("a public key");
    let public = STANDARD.decode(public).expect("base64").try_into().expect("32 bytes");
    let public = VerifyingKey::from_bytes(&public).expect("a key");
    let body = b"\x00 any bytes \xff";
    let event = world.publish_to(&endpoint, body).await.event_id;
    let seen = receiver.wait_for_count(1).await.remove(0);
    let signature = seen.header("webhook-signature");
    let signature = STANDARD.decode(signature.strip_prefix("v1a,").expect("v1a")).expect("base64");
    let signature = Signature::from_slice(&signature).expect("64 bytes");
    let prefix = format!("{event}.{}.", seen.header("webhook-timestamp"));
    public.verify(&[prefix.as_bytes(), body].concat(), &signature).expect("it verifies");

    // The same pair may be given by its private half alone.
    let pair = STANDARD.decode(made.secret.strip_prefix("whsk_").expect("a key")).expect("base64");
    let private = format!("whsk_{}", STANDARD.encode(&pair[..32]));
    let again = create(&world, &receiver.url("/b"), None, &private, pb::SecretType::Unspecified).await;
    let again = again.expect("created");
    assert_eq!((again.secret, again.public_key), (made.secret, made.public_key));
}

async fn settings_and_secrets_must_fit(database: Database) {
    use pb::{SecretType, SignatureScheme as Scheme};
    let world = World::new(database).await;
    let url = "https://example.com/hook";
    let with = |change: &dyn Fn(&mut pb::SignatureSettings)| {
        let mut settings = settings(Scheme::Advanced);
        change(&mut settings);
        Some(settings)
    };
    let text = "a-text-of-some-length";
    let key = "whsk_nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=";
    for (signature, secret, secret_type, field) in [
        (None, text, SecretType::Unspecified, "secret"),
        (None, "whsec_AAAA", SecretType::Unspecified, "secret"),
        (None, key, SecretType::Hmac, "secret_type"),
        (None, "", SecretType::Text, "secret_type"),
        (with(&|_| {}), key, SecretType::Unspecified, "secret"),
        (with(&|_| {}), "", SecretType::Ed25519, "secret"),
        (with(&|_| {}), "short", SecretType::Unspecified, "secret"),
        (
            with(&|all| all.header = "webhook-x".to_owned()),
            "",
            SecretType::Unspecified,
            "endpoint.signature.header",
        ),
        (
            with(&|all| all.header = "Authorization".to_owned()),
            "",
            SecretType::Unspecified,
            "endpoint.signature.header",
        ),
        (
            with(&|all| all.header = "x y".to_owned()),
            "",
            SecretType::Unspecified,
            "endpoint.signature.header",
        ),
        (with(&|all| all.hash = 9), "", SecretType::Unspecified, "endpoint.signature.hash"),
        (
            with(&|all| (all.scheme, all.hash) = (1, 2)),
            "",
            SecretType::Unspecified,
            "endpoint.signature.hash",
        ),
        (with(&|all| all.scheme = 9), "", SecretType::Unspecified, "endpoint.signature.scheme"),
    ] {
        let refused = create(&world, url, signature.clone(), secret, secret_type).await.expect_err("refused");
        assert_eq!(refused.code(), Code::InvalidArgument, "{signature:?} {secret}: {refused}");
        assert_eq!(field_violations(&refused)[0].field, field, "{signature:?} {secret}");
        assert!(secret.is_empty() || !refused.message().contains(secret), "{refused}");
    }

    // A scheme that the secret cannot sign by is refused; one that it can is taken.
    let made = create(&world, url, with(&|_| {}), text, SecretType::Unspecified).await.expect("created");
    let endpoint = made.endpoint.expect("an endpoint");
    let update = |id: &str, scheme: Scheme| {
        let endpoint =
            pb::Endpoint { id: id.to_owned(), signature: Some(settings(scheme)), ..Default::default() };
        let request = pb::UpdateEndpointRequest { endpoint: Some(endpoint), ..Default::default() };
        let mut endpoints = world.client.endpoints();
        async move { endpoints.update_endpoint(request).await }
    };
    let refused = update(&endpoint.id, Scheme::Standard).await.expect_err("a text");
    assert_eq!(
        (refused.code(), reason(&refused).as_deref()),
        (Code::FailedPrecondition, Some("SECRET_UNFIT"))
    );
    update(&endpoint.id, Scheme::Simple).await.expect("a text");
    let made = create(&world, url, None, "", SecretType::Ed25519).await.expect("created");
    let refused = update(&made.endpoint.expect("one").id, Scheme::Advanced).await.expect_err("a key pair");
    assert_eq!(reason(&refused).as_deref(), Some("SECRET_UNFIT"));
    let made = create(&world, url, None, "", SecretType::Unspecified).await.expect("created");
    let changed =
        update(&made.endpoint.expect("one").id, Scheme::Advanced).await.expect("bytes").into_inner();
    assert_eq!(changed.endpoint.expect("one").signature.expect("settings").scheme(), Scheme::Advanced);
}

async fn a_signature_is_not_overwritten_or_recorded(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::ok().await;
    let signature =
        pb::SignatureSettings { header: "x-shop-proof".to_owned(), ..settings(pb::SignatureScheme::Simple) };
    let url = receiver.url("/hook");
    let made = create(&world, &url, Some(signature.clone()), "", pb::SecretType::Unspecified).await;
    let made = made.expect("created");
    let endpoint = made.endpoint.expect("one");
    // An event's header of that name loses.
    let request = pb::PublishEventRequest {
        event_type: "a".to_owned(),
        target: Some(pb::publish_event_request::Target::EndpointId(endpoint.id.clone())),
        headers: [("x-shop-proof".to_owned(), "forged".to_owned())].into(),
        ..Default::default()
    };
    let event = world.client.events().publish_event(request).await.expect("published").into_inner().event_id;
    let delivery = world.settled_deliveries_of(&event).await.remove(0);
    let value = receiver.wait_for_count(1).await[0].header("x-shop-proof");
    let hash = pb::SignatureHash::Sha256;
    assert_eq!(value, mac(hash, pb::SignatureEncoding::Hex, &made.secret, b""));
    let attempt = world.attempts_of(&delivery.id).await.remove(0);
    let shown = attempt.request_headers.iter().find(|header| header.name == "x-shop-proof");
    assert_eq!(shown.expect("shown").value, "[redacted]");

    // The endpoint's own headers cannot have that name.
    let header = pb::Header { name: "X-Shop-Proof".to_owned(), value: "x".to_owned() };
    let endpoint = pb::Endpoint {
        url: receiver.url("/hook"),
        headers: vec![header],
        signature: Some(signature),
        ..Default::default()
    };
    let request = pb::CreateEndpointRequest { endpoint: Some(endpoint), ..Default::default() };
    let refused = world.client.endpoints().create_endpoint(request).await.expect_err("taken");
    assert_eq!(field_violations(&refused)[0].field, "endpoint.signature.header");
}
