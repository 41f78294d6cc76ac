//! Whom the server trusts: authorities of its own (`--ca-file`), and anyone where development switched that off.

use hawser_client::{pb, reason};
use serde_json::json;

use crate::oauth2::{endpoint, oauth2, shared};
use crate::support::pki::Authority;
use crate::support::token_server::reply;
use crate::support::world::quick_retries;
use crate::support::{Database, Receiver, Reply, Server, World, on_both};

on_both!(
    deliveries_pings_and_token_requests_trust_the_servers_authorities,
    without_verification_anyone_is_trusted_and_that_is_said_loudly,
);

const WARNING: &str = "insecure-skip-tls-verify: whoever answers is taken for the receiver";

/// Certified for 127.0.0.1. Grants tokens at `/token`, and wants one everywhere else.
async fn receiver(authority: &Authority, address: &str) -> Receiver {
    Receiver::listen(address, Some(authority.server(None)), |seen, _| match seen.path.as_str() {
        "/token" => reply(200, &json!({ "access_token": "granted", "expires_in": 3600 })),
        _ if seen.header("authorization") == "Bearer granted" => Reply::status(204),
        _ => Reply::status(401),
    })
    .await
}

fn with_token(receiver: &Receiver) -> pb::Endpoint {
    let wanted = endpoint(receiver.url("/"), oauth2(receiver.url("/token"), shared("secret", false)));
    pb::Endpoint { retry_policy: Some(quick_retries(1)), ..wanted }
}

async fn create(
    world: &World,
    endpoint: pb::Endpoint,
    skip_ping: bool,
) -> Result<pb::Endpoint, tonic::Status> {
    let request = pb::CreateEndpointRequest { endpoint: Some(endpoint), skip_ping, ..Default::default() };
    let reply = world.client.endpoints().create_endpoint(request).await?.into_inner();
    Ok(reply.endpoint.expect("an endpoint"))
}

async fn token_test(world: &World, receiver: &Receiver) -> pb::TestOAuth2Response {
    let subject = oauth2(receiver.url("/token"), shared("secret", false));
    let request = pb::TestOAuth2Request {
        subject: Some(pb::test_o_auth2_request::Subject::Oauth2(subject)),
        ..Default::default()
    };
    world.client.endpoints().test_o_auth2(request).await.expect("tested").into_inner()
}

/// Pinged, delivered to, and asked for tokens.
async fn is_trusted(world: &World, receiver: &Receiver) {
    let made = create(world, with_token(receiver), false).await.expect("it accepts a ping");
    let pinged: Vec<_> =
        receiver.seen().iter().map(|seen| (seen.method.to_string(), seen.path.clone())).collect();
    assert_eq!(pinged, [("POST", "/token"), ("HEAD", "/")].map(|(a, b)| (a.to_owned(), b.to_owned())));
    let event = world.publish_to(&made, b"{}").await.event_id;
    let delivery = world.settled_deliveries_of(&event).await.remove(0);
    let attempts = world.attempts_of(&delivery.id).await;
    assert_eq!(delivery.status(), pb::DeliveryStatus::Success, "{attempts:?}");
    let test = token_test(world, receiver).await;
    assert!(test.granted, "{test:?}");
}

async fn deliveries_pings_and_token_requests_trust_the_servers_authorities(database: Database) {
    let (ours, others) = (Authority::new("ours"), Authority::new("others"));
    let folder = tempfile::tempdir().expect("a folder");
    let roots = folder.path().join("roots.pem");
    std::fs::write(&roots, ours.pem()).expect("written");
    // The only way to these receivers is https.
    let arguments = ["--allow-net", "127.0.0.0/8", "--ca-file", roots.to_str().expect("text")];
    let server = Server::start_pinging(database, &arguments).await;
    let world = World::on(server, pb::PausedPolicy::Discard).await;

    is_trusted(&world, &receiver(&ours, "127.0.0.1:0").await).await;

    let stranger = receiver(&others, "127.0.0.1:0").await;
    let plain =
        pb::Endpoint { url: stranger.url("/"), retry_policy: Some(quick_retries(1)), ..Default::default() };
    let status = create(&world, plain.clone(), false).await.expect_err("a stranger");
    assert_eq!(reason(&status).as_deref(), Some("PING_FAILED"), "{status}");
    assert!(status.message().contains("HEAD failed (TLS)"), "{status}");
    for (wanted, class) in [(plain, pb::ErrorClass::Tls), (with_token(&stranger), pb::ErrorClass::Auth)] {
        let made = create(&world, wanted, true).await.expect("skipped");
        let event = world.publish_to(&made, b"{}").await.event_id;
        let delivery = world.settled_deliveries_of(&event).await.remove(0);
        let attempt = world.attempts_of(&delivery.id).await.remove(0);
        assert_eq!(attempt.error_class(), class, "{attempt:?}");
        let why = "certificate is not issued by a trusted authority";
        assert!(attempt.error_detail.contains(why), "{attempt:?}");
    }
    assert!(!token_test(&world, &stranger).await.granted);
    assert!(stranger.seen().is_empty());
    assert!(!world.server.log().contains(WARNING));
}

async fn without_verification_anyone_is_trusted_and_that_is_said_loudly(database: Database) {
    let arguments = ["--allow-net", "127.0.0.0/8", "--insecure-skip-tls-verify"];
    let server = Server::start_pinging(database, &arguments).await;
    let world = World::on(server, pb::PausedPolicy::Discard).await;
    // Of an authority that nobody knows, and for another host.
    let stranger = receiver(&Authority::new("others"), "127.0.0.9:0").await;
    is_trusted(&world, &stranger).await;
    // One that has an authority of its own, which is not the receiver's.
    let other = Authority::new("another").pem();
    let wanted = pb::Endpoint { ca_certificate: other, ..with_token(&stranger) };
    create(&world, wanted, false).await.expect("it accepts a ping");
    let log = world.server.log();
    assert!(log.lines().any(|line| line.contains("WARN") && line.contains(WARNING)), "{log}");
}
