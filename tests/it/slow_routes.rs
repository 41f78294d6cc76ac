//! Projects whose routes cannot be read for a while keep no other project waiting.

use std::time::Duration;

use hawser_client::pb::publish_event_request::Target;
use hawser_client::{Client, Key, pb};
use sqlx::Executor;
use tonic::Code;

use crate::support::feed::eventually;
use crate::support::world::{project, publish};
use crate::support::{Database, Receiver, World, in_time, pass_time};

/// A project of its own with an endpoint at this path, and a client for it.
async fn tenant(world: &World, receiver: &Receiver, owner: &str) -> (Client, Target) {
    let (_, key) = project(&world.operator, pb::PausedPolicy::Discard).await;
    let client = world.operator.with_key(&Key::new(key)).expect("a key");
    let endpoint =
        pb::Endpoint { url: receiver.url("/hook"), owner_id: owner.to_owned(), ..Default::default() };
    let request = pb::CreateEndpointRequest { endpoint: Some(endpoint), ..Default::default() };
    let made = client.endpoints().create_endpoint(request).await.expect("created").into_inner().endpoint;
    (client, Target::EndpointId(made.expect("an endpoint").id))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_projects_are_served_while_the_routes_of_some_are_read() {
    in_time(async {
        let world = World::new(Database::postgres().await).await;
        let receiver = Receiver::ok().await;
        let (client, other) = tenant(&world, &receiver, "other").await;
        publish(&client, other.clone(), b"{}", "").await.expect("published");
        // More than are read at once.
        let mut slow = Vec::new();
        for _ in 0..6 {
            let (client, target) = tenant(&world, &receiver, "slow").await;
            publish(&client, target.clone(), b"{}", "").await.expect("published");
            slow.push((client, target));
        }
        receiver.wait_for_count(7).await;

        let database = world.server.database();
        let (mut holder, mut session) = (database.session().await, database.session().await);
        let lease: uuid::Uuid =
            sqlx::query_scalar("SELECT id FROM leases").fetch_one(&mut session).await.expect("read");
        holder.execute("BEGIN; LOCK TABLE subscriptions IN ACCESS EXCLUSIVE MODE").await.expect("locked");
        let bump = "UPDATE projects SET routing_version = routing_version + 1 \
                    WHERE id IN (SELECT project_id FROM endpoints WHERE owner_id = 'slow')";
        session.execute(bump).await.expect("bumped");
        // What is published to them meanwhile is refused, at once or after a little waiting, and costs nobody else anything.
        let began = std::time::Instant::now();
        while began.elapsed() < Duration::from_secs(8) {
            let mut asked = tokio::task::JoinSet::new();
            for (client, target) in slow.clone() {
                asked.spawn(async move { publish(&client, target, b"{}", "").await });
            }
            let reply = publish(&client, other.clone(), b"{}", "").await.expect("published");
            receiver.wait_for_events([&reply.event_id]).await;
            let refused = tokio::time::timeout(Duration::from_secs(15), asked.join_all()).await;
            for refused in refused.expect("they are not kept waiting") {
                assert_eq!(refused.expect_err("no routes").code(), Code::Unavailable);
            }
            pass_time(Duration::from_millis(200)).await;
        }
        let stands = format!("SELECT COUNT(*) FROM leases WHERE id = '{lease}'");
        database.until("the lease stands", &stands, 1).await;
        holder.execute("COMMIT").await.expect("released");
        for (client, target) in &slow {
            let reply =
                eventually("its routes are read", || publish(client, target.clone(), b"{}", "")).await;
            receiver.wait_for_events([&reply.event_id]).await;
        }
    })
    .await;
}
