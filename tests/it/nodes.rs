//! Several nodes on one PostgreSQL.

use hawser_client::pb::publish_event_request::Target;

use crate::support::world::publish;
use crate::support::{Database, Receiver, World, in_time};

/// What is set up through one node is in force on another as soon as it was acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_made_on_one_node_is_honoured_by_the_next_publish_on_another() {
    in_time(async {
        let world = World::new(Database::postgres().await).await;
        let other = world.server.join().await;
        let there = world.client_of(&other).await;
        let receiver = Receiver::ok().await;
        for round in 0..5 {
            let (endpoint, _) = world.endpoint(&receiver.url(&format!("/{round}")), "acme").await;
            let reply = publish(&there, Target::EndpointId(endpoint.id), b"{}", "").await.expect("published");
            assert_eq!(reply.delivery_count, 1);
        }
        receiver.wait_for_count(5).await;

        let mut session = world.server.database().session().await;
        let leases: i64 =
            sqlx::query_scalar("SELECT COUNT(*) FROM leases").fetch_one(&mut session).await.expect("read");
        assert_eq!(leases, 2, "each node holds a lease of its own");
    })
    .await;
}
