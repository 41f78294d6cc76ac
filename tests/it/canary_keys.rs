//! Keys and passwords are found nowhere: signing secrets of every kind, the replies of rotations that are kept, custom
//! headers, API keys, the master key, and the passwords of the egress proxy and the mail server.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hawser_client::{Client, Key, pb};

use crate::canary::stored;
use crate::egress_proxy::Proxy;
use crate::support::leaks::{Secret, assert_nowhere, letters};
use crate::support::told::all_sent;
use crate::support::world::{key, next, quick_retries};
use crate::support::{Database, Receiver, Reply, Server, World, on_both, web};

on_both!(keys_and_passwords_are_found_nowhere);

const HEADER: &str = "canary-of-a-partners-token";
const PLAIN_HEADER: &str = "canary-of-a-plain-header";
const TEXT: &str = "canary-text-of-another-system";
const PROXY_PASSWORD: &str = "canary-proxy-password";
const SMTP_PASSWORD: &str = "canary-smtp-password";
const SLACK: &str = "canary-slack-path";

fn settings(scheme: pb::SignatureScheme) -> pb::SignatureSettings {
    pb::SignatureSettings { scheme: scheme.into(), ..Default::default() }
}

/// The parts of a signing secret that say as much as the whole.
fn parts(name: &str, secret: &str) -> Vec<Secret> {
    let encoded = match secret.split_once('_') {
        Some(("whsec" | "whsk", encoded)) => encoded,
        _ => return vec![Secret::new(name, secret)],
    };
    let bytes = STANDARD.decode(encoded).expect("base64");
    // Of a pair the second half is public.
    let private = if secret.starts_with("whsk_") { &bytes[..32] } else { &bytes[..] };
    vec![Secret::new(name, encoded), Secret::new(name, private)]
}

/// The random part of an API key, after its id.
fn random_part(name: &str, key: &str) -> Vec<Secret> {
    let random = key.splitn(3, '_').nth(2).expect("a key");
    let bytes = URL_SAFE_NO_PAD.decode(random).expect("base64");
    vec![Secret::new(name, random), Secret::new(name, bytes)]
}

async fn rotate(client: &Client, request: &pb::RotateSecretRequest) -> String {
    client.secrets().rotate_secret(request.clone()).await.expect("rotated").into_inner().value
}

async fn keys_and_passwords_are_found_nowhere(database: Database) {
    let proxy = Proxy::judging(|_| None).await;
    let proxy_url = format!("http://shown:{PROXY_PASSWORD}@{}", proxy.address);
    let arguments = [
        &["--allow-http", "--allow-net", "127.0.0.0/8", "--log", "trace", "--egress-proxy", &proxy_url][..],
        // Nobody answers there.
        &["--smtp-server", "127.0.0.1:9", "--smtp-tls", "none", "--smtp-from", "hawser@example.com"],
        &["--smtp-user", "shown", "--smtp-password", SMTP_PASSWORD, "--alert-attempts", "1"],
    ]
    .concat();
    let server = Server::start_with(database, &arguments).await;
    let mut world = World::on(server, pb::PausedPolicy::Discard).await;
    let mut watch = world.watch().await;
    // The first attempt fails, since errors might tell too much.
    let receiver = Receiver::scripted(|_, before| Reply::status([500, 204][before.min(1)])).await;
    let (mut secrets, mut replies) = (Vec::new(), Vec::new());

    use pb::{SecretType, SignatureScheme as Scheme};
    let given = format!("whsec_{}", STANDARD.encode("canary-of-a-given-hmac-secret-32"));
    let pair = format!("whsk_{}", STANDARD.encode("canary-of-an-ed25519-private-key"));
    for (number, (name, scheme, secret, kind)) in [
        ("an HMAC secret that was made", Scheme::Standard, "", SecretType::Hmac),
        ("an HMAC secret that was given", Scheme::Standard, given.as_str(), SecretType::Unspecified),
        ("an ed25519 key that was made", Scheme::Standard, "", SecretType::Ed25519),
        ("an ed25519 key that was given", Scheme::Standard, pair.as_str(), SecretType::Unspecified),
        ("a text of ADVANCED", Scheme::Advanced, TEXT, SecretType::Unspecified),
        ("a text of SIMPLE", Scheme::Simple, "canary-simple", SecretType::Unspecified),
    ]
    .into_iter()
    .enumerate()
    {
        let endpoint = pb::Endpoint {
            url: receiver.url(&format!("/{number}")),
            uid: format!("visible-{number}"),
            headers: vec![
                pb::Header { name: "x-partner-token".to_owned(), value: HEADER.to_owned() },
                pb::Header { name: "x-shop".to_owned(), value: PLAIN_HEADER.to_owned() },
            ],
            signature: Some(settings(scheme)),
            alerts: Some(pb::Alerts {
                emails: vec!["shown@example.com".to_owned()],
                slack_webhook_url: receiver.url(&format!("/{SLACK}")),
                on: vec!["*".to_owned()],
                ..Default::default()
            }),
            retry_policy: Some(quick_retries(3)),
            ..Default::default()
        };
        let request = pb::CreateEndpointRequest {
            endpoint: Some(endpoint),
            secret: secret.to_owned(),
            secret_type: kind.into(),
            ..Default::default()
        };
        let made =
            world.client.endpoints().create_endpoint(request.clone()).await.expect("created").into_inner();
        let endpoint = made.endpoint.expect("an endpoint");
        secrets.extend(parts(name, &made.secret));

        // Its reply is kept, and given again.
        let rotation = pb::RotateSecretRequest {
            endpoint_id: endpoint.id.clone(),
            request_id: uuid::Uuid::now_v7().to_string(),
            ..Default::default()
        };
        let rotated = rotate(&world.client, &rotation).await;
        assert_eq!(rotate(&world.client, &rotation).await, rotated, "the same once more");
        secrets.extend(parts(&format!("{name}, rotated"), &rotated));

        let event = world.publish_to(&endpoint, b"{}").await.event_id;
        let delivery = world.settled_deliveries_of(&event).await.remove(0);
        assert_eq!(delivery.status(), pb::DeliveryStatus::Success);
        let attempts = world.attempts_of(&delivery.id).await;
        assert_eq!(attempts.len(), 2);
        let list = pb::ListSecretsRequest { endpoint_id: endpoint.id.clone(), ..Default::default() };
        let listed = world.client.secrets().list_secrets(list).await.expect("listed").into_inner();
        // Refused, with all that is secret in it: the uid is taken.
        let refused = world.client.endpoints().create_endpoint(request).await.expect_err("a second one");
        replies.push(format!("{attempts:?} {listed:?} {refused:?} {delivery:?}"));
        replies.push(format!("{endpoint:?}"));
    }
    for bad in ["whsec_canary-that-is-no-base64", "whsk_canary-that-is-no-base64"] {
        let endpoint = pb::Endpoint { url: receiver.url("/"), ..Default::default() };
        let request = pb::CreateEndpointRequest {
            endpoint: Some(endpoint),
            secret: bad.to_owned(),
            ..Default::default()
        };
        let refused = world.client.endpoints().create_endpoint(request).await.expect_err("no secret");
        replies.push(format!("{refused:?}"));
        secrets.push(Secret::new("a secret that was refused", bad.split_once('_').expect("a prefix").1));
    }

    let operator_key = world.server.operator_key().await;
    let (other, gone) =
        (key(&world.operator, &world.project, &[1]).await, key(&world.operator, &world.project, &[1]).await);
    for (name, key) in [
        ("the operator key", &operator_key),
        ("the project's key", &world.key),
        ("another key", &other),
        ("a key that was revoked", &gone),
    ] {
        secrets.extend(random_part(name, key));
    }
    let list = pb::ListApiKeysRequest { project_id: world.project.clone(), ..Default::default() };
    let listed = world.operator.projects().list_api_keys(list).await.expect("listed").into_inner();
    let last = listed.api_keys.last().expect("keys").id.clone();
    world
        .operator
        .projects()
        .revoke_api_key(pb::RevokeApiKeyRequest { api_key_id: last })
        .await
        .expect("revoked");
    // Keys that nobody has, revoked ones, and nonsense.
    for wrong in [&gone, &format!("{}wrong", &other[..other.len() - 5]), "hk_canary-of-no-key"] {
        let wrong = Key::new(wrong.to_owned());
        let client = Client::connect(world.server.address(), wrong).await.expect("connected");
        let refused = client.endpoints().list_endpoints(pb::ListEndpointsRequest::default()).await;
        replies.push(format!("{:?}", refused.err()));
    }
    secrets.push(Secret::new("what is no key", "canary-of-no-key"));
    replies.push(format!("{listed:?}"));

    let audit = pb::ListAuditEventsRequest { page_size: 1000, ..Default::default() };
    let audit = world.operator.audit().list_audit_events(audit).await.expect("listed").into_inner();
    replies.push(format!("{audit:?}"));
    let mut ends = 0;
    while ends < 6 {
        let message = next(&mut watch).await;
        if let Some(pb::watch_response::Change::DeliveryChange(change)) = &message.change {
            ends += usize::from(change.delivery.as_ref().is_some_and(|one| one.end_time.is_some()));
        }
        replies.push(format!("{message:?}"));
    }
    assert!(all_sent(&world).await > 0);
    let (_, metrics) = web::get(world.server.admin(), "/metrics").await;
    let running = stored(&world).await;
    let master = std::fs::read_to_string(world.server.data().join("master.key")).expect("a key");
    world.server.terminate().await;
    let stopped = stored(&world).await;
    let log = world.server.log();
    assert!(log.contains("TRACE"), "it logged all it could");
    assert!(running.contains("visible-0") && replies.iter().any(|reply| reply.contains("visible-0")));
    assert!(receiver.seen().iter().any(|seen| seen.header("x-partner-token") == HEADER));
    assert!(!proxy.asked().is_empty());

    let master = STANDARD.decode(master.trim().split_once(':').expect("a version").1).expect("base64");
    secrets.push(Secret::new("the master key", master));
    for (name, value) in [
        ("a custom header", HEADER),
        ("the proxy's password", PROXY_PASSWORD),
        ("the mail server's password", SMTP_PASSWORD),
        ("a Slack URL", SLACK),
    ] {
        secrets.push(Secret::new(name, value));
    }
    secrets.push(Secret::new("the proxy's credentials", STANDARD.encode(format!("shown:{PROXY_PASSWORD}"))));
    let mut places = vec![
        ("log".to_owned(), letters(log.as_bytes())),
        ("metrics".to_owned(), letters(metrics.as_bytes())),
        ("database".to_owned(), running),
        ("database of a stopped server".to_owned(), stopped),
    ];
    places.extend(replies.into_iter().map(|reply| ("reply".to_owned(), letters(reply.as_bytes()))));
    assert_nowhere(&secrets, &places);
    // A header that names no credential is shown to whoever may read the endpoint, and is in what attempts and the audit
    // log tell; but nobody else sees it.
    assert_nowhere(&[Secret::new("a plain header", PLAIN_HEADER)], &places[..2]);
}
