//! Projects whose routes cannot be read for a while keep no other project waiting.

use std::collections::HashSet;
use std::time::Duration;

use hawser_client::pb::publish_event_request::Target;
use hawser_client::{Client, Key, pb};
use sqlx::Executor;
use tonic::Code;

use crate::support::feed::eventually;
use crate::support::world::{project, publish};
use crate::support::{Database, PATIENCE, Receiver, Reply, World, in_time, pass_time};

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
        let publish_to_slow = || {
            let mut asked = tokio::task::JoinSet::new();
            for (client, target) in slow.clone() {
                asked.spawn(async move { publish(&client, target, b"{}", "").await });
            }
            asked
        };
        // What is published to them meanwhile waits, and costs nobody else anything.
        let mut asked = publish_to_slow();
        for _ in 0..3 {
            let reply = publish(&client, other.clone(), b"{}", "").await.expect("published");
            receiver.wait_for_events([&reply.event_id]).await;
        }
        assert!(asked.try_join_next().is_none(), "they wait for their own routes, and others do not");
        let refused = tokio::time::timeout(PATIENCE, asked.join_all()).await;
        for refused in refused.expect("they do not wait for ever") {
            assert_eq!(refused.expect_err("no routes").code(), Code::Unavailable);
        }
        // Once it is known that their routes are not to be had, nobody waits as long again.
        pass_time(Duration::from_secs(10)).await;
        for _ in 0..10 {
            let asked = publish_to_slow();
            let reply = publish(&client, other.clone(), b"{}", "").await.expect("published");
            receiver.wait_for_events([&reply.event_id]).await;
            let refused = tokio::time::timeout(Duration::from_secs(5), asked.join_all()).await;
            for refused in refused.expect("they are refused at once") {
                assert_eq!(refused.expect_err("no routes").code(), Code::Unavailable);
            }
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

/// They are accepted once, when the routes are there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_wait_for_routes_that_take_a_while() {
    in_time(async {
        let world = World::new(Database::postgres().await).await;
        let receiver = Receiver::ok().await;
        let (client, target) = tenant(&world, &receiver, "slow").await;
        publish(&client, target.clone(), b"{}", "").await.expect("published");
        receiver.wait_for_count(1).await;
        let database = world.server.database();
        let (mut holder, mut session) = (database.session().await, database.session().await);
        holder.execute("BEGIN; LOCK TABLE subscriptions IN ACCESS EXCLUSIVE MODE").await.expect("locked");
        let bump = "UPDATE projects SET routing_version = routing_version + 1 \
                    WHERE id IN (SELECT project_id FROM endpoints WHERE owner_id = 'slow')";
        session.execute(bump).await.expect("bumped");
        let mut asked = tokio::task::JoinSet::new();
        for number in 0..20 {
            let (client, target) = (client.clone(), target.clone());
            // Two with each key.
            let key = format!("key-{}", number / 2);
            asked.spawn(async move { publish(&client, target, b"{}", &key).await });
        }
        pass_time(Duration::from_secs(1)).await;
        assert!(asked.try_join_next().is_none(), "they wait");
        holder.execute("COMMIT").await.expect("released");
        let replies: Vec<_> =
            asked.join_all().await.into_iter().map(|reply| reply.expect("accepted")).collect();
        assert_eq!(replies.iter().filter(|reply| reply.duplicate).count(), 10);
        let ids: HashSet<_> = replies.into_iter().map(|reply| reply.event_id).collect();
        assert_eq!(ids.len(), 10);
        receiver.wait_for_events(&ids).await;
        let events: i64 =
            sqlx::query_scalar("SELECT COUNT(*) FROM events").fetch_one(&mut session).await.expect("read");
        assert_eq!(events, 11);
    })
    .await;
}

/// What waits in its memory is not sent by settings that another node may have changed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_cannot_confirm_its_routes_starts_nothing() {
    in_time(async {
        let world = World::new(Database::postgres().await).await;
        // Its first attempt ends when the routes were not confirmed for longer than is allowed.
        let delay = |count: usize| Duration::from_secs(if count == 0 { 9 } else { 0 });
        let receiver = Receiver::scripted(move |_, count| Reply::after(delay(count))).await;
        let endpoint = pb::Endpoint { url: receiver.url("/"), max_in_flight: 1, ..Default::default() };
        let (endpoint, _) = world.create(endpoint, &["*"]).await;
        for _ in 0..2 {
            let target = Target::EndpointId(endpoint.id.clone());
            publish(&world.client, target, b"{}", "").await.expect("published");
        }
        receiver.wait_for_count(1).await;
        let database = world.server.database();
        let (mut holder, mut session) = (database.session().await, database.session().await);
        let lease: uuid::Uuid =
            sqlx::query_scalar("SELECT id FROM leases").fetch_one(&mut session).await.expect("read");
        holder.execute("BEGIN; LOCK TABLE projects IN ACCESS EXCLUSIVE MODE").await.expect("locked");
        let seen = receiver.quiet_for(Duration::from_secs(12)).await;
        assert_eq!(seen.len(), 1, "it does not know by which settings");
        let stands = format!("SELECT COUNT(*) FROM leases WHERE id = '{lease}'");
        database.until("the lease stands", &stands, 1).await;
        holder.execute("COMMIT").await.expect("released");
        receiver.wait_for_count(2).await;
    })
    .await;
}
