//! What is stored and cannot be read, or is gone, concerns its own delivery alone: it ends with a reason, and all other
//! work goes on.

use hawser_client::pb::publish_event_request::Target;
use hawser_client::pb::{self, DeliveryStatus};

use crate::support::failing::{get, until_endpoint};
use crate::support::sql::Session;
use crate::support::world::{quick_retries, until};
use crate::support::{Database, Receiver, Reply, Server, World, in_time, on_both};

on_both!(
    an_event_that_does_not_read_fails_alone,
    a_delivery_whose_event_is_gone_fails,
    a_probe_whose_event_does_not_read_fails,
    an_expansion_that_does_not_read_keeps_no_other_waiting,
);

const BAD: &str = "bad.event";

async fn publish(world: &World, endpoint: &pb::Endpoint, event_type: &str) -> String {
    let request = pb::PublishEventRequest {
        event_type: event_type.to_owned(),
        target: Some(Target::EndpointId(endpoint.id.clone())),
        payload: b"{}".to_vec().into(),
        ..Default::default()
    };
    world.client.events().publish_event(request).await.expect("published").into_inner().event_id
}

/// A paused endpoint for which events are held: the bad one, which is the oldest, and two good ones.
async fn held(database: Database, receiver: &Receiver) -> (World, pb::Endpoint, String) {
    let world = World::on(Server::start(database).await, pb::PausedPolicy::Hold).await;
    let endpoint = pb::Endpoint {
        url: receiver.url("/hook"),
        retry_policy: Some(quick_retries(2)),
        ..Default::default()
    };
    let (endpoint, _) = world.create(endpoint, &["*"]).await;
    let pause = pb::PauseEndpointRequest { endpoint_id: endpoint.id.clone(), ..Default::default() };
    world.client.endpoints().pause_endpoint(pause).await.expect("paused");
    let bad = publish(&world, &endpoint, BAD).await;
    for _ in 0..2 {
        publish(&world, &endpoint, "good.event").await;
    }
    (world, endpoint, bad)
}

async fn resume(world: &World, endpoint: &pb::Endpoint) {
    let resume = pb::ResumeEndpointRequest { endpoint_id: endpoint.id.clone(), ..Default::default() };
    world.client.endpoints().resume_endpoint(resume).await.expect("resumed");
}

async fn retry(world: &World, delivery: &str) {
    let retry = pb::RetryDeliveryRequest { delivery_id: delivery.to_owned(), ..Default::default() };
    world.client.deliveries().retry_delivery(retry).await.expect("retried");
}

/// Lets the held events go: the good ones arrive, and the bad one's delivery, which is returned, uses up its attempts.
async fn all_but_the_bad_arrive(
    world: &World,
    receiver: &Receiver,
    endpoint: &pb::Endpoint,
    bad: &str,
) -> pb::Delivery {
    let mut watch = world.watch().await;
    resume(world, endpoint).await;
    receiver.wait_for_count(2).await;
    let failed = until(&mut watch, bad, DeliveryStatus::Failed).await;
    assert_eq!(failed.attempt_count, 2, "it may be mended meanwhile, so it is retried");
    for attempt in world.attempts_of(&failed.id).await {
        assert_eq!(attempt.error_class(), pb::ErrorClass::Cancelled);
        assert!(attempt.error_detail.contains("cannot be read"), "{}", attempt.error_detail);
    }
    assert_eq!(receiver.seen().len(), 2);
    assert_eq!(get(world, &endpoint.id).await.consecutive_failures, 0, "it is not the endpoint's fault");
    failed
}

async fn an_event_that_does_not_read_fails_alone(database: Database) {
    let receiver = Receiver::ok().await;
    let (world, endpoint, bad) = held(database, &receiver).await;
    let mut sql = world.server.sql().await;
    // SQLite stores what is no text as text, too.
    let damage = if world.server.database().url().is_none() { "CAST(x'ff' AS TEXT)" } else { "'no headers'" };
    sql.run(&format!("UPDATE events SET headers = {damage} WHERE event_type = '{BAD}'")).await;
    let failed = all_but_the_bad_arrive(&world, &receiver, &endpoint, &bad).await;
    sql.run("UPDATE events SET headers = NULL").await;
    retry(&world, &failed.id).await;
    let seen = receiver.wait_for_count(3).await;
    assert_eq!(seen[2].event(), bad);
}

/// PostgreSQL itself fails to read it, as where a part of it is missing on the disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_the_database_cannot_read_fails_alone() {
    in_time(async {
        let receiver = Receiver::ok().await;
        let (world, endpoint, bad) = held(Database::postgres().await, &receiver).await;
        let mut sql = world.server.sql().await;
        for statement in [
            "CREATE FUNCTION damaged(text) RETURNS text LANGUAGE plpgsql STABLE AS $$ BEGIN \
             RAISE EXCEPTION 'missing chunk number 0' USING ERRCODE = 'data_corrupted'; END $$",
            "ALTER TABLE events RENAME TO events_stored",
            &format!(
                "CREATE VIEW events AS SELECT id, project_id, event_type, target_kind, target, payload, \
                 CASE event_type WHEN '{BAD}' THEN damaged(event_type) ELSE headers END AS headers, \
                 idempotency_key, delivery_count, created_at FROM events_stored"
            ),
        ] {
            sql.run(statement).await;
        }
        let failed = all_but_the_bad_arrive(&world, &receiver, &endpoint, &bad).await;
        sql.run("DROP VIEW events").await;
        sql.run("ALTER TABLE events_stored RENAME TO events").await;
        retry(&world, &failed.id).await;
        let seen = receiver.wait_for_count(3).await;
        assert_eq!(seen[2].event(), bad);
    })
    .await;
}

async fn a_delivery_whose_event_is_gone_fails(database: Database) {
    let receiver = Receiver::ok().await;
    let (world, endpoint, _) = held(database, &receiver).await;
    let mut sql = world.server.sql().await;
    let id = "SELECT id FROM events WHERE event_type = 'bad.event'";
    sql.run(&format!("CREATE TABLE gone AS {id}")).await;
    sql.run("DELETE FROM events WHERE event_type = 'bad.event'").await;
    resume(&world, &endpoint).await;
    receiver.wait_for_count(2).await;
    sql.until_numbers("SELECT COUNT(*) FROM queue", &[0]).await;
    // 5 is FAILED.
    let of_it = "event_id IN (SELECT id FROM gone)";
    let status = format!("SELECT CAST(status AS BIGINT) FROM deliveries WHERE {of_it}");
    assert_eq!(sql.numbers(&status).await, [5]);
    assert_eq!(sql.count(&format!("attempts WHERE {of_it} AND error_detail LIKE '%gone%'")).await, 1);
    assert!(world.server.log().contains("the event of a delivery is gone"));
}

async fn a_probe_whose_event_does_not_read_fails(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::scripted(|_, before| Reply::status(if before == 0 { 410 } else { 200 })).await;
    let (endpoint, _) = world.endpoint(&receiver.url("/hook"), "acme").await;
    let mut watch = world.watch().await;
    let event = world.publish_to(&endpoint, b"{}").await.event_id;
    until_endpoint(&mut watch, &endpoint.id, pb::EndpointChangeType::Disabled).await;
    let delivery = world.settled_deliveries_of(&event).await.remove(0);
    let mut sql = world.server.sql().await;
    sql.run("UPDATE events SET headers = 'no headers'").await;
    retry(&world, &delivery.id).await;
    until_endpoint(&mut watch, &endpoint.id, pb::EndpointChangeType::Probing).await;
    let told = until_endpoint(&mut watch, &endpoint.id, pb::EndpointChangeType::Disabled).await;
    assert!(told.status_reason.contains("cannot be read"), "{}", told.status_reason);
    assert_eq!(world.deliveries_of(&event).await[0].status(), DeliveryStatus::Failed);

    sql.run("UPDATE events SET headers = NULL").await;
    retry(&world, &delivery.id).await;
    until_endpoint(&mut watch, &endpoint.id, pb::EndpointChangeType::Recovered).await;
    assert_eq!(receiver.seen().len(), 2);
}

async fn an_expansion_that_does_not_read_keeps_no_other_waiting(database: Database) {
    let arguments = ["--allow-http", "--allow-net", "127.0.0.0/8", "--fan-out-at-once", "5"];
    let server = Server::start_with(database, &arguments).await;
    let world = World::on(server, pb::PausedPolicy::Discard).await;
    let receiver = Receiver::ok().await;
    for number in 0..12 {
        world.endpoint(&receiver.url(&format!("/{number}")), "acme").await;
    }
    // Before all others, and shorter than an id.
    let (id, targets) = match &mut world.server.sql().await {
        Session::Sqlite(_) => ("x'00000000000000000000000000000001'", "x'0102030405'"),
        Session::Postgres(_) => {
            ("'00000000-0000-0000-0000-000000000001'::uuid", "decode('0102030405', 'hex')")
        }
    };
    let mut sql = world.server.sql().await;
    sql.run(&format!(
        "INSERT INTO expansions (event_id, project_id, event_type, created_at, targets, expanded) \
         SELECT {id}, id, 'a.b', 0, {targets}, 0 FROM projects"
    ))
    .await;
    world.publish(Target::OwnerId("acme".to_owned()), b"{}").await;
    receiver.wait_for_count(12).await;
    sql.until_numbers("SELECT COUNT(*) FROM expansions", &[1]).await;
}
