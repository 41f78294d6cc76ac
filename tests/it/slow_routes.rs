//! A project whose routes cannot be read for a while keeps no other project waiting.

use std::time::Duration;

use hawser_client::Key;
use hawser_client::pb::publish_event_request::Target;
use sqlx::Executor;

use crate::support::feed::eventually;
use crate::support::world::{project, publish};
use crate::support::{Database, Receiver, World, in_time, pass_time};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_projects_are_served_while_one_projects_routes_are_read() {
    in_time(async {
        let world = World::new(Database::postgres().await).await;
        let receiver = Receiver::ok().await;
        let (slow, _) = world.endpoint(&receiver.url("/slow"), "slow").await;
        let (_, key) = project(&world.operator, hawser_client::pb::PausedPolicy::Discard).await;
        let client = world.operator.with_key(&Key::new(key)).expect("a key");
        let endpoint = hawser_client::pb::Endpoint { url: receiver.url("/other"), ..Default::default() };
        let request =
            hawser_client::pb::CreateEndpointRequest { endpoint: Some(endpoint), ..Default::default() };
        let other = client.endpoints().create_endpoint(request).await.expect("created").into_inner().endpoint;
        let other = Target::EndpointId(other.expect("an endpoint").id);
        world.publish_to(&slow, b"{}").await;
        publish(&client, other.clone(), b"{}", "").await.expect("published");
        receiver.wait_for_count(2).await;

        let database = world.server.database();
        let (mut holder, mut session) = (database.session().await, database.session().await);
        let lease: uuid::Uuid =
            sqlx::query_scalar("SELECT id FROM leases").fetch_one(&mut session).await.expect("read");
        holder.execute("BEGIN; LOCK TABLE subscriptions IN ACCESS EXCLUSIVE MODE").await.expect("locked");
        let bump = "UPDATE projects SET routing_version = routing_version + 1 \
                    WHERE id = (SELECT project_id FROM endpoints WHERE owner_id = 'slow')";
        session.execute(bump).await.expect("bumped");
        let waits = "SELECT LEAST(COUNT(*), 1) FROM pg_locks WHERE NOT granted AND relation = 'subscriptions'::regclass \
                     AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        database.until("the routes are being read", waits, 1).await;
        // What is published to the project meanwhile is refused, and costs nobody the lease or the turn.
        let to_slow = Target::EndpointId(slow.id.clone());
        let refused = publish(&world.client, to_slow.clone(), b"{}", "").await.expect_err("no routes");
        assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused}");
        // Versions that are not confirmed for five seconds are of no use.
        pass_time(Duration::from_secs(6)).await;
        let refused = publish(&world.client, to_slow.clone(), b"{}", "").await.expect_err("no routes");
        assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused}");
        publish(&client, other, b"{}", "").await.expect("published");
        receiver.wait_for_count(3).await;
        database.until("the one lease stands", &format!("SELECT COUNT(*) FROM leases WHERE id = '{lease}'"), 1).await;
        holder.execute("COMMIT").await.expect("released");
        eventually("its routes are read", || publish(&world.client, to_slow.clone(), b"{}", "")).await;
        receiver.wait_for_count(4).await;
    })
    .await;
}
