//! Outcomes of claims that were lost meanwhile: they are recorded and told, and change nothing.

use std::collections::HashMap;

use hawser_client::pb::publish_event_request::Target;
use hawser_client::pb::watch_response::Change;
use hawser_client::pb::{self, DeliveryStatus};
use sqlx::Executor;

use crate::support::desk::{Answer, Desk};
use crate::support::failing::{get, linear};
use crate::support::stale::StaleReceiver;
use crate::support::world::{next, publish, until};
use crate::support::{Database, Proxy, Receiver, Server, World, in_time, scrape};

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

/// A free attempt whose commit was carried out and not answered is written again under a claim that still stands; it is told
/// once all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_free_attempt_whose_commit_was_not_answered_is_told_once() {
    // In the text of the statement that writes it, which this connection has not prepared yet.
    const MARK: &[u8] = b"SET attempts = v.attempts, budget_start = v.budget_start";
    in_time(async {
        let world = World::new(Database::postgres().await).await;
        let proxy = Proxy::before(world.server.database().url().expect("PostgreSQL")).await;
        let node = world.server.join_through(proxy.url()).await;
        let there = world.client_of(&node).await;
        let receiver = StaleReceiver::start(1).await;
        let endpoint = pb::Endpoint {
            url: receiver.url(),
            retry_policy: Some(linear(60_000, 1)),
            ..pb::Endpoint::default()
        };
        let (endpoint, _) = world.create(endpoint, &["*"]).await;
        let target = || Target::EndpointId(endpoint.id.clone());
        let mut watch = world.watch().await;
        let first = publish(&there, target(), b"1", "").await.expect("published").event_id;
        until(&mut watch, &first, DeliveryStatus::Success).await;
        proxy.lose_commit_after(MARK).await;
        let second = publish(&there, target(), b"2", "").await.expect("published").event_id;
        let (mut told, mut ended) = (Vec::new(), false);
        while !ended || told.len() < 2 {
            match next(&mut watch).await.change {
                Some(Change::Attempt(attempt)) if attempt.event_id == second => told.push(attempt.number),
                Some(Change::DeliveryChange(change)) => {
                    let delivery = change.delivery.expect("a delivery");
                    ended |= delivery.event_id == second && delivery.status() == DeliveryStatus::Success;
                }
                _ => {}
            }
        }
        assert!(proxy.lost_commit().await, "the test lost the answer");
        assert_eq!(told, [1, 2]);
    })
    .await;
}
