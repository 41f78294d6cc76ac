//! What has served its time goes, however much of it there is.

use hawser_client::pb::publish_event_request::Target;

use crate::support::sql::Session;
use crate::support::world::publish;
use crate::support::{Database, World, on_both};

on_both!(all_expired_keys_go_in_one_round,);

/// Several batches.
const EXPIRED: i64 = 30_000;

async fn all_expired_keys_go_in_one_round(database: Database) {
    let mut world = World::new(database).await;
    let target = Target::Broadcast(hawser_client::pb::Broadcast::default());
    publish(&world.client, target, b"{}", "lives on").await.expect("published");
    world.server.terminate().await;
    let mut sql = world.server.sql().await;
    let (numbers, project, hash) = match sql {
        Session::Sqlite(_) => (
            "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT ",
            "randomblob(16)",
            "x'00'",
        ),
        Session::Postgres(_) => {
            ("WITH n(x) AS (SELECT * FROM generate_series(1, ", "gen_random_uuid()", "'\\x00'::bytea")
        }
    };
    sql.run(&format!(
        "{numbers}{EXPIRED}{}) INSERT INTO idempotency_keys \
         (project_id, key, event_id, content_hash, delivery_count, expires_at) \
         SELECT {project}, 'old', {project}, {hash}, 0, 1 FROM n",
        if matches!(sql, Session::Postgres(_)) { ")" } else { "" }
    ))
    .await;
    assert_eq!(sql.count("idempotency_keys").await, EXPIRED + 1);
    world.restart().await;
    // The next round is a minute later.
    let left = sql.until_numbers("SELECT COUNT(*) FROM idempotency_keys", &[1]);
    tokio::time::timeout(std::time::Duration::from_secs(45), left).await.expect("in the first round");
}
