//! Weekly partitions on PostgreSQL.

use hawser_client::pb::publish_event_request::Target;

use crate::support::world::publish;
use crate::support::{Database, Receiver, World, in_time};

/// A node whose clock was weeks ahead left rows in the default partition, so that the partition of that week cannot be
/// made: the server starts all the same, and keeps house.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_a_clock_that_was_ahead_stop_nothing() {
    in_time(async {
        let mut world = World::new(Database::postgres().await).await;
        let receiver = Receiver::ok().await;
        let (endpoint, _) = world.endpoint(&receiver.url("/hook"), "acme").await;
        let target = || Target::EndpointId(endpoint.id.clone());
        publish(&world.client, target(), b"{}", "once").await.expect("published");
        receiver.wait_for_count(1).await;
        world.server.kill().await;

        // The last of those that are made ahead; an id begins with its milliseconds.
        let mut sql = world.server.sql().await;
        let weeks = "SELECT CAST(substr(relname, 9) AS BIGINT) FROM pg_class WHERE relname ~ '^events_w[0-9]+$'";
        let ahead = sql.numbers(weeks).await.into_iter().max().expect("partitions");
        let millis = u128::try_from(ahead * 7 * 24 * 3600 * 1000).expect("after 1970");
        let id = uuid::Uuid::from_u128(millis << 80);
        for statement in [
            format!("DROP TABLE events_w{ahead}"),
            format!(
                "INSERT INTO events (id, project_id, event_type, target_kind, payload, delivery_count, created_at) \
                 SELECT '{id}', project_id, event_type, 3, payload, 0, created_at FROM events"
            ),
            "UPDATE idempotency_keys SET expires_at = 0".to_owned(),
        ] {
            sql.run(&statement).await;
        }
        assert_eq!(sql.count("events_default").await, 1);

        world.restart().await;
        sql.until_numbers("SELECT COUNT(*) FROM idempotency_keys", &[0]).await;
        assert!(world.server.log().contains(&format!("events_w{ahead}")), "an operator is told");
        publish(&world.client, target(), b"{}", "").await.expect("published");
        receiver.wait_for_count(2).await;
    })
    .await;
}
