//! OAuth2 client credentials: how tokens are asked for, kept, refreshed and dropped.

use std::collections::HashSet;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hawser_client::pb::authentication::Method;
use hawser_client::pb::o_auth2::Client;
use hawser_client::pb::publish_event_request::Target;
use hawser_client::{field_violations, pb};
use serde_json::{Value, json};

use crate::support::failing::{NO_BREAKER, world_with};
use crate::support::token_server::{ClientKey, TokenServer, form};
use crate::support::world::{publish, quick_retries};
use crate::support::{Database, Receiver, Reply, World, in_time, on_both};

on_both!(
    a_shared_secret_is_sent_in_the_body_or_by_http_basic,
    an_assertion_is_signed_for_each_request,
    an_assertion_has_the_usual_claims,
    a_thousand_deliveries_make_one_token_request,
    a_token_is_refreshed_before_it_ends,
    a_refused_token_is_fetched_again_once,
    an_endpoint_that_refuses_every_token_costs_two,
    an_endpoint_that_refuses_now_and_then_costs_two,
    a_changed_secret_is_used_by_the_next_delivery,
    bad_settings_are_refused_by_field,
);

pub fn shared(secret: &str, http_basic: bool) -> Client {
    Client::SharedSecret(pb::SharedSecret { client_secret: secret.to_owned(), http_basic })
}

pub fn oauth2(token_url: String, client: Client) -> pb::OAuth2 {
    pb::OAuth2 { token_url, client_id: "me&you".to_owned(), client: Some(client), ..Default::default() }
}

pub fn endpoint(url: String, oauth2: pb::OAuth2) -> pb::Endpoint {
    pb::Endpoint {
        url,
        authentication: Some(pb::Authentication { method: Some(Method::Oauth2(oauth2)) }),
        retry_policy: Some(quick_retries(3)),
        ..Default::default()
    }
}

fn bearers(receiver: &Receiver) -> Vec<String> {
    receiver.seen().iter().map(|one| one.header("authorization")).collect()
}

async fn a_shared_secret_is_sent_in_the_body_or_by_http_basic(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::ok().await;
    for in_header in [false, true] {
        let tokens = TokenServer::granting(json!(3600)).await;
        let asked = pb::OAuth2 {
            scope: "a b".to_owned(),
            audience: "https://api.example.com".to_owned(),
            ..oauth2(tokens.url(), shared("s+ecret", in_header))
        };
        let (made, _) = world.create(endpoint(receiver.url("/"), asked), &["*"]).await;
        let Some(Method::Oauth2(shown)) = made.authentication.clone().and_then(|shown| shown.method) else {
            panic!("it is shown")
        };
        assert_eq!(shown.client, Some(shared("[redacted]", in_header)));
        assert_eq!((shown.token_url, shown.client_id.as_str()), (tokens.url(), "me&you"));

        let event = world.publish_to(&made, b"{}").await.event_id;
        let delivery = world.settled_deliveries_of(&event).await.remove(0);
        assert_eq!(delivery.status(), pb::DeliveryStatus::Success);
        assert_eq!(bearers(&receiver).last().map(String::as_str), Some("Bearer token-0"));
        let attempt = world.attempts_of(&delivery.id).await.remove(0);
        let sent = attempt.request_headers.iter().find(|header| header.name == "authorization");
        assert_eq!(sent.expect("recorded").value, "[redacted]");

        let request = &tokens.receiver.seen()[0];
        assert_eq!(request.header("content-type"), "application/x-www-form-urlencoded");
        let mut fields = form(request);
        let credentials = if in_header {
            let basic = request.header("authorization");
            let basic = STANDARD.decode(basic.strip_prefix("Basic ").expect("basic")).expect("base64");
            assert_eq!(String::from_utf8(basic).expect("text"), "me%26you:s%2Becret");
            [None, None]
        } else {
            assert_eq!(request.header("authorization"), "");
            [fields.remove("client_id"), fields.remove("client_secret")]
        };
        let expected = [Some("me&you".to_owned()), Some("s+ecret".to_owned())];
        assert_eq!(credentials, if in_header { [None, None] } else { expected });
        let rest =
            [("grant_type", "client_credentials"), ("scope", "a b"), ("audience", "https://api.example.com")];
        assert_eq!(fields, rest.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    }
}

async fn an_assertion_is_signed_for_each_request(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::ok().await;
    let key = Arc::new(ClientKey::new("key-1"));
    let verifier = key.clone();
    let audience = "urn:the-token-server";
    // Three seconds in milliseconds are less than is believed, so each token lives for 5 s: one for each endpoint.
    let tokens = TokenServer::judging(json!("3000"), move |seen| {
        let form = form(seen);
        let assertion = form.get("client_assertion").ok_or("no assertion")?;
        let (claims, kid) = verifier.verify(assertion, audience)?;
        let life = claims["exp"].as_i64().zip(claims["iat"].as_i64()).map(|(exp, iat)| exp - iat);
        let right = [
            kid == "key-1",
            claims["iss"] == "issuer",
            claims["sub"] == "me&you",
            life == Some(300),
            form["client_assertion_type"] == "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            form["grant_type"] == "client_credentials",
            !form.contains_key("client_secret"),
        ];
        if right.contains(&false) { Err(format!("{claims} {kid} {right:?}")) } else { Ok(()) }
    })
    .await;
    let client = Client::ClientAssertion(pb::ClientAssertion {
        private_jwk: key.jwk.to_string(),
        issuer: "issuer".to_owned(),
        audience: audience.to_owned(),
        ..Default::default()
    });
    let fields =
        pb::TokenFields { expires_in_unit: pb::ExpiresInUnit::Milliseconds.into(), ..Default::default() };
    for _ in 0..2 {
        let asked = pb::OAuth2 { fields: Some(fields.clone()), ..oauth2(tokens.url(), client.clone()) };
        let (made, _) = world.create(endpoint(receiver.url("/"), asked), &["*"]).await;
        let shown = format!("{made:?}");
        assert!(shown.contains("key-1") && !shown.contains(key.jwk["d"].as_str().expect("d")), "{shown}");
        let event = world.publish_to(&made, b"{}").await.event_id;
        let delivery = world.settled_deliveries_of(&event).await.remove(0);
        let attempts = world.attempts_of(&delivery.id).await;
        assert_eq!(delivery.status(), pb::DeliveryStatus::Success, "{attempts:?}");
    }
    let ids: HashSet<Value> = tokens
        .receiver
        .seen()
        .iter()
        .map(|seen| {
            let (claims, _) = key.verify(&form(seen)["client_assertion"], audience).expect("verified");
            claims["jti"].clone()
        })
        .collect();
    assert_eq!(ids.len(), 2, "no two are the same");
}

/// Where nobody says otherwise: it is the client's, about the client, for the token URL.
async fn an_assertion_has_the_usual_claims(database: Database) {
    let world = World::new(database).await;
    let (receiver, tokens) = (Receiver::ok().await, TokenServer::granting(json!(3600)).await);
    let key = ClientKey::new("key-1");
    let client = Client::ClientAssertion(pb::ClientAssertion {
        private_jwk: key.jwk.to_string(),
        ..Default::default()
    });
    let (made, _) = world.create(endpoint(receiver.url("/"), oauth2(tokens.url(), client)), &["*"]).await;
    world.publish_to(&made, b"{}").await;
    receiver.wait_for_count(1).await;
    let form = form(&tokens.receiver.seen()[0]);
    let (claims, _) = key.verify(&form["client_assertion"], &tokens.url()).expect("for the token URL");
    assert_eq!(
        (&claims["aud"], &claims["iss"], &claims["sub"]),
        (&json!(tokens.url()), &json!("me&you"), &json!("me&you"))
    );
}

async fn a_thousand_deliveries_make_one_token_request(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::ok().await;
    let tokens = TokenServer::granting(json!(3600)).await;
    let asked = oauth2(tokens.url(), shared("secret", false));
    let (made, _) = world.create(endpoint(receiver.url("/"), asked), &["*"]).await;
    publish_many(&world.client, &made, 1000).await;
    receiver.wait_for_count(1000).await;
    assert!(bearers(&receiver).iter().all(|bearer| bearer == "Bearer token-0"));
    assert_eq!(tokens.requests(), 1);
}

/// So many events, in as few calls as may be.
async fn publish_many(client: &hawser_client::Client, endpoint: &pb::Endpoint, count: usize) {
    for _ in 0..count / 100 {
        let events = (0..100).map(|_| pb::PublishEventRequest {
            event_type: "test.event".to_owned(),
            target: Some(Target::EndpointId(endpoint.id.clone())),
            payload: b"{}".to_vec().into(),
            ..Default::default()
        });
        let request = pb::BatchPublishEventsRequest { requests: events.collect(), ..Default::default() };
        client.events().batch_publish_events(request).await.expect("published");
    }
}

/// However the deliveries are spread over three nodes, each node asks once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_deliveries_make_one_token_request_per_node() {
    in_time(async {
        let world = World::new(Database::postgres().await).await;
        let nodes = [world.server.join().await, world.server.join().await];
        let receiver = Receiver::ok().await;
        let tokens = TokenServer::granting(json!(3600)).await;
        let asked = oauth2(tokens.url(), shared("secret", false));
        let (made, _) = world.create(endpoint(receiver.url("/"), asked), &["*"]).await;
        let clients =
            [world.client.clone(), world.client_of(&nodes[0]).await, world.client_of(&nodes[1]).await];
        let mut sent = 0;
        // A node's first event goes straight to its own lane, so each node sends at least one.
        for client in &clients {
            publish(client, Target::EndpointId(made.id.clone()), b"{}", "").await.expect("published");
            sent += 1;
            receiver.wait_for_count(sent).await;
        }
        for client in &clients {
            publish_many(client, &made, 400).await;
            sent += 400;
        }
        receiver.wait_for_count(sent).await;
        let used: HashSet<String> = bearers(&receiver).into_iter().collect();
        let expected = [0, 1, 2].map(|number| format!("Bearer token-{number}"));
        assert_eq!((used, tokens.requests()), (expected.into(), 3));
    })
    .await;
}

async fn a_token_is_refreshed_before_it_ends(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::ok().await;
    // A round in which no delivery fell into the token's last half second shows nothing.
    for round in 1.. {
        if refreshed_meanwhile(&world, &receiver).await {
            return;
        }
        assert!(round < 5, "a delivery waited for the new token each time");
    }
}

/// Of a life of 5 s the last half second is for refreshing. Says whether the delivery that caused it went with the old
/// token, without waiting for the new one; those after it have that, and nothing more is asked.
async fn refreshed_meanwhile(world: &World, receiver: &Receiver) -> bool {
    let tokens = TokenServer::granting(json!(5)).await;
    let asked = oauth2(tokens.url(), shared("secret", false));
    let (made, _) = world.create(endpoint(receiver.url("/"), asked), &["*"]).await;
    let mut sent = receiver.seen().len();
    while tokens.requests() < 2 {
        world.publish_to(&made, b"{}").await;
        sent += 1;
        receiver.wait_for_count(sent).await;
        crate::support::pass_time(std::time::Duration::from_millis(50)).await;
    }
    let went_on = bearers(receiver).last().is_some_and(|last| last == "Bearer token-0");
    tokens.receiver.wait_for_count(2).await;
    loop {
        world.publish_to(&made, b"{}").await;
        sent += 1;
        receiver.wait_for_count(sent).await;
        if bearers(receiver).last().is_some_and(|last| last == "Bearer token-1") {
            break;
        }
    }
    assert_eq!(tokens.requests(), 2);
    went_on
}

async fn a_refused_token_is_fetched_again_once(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::scripted(|seen, _| {
        Reply::status(if seen.header("authorization") == "Bearer token-1" { 204 } else { 401 })
    })
    .await;
    let tokens = TokenServer::granting(json!(3600)).await;
    let asked = oauth2(tokens.url(), shared("secret", false));
    // Were its retry not due at once, it would be too late for this test.
    let hour = pb::LinearBackoff { wait: Some(prost_types::Duration { seconds: 3600, nanos: 0 }) };
    let policy =
        pb::RetryPolicy { strategy: Some(pb::retry_policy::Strategy::Linear(hour)), max_attempts: 5 };
    let wanted = pb::Endpoint { retry_policy: Some(policy), ..endpoint(receiver.url("/"), asked) };
    let (made, _) = world.create(wanted, &["*"]).await;
    let event = world.publish_to(&made, b"{}").await.event_id;
    let delivery = world.settled_deliveries_of(&event).await.remove(0);
    assert_eq!(delivery.status(), pb::DeliveryStatus::Success);
    let attempts = world.attempts_of(&delivery.id).await;
    let statuses: Vec<_> = attempts.iter().map(|attempt| attempt.status_code).collect();
    assert_eq!(statuses, [Some(401), Some(204)], "the failed attempt is recorded");
    assert_eq!(bearers(&receiver), ["Bearer token-0", "Bearer token-1"]);
    assert_eq!(tokens.requests(), 2);
}

/// Well within a minute: one token, and the one that was fetched for its refusal.
async fn an_endpoint_that_refuses_every_token_costs_two(database: Database) {
    let world = world_with(database, pb::PausedPolicy::Discard, &NO_BREAKER).await;
    let receiver = Receiver::scripted(|_, _| Reply::status(401)).await;
    let tokens = TokenServer::granting(json!(3600)).await;
    let asked = oauth2(tokens.url(), shared("secret", false));
    let (made, _) = world.create(endpoint(receiver.url("/"), asked), &["*"]).await;
    let mut events = Vec::new();
    for _ in 0..10 {
        events.push(world.publish_to(&made, b"{}").await.event_id);
    }
    for event in &events {
        let delivery = world.settled_deliveries_of(event).await.remove(0);
        assert_eq!((delivery.status(), delivery.attempt_count), (pb::DeliveryStatus::Failed, 3));
    }
    let used: HashSet<String> = bearers(&receiver).into_iter().collect();
    assert_eq!(used, [0, 1].map(|number| format!("Bearer token-{number}")).into());
    assert_eq!((receiver.seen().len(), tokens.requests()), (30, 2));
}

async fn an_endpoint_that_refuses_now_and_then_costs_two(database: Database) {
    let world = World::new(database).await;
    let receiver =
        Receiver::scripted(|_, before| Reply::status(if before % 10 == 9 { 401 } else { 204 })).await;
    let tokens = TokenServer::granting(json!(3600)).await;
    let asked = oauth2(tokens.url(), shared("secret", false));
    let (made, _) = world.create(endpoint(receiver.url("/"), asked), &["*"]).await;
    for round in 1..=5 {
        publish_many(&world.client, &made, 100).await;
        receiver.wait_for_count(round * 100).await;
    }
    let refused = receiver.seen().len() / 10;
    assert!(refused >= 50);
    assert_eq!(tokens.requests(), 2, "of {refused} refusals one has the token fetched again");
}

async fn a_changed_secret_is_used_by_the_next_delivery(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::ok().await;
    let tokens = TokenServer::granting(json!(3600)).await;
    let (made, _) =
        world.create(endpoint(receiver.url("/"), oauth2(tokens.url(), shared("old", false))), &["*"]).await;
    world.publish_to(&made, b"{}").await;
    receiver.wait_for_count(1).await;
    let changed = endpoint(receiver.url("/"), oauth2(tokens.url(), shared("new", false)));
    let request = pb::UpdateEndpointRequest {
        endpoint: Some(pb::Endpoint { id: made.id.clone(), ..changed }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["authentication".to_owned()] }),
        ..Default::default()
    };
    world.client.endpoints().update_endpoint(request).await.expect("updated");
    world.publish_to(&made, b"{}").await;
    receiver.wait_for_count(2).await;
    assert_eq!(bearers(&receiver), ["Bearer token-0", "Bearer token-1"]);
    let secrets: Vec<_> =
        tokens.receiver.seen().iter().map(|seen| form(seen)["client_secret"].clone()).collect();
    assert_eq!(secrets, ["old", "new"]);
}

async fn bad_settings_are_refused_by_field(database: Database) {
    let world = World::new(database).await;
    let good = oauth2("https://example.com/token".to_owned(), shared("s", false));
    let assertion = |jwk: &Value| {
        let private_jwk = jwk.to_string();
        Some(Client::ClientAssertion(pb::ClientAssertion { private_jwk, ..Default::default() }))
    };
    let (key, other) = (ClientKey::new("k").jwk, ClientKey::new("k").jwk);
    let with = |name: &str, value: Value| {
        let mut jwk = key.clone();
        jwk[name] = value;
        jwk
    };
    let mut cases = vec![
        (pb::OAuth2 { token_url: "https://10.0.0.1/".to_owned(), ..good.clone() }, "token_url"),
        (pb::OAuth2 { token_url: "ftp://example.com/".to_owned(), ..good.clone() }, "token_url"),
        (pb::OAuth2 { token_url: String::new(), ..good.clone() }, "token_url"),
        (pb::OAuth2 { client_id: String::new(), ..good.clone() }, "client_id"),
        (pb::OAuth2 { scope: "a\nb".to_owned(), ..good.clone() }, "scope"),
        (pb::OAuth2 { client: Some(shared("", false)), ..good.clone() }, "shared_secret.client_secret"),
        (pb::OAuth2 { client: Some(shared("[redacted]", false)), ..good.clone() }, ""),
        (pb::OAuth2 { client: None, ..good.clone() }, ""),
    ];
    for jwk in [
        json!({}),
        json!("canary"),
        with("kty", json!("RSA")),
        with("crv", json!("P-384")),
        with("alg", json!("none")),
        with("kid", json!("")),
        with("kid", json!("k".repeat(129))),
        with("d", json!("canary")),
        with("d", other["d"].clone()),
        with("x", other["x"].clone()),
        with("jku", json!("https://example.com/keys")),
        with("x5u", json!("https://example.com/keys")),
        with("pad", json!("x".repeat(8192))),
    ] {
        let bad = pb::OAuth2 { client: assertion(&jwk), ..good.clone() };
        cases.push((bad, "client_assertion.private_jwk"));
    }
    for (bad, field) in cases {
        // To test it names the same fields, as they stand in that request.
        let subject = Some(pb::test_o_auth2_request::Subject::Oauth2(bad.clone()));
        let test = pb::TestOAuth2Request { subject, ..Default::default() };
        let status = world.client.endpoints().test_o_auth2(test).await.expect_err(field);
        let path = format!("oauth2.{field}");
        assert_eq!(field_violations(&status)[0].field, path.trim_end_matches('.'), "{status}");
        let wanted = endpoint("https://example.com/".to_owned(), bad);
        let request = pb::CreateEndpointRequest { endpoint: Some(wanted), ..Default::default() };
        let status = world.client.endpoints().create_endpoint(request).await.expect_err(field);
        let path = format!("endpoint.authentication.oauth2.{field}");
        assert_eq!(field_violations(&status)[0].field, path.trim_end_matches('.'), "{status}");
        assert!(!format!("{status:?}").contains("canary"), "{status:?}");
    }
}
