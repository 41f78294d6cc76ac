//! A token server that fails: failed attempts are recorded and retried, others wait without one, and it is asked by
//! one request at a time, ever more rarely.

use std::time::Duration;

use hawser_client::pb;
use serde_json::{Value, json};

use crate::oauth2::{endpoint, oauth2, shared};
use crate::support::failing::{get, until_endpoint};
use crate::support::token_server::{TokenServer, reply};
use crate::support::world::quick_retries;
use crate::support::{Database, Receiver, Reply, World, on_both};

on_both!(
    waiting_deliveries_lose_no_attempt,
    a_probe_does_not_wait_for_the_token_server,
    bad_answers_are_failed_attempts,
);

async fn waiting_deliveries_lose_no_attempt(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::ok().await;
    let tokens = TokenServer::granting(json!(3600)).await;
    tokens.fail(true);
    let asked = oauth2(tokens.url(), shared("secret", false));
    let wanted = pb::Endpoint { retry_policy: Some(quick_retries(10)), ..endpoint(receiver.url("/"), asked) };
    let (made, _) = world.create(wanted, &["*"]).await;
    let mut events = Vec::new();
    for _ in 0..40 {
        events.push(world.publish_to(&made, b"{}").await.event_id);
    }
    // Three requests: at once, after 1 s, and after 2 s more.
    tokens.receiver.wait_for_count(3).await;
    tokens.fail(false);
    receiver.wait_for_count(40).await;
    let mut failures = Vec::new();
    for event in &events {
        let delivery = world.settled_deliveries_of(event).await.remove(0);
        assert_eq!(delivery.status(), pb::DeliveryStatus::Success);
        let mut attempts = world.attempts_of(&delivery.id).await;
        let last = attempts.pop().expect("an attempt");
        assert_eq!(last.status_code, Some(204));
        failures.extend(attempts);
    }
    let asked = tokens.receiver.seen().len();
    assert_eq!(failures.len(), asked - 1, "each failed request failed one attempt");
    for failure in &failures {
        assert_eq!(failure.error_class(), pb::ErrorClass::Auth);
        assert_eq!(failure.error_detail, "no token: answered 503");
        assert_eq!((failure.peer_address.as_str(), failure.request_headers.len()), ("", 0));
    }
    // By their attempts: the second began 1 s after the first ended, or later, and the third 2 s after that.
    let mut times: Vec<_> = failures
        .iter()
        .filter_map(|failure| failure.start_time)
        .map(|time| Duration::new(time.seconds.unsigned_abs(), time.nanos.unsigned_abs()))
        .collect();
    times.sort();
    for (pair, rest) in times.windows(2).zip([1, 2, 4]) {
        assert!(pair[1] - pair[0] >= Duration::from_secs(rest), "{times:?}");
    }
}

/// A probe is one attempt, now: where no token may be fetched yet it fails, and the endpoint does not rest in PENDING.
async fn a_probe_does_not_wait_for_the_token_server(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::scripted(|_, before| Reply::status([410, 204][before.min(1)])).await;
    let tokens = TokenServer::granting(json!(3600)).await;
    let asked = oauth2(tokens.url(), shared("secret", false));
    let (made, _) = world.create(endpoint(receiver.url("/"), asked), &["*"]).await;
    let event = world.publish_to(&made, b"{}").await.event_id;
    let delivery = world.settled_deliveries_of(&event).await.remove(0);
    assert_eq!(get(&world, &made.id).await.status(), pb::EndpointStatus::Inactive, "its receiver is gone");
    tokens.fail(true);
    // Other credentials, so that there is no token.
    let changed = endpoint(receiver.url("/"), oauth2(tokens.url(), shared("other", false)));
    let request = pb::UpdateEndpointRequest {
        endpoint: Some(pb::Endpoint { id: made.id.clone(), ..changed }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["authentication".to_owned()] }),
        ..Default::default()
    };
    world.client.endpoints().update_endpoint(request).await.expect("updated");
    let mut watch = world.watch().await;
    let request = pb::RetryDeliveryRequest { delivery_id: delivery.id.clone(), ..Default::default() };
    let mut probed = 0;
    // The first that finds no token asks for one; with each that fails there is more time to come before the next may.
    loop {
        world.client.deliveries().retry_delivery(request.clone()).await.expect("INACTIVE");
        let told = until_endpoint(&mut watch, &made.id, pb::EndpointChangeType::Disabled).await;
        assert_eq!(told.status(), pb::EndpointStatus::Inactive);
        probed += 1;
        let attempts = world.attempts_of(&delivery.id).await;
        assert_eq!(attempts.len(), 1 + probed, "each probe is one attempt");
        let last = attempts.last().expect("an attempt");
        assert_eq!(last.error_class(), pb::ErrorClass::Auth);
        if last.error_detail == "no token: the token server failed a moment ago" {
            break;
        }
        assert_eq!(last.error_detail, "no token: answered 503");
    }
    let delivery = world.deliveries_of(&event).await.remove(0);
    assert_eq!((delivery.status(), receiver.seen().len()), (pb::DeliveryStatus::Failed, 1));
}

async fn bad_answers_are_failed_attempts(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::ok().await;
    let grant = |changes: Value| {
        let mut answer = json!({ "access_token": "canary", "token_type": "Bearer", "expires_in": 60 });
        for (name, value) in changes.as_object().expect("an object") {
            answer[name] = value.clone();
        }
        reply(200, &answer)
    };
    for (answer, detail) in [
        (
            reply(401, &json!({ "error": "invalid_client", "error_description": "canary" })),
            "answered 401 (invalid_client)",
        ),
        (reply(400, &json!({ "error": "canary" })), "answered 400"),
        (
            Reply { headers: vec![("location", receiver.url("/elsewhere"))], ..Reply::status(302) },
            "answered 302",
        ),
        (Reply { body: "<p>canary</p>".into(), ..Reply::status(200) }, "the answer is not a JSON object"),
        (reply(200, &json!(["canary"])), "the answer is not a JSON object"),
        (grant(json!({ "access_token": null })), "the answer holds no access token"),
        (
            grant(json!({ "access_token": "canary\n" })),
            "the answer's access token cannot be sent in a header",
        ),
        (grant(json!({ "token_type": "mac" })), "the answer's token type is not Bearer"),
        (grant(json!({ "expires_in": "soon" })), "the answer's time of expiry is not a number"),
        (grant(json!({ "more": "x".repeat(20_000) })), "the answer is larger than 16 KiB, or did not end"),
    ] {
        let server = Receiver::scripted(move |_, _| answer.clone()).await;
        let asked = oauth2(server.url("/token"), shared("secret", false));
        let wanted =
            pb::Endpoint { retry_policy: Some(quick_retries(1)), ..endpoint(receiver.url("/"), asked) };
        let (made, _) = world.create(wanted, &["*"]).await;
        let event = world.publish_to(&made, b"{}").await.event_id;
        let delivery = world.settled_deliveries_of(&event).await.remove(0);
        assert_eq!(delivery.status(), pb::DeliveryStatus::Failed);
        let attempts = world.attempts_of(&delivery.id).await;
        assert_eq!(attempts[0].error_class(), pb::ErrorClass::Auth);
        assert_eq!(attempts[0].error_detail, format!("no token: {detail}"));
        assert_eq!(server.seen().len(), 1);
    }
    assert!(receiver.seen().is_empty(), "nothing was sent without a token, and no redirect followed");
}
