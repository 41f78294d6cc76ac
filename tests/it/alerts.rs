//! Alerts: one for each transition and channel, to whom the endpoint or its project says, and what is not told.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use hawser_client::pb;

use crate::support::failing::{NO_BREAKER, activate, disable, linear, until_endpoint};
use crate::support::secrets::{accepts, rotate};
use crate::support::told::{Channels, all_sent, counts, set_webhook, update_project, world_with_mail};
use crate::support::world::until;
use crate::support::{Database, Receiver, Reply, World, on_both};

on_both!(
    each_transition_is_told_once_by_each_channel,
    failing_is_warned_of_half_way_and_its_end_told,
    a_warned_endpoint_that_was_paused_has_yet_to_recover,
    what_nobody_heard_is_told_when_someone_listens,
    deliveries_that_use_up_their_attempts_are_told_once_an_hour,
    the_project_speaks_for_endpoints_that_do_not,
    a_healthy_endpoint_makes_no_alert,
);

async fn pause(world: &World, id: &str) {
    let reason = "maintenance <b>".to_owned();
    let request = pb::PauseEndpointRequest { endpoint_id: id.to_owned(), reason, ..Default::default() };
    world.client.endpoints().pause_endpoint(request).await.expect("paused");
}

async fn resume(world: &World, id: &str) {
    let request = pb::ResumeEndpointRequest { endpoint_id: id.to_owned(), ..Default::default() };
    world.client.endpoints().resume_endpoint(request).await.expect("resumed");
}

/// The first of these that came to the operational webhook.
fn posted(channels: &Channels, event: &str) -> serde_json::Value {
    let posts = channels.operational.seen();
    let mut bodies = posts.iter().map(|post| serde_json::from_slice(&post.body).expect("JSON"));
    bodies.find(|json: &serde_json::Value| json["type"] == event).expect("told")
}

async fn each_transition_is_told_once_by_each_channel(database: Database) {
    let channels = Channels::open(Duration::ZERO).await;
    let (world, secret) = channels.world(database, &NO_BREAKER).await;
    let receiver = Receiver::scripted(|_, before| Reply::status(if before < 4 { 500 } else { 200 })).await;
    let endpoint = pb::Endpoint {
        name: "Orders & <more>".to_owned(),
        url: receiver.url("/hook?token=canary-query"),
        uid: "orders".to_owned(),
        owner_id: "acme".to_owned(),
        retry_policy: Some(linear(1, 50)),
        disable_policy: Some(disable(4, 0)),
        alerts: Some(channels.alerts()),
        ..Default::default()
    };
    let mut watch = world.watch().await;
    let (endpoint, _) = world.create(endpoint, &["*"]).await;
    pause(&world, &endpoint.id).await;
    // Idempotent calls make no transition.
    pause(&world, &endpoint.id).await;
    resume(&world, &endpoint.id).await;
    let changed =
        pb::Endpoint { id: endpoint.id.clone(), description: "changed".to_owned(), ..Default::default() };
    let update = pb::UpdateEndpointRequest { endpoint: Some(changed), ..Default::default() };
    world.client.endpoints().update_endpoint(update).await.expect("updated");
    world.publish_to(&endpoint, b"{}").await;
    until_endpoint(&mut watch, &endpoint.id, pb::EndpointChangeType::Disabled).await;
    activate(&world, &endpoint.id).await;
    rotate(&world.client, &endpoint.id, 10).await.expect("rotated");
    let delete = pb::DeleteEndpointRequest { endpoint_id: endpoint.id.clone(), ..Default::default() };
    world.client.endpoints().delete_endpoint(delete).await.expect("deleted");

    let news = [
        ("delivery.failing", 1),
        ("endpoint.activated", 2),
        ("endpoint.disabled", 1),
        ("endpoint.paused", 1),
        ("endpoint.secret_rotated", 1),
    ];
    let all = [("endpoint.created", 1), ("endpoint.deleted", 1), ("endpoint.updated", 1)];
    assert_eq!(all_sent(&world).await, 3 * 6 + 9);
    let told = channels.told();
    for people in &told[..3] {
        assert_eq!(counts(people), BTreeMap::from(news));
    }
    assert_eq!(counts(&told[3]), news.into_iter().chain(all).collect());
    let ids: HashSet<&String> = told.iter().flatten().map(|(_, id)| id).collect();
    assert_eq!(ids.len(), 27, "each alert has an id of its own");

    let posts = channels.operational.seen();
    for post in &posts {
        assert_eq!(post.header("content-type"), "application/json");
        assert!(accepts(&secret, post), "signed by Standard Webhooks");
    }
    let disabled = posted(&channels, "endpoint.disabled");
    let data = &disabled["data"];
    assert_eq!(data["project_id"], world.project);
    assert_eq!(data["endpoint"]["id"], endpoint.id);
    assert_eq!(data["endpoint"]["uid"], "orders");
    assert_eq!(data["endpoint"]["status"], "INACTIVE");
    assert!(data["endpoint"]["status_reason"].as_str().expect("text").ends_with("the last: answered 500"));
    assert!(disabled["timestamp"].as_str().expect("text").ends_with('Z'));

    let mail = channels.mail.mails().into_iter().find(|mail| mail.body().contains("endpoint.paused"));
    let mail = mail.expect("told");
    assert_eq!((mail.from.as_str(), mail.to[0].as_str()), ("hawser@example.com", "ops@example.com"));
    assert_eq!(mail.header("subject"), "Endpoint Orders & <more> is paused");
    // What the customer chose is no markup, and no query is shown to people.
    let slack = channels.slack.seen();
    let paused = slack.iter().find(|seen| String::from_utf8_lossy(&seen.body).contains("endpoint.paused"));
    let json: serde_json::Value = serde_json::from_slice(&paused.expect("told").body).expect("JSON");
    assert_eq!(json["text"], "Endpoint Orders &amp; &lt;more&gt; is paused");
    assert_eq!(json["blocks"][0]["text"]["type"], "plain_text");
    assert!(json["blocks"][1]["text"]["text"].as_str().expect("text").contains("maintenance <b>"));
    for seen in slack.iter().chain(&channels.teams.seen()) {
        assert!(!String::from_utf8_lossy(&seen.body).contains("canary"), "{seen:?}");
    }
    assert!(channels.mail.mails().iter().all(|mail| !mail.text.contains("canary")));
}

async fn failing_is_warned_of_half_way_and_its_end_told(database: Database) {
    let channels = Channels::open(Duration::ZERO).await;
    let (world, _) = channels.world(database, &NO_BREAKER).await;
    // Twice: what fails again soon after it recovered is not warned of again.
    let receiver =
        Receiver::scripted(|_, before| Reply::status(if before % 4 < 3 { 500 } else { 200 })).await;
    let endpoint = pb::Endpoint {
        url: receiver.url("/hook"),
        retry_policy: Some(linear(1, 50)),
        disable_policy: Some(disable(5, 0)),
        ..Default::default()
    };
    let (endpoint, _) = world.create(endpoint, &["*"]).await;
    let mut watch = world.watch().await;
    for _ in 0..2 {
        let event = world.publish_to(&endpoint, b"{}").await.event_id;
        until(&mut watch, &event, pb::DeliveryStatus::Success).await;
    }
    assert_eq!(receiver.seen().len(), 8);
    assert_eq!(all_sent(&world).await, 3);
    let told = &channels.told()[3];
    let expected = [("delivery.failing", 1), ("delivery.recovered", 1), ("endpoint.created", 1)];
    assert_eq!(counts(told), BTreeMap::from(expected));
    let json = posted(&channels, "delivery.failing");
    assert_eq!(json["data"]["failing"]["failures"], 3);
    assert_eq!(json["data"]["failing"]["last_error"], "answered 500");
    assert_eq!(json["data"]["endpoint"]["status"], "ACTIVE");
}

/// An endpoint that is half way to being switched off after four failures, each of which is retried much later.
fn fragile(receiver: &Receiver) -> pb::Endpoint {
    pb::Endpoint {
        url: receiver.url("/hook"),
        retry_policy: Some(linear(3_600_000, 50)),
        disable_policy: Some(disable(8, 0)),
        ..Default::default()
    }
}

async fn fail(world: &World, endpoint: &pb::Endpoint, times: usize) {
    let mut watch = world.watch().await;
    for _ in 0..times {
        let event = world.publish_to(endpoint, b"{}").await.event_id;
        until(&mut watch, &event, pb::DeliveryStatus::Retry).await;
    }
}

async fn a_warned_endpoint_that_was_paused_has_yet_to_recover(database: Database) {
    let channels = Channels::open(Duration::ZERO).await;
    let (world, _) = channels.world(database, &NO_BREAKER).await;
    let receiver = Receiver::scripted(|_, before| Reply::status(if before < 9 { 500 } else { 200 })).await;
    let (endpoint, _) = world.create(fragile(&receiver), &["*"]).await;
    fail(&world, &endpoint, 5).await;
    // Pauses do not end what was told, nor do failures after them.
    pause(&world, &endpoint.id).await;
    resume(&world, &endpoint.id).await;
    fail(&world, &endpoint, 4).await;
    pause(&world, &endpoint.id).await;
    resume(&world, &endpoint.id).await;
    let event = world.publish_to(&endpoint, b"{}").await.event_id;
    world.settled_deliveries_of(&event).await;
    assert_eq!(all_sent(&world).await, 7);
    let told = counts_of(&channels);
    assert_eq!((told["delivery.failing"], told["delivery.recovered"]), (1, 1), "{told:?}");
    let event = world.publish_to(&endpoint, b"{}").await.event_id;
    world.settled_deliveries_of(&event).await;
    assert_eq!(all_sent(&world).await, 7, "it recovers once");
}

/// What came to the operational webhook.
fn counts_of(channels: &Channels) -> BTreeMap<String, usize> {
    let told = &channels.told()[3];
    counts(told).into_iter().map(|(event, count)| (event.to_owned(), count)).collect()
}

async fn what_nobody_heard_is_told_when_someone_listens(database: Database) {
    let channels = Channels::open(Duration::ZERO).await;
    let world = world_with_mail(database, &channels.mail, &NO_BREAKER).await;
    set_webhook(&world, &channels.operational.url("/operational"), &["endpoint.created"]).await;
    let receiver = Receiver::scripted(|_, _| Reply::status(500)).await;
    let exhausting = pb::Endpoint { retry_policy: Some(linear(1, 1)), ..fragile(&receiver) };
    let (endpoint, _) = world.create(fragile(&receiver), &["*"]).await;
    let (exhausting, _) = world.create(exhausting, &["*"]).await;
    let exhaust = async || {
        let event = world.publish_to(&exhausting, b"{}").await.event_id;
        world.settled_deliveries_of(&event).await;
    };
    fail(&world, &endpoint, 4).await;
    exhaust().await;
    assert_eq!(all_sent(&world).await, 2, "that they were created");
    set_webhook(&world, &channels.operational.url("/operational"), &["delivery.*"]).await;
    for _ in 0..2 {
        fail(&world, &endpoint, 1).await;
        exhaust().await;
    }
    assert_eq!(all_sent(&world).await, 4);
    let told = counts_of(&channels);
    assert_eq!((told["delivery.failing"], told["delivery.exhausted"]), (1, 1), "{told:?}");
}

async fn deliveries_that_use_up_their_attempts_are_told_once_an_hour(database: Database) {
    let channels = Channels::open(Duration::ZERO).await;
    let (world, _) = channels.world(database, &NO_BREAKER).await;
    let receiver = Receiver::scripted(|_, _| Reply::status(500)).await;
    let endpoint = pb::Endpoint {
        url: receiver.url("/hook"),
        retry_policy: Some(linear(1, 2)),
        alerts: Some(pb::Alerts { on: vec!["delivery.exhausted".to_owned()], ..channels.alerts() }),
        ..Default::default()
    };
    let (endpoint, _) = world.create(endpoint, &["*"]).await;
    let mut first = String::new();
    for number in 0..3 {
        let event = world.publish_to(&endpoint, b"{}").await.event_id;
        let delivery = world.settled_deliveries_of(&event).await.remove(0);
        assert_eq!((delivery.status(), delivery.attempt_count), (pb::DeliveryStatus::Failed, 2));
        if number == 0 {
            first = delivery.id;
        }
    }
    // For mail, Slack, Teams and the webhook; and the creation.
    assert_eq!(all_sent(&world).await, 5);
    let told = channels.told();
    assert!(told[..3].iter().all(|people| counts(people) == BTreeMap::from([("delivery.exhausted", 1)])));
    let body = channels.mail.mails()[0].body();
    assert!(body.contains(&first) && body.contains("after 2 attempts; the last: answered 500"), "{body}");

    // An hour later it is told again.
    let mut session = world.server.sql().await;
    session.run("UPDATE endpoint_health SET exhausted_told_at = exhausted_told_at - 3600000").await;
    let event = world.publish_to(&endpoint, b"{}").await.event_id;
    world.settled_deliveries_of(&event).await;
    assert_eq!(all_sent(&world).await, 9);
}

async fn the_project_speaks_for_endpoints_that_do_not(database: Database) {
    let channels = Channels::open(Duration::ZERO).await;
    let world = world_with_mail(database, &channels.mail, &[]).await;
    let alerts = pb::Alerts { on: vec!["endpoint.*".to_owned()], ..channels.alerts() };
    update_project(&world, pb::Project { alerts: Some(alerts), ..Default::default() }, &[]).await;
    let own = Receiver::scripted(|_, _| Reply::status(200)).await;
    let create = async |alerts: Option<pb::Alerts>| {
        let url = "https://example.com/hook".to_owned();
        world.create(pb::Endpoint { url, alerts, ..Default::default() }, &["*"]).await.0
    };
    // As the project says; as it says itself; nobody.
    create(None).await;
    let on = vec!["endpoint.created".to_owned()];
    create(Some(pb::Alerts { slack_webhook_url: own.url("/own"), on, ..Default::default() })).await;
    create(Some(pb::Alerts::default())).await;
    assert_eq!(all_sent(&world).await, 4);
    assert_eq!(own.seen().len(), 1);
    assert_eq!(channels.told().map(|told| told.len()), [1, 1, 1, 0]);

    // Without it, nobody; and the webhook only what it asks for.
    update_project(&world, pb::Project::default(), &["alerts"]).await;
    set_webhook(&world, &channels.operational.url("/operational"), &["endpoint.paused"]).await;
    let endpoint = create(None).await;
    pause(&world, &endpoint.id).await;
    assert_eq!(all_sent(&world).await, 5);
    assert_eq!(counts(&channels.told()[3]), BTreeMap::from([("endpoint.paused", 1)]));
}

async fn a_healthy_endpoint_makes_no_alert(database: Database) {
    let channels = Channels::open(Duration::ZERO).await;
    let (world, _) = channels.world(database, &[]).await;
    let receiver = Receiver::ok().await;
    let endpoint =
        pb::Endpoint { url: receiver.url("/hook"), alerts: Some(channels.alerts()), ..Default::default() };
    let (endpoint, _) = world.create(endpoint, &["*"]).await;
    for _ in 0..20 {
        let event = world.publish_to(&endpoint, b"{}").await.event_id;
        world.settled_deliveries_of(&event).await;
    }
    assert_eq!(all_sent(&world).await, 1, "that it was created, to the webhook");
    assert_eq!(world.server.sql().await.count("endpoint_health").await, 0);
}
