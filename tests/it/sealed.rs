//! A sealed value that does not open concerns its endpoint alone: attempts that need it fail and say so, whatever can be
//! done without it works, and it heals when it is set again.

use std::collections::HashMap;

use hawser_client::pb::authentication::Method;
use hawser_client::pb::publish_event_request::Target;
use hawser_client::pb::watch_response::Change;
use hawser_client::{field_violations, pb, reason};
use tonic::Code;

use crate::support::failing::{activate, deliveries_in, disable, get, linear, until_endpoint, world_with};
use crate::support::pki::Authority;
use crate::support::secrets::{self, rotate};
use crate::support::world::{next, quick_retries, until};
use crate::support::{Answer, Database, Desk, Receiver, World, on_both};

on_both!(
    a_value_that_does_not_open_stops_its_endpoint_alone,
    an_endpoint_with_one_is_shown_paused_and_deleted,
    an_endpoint_with_one_heals_when_it_is_set_again,
    an_endpoint_with_one_is_switched_off_and_its_dead_probe_ends,
);

const OWNER: &str = "acme";
/// What may not open, as endpoints name it, and where it is stored. A signing secret is no field of theirs.
const SEALED: [(&str, &str, &str, &str); 5] = [
    ("alerts", "endpoints", "alerts_sealed", "id"),
    ("headers", "endpoints", "headers_sealed", "id"),
    ("authentication", "endpoints", "authentication_sealed", "id"),
    ("mtls_client_cert", "endpoints", "client_certificate_sealed", "id"),
    ("secret", "secrets", "sealed", "endpoint_id"),
];

fn endpoint(url: String, uid: &str) -> pb::Endpoint {
    let basic = pb::BasicAuth { username: uid.to_owned(), password: "secret".to_owned() };
    let own = Authority::new("clients").client(uid);
    pb::Endpoint {
        url,
        uid: uid.to_owned(),
        owner_id: OWNER.to_owned(),
        headers: vec![pb::Header { name: "x-key".to_owned(), value: uid.to_owned() }],
        authentication: Some(pb::Authentication { method: Some(Method::BasicAuth(basic)) }),
        mtls_client_cert: Some(pb::MtlsClientCert {
            certificate_chain: own.chain,
            private_key: own.key,
            ..Default::default()
        }),
        alerts: Some(pb::Alerts {
            slack_webhook_url: "http://127.0.0.1:9/".to_owned(),
            on: vec!["endpoint.certificate_expiring".to_owned()],
            ..Default::default()
        }),
        retry_policy: Some(quick_retries(2)),
        ..Default::default()
    }
}

/// One endpoint that is whole, and one for each value, named after what is to be damaged.
async fn endpoints(world: &World, receiver: &Receiver) -> HashMap<&'static str, pb::Endpoint> {
    let mut made = HashMap::new();
    for uid in SEALED.map(|(uid, ..)| uid).into_iter().chain(["whole"]) {
        made.insert(uid, world.create(endpoint(receiver.url(&format!("/{uid}")), uid), &["*"]).await.0);
    }
    made
}

/// Gives each what was sealed for another, which is damage like any other. Who has read the value goes on with it.
async fn damage(world: &World) {
    let mut sql = world.server.sql().await;
    for (uid, table, column, key) in SEALED {
        let id = |uid: &str| format!("(SELECT e.id FROM endpoints e WHERE e.uid = '{uid}')");
        sql.run(&format!(
            "UPDATE {table} SET {column} = (SELECT o.{column} FROM {table} o WHERE o.{key} = {}) WHERE {key} = {}",
            id("whole"),
            id(uid)
        ))
        .await;
    }
}

fn unreadable(endpoint: &pb::Endpoint) -> Vec<&str> {
    endpoint.unreadable_fields.iter().map(String::as_str).collect()
}

/// What is shown of an endpoint after its value was damaged.
fn expected(uid: &str) -> Vec<&str> {
    [uid].into_iter().filter(|uid| !["secret", "whole"].contains(uid)).collect()
}

async fn list(world: &World) -> Vec<pb::Endpoint> {
    let list = pb::ListEndpointsRequest { owner_id: OWNER.to_owned(), ..Default::default() };
    world.client.endpoints().list_endpoints(list).await.expect("listed").into_inner().endpoints
}

async fn update(world: &World, endpoint: pb::Endpoint, path: &str) -> Result<pb::Endpoint, tonic::Status> {
    let update_mask = Some(prost_types::FieldMask { paths: vec![path.to_owned()] });
    let request = pb::UpdateEndpointRequest { endpoint: Some(endpoint), update_mask, ..Default::default() };
    let reply = world.client.endpoints().update_endpoint(request).await?.into_inner();
    Ok(reply.endpoint.expect("an endpoint"))
}

async fn pause(world: &World, id: &str) -> pb::Endpoint {
    let pause = pb::PauseEndpointRequest { endpoint_id: id.to_owned(), ..Default::default() };
    let reply = world.client.endpoints().pause_endpoint(pause).await.expect("paused").into_inner();
    reply.endpoint.expect("an endpoint")
}

async fn a_value_that_does_not_open_stops_its_endpoint_alone(database: Database) {
    let mut world = World::new(database).await;
    let receiver = Receiver::ok().await;
    let made = endpoints(&world, &receiver).await;
    world.server.terminate().await;
    damage(&world).await;
    world.restart().await;

    for round in 1..=2 {
        let event = world.publish(Target::OwnerId(OWNER.to_owned()), b"{}").await;
        assert_eq!(event.delivery_count, 6);
        for delivery in world.settled_deliveries_of(&event.event_id).await {
            let attempts = world.attempts_of(&delivery.id).await;
            if [&made["whole"].id, &made["alerts"].id].contains(&&delivery.endpoint_id) {
                assert_eq!(delivery.status(), pb::DeliveryStatus::Success, "{attempts:?}");
                continue;
            }
            assert_eq!((delivery.status(), attempts.len()), (pb::DeliveryStatus::Failed, 2), "{attempts:?}");
            for attempt in attempts {
                assert_eq!(attempt.error_class(), pb::ErrorClass::Cancelled);
                assert_eq!(attempt.error_detail, "a stored secret of the endpoint cannot be opened");
            }
        }
        let mut paths: Vec<_> = receiver.seen().into_iter().map(|seen| seen.path).collect();
        paths.sort();
        assert_eq!(paths, [vec!["/alerts"; round], vec!["/whole"; round]].concat(), "and none to the others");
        // The routes are read again.
        world.create(endpoint(receiver.url("/more"), &format!("more-{round}")), &["never"]).await;
    }
    let log = world.server.log();
    let told = |uid: &str| {
        let endpoint = format!("endpoint={}", made[uid].id);
        log.lines().filter(|line| line.contains(&endpoint)).collect::<Vec<&str>>()
    };
    assert!(told("whole").is_empty() && told("alerts").is_empty(), "{log}");
    for (uid, table, column, _) in SEALED.into_iter().filter(|(uid, ..)| *uid != "alerts") {
        let lines = told(uid);
        assert_eq!(lines.len(), 1, "{log}");
        // Which value, and why.
        assert!(lines[0].contains(&format!("{table}.{column} of row ")), "{}", lines[0]);
        assert!(lines[0].contains("it is damaged, was moved"), "{}", lines[0]);
    }
}

async fn an_endpoint_with_one_is_shown_paused_and_deleted(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::ok().await;
    let made = endpoints(&world, &receiver).await;
    damage(&world).await;

    let listed = list(&world).await;
    assert_eq!(listed.len(), 6);
    for one in &listed {
        assert_eq!(unreadable(one), expected(&one.uid));
        assert_eq!(*one, get(&world, &one.id).await);
        assert_eq!(one.headers.is_empty(), one.uid == "headers");
        assert_eq!(one.authentication.is_none(), one.uid == "authentication");
        assert_eq!(one.mtls_client_cert.is_none(), one.uid == "mtls_client_cert");
        assert_eq!(one.alerts.is_none(), one.uid == "alerts");
    }
    let snapshot = pb::watch_request::Start::Snapshot(pb::StartSnapshot {});
    let snapshot = pb::WatchRequest { start: Some(snapshot), ..Default::default() };
    let mut stream = world.client.watch(snapshot).await.expect("watching");
    let mut shown = Vec::new();
    loop {
        match next(&mut stream).await.change.expect("a change") {
            Change::EndpointChange(change) => shown.push(change.endpoint.expect("an endpoint")),
            Change::Bookmark(bookmark) if bookmark.snapshot_end => break,
            _ => {}
        }
    }
    assert_eq!(shown, listed);

    for one in &listed {
        let paused = pause(&world, &one.id).await;
        assert_eq!((paused.status(), unreadable(&paused)), (pb::EndpointStatus::Paused, expected(&one.uid)));
        let told = until_endpoint(&mut stream, &one.id, pb::EndpointChangeType::Paused).await;
        assert_eq!(unreadable(&told), expected(&one.uid));
        let delete = pb::DeleteEndpointRequest { endpoint_id: one.id.clone(), ..Default::default() };
        world.client.endpoints().delete_endpoint(delete).await.expect("deleted");
    }
    assert!(list(&world).await.is_empty());
    assert_eq!(made.len(), listed.len());
}

async fn an_endpoint_with_one_heals_when_it_is_set_again(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::ok().await;
    let made = endpoints(&world, &receiver).await;
    damage(&world).await;
    // Changes of something else leave what is stored as it is.
    for one in made.values() {
        let renamed = pb::Endpoint { id: one.id.clone(), name: "renamed".to_owned(), ..Default::default() };
        let renamed = update(&world, renamed, "name").await.expect("updated");
        assert_eq!((renamed.name.as_str(), unreadable(&renamed)), ("renamed", expected(&one.uid)));
        pause(&world, &one.id).await;
        activate(&world, &one.id).await;
    }
    let kept = "endpoints WHERE headers_sealed IS NOT NULL AND authentication_sealed IS NOT NULL \
                AND client_certificate_sealed IS NOT NULL AND certificate_ends_at IS NOT NULL AND alerts_sealed IS NOT NULL";
    assert_eq!(world.server.sql().await.count(kept).await, 6);

    // Nothing is sent without what cannot be read, and nothing that was not shown is kept.
    for uid in ["headers", "authentication", "mtls_client_cert"] {
        let ping = pb::PingEndpointRequest { endpoint_id: made[uid].id.clone(), ..Default::default() };
        let refused = world.client.endpoints().ping_endpoint(ping).await.expect_err("unreadable");
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        assert_eq!(reason(&refused).as_deref(), Some("ENDPOINT_UNREADABLE"));
    }
    for (uid, field) in [
        ("headers", "endpoint.headers[\"x-key\"]"),
        ("authentication", "endpoint.authentication.basic_auth.password"),
        ("mtls_client_cert", "endpoint.mtls_client_cert.certificate_chain"),
        ("alerts", "endpoint.alerts.slack_webhook_url"),
    ] {
        let shown_before = pb::Endpoint { etag: String::new(), ..made[uid].clone() };
        let refused = update(&world, shown_before, uid).await.expect_err("not stored");
        assert_eq!(field_violations(&refused)[0].field, field, "{refused}");
    }
    // Set again, it is there again; cleared, it is gone.
    for uid in ["headers", "authentication", "mtls_client_cert", "alerts"] {
        let whole = endpoint(receiver.url(&format!("/{uid}")), uid);
        let id = made[uid].id.clone();
        let healed = update(&world, pb::Endpoint { id: id.clone(), ..whole }, uid).await.expect("updated");
        assert_eq!(unreadable(&healed), Vec::<&str>::new());
        assert_eq!(healed, get(&world, &id).await);
    }
    // With a grace the one that does not open would sign too; it can be ended without being opened.
    let damaged = secrets::list(&world.client, &made["secret"].id).await.secrets.remove(0);
    rotate(&world.client, &made["secret"].id, 3600).await.expect("rotated");
    secrets::expire(&world.client, &damaged.id).await.expect("expired");
    let event = world.publish(Target::OwnerId(OWNER.to_owned()), b"{}").await;
    for delivery in world.settled_deliveries_of(&event.event_id).await {
        assert_eq!(delivery.status(), pb::DeliveryStatus::Success, "{delivery:?}");
    }
    let seen = receiver.wait_for_count(6).await;
    for one in &seen {
        assert_eq!(one.header("x-key"), one.path.trim_start_matches('/'));
        assert!(one.header("authorization").starts_with("Basic "));
    }
    damage(&world).await;
    let cleared = pb::Endpoint { id: made["headers"].id.clone(), ..Default::default() };
    let cleared = update(&world, cleared, "headers").await.expect("cleared");
    assert_eq!((unreadable(&cleared), cleared.headers.len()), (vec![], 0));
}

/// Whoever has read the value before sends by it, so receivers answer: their answers count, and what dies in flight is
/// cleared away, though the row cannot be read in full any more.
async fn an_endpoint_with_one_is_switched_off_and_its_dead_probe_ends(database: Database) {
    let mut world = world_with(database, pb::PausedPolicy::Discard, &["--lease", "3"]).await;
    let desk = Desk::open().await;
    let receiver = Receiver::ok().await;
    world.create(endpoint(receiver.url("/whole"), "whole"), &["never"]).await;
    let failing = pb::Endpoint {
        retry_policy: Some(linear(1, 50)),
        disable_policy: Some(disable(2, 0)),
        ..endpoint(desk.url("/"), "authentication")
    };
    let (failing, _) = world.create(failing, &["*"]).await;
    let mut watch = world.watch().await;
    let event = world.publish_to(&failing, b"{}").await.event_id;
    let delivery = world.deliveries_of(&event).await.remove(0);
    damage(&world).await;
    for _ in 0..2 {
        desk.request(&delivery.id).await.answer(Answer::Status(500));
    }
    until(&mut watch, &event, pb::DeliveryStatus::Discarded).await;
    let told = until_endpoint(&mut watch, &failing.id, pb::EndpointChangeType::Disabled).await;
    assert_eq!((told.status(), unreadable(&told)), (pb::EndpointStatus::Inactive, vec!["authentication"]));

    // Readable when the probe begins, damaged while its answer is awaited.
    let basic = endpoint(String::new(), "authentication").authentication;
    let healed = pb::Endpoint { id: failing.id.clone(), authentication: basic, ..Default::default() };
    update(&world, healed, "authentication").await.expect("healed");
    let retry = pb::RetryDeliveryRequest { delivery_id: delivery.id.clone(), ..Default::default() };
    world.client.deliveries().retry_delivery(retry).await.expect("a probe");
    let _probe = desk.request(&delivery.id).await;
    damage(&world).await;
    drop(watch);
    world.server.kill().await;
    world.restart().await;
    let earliest = pb::watch_request::Start::Earliest(pb::StartEarliest {});
    let earliest = pb::WatchRequest { start: Some(earliest), ..Default::default() };
    let mut watch = world.client.watch(earliest).await.expect("watching");
    until_endpoint(&mut watch, &failing.id, pb::EndpointChangeType::Probing).await;
    let told = until_endpoint(&mut watch, &failing.id, pb::EndpointChangeType::Disabled).await;
    assert_eq!((told.status(), unreadable(&told)), (pb::EndpointStatus::Inactive, vec!["authentication"]));
    assert_eq!(deliveries_in(&world, &failing.id, &[pb::DeliveryStatus::Failed]).await.len(), 1);
    // It can be switched on again by hand.
    assert_eq!(activate(&world, &failing.id).await.status(), pb::EndpointStatus::Active);
}
