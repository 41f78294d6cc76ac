//! Several nodes on one PostgreSQL: what one acknowledged is in force on the others, and any may be restarted.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use hawser_client::pb::publish_event_request::Target;
use hawser_client::{Client, Key, pb};
use tokio::sync::{Mutex, watch};
use tonic::{Code, Status};

use crate::support::world::{next, publish};
use crate::support::{Database, Receiver, Reply, World, in_time, tier};

/// What is set up through one node is in force on another as soon as it was acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_made_on_one_node_is_honoured_by_the_next_publish_on_another() {
    in_time(async {
        let world = World::new(Database::postgres().await).await;
        let other = world.server.join().await;
        let there = world.client_of(&other).await;
        let receiver = Receiver::ok().await;
        let endpoint = pb::Endpoint { url: receiver.url("/hook"), ..Default::default() };
        let (endpoint, _) = world.create(endpoint, &["never"]).await;
        let rounds = tier(60, 1000);
        for round in 0..rounds {
            let event_type = format!("round.{round}");
            let count = publish_type(&there, &endpoint, &event_type).await.expect("published").delivery_count;
            assert_eq!(count, 0, "nobody wants {event_type} yet");
            let subscription = pb::Subscription {
                endpoint_id: endpoint.id.clone(),
                event_types: vec![event_type.clone()],
                ..Default::default()
            };
            let request =
                pb::CreateSubscriptionRequest { subscription: Some(subscription), ..Default::default() };
            world.client.subscriptions().create_subscription(request).await.expect("created");
            let count = publish_type(&there, &endpoint, &event_type).await.expect("published").delivery_count;
            assert_eq!(count, 1, "{event_type} was subscribed to before it was published");
        }
        receiver.wait_for_count(rounds).await;

        let mut session = world.server.database().session().await;
        let leases: i64 =
            sqlx::query_scalar("SELECT COUNT(*) FROM leases").fetch_one(&mut session).await.expect("read");
        assert_eq!(leases, 2, "each node holds a lease of its own");
    })
    .await;
}

/// So is what is taken away or moved through any of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_node_ends_or_moves_is_so_for_the_next_publish_on_another() {
    in_time(async {
        let world = World::new(Database::postgres().await).await;
        let other = world.server.join().await;
        let there = world.client_of(&other).await;
        let receiver = Receiver::ok().await;
        let endpoint = pb::Endpoint { url: receiver.url("/hook"), ..Default::default() };
        let (endpoint, _) = world.create(endpoint, &["always"]).await;
        for round in 0..tier(50, 500) {
            let (here, there) =
                if round % 2 == 0 { (&world.client, &there) } else { (&there, &world.client) };
            let (path, event_type) = (format!("/{round}"), format!("round.{round}"));
            // Up to here the other node knows everything: it made the last change, or published after it.
            let moved =
                pb::Endpoint { id: endpoint.id.clone(), url: receiver.url(&path), ..Default::default() };
            let request = pb::UpdateEndpointRequest { endpoint: Some(moved), ..Default::default() };
            here.endpoints().update_endpoint(request).await.expect("moved");
            let moved = publish_type(there, &endpoint, "always").await.expect("published").event_id;

            let subscription = pb::Subscription {
                endpoint_id: endpoint.id.clone(),
                event_types: vec![event_type.clone()],
                ..Default::default()
            };
            let request =
                pb::CreateSubscriptionRequest { subscription: Some(subscription), ..Default::default() };
            let made = here.subscriptions().create_subscription(request).await.expect("created").into_inner();
            let wanted = publish_type(there, &endpoint, &event_type).await.expect("published");
            assert_eq!(wanted.delivery_count, 1, "{event_type} is subscribed to");
            end(here, made.subscription.expect("a subscription").id, round % 4 < 2).await;
            let unwanted = publish_type(there, &endpoint, &event_type).await.expect("published");
            assert_eq!(unwanted.delivery_count, 0, "nobody wanted {event_type} any more");

            // Before the next move, or they would follow it.
            let seen = receiver.wait_for_events([&moved, &wanted.event_id]).await;
            for event in [moved, wanted.event_id] {
                let paths: Vec<_> =
                    seen.iter().filter(|one| one.event() == event).map(|one| one.path.as_str()).collect();
                assert_eq!(paths, [path.as_str()], "{event} goes where the endpoint is");
            }
        }
    })
    .await;
}

/// Deletes a subscription, or switches it off.
async fn end(client: &Client, id: String, delete: bool) {
    if delete {
        let request = pb::DeleteSubscriptionRequest { subscription_id: id, ..Default::default() };
        client.subscriptions().delete_subscription(request).await.expect("deleted");
    } else {
        let off = pb::Subscription { id, enabled: Some(false), ..Default::default() };
        let request = pb::UpdateSubscriptionRequest { subscription: Some(off), ..Default::default() };
        client.subscriptions().update_subscription(request).await.expect("switched off");
    }
}

async fn publish_type(
    client: &Client,
    endpoint: &pb::Endpoint,
    event_type: &str,
) -> Result<pb::PublishEventResponse, Status> {
    let request = pb::PublishEventRequest {
        event_type: event_type.to_owned(),
        target: Some(Target::EndpointId(endpoint.id.clone())),
        payload: b"{}".to_vec().into(),
        ..Default::default()
    };
    Ok(client.events().publish_event(request).await?.into_inner())
}

/// A pause through one node stops what waits in another's memory, though nothing is published there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_on_one_node_stops_the_backlog_of_another() {
    // Long enough that the pause is heard before the next request could start.
    const ANSWER: Duration = Duration::from_secs(4);
    const EVENTS: usize = 60;
    in_time(async {
        let world = World::new(Database::postgres().await).await;
        let other = world.server.join().await;
        let there = world.client_of(&other).await;
        let receiver = Receiver::scripted(|_, _| Reply::after(ANSWER)).await;
        let (endpoint, _) = world.endpoint(&receiver.url("/hook"), "").await;
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..EVENTS {
            let (client, target) = (there.clone(), Target::EndpointId(endpoint.id.clone()));
            tasks.spawn(async move { publish(&client, target, b"{}", "").await.expect("published") });
        }
        tasks.join_all().await;
        receiver.wait_for_count(16).await;
        let request = pb::PauseEndpointRequest { endpoint_id: endpoint.id.clone(), ..Default::default() };
        world.client.endpoints().pause_endpoint(request).await.expect("paused");
        let before = receiver.seen().len();
        let after = receiver.quiet_for(2 * ANSWER).await.len();
        assert_eq!(after, before, "nothing starts on the other node once it heard of the pause");
        assert!(after < EVENTS, "there was a backlog to hold");

        let request = pb::ResumeEndpointRequest { endpoint_id: endpoint.id.clone(), ..Default::default() };
        world.client.endpoints().resume_endpoint(request).await.expect("resumed");
        let seen = receiver.wait_for_count(EVENTS).await;
        let ids: HashSet<_> = seen.iter().map(|one| one.event()).collect();
        assert_eq!((seen.len(), ids.len()), (EVENTS, EVENTS), "all that was held came, once");
    })
    .await;
}

/// Commits on one node wake the watchers of another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_on_one_node_sees_what_another_commits() {
    in_time(async {
        let world = World::new(Database::postgres().await).await;
        let other = world.server.join().await;
        let there = world.client_of(&other).await;
        let receiver = Receiver::ok().await;
        let (endpoint, _) = world.endpoint(&receiver.url("/hook"), "").await;
        let mut stream = there.watch(pb::WatchRequest::default()).await.expect("watching");
        next(&mut stream).await;
        let event = world.publish_to(&endpoint, b"{}").await.event_id;
        crate::support::world::until(&mut stream, &event, pb::DeliveryStatus::Success).await;
    })
    .await;
}

const NODES: usize = 3;

/// Every node is stopped by SIGTERM and started again in turn, under load, and publishers go to another meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_under_load_loses_and_repeats_nothing() {
    in_time(async {
        let world = World::new(Database::postgres().await).await;
        let receiver = Receiver::scripted(|_, _| Reply::after(Duration::from_millis(20))).await;
        let (endpoint, _) = world.endpoint(&receiver.url("/hook"), "").await;
        let key = world.key.clone();
        let mut nodes = vec![world.server];
        while nodes.len() < NODES {
            let node = nodes[0].join().await;
            nodes.push(node);
        }
        let addresses = nodes.iter().map(|node| Some(node.address())).collect::<Vec<_>>();
        let addresses = watch::Sender::new(addresses);
        let (stop, acknowledged) =
            (watch::Sender::new(false), Arc::<Mutex<HashMap<String, usize>>>::default());
        let mut tasks = tokio::task::JoinSet::new();
        for publisher in 0..12 {
            let work = Publisher {
                addresses: addresses.subscribe(),
                key: key.clone(),
                endpoint: endpoint.id.clone(),
                stop: stop.subscribe(),
                acknowledged: acknowledged.clone(),
            };
            tasks.spawn(work.run(publisher));
        }
        for _ in 0..tier(1, 4) {
            for (place, node) in nodes.iter_mut().enumerate() {
                let wanted = receiver.seen().len() + 200;
                receiver.wait_for_count(wanted).await;
                addresses.send_modify(|addresses| addresses[place] = None);
                assert!(node.terminate().await.success(), "{}", node.log());
                node.spawn().await;
                addresses.send_modify(|addresses| addresses[place] = Some(node.address()));
            }
        }
        stop.send_replace(true);
        tasks.join_all().await;
        let acknowledged = acknowledged.lock().await;
        let seen = receiver.wait_for_events(acknowledged.keys()).await;
        nodes[0].database().until("the queue is empty", "SELECT COUNT(*) FROM queue", 0).await;
        println!("{} events", acknowledged.len());
        assert_eq!(receiver.seen().len(), acknowledged.len(), "{} came: a repeat", seen.len());
    })
    .await;
}

struct Publisher {
    addresses: watch::Receiver<Vec<Option<String>>>,
    key: String,
    endpoint: String,
    stop: watch::Receiver<bool>,
    acknowledged: Arc<Mutex<HashMap<String, usize>>>,
}

impl Publisher {
    /// Publishes one event after another, each until it is acknowledged, from node to node.
    async fn run(mut self, publisher: usize) {
        let (mut place, mut client) = (publisher, None);
        for number in 0.. {
            if *self.stop.borrow() {
                return;
            }
            let key = format!("{publisher}-{number}");
            loop {
                let there = match client.take() {
                    Some(there) => there,
                    None => self.connect(&mut place).await,
                };
                let target = Target::EndpointId(self.endpoint.clone());
                match publish(&there, target, key.as_bytes(), &key).await {
                    Ok(reply) => {
                        self.acknowledged.lock().await.insert(reply.event_id, number);
                        client = Some(there);
                        break;
                    }
                    Err(status) => {
                        // Not the server's word: the connection ended under the call.
                        let cut = std::error::Error::source(&status).is_some();
                        assert!(cut || status.code() == Code::Unavailable, "{status:?}");
                        place += 1;
                    }
                }
            }
        }
    }

    async fn connect(&mut self, place: &mut usize) -> Client {
        loop {
            let address = self.addresses.borrow_and_update()[*place % NODES].clone();
            if let Some(address) = address
                && let Ok(client) = Client::connect(address, Key::new(self.key.clone())).await
            {
                return client;
            }
            *place += 1;
        }
    }
}
