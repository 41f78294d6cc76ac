//! Upkeep: queued work follows its endpoint's state, whoever else has a backlog, and whatever a kill left undone.

use hawser_client::pb::watch_request::Start;
use hawser_client::pb::{self, DeliveryStatus};

use crate::support::failing::linear;
use crate::support::feed::from;
use crate::support::sql::Session;
use crate::support::world::until;
use crate::support::{Database, Receiver, Reply, Server, World, on_both};

on_both!(a_backlog_keeps_no_other_endpoint_waiting, the_slow_round_ends_the_work_of_an_endpoint_that_is_gone,);

async fn pause(world: &World, endpoint: &pb::Endpoint) {
    let request = pb::PauseEndpointRequest { endpoint_id: endpoint.id.clone(), ..Default::default() };
    world.client.endpoints().pause_endpoint(request).await.expect("paused");
}

async fn resume(world: &World, endpoint: &pb::Endpoint) {
    let request = pb::ResumeEndpointRequest { endpoint_id: endpoint.id.clone(), ..Default::default() };
    world.client.endpoints().resume_endpoint(request).await.expect("resumed");
}

/// So many batches that all of them take far longer than two calls.
const BACKLOG: usize = 150_000;

async fn a_backlog_keeps_no_other_endpoint_waiting(database: Database) {
    let world = World::on(Server::start(database).await, pb::PausedPolicy::Hold).await;
    let receiver = Receiver::ok().await;
    let (long, _) = world.endpoint(&receiver.url("/long"), "").await;
    let (short, _) = world.endpoint(&receiver.url("/short"), "").await;
    pause(&world, &long).await;
    pause(&world, &short).await;
    world.publish_to(&long, b"{}").await;
    // Copies of its one row, none of them due in this century. Parked as 1: for a pause.
    let mut sql = world.server.sql().await;
    let (numbers, id) = match sql {
        Session::Sqlite(_) => {
            ("WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT ", "randomblob(16)")
        }
        Session::Postgres(_) => {
            ("WITH n(x) AS (SELECT x FROM generate_series(1, 10000000) AS x LIMIT ", "gen_random_uuid()")
        }
    };
    sql.run(&format!(
        "{numbers} {BACKLOG}) INSERT INTO queue (id, project_id, endpoint_id, event_id, due_at, parked, token, \
         budget_start, attempts, created_at) SELECT {id}, project_id, endpoint_id, event_id, 4102444800000, parked, \
         token, budget_start, attempts, created_at FROM queue CROSS JOIN n"
    ))
    .await;
    world.publish_to(&short, b"{}").await;
    resume(&world, &long).await;
    resume(&world, &short).await;
    receiver.wait_for("the short one's", |seen| seen.iter().any(|one| one.path == "/short")).await;
    assert!(sql.count("queue WHERE parked = 1").await > 0, "it came before the end of the backlog");
}

async fn the_slow_round_ends_the_work_of_an_endpoint_that_is_gone(database: Database) {
    let mut world = World::new(database).await;
    let receiver = Receiver::scripted(|_, _| Reply::status(500)).await;
    // Its retry is far away.
    let endpoint = pb::Endpoint {
        url: receiver.url("/hook"),
        retry_policy: Some(linear(3_600_000, 3)),
        ..Default::default()
    };
    let (endpoint, _) = world.create(endpoint, &["*"]).await;
    let mut watch = world.watch().await;
    let event = world.publish_to(&endpoint, b"{}").await.event_id;
    until(&mut watch, &event, DeliveryStatus::Retry).await;
    world.server.kill().await;
    // As where the process died between the commit of a DeleteEndpoint and what follows it.
    let mut sql = world.server.sql().await;
    for table in ["subscriptions", "secrets", "endpoint_health", "rate_slots", "endpoint_labels", "endpoints"]
    {
        sql.run(&format!("DELETE FROM {table}")).await;
    }
    // Its end is told even if nothing is left of its event.
    sql.run("DELETE FROM events").await;
    world.restart().await;
    let earliest = from(Start::Earliest(pb::StartEarliest {}));
    let mut watch = world.client.watch(earliest).await.expect("watching");
    let told = until(&mut watch, &event, DeliveryStatus::Discarded).await;
    assert_eq!(told.attempt_count, 1);
    assert_eq!(sql.count("queue").await, 0);
}
