//! Nodes on one PostgreSQL wake each other. Polls would find everything too, only later, so what is told is counted.

use std::time::{Duration, Instant};

use hawser_client::pb;
use hawser_client::pb::publish_event_request::Target;
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgListener;

use crate::support::world::{next, publish, until};
use crate::support::{Database, PATIENCE, Receiver, World, in_time, tier, web};

const HEARD: &str = "hawser_bells_heard_total";

/// The value of a counter of a node.
async fn counter(admin: &str, name: &str) -> f64 {
    let (_, text) = web::get(admin, "/metrics").await;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.unwrap_or_else(|| panic!("no {name} in\n{text}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_ring_a_bounded_number_of_times_and_are_heard() {
    in_time(async {
        let world = World::new(Database::postgres().await).await;
        let other = world.server.join().await;
        let receiver = Receiver::ok().await;
        let (endpoint, _) = world.endpoint(&receiver.url("/hook"), "").await;
        let url = world.server.database().url().expect("PostgreSQL");
        let mut listener = PgListener::connect(url).await.expect("connected");
        listener.listen("hawser").await.expect("listening");
        let heard_before = counter(other.admin(), HEARD).await;

        let began = Instant::now();
        const EVENTS: usize = 300;
        for _ in 0..EVENTS {
            world.publish_to(&endpoint, b"{}").await;
        }
        receiver.wait_for_count(EVENTS).await;
        let mut messages = 0;
        // The first is certain to come; the rest is what came until it was quiet for longer than the pace.
        let mut patience = PATIENCE;
        while let Ok(message) = tokio::time::timeout(patience, listener.recv()).await {
            message.expect("connected");
            messages += 1;
            patience = Duration::from_millis(500);
        }
        let seconds = began.elapsed().as_secs_f64();
        assert!(messages > 0, "a commit rings");
        let most = 2.0 * (50.0 * seconds + 1.0);
        assert!(f64::from(messages) <= most, "{messages} messages of two nodes in {seconds} s");

        let heard = async { while counter(other.admin(), HEARD).await <= heard_before {} };
        tokio::time::timeout(PATIENCE, heard).await.expect("the other node heard");
        assert!(counter(world.server.admin(), "hawser_bells_rung_total").await > 0.0);
    })
    .await;
}

/// The sessions by which nodes ring and hear: one each of every node.
const SESSIONS: &str =
    "FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'hawser bells'";

/// The database ends these sessions: what the nodes are not told of they find all the same, and they connect again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_whose_bells_are_cut_work_on_and_hear_again() {
    in_time(async {
        let world = World::new(Database::postgres().await).await;
        let other = world.server.join().await;
        let there = world.client_of(&other).await;
        let receiver = Receiver::ok().await;
        let (endpoint, _) = world.endpoint(&receiver.url("/hook"), "").await;
        let target = || Target::EndpointId(endpoint.id.clone());
        let database = world.server.database();
        let mut session = database.session().await;
        let mut seen_here = world.watch().await;
        let mut seen_there = there.watch(pb::WatchRequest::default()).await.expect("watching");
        next(&mut seen_there).await;
        database.until("both ring and hear", &format!("SELECT COUNT(*) {SESSIONS}"), 4).await;
        for _ in 0..tier(2, 20) {
            let cut = AssertSqlSafe(format!("SELECT pid, pg_terminate_backend(pid) {SESSIONS}"));
            let cut: Vec<(i32, bool)> = sqlx::query_as(cut).fetch_all(&mut session).await.expect("cut");
            assert!(cut.len() == 4 && cut.iter().all(|(_, ended)| *ended), "two of each node: {cut:?}");
            // Through both, since a node learns that it cannot ring when it has something to tell.
            let made_here = world.publish_to(&endpoint, b"{}").await.event_id;
            let made_there = publish(&there, target(), b"{}", "").await.expect("published").event_id;
            until(&mut seen_there, &made_here, pb::DeliveryStatus::Success).await;
            until(&mut seen_here, &made_there, pb::DeliveryStatus::Success).await;

            let cut = cut.iter().map(|(pid, _)| pid.to_string()).collect::<Vec<_>>().join(", ");
            let anew = format!("SELECT COUNT(*) {SESSIONS} AND pid NOT IN ({cut})");
            database.until("both ring and hear again", &anew, 4).await;
            for (node, rings) in [(&other, &world.client), (&world.server, &there)] {
                // Whatever the sessions that were cut heard is counted by now.
                let before = counter(node.admin(), HEARD).await;
                let hearing = async {
                    while counter(node.admin(), HEARD).await <= before {
                        publish(rings, target(), b"{}", "").await.expect("published");
                    }
                };
                tokio::time::timeout(PATIENCE, hearing).await.expect("it hears again");
            }
        }
    })
    .await;
}
