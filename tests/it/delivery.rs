//! What arrives is what was published, signed so that others accept it.

use hawser_client::pb;
use hawser_client::pb::publish_event_request::Target;

use crate::support::failing::next_attempt;
use crate::support::world::until;
use crate::support::{Database, Receiver, Reply, World, on_both};

on_both!(
    bodies_arrive_byte_for_byte,
    an_attempt_is_recorded_without_secrets,
    credentials_among_an_events_headers_are_sent_and_not_shown,
    owners_and_broadcasts_reach_all_their_endpoints,
);

const ODD: &[&[u8]] = &[
    b"",
    b"{}",
    b"  { \"a\" :1,\t\"a\": 2 }\r\n",
    b"{\"n\":1152921504606846976,\"f\":1.10,\"e\":1E400}",
    "{\"name\":\"Zo\u{eb} \u{1f980}\"}".as_bytes(),
    b"not json at all",
    b"\xff\xfe\x00invalid utf-8\x80",
];

async fn bodies_arrive_byte_for_byte(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::ok().await;
    let (endpoint, secret) = world.endpoint(&receiver.url("/hook"), "acme").await;
    let mut published = Vec::new();
    for body in ODD {
        published.push((world.publish_to(&endpoint, body).await.event_id, *body));
    }
    let seen = receiver.wait_for_count(ODD.len()).await;
    let verifier = standardwebhooks::Webhook::new(&secret).expect("a secret");
    for (event, body) in published {
        let one = seen.iter().find(|one| one.event() == event).expect("arrived");
        assert_eq!(one.body, body);
        // The official library insists on UTF-8, which the format does not.
        if std::str::from_utf8(body).is_ok() {
            verifier.verify(body, &one.headers).expect("the official library accepts it");
            let altered = [body, b" "].concat();
            assert!(verifier.verify(&altered, &one.headers).is_err());
        }
    }
}

async fn an_attempt_is_recorded_without_secrets(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::scripted(|_, _| Reply {
        headers: vec![("set-cookie", "session=canary-cookie".to_owned()), ("x-request-id", "abc".to_owned())],
        body: vec![b'x'; 20_000].into(),
        ..Reply::status(200)
    })
    .await;
    let header = pb::Header { name: "Authorization".to_owned(), value: "Bearer canary-header".to_owned() };
    let endpoint = pb::Endpoint { url: receiver.url("/hook"), headers: vec![header], ..Default::default() };
    let (endpoint, _) = world.create(endpoint, &["*"]).await;
    assert_eq!(endpoint.headers[0].value, "[redacted]");
    let mut watch = world.watch().await;
    let event = world.publish_to(&endpoint, b"{}").await.event_id;
    let delivery = until(&mut watch, &event, pb::DeliveryStatus::Success).await;
    assert_eq!(receiver.seen()[0].header("authorization"), "Bearer canary-header");

    let attempts = world.attempts_of(&delivery.id).await;
    let [attempt] = attempts.as_slice() else { panic!("one attempt: {attempts:?}") };
    assert_eq!((attempt.number, attempt.status_code), (1, Some(200)));
    assert_eq!(attempt.response_body.len(), 16 * 1024);
    assert!(attempt.response_body_truncated);
    assert!(attempt.timings.as_ref().expect("timings").connect.is_some());
    assert!(attempt.peer_address.starts_with("127.0.0.1:"));
    let shown = format!("{attempt:?} {endpoint:?} {}", world.server.log());
    assert!(!shown.contains("canary"), "{shown}");
    let sent =
        |name: &str| attempt.request_headers.iter().find(|one| one.name == name).expect(name).value.clone();
    assert_eq!(sent("webhook-id"), event);
    assert_eq!(sent("webhook-signature"), "[redacted]");

    // Nor in what is stored.
    for entry in std::fs::read_dir(world.server.data()).expect("folder") {
        let bytes = std::fs::read(entry.expect("entry").path()).unwrap_or_default();
        assert!(!bytes.windows(13).any(|window| window == b"canary-header"));
    }
}

/// Credentials that a publisher sends along are for the receiver alone.
async fn credentials_among_an_events_headers_are_sent_and_not_shown(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::ok().await;
    let (endpoint, _) = world.endpoint(&receiver.url("/hook"), "acme").await;
    let mut watch = world.watch().await;
    let headers = [("Authorization", "Bearer canary-1"), ("x-api-key", "canary-2"), ("x-trace", "seen")];
    let request = pb::PublishEventRequest {
        event_type: "invoice.paid".to_owned(),
        target: Some(Target::EndpointId(endpoint.id.clone())),
        payload: b"{}".to_vec().into(),
        headers: headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        ..Default::default()
    };
    let event = world.client.events().publish_event(request).await.expect("published").into_inner().event_id;
    let streamed = next_attempt(&mut watch, &endpoint.id).await;
    let sent = receiver.wait_for_count(1).await.remove(0);
    for (name, value) in headers {
        assert_eq!(sent.header(name), value);
    }
    let delivery = world.settled_deliveries_of(&event).await.remove(0);
    let kept = world.attempts_of(&delivery.id).await.remove(0);
    for attempt in [streamed, kept] {
        let shown = |name: &str| {
            let header = attempt.request_headers.iter().find(|one| one.name == name);
            header.expect(name).value.clone()
        };
        assert_eq!([shown("authorization"), shown("x-api-key")], ["[redacted]"; 2]);
        assert_eq!((shown("x-trace"), shown("webhook-id")), ("seen".to_owned(), event.clone()));
        assert!(!format!("{attempt:?}").contains("canary"), "{attempt:?}");
    }
}

async fn owners_and_broadcasts_reach_all_their_endpoints(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::ok().await;
    for (path, owner) in [("/a1", "a"), ("/a2", "a"), ("/b", "b")] {
        world.endpoint(&receiver.url(path), owner).await;
    }
    let deaf = pb::Endpoint { url: receiver.url("/deaf"), owner_id: "a".to_owned(), ..Default::default() };
    let (deaf, _) = world.create(deaf, &["other.*"]).await;

    let to_owner = world.publish(Target::OwnerId("a".to_owned()), b"1").await;
    assert_eq!(to_owner.delivery_count, 2);
    let to_all = world.publish(Target::Broadcast(pb::Broadcast {}), b"2").await;
    assert_eq!(to_all.delivery_count, 3);
    let to_nobody = world.publish(Target::OwnerId("nobody".to_owned()), b"3").await;
    assert_eq!(to_nobody.delivery_count, 0);
    assert_eq!(world.publish_to(&deaf, b"4").await.delivery_count, 0);

    let seen = receiver.wait_for_count(5).await;
    let mut got: Vec<_> = seen.iter().map(|one| (one.path.as_str(), one.body.to_vec())).collect();
    got.sort();
    let expected = [("/a1", b"1"), ("/a1", b"2"), ("/a2", b"1"), ("/a2", b"2"), ("/b", b"2")]
        .map(|(path, body)| (path, body.to_vec()));
    assert_eq!(got, expected);
}
