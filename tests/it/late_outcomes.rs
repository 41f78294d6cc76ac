//! Outcomes of claims that were lost meanwhile: they are recorded and told, and change nothing.

use std::collections::HashMap;

use hawser_client::pb::watch_response::Change;
use hawser_client::pb::{self, DeliveryStatus};
use sqlx::Executor;

use crate::support::desk::{Answer, Desk};
use crate::support::failing::{get, linear};
use crate::support::world::{next, until};
use crate::support::{Database, Receiver, Server, World, in_time, scrape};

/// A turn that waits for the table that the test holds.
const WAITS: &str = "SELECT COUNT(*) FROM pg_locks WHERE NOT granted AND relation = 'attempts'::regclass \
                     AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";

/// The lease is lost while the receiver takes its time, so the delivery is sent again; then both answers come, and their
/// outcomes are written in one transaction, the one that counts first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_claims_outcome_in_the_same_turn_changes_nothing() {
    in_time(async {
        let arguments = ["--allow-http", "--allow-net", "127.0.0.0/8", "--lease", "300"];
        let server = Server::start_with(Database::postgres().await, &arguments).await;
        let world = World::on(server, pb::PausedPolicy::Discard).await;
        let (desk, receiver) = (Desk::open().await, Receiver::ok().await);
        let endpoint = pb::Endpoint {
            url: desk.url("/slow"),
            retry_policy: Some(linear(60_000, 5)),
            ..pb::Endpoint::default()
        };
        let (endpoint, _) = world.create(endpoint, &["*"]).await;
        let (other, _) = world.endpoint(&receiver.url("/other"), "").await;
        let mut watch = world.watch().await;
        let event = world.publish_to(&endpoint, b"{}").await.event_id;
        let delivery = world.deliveries_of(&event).await.remove(0).id;
        let older = desk.request(&delivery).await;

        let database = world.server.database();
        let mut session = database.session().await;
        // Of the locks with a key of eight bytes the lease's is the only one that is held for long.
        let cut = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 \
                   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        session.execute(cut).await.expect("cut");
        let newer = desk.request(&delivery).await;

        session.execute("BEGIN; LOCK TABLE attempts IN SHARE MODE").await.expect("locked");
        world.publish_to(&other, b"{}").await;
        database.until("the other event's outcome waits", WAITS, 1).await;
        newer.answer(Answer::Status(200));
        scrape::reaches(&world, "hawser_attempts_total{class=\"success\"}", 2.0).await;
        older.answer(Answer::Status(500));
        scrape::reaches(&world, "hawser_attempts_total{class=\"HTTP_STATUS\"}", 1.0).await;
        session.execute("COMMIT").await.expect("released");

        until(&mut watch, &event, DeliveryStatus::Success).await;
        let mut told = HashMap::new();
        while told.len() < 2 {
            match next(&mut watch).await.change {
                Some(Change::Attempt(attempt)) if attempt.delivery_id == delivery => {
                    told.insert(attempt.id, attempt.status_code);
                }
                Some(Change::DeliveryChange(change)) => {
                    assert_ne!(change.delivery.expect("a delivery").event_id, event, "an attempt led to nothing");
                }
                _ => {}
            }
        }
        let kept = world.attempts_of(&delivery).await;
        let kept: HashMap<_, _> = kept.into_iter().map(|one| (one.id, one.status_code)).collect();
        assert_eq!(told, kept, "both attempts are told as they are kept");
        let delivery = world.deliveries_of(&event).await.remove(0);
        assert_eq!(delivery.status(), DeliveryStatus::Success);
        assert_eq!(get(&world, &endpoint.id).await.consecutive_failures, 0);
        database.until("nothing is queued", "SELECT COUNT(*) FROM queue", 0).await;
    })
    .await;
}
