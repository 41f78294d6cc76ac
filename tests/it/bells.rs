//! Nodes on one PostgreSQL wake each other. Polls would find everything too, only later, so what is told is counted.

use std::time::{Duration, Instant};

use sqlx::postgres::PgListener;

use crate::support::{Database, PATIENCE, Receiver, World, in_time, web};

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
        let heard_before = counter(other.admin(), "hawser_bells_heard_total").await;

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

        let heard =
            async { while counter(other.admin(), "hawser_bells_heard_total").await <= heard_before {} };
        tokio::time::timeout(PATIENCE, heard).await.expect("the other node heard");
        assert!(counter(world.server.admin(), "hawser_bells_rung_total").await > 0.0);
    })
    .await;
}
