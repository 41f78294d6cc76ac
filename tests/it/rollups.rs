//! Roll-ups: each attempt is counted once, also where its commit was carried out and the answer lost.

use bytes::Bytes;
use hawser_client::pb;

use crate::support::{Database, Proxy, Receiver, Reply, World, in_time};

/// What the receiver answers, so that the transaction that records it carries it.
const MARK: &[u8] = b"recorded and not told";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_whose_commit_was_not_answered_is_counted_once() {
    in_time(async {
        let mut world = World::new(Database::postgres().await).await;
        let proxy = Proxy::before(world.server.database().url().expect("PostgreSQL")).await;
        let receiver = Receiver::scripted(|_, before| Reply {
            body: if before == 0 { Bytes::from_static(MARK) } else { Bytes::new() },
            ..Reply::status(200)
        })
        .await;
        let (endpoint, _) = world.endpoint(&receiver.url("/hook"), "").await;
        let node = world.server.join_through(proxy.url()).await;
        world.server.terminate().await;
        world.client = world.client_of(&node).await;
        proxy.lose_commit_after(MARK).await;
        world.publish_to(&endpoint, b"first").await;
        let attempts = "SELECT COUNT(*) FROM attempts";
        node.database().until("the first is recorded", attempts, 1).await;
        // It is written with what was not answered, or after it.
        world.publish_to(&endpoint, b"second").await;
        node.database().until("the second is recorded", attempts, 2).await;
        assert!(proxy.lost_commit().await, "the test lost the answer");
        let mut sql = node.sql().await;
        let counted = sql.numbers("SELECT SUM(successes + failures)::bigint FROM rollups").await;
        assert_eq!(counted, [2]);
        let read = crate::support::failing::get(&world, &endpoint.id).await;
        assert_eq!(read.last_response.and_then(|last| last.status_code), Some(200));
        assert_eq!(read.status(), pb::EndpointStatus::Active);
    })
    .await;
}
