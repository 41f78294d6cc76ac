//! Pings before an endpoint is accepted, and on demand: what is sent, what is said, and what it changes.

use std::time::Duration;

use hawser_client::pb::authentication::Method;
use hawser_client::{pb, reason};
use serde_json::json;
use standardwebhooks::Webhook;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::oauth2::{oauth2, shared};
use crate::support::failing::refusing_address;
use crate::support::pki::Authority;
use crate::support::receiver::Seen;
use crate::support::token_server::TokenServer;
use crate::support::{Database, Receiver, Reply, Server, World, on_both};

on_both!(
    an_endpoint_is_accepted_by_its_first_success,
    the_server_says_what_is_tried_in_which_order,
    the_server_says_how_often_a_key_may_ping,
    a_failure_says_what_was_tried_and_creates_nothing,
    credentials_go_along,
    a_change_of_what_is_reached_is_pinged,
    pings_on_demand_change_nothing_and_are_limited,
    token_tests_say_what_came_back,
);

const LOOPBACK: [&str; 3] = ["--allow-http", "--allow-net", "127.0.0.0/8"];

async fn world(database: Database) -> World {
    World::on(Server::start_pinging(database, &LOOPBACK).await, pb::PausedPolicy::Discard).await
}

async fn create(
    world: &World,
    endpoint: pb::Endpoint,
    skip_ping: bool,
) -> Result<(pb::Endpoint, String), Status> {
    let request = pb::CreateEndpointRequest { endpoint: Some(endpoint), skip_ping, ..Default::default() };
    // As an operator, who may ping as often as they like.
    let request = pb::CreateEndpointRequest { project_id: world.project.clone(), ..request };
    let reply = world.operator.endpoints().create_endpoint(request).await?.into_inner();
    Ok((reply.endpoint.expect("an endpoint"), reply.secret))
}

fn at(url: String) -> pb::Endpoint {
    pb::Endpoint { url, ..Default::default() }
}

async fn count(world: &World) -> usize {
    let request = pb::ListEndpointsRequest::default();
    world.client.endpoints().list_endpoints(request).await.expect("listed").into_inner().endpoints.len()
}

fn methods(seen: &[Seen]) -> Vec<&str> {
    seen.iter().map(|one| one.method.as_str()).collect()
}

/// A receiver that answers one method with one status, and all others with another.
async fn answering(method: &'static str, status: u16, otherwise: u16) -> Receiver {
    Receiver::scripted(move |seen, _| Reply::status(if seen.method == method { status } else { otherwise }))
        .await
}

async fn an_endpoint_is_accepted_by_its_first_success(database: Database) {
    let world = world(database).await;
    for (accepted, tried) in
        [("HEAD", &["HEAD"][..]), ("GET", &["HEAD", "GET"]), ("POST", &["HEAD", "GET", "POST"])]
    {
        let receiver = answering(accepted, 204, 405).await;
        let (_, secret) = create(&world, at(receiver.url("/hook")), false).await.expect(accepted);
        let seen = receiver.seen();
        assert_eq!(methods(&seen), tried);
        let last = seen.last().expect("a request");
        if accepted == "POST" {
            assert_eq!(&last.body[..], b"{\"test\":\"ping\"}");
            assert_eq!(last.header("content-type"), "application/json");
            assert!(last.event().starts_with("ping_"), "{}", last.event());
            // Signed as a delivery is, by the secret that the reply holds.
            let verifier = Webhook::new(&secret).expect("a secret");
            verifier.verify(&last.body, &last.headers).expect("verified");
        } else {
            assert!(last.body.is_empty() && last.event().is_empty());
        }
    }
}

async fn the_server_says_what_is_tried_in_which_order(database: Database) {
    let arguments = [&LOOPBACK[..], &["--ping-method", "POST", "--ping-method", "HEAD"]].concat();
    let server = Server::start_pinging(database, &arguments).await;
    let world = World::on(server, pb::PausedPolicy::Discard).await;
    let (head, get) = (answering("HEAD", 204, 405).await, answering("GET", 204, 405).await);
    create(&world, at(head.url("/")), false).await.expect("accepted");
    assert_eq!(methods(&head.seen()), ["POST", "HEAD"]);
    let refused = create(&world, at(get.url("/")), false).await.expect_err("GET is not tried");
    assert!(
        refused.message().contains("POST answered 405") && !refused.message().contains("GET"),
        "{refused}"
    );
    assert_eq!(methods(&get.seen()), ["POST", "HEAD"]);
}

async fn the_server_says_how_often_a_key_may_ping(database: Database) {
    let arguments = [&LOOPBACK[..], &["--pings-per-minute", "2"]].concat();
    let server = Server::start_pinging(database, &arguments).await;
    let world = World::on(server, pb::PausedPolicy::Discard).await;
    let receiver = Receiver::ok().await;
    let (made, _) = create(&world, at(receiver.url("/")), true).await.expect("created");
    let request = pb::PingEndpointRequest { endpoint_id: made.id, ..Default::default() };
    for _ in 0..2 {
        world.client.endpoints().ping_endpoint(request.clone()).await.expect("pinged");
    }
    let status = world.client.endpoints().ping_endpoint(request).await.expect_err("a third");
    assert_eq!(reason(&status).as_deref(), Some("PINGS_PER_MINUTE"));
    assert!(status.message().contains("2 times a minute"), "{status}");
}

async fn a_failure_says_what_was_tried_and_creates_nothing(database: Database) {
    let world = world(database).await;
    let missing = Receiver::scripted(|_, _| Reply {
        body: "canary".into(),
        headers: vec![("x-canary", "canary".to_owned())],
        ..Reply::status(404)
    })
    .await;
    let elsewhere = Receiver::ok().await;
    let redirect = elsewhere.url("/elsewhere");
    let redirecting = Receiver::scripted(move |_, _| Reply {
        headers: vec![("location", redirect.clone())],
        ..Reply::status(307)
    })
    .await;
    let silent = Receiver::scripted(|_, _| Reply::after(Duration::from_secs(60))).await;
    let untrusted = Receiver::tls(Authority::new("unknown").server(None), |_, _| Reply::status(204)).await;
    let closed = refusing_address("127.0.0.1");
    let slow = pb::Endpoint {
        http_timeout: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
        ..at(silent.url("/"))
    };
    for (endpoint, tries) in [
        (at(missing.url("/")), &["HEAD answered 404", "GET answered 404", "POST answered 404"][..]),
        (at(redirecting.url("/")), &["HEAD answered 307", "GET answered 307", "POST answered 307"]),
        (slow, &["HEAD failed (TIMEOUT)", "GET failed (TIMEOUT)", "POST failed (TIMEOUT)"]),
        (at(untrusted.url("/")), &["HEAD failed (TLS)"]),
        (at(format!("http://{closed}/")), &["HEAD failed (CONNECT)"]),
        (
            at("https://hawser-test.example.com./".to_owned()),
            &["HEAD host cannot be resolved, or is not allowed"],
        ),
    ] {
        let status = create(&world, endpoint, false).await.expect_err("refused");
        assert_eq!(
            (status.code(), reason(&status).as_deref()),
            (Code::FailedPrecondition, Some("PING_FAILED"))
        );
        let said = status.message();
        let said = said.strip_prefix("the endpoint did not accept a ping: ").expect("what was tried");
        let said: Vec<_> = said.split("; ").collect();
        assert_eq!(said.len(), tries.len() + 1, "{said:?}");
        for (said, tried) in said.iter().zip(tries) {
            let time =
                said.strip_prefix(&format!("{tried} after ")).unwrap_or_else(|| panic!("{said} {tried}"));
            time.strip_suffix(" ms").and_then(|time| time.parse::<u64>().ok()).expect("a time");
        }
        assert!(!format!("{status:?}").contains("canary"), "{status:?}");
    }
    assert!(elsewhere.seen().is_empty(), "no redirect is followed");
    assert_eq!(count(&world).await, 0, "nothing was created");

    create(&world, at(missing.url("/")), true).await.expect("skipped");
    assert_eq!((missing.seen().len(), count(&world).await), (3, 1));
}

async fn credentials_go_along(database: Database) {
    let world = world(database).await;
    let tokens = TokenServer::granting(json!(60)).await;
    let receiver = Receiver::scripted(|seen, _| {
        let granted = ["Bearer token-0", "Basic bWU6cGFzcw=="]
            .contains(&seen.header("authorization").as_str())
            || seen.header("x-api-key") == "key";
        Reply::status(if granted { 204 } else { 401 })
    })
    .await;
    let refused = create(&world, at(receiver.url("/")), false).await.expect_err("without credentials");
    assert!(refused.message().contains("HEAD answered 401"), "{refused}");
    for method in [
        Method::ApiKey(pb::ApiKeyAuth {
            header_name: "x-api-key".to_owned(),
            header_value: "key".to_owned(),
        }),
        Method::BasicAuth(pb::BasicAuth { username: "me".to_owned(), password: "pass".to_owned() }),
        Method::Oauth2(oauth2(tokens.url(), shared("secret", false))),
    ] {
        let authentication = Some(pb::Authentication { method: Some(method) });
        create(&world, pb::Endpoint { authentication, ..at(receiver.url("/")) }, false)
            .await
            .expect("accepted");
    }
    tokens.fail(true);
    let method = Some(Method::Oauth2(oauth2(tokens.url(), shared("secret", false))));
    let wanted =
        pb::Endpoint { authentication: Some(pb::Authentication { method }), ..at(receiver.url("/")) };
    let refused = create(&world, wanted, false).await.expect_err("no token");
    assert!(refused.message().contains("TOKEN answered 503 after"), "{refused}");

    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let guarded = Receiver::tls(servers.server(Some(&clients)), |_, _| Reply::status(204)).await;
    let trusting = pb::Endpoint { ca_certificate: servers.pem(), ..at(guarded.url("/")) };
    create(&world, trusting.clone(), false).await.expect_err("without a certificate");
    let own = clients.client("us");
    let own = pb::MtlsClientCert { certificate_chain: own.chain, private_key: own.key, ..Default::default() };
    create(&world, pb::Endpoint { mtls_client_cert: Some(own), ..trusting }, false).await.expect("with one");
}

async fn a_change_of_what_is_reached_is_pinged(database: Database) {
    let world = world(database).await;
    let (good, bad) = (Receiver::ok().await, answering("POST", 500, 500).await);
    let (made, _) = create(&world, at(good.url("/")), false).await.expect("created");
    let update = |endpoint: pb::Endpoint, path: &str, skip_ping: bool| {
        let update_mask = Some(prost_types::FieldMask { paths: vec![path.to_owned()] });
        let endpoint = Some(pb::Endpoint { id: made.id.clone(), ..endpoint });
        let request = pb::UpdateEndpointRequest { endpoint, update_mask, skip_ping, ..Default::default() };
        let mut endpoints = world.client.endpoints();
        async move {
            endpoints.update_endpoint(request).await.map(|reply| reply.into_inner().endpoint.expect("one"))
        }
    };
    let named = pb::Endpoint { name: "new".to_owned(), ..Default::default() };
    update(named, "name", false).await.expect("updated");
    update(at(good.url("/")), "url", false).await.expect("the same");
    assert_eq!(good.seen().len(), 1, "neither is a change of what is reached");

    let key = pb::ApiKeyAuth { header_name: "x-key".to_owned(), header_value: "v".to_owned() };
    let method = Some(Method::ApiKey(key));
    let keyed = pb::Endpoint { authentication: Some(pb::Authentication { method }), ..Default::default() };
    update(keyed, "authentication", false).await.expect("updated");
    assert_eq!(good.seen().last().expect("a ping").header("x-key"), "v");

    let refused = update(at(bad.url("/")), "url", false).await.expect_err("refused");
    assert_eq!(reason(&refused).as_deref(), Some("PING_FAILED"));
    let request = pb::GetEndpointRequest { endpoint_id: made.id.clone(), ..Default::default() };
    let now = world.client.endpoints().get_endpoint(request).await.expect("found").into_inner();
    assert_eq!(now.endpoint.expect("one").url, good.url("/"), "a refused change changes nothing");
    assert_eq!(update(at(bad.url("/")), "url", true).await.expect("skipped").url, bad.url("/"));
}

async fn pings_on_demand_change_nothing_and_are_limited(database: Database) {
    let world = world(database).await;
    let receiver = answering("GET", 200, 405).await;
    let (made, _) = create(&world, at(receiver.url("/")), true).await.expect("created");
    let request = pb::PingEndpointRequest { endpoint_id: made.id.clone(), ..Default::default() };
    for _ in 0..10 {
        let ping =
            world.client.endpoints().ping_endpoint(request.clone()).await.expect("pinged").into_inner();
        assert!(ping.accepted);
        let tries: Vec<_> = ping.tries.iter().map(|one| (one.method.as_str(), one.status_code)).collect();
        assert_eq!(tries, [("HEAD", Some(405)), ("GET", Some(200))]);
        assert!(ping.tries.iter().all(|one| one.duration.is_some()));
    }
    let status = world.client.endpoints().ping_endpoint(request).await.expect_err("an eleventh");
    assert_eq!(
        (status.code(), reason(&status).as_deref()),
        (Code::ResourceExhausted, Some("PINGS_PER_MINUTE"))
    );
    let wait = status.get_error_details().retry_info().and_then(|info| info.retry_delay).expect("when");
    assert!(wait <= Duration::from_secs(60));
    let changed = pb::UpdateEndpointRequest {
        endpoint: Some(pb::Endpoint { id: made.id.clone(), ..at(receiver.url("/other")) }),
        ..Default::default()
    };
    let status = world.client.endpoints().update_endpoint(changed).await.expect_err("counts as well");
    assert_eq!(status.code(), Code::ResourceExhausted);

    let request = pb::GetEndpointRequest { endpoint_id: made.id.clone(), ..Default::default() };
    let now = world.client.endpoints().get_endpoint(request).await.expect("found").into_inner();
    assert_eq!(now.endpoint, Some(made), "no attempt, no failure, no new revision");
}

async fn token_tests_say_what_came_back(database: Database) {
    let world = world(database).await;
    let tokens = TokenServer::granting(json!(120)).await;
    let test = |subject: pb::test_o_auth2_request::Subject| {
        let request = pb::TestOAuth2Request { subject: Some(subject), ..Default::default() };
        let mut endpoints = world.client.endpoints();
        async move { endpoints.test_o_auth2(request).await.map(tonic::Response::into_inner) }
    };
    use pb::test_o_auth2_request::Subject;
    let asked = oauth2(tokens.url(), shared("secret", false));
    let granted = test(Subject::Oauth2(asked.clone())).await.expect("tested");
    assert_eq!((granted.granted, granted.status_code, granted.token_life_said), (true, Some(200), true));
    assert_eq!(granted.token_life, Some(prost_types::Duration { seconds: 120, nanos: 0 }));
    assert!(!format!("{granted:?}").contains("token-0"), "{granted:?}");

    tokens.fail(true);
    let method = Some(Method::Oauth2(asked));
    let wanted = pb::Endpoint {
        authentication: Some(pb::Authentication { method }),
        ..at("https://example.com/".to_owned())
    };
    let (made, _) = create(&world, wanted, true).await.expect("created");
    let failed = test(Subject::EndpointId(made.id)).await.expect("tested");
    assert_eq!((failed.granted, failed.status_code), (false, Some(503)));
    assert_eq!(
        (failed.error_class(), failed.error_detail.as_str()),
        (pb::ErrorClass::HttpStatus, "answered 503")
    );

    let (plain, _) = create(&world, at("https://example.com/".to_owned()), true).await.expect("created");
    let status = test(Subject::EndpointId(plain.id)).await.expect_err("none");
    assert_eq!(reason(&status).as_deref(), Some("NO_OAUTH2"));
}
