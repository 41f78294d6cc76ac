//! PostgreSQL away for a while, and connections cut again and again: the server stays, tells publishers the truth,
//! and goes on by itself.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use hawser_client::pb::publish_event_request::Target;
use hawser_client::pb::watch_request::Start;
use hawser_client::{Client, pb};
use sqlx::{AssertSqlSafe, Executor, PgConnection};
use tokio::sync::Mutex;
use tonic::Code;

use crate::support::world::publish;
use crate::support::{Database, Proxy, Receiver, World, feed, in_time, pass_time, scrape, tier, web};

/// Publishes from several tasks, each event until it is acknowledged, until it is stopped.
struct Load {
    acknowledged: Arc<Mutex<HashMap<String, String>>>,
    refused: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    tasks: tokio::task::JoinSet<()>,
}

impl Load {
    fn start(clients: &[Client], endpoint: &pb::Endpoint) -> Self {
        let mut load = Self {
            acknowledged: Arc::default(),
            refused: Arc::default(),
            stop: Arc::default(),
            tasks: tokio::task::JoinSet::new(),
        };
        for publisher in 0..8 {
            let client = clients[publisher % clients.len()].clone();
            let target = Target::EndpointId(endpoint.id.clone());
            let (acknowledged, refused) = (load.acknowledged.clone(), load.refused.clone());
            let stop = load.stop.clone();
            load.tasks.spawn(async move {
                for number in 0.. {
                    let key = format!("{publisher}-{number}");
                    let id = loop {
                        match publish(&client, target.clone(), key.as_bytes(), &key).await {
                            Ok(reply) => break reply.event_id,
                            Err(status) => {
                                assert_eq!(status.code(), Code::Unavailable, "{status}");
                                refused.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    };
                    acknowledged.lock().await.insert(id, key);
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
        }
        load
    }

    /// Ends publishing; all that was acknowledged arrives, under its id and with its bytes.
    async fn end(self, receiver: &Receiver) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.tasks.join_all().await;
        let acknowledged = self.acknowledged.lock().await;
        let seen = receiver.wait_for_events(acknowledged.keys()).await;
        for one in seen {
            let key = acknowledged.get(&one.event()).expect("only what was acknowledged in the end");
            assert_eq!(one.body, key.as_bytes());
        }
        acknowledged.len()
    }
}

async fn cut_all(admin: &mut PgConnection, database: &str) {
    let cut = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'");
    admin.execute(AssertSqlSafe(cut)).await.expect("cut");
}

/// The database goes away for seconds, then connections are cut at random.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_postgres_loses_nothing_and_ends_by_itself() {
    in_time(async {
        let world = World::new(Database::postgres().await).await;
        let other = world.server.join().await;
        let receiver = Receiver::ok().await;
        let (endpoint, _) = world.endpoint(&receiver.url("/hook"), "").await;
        let clients = [world.client.clone(), world.client_of(&other).await];
        let (mut admin, name) = (other.database().admin_session().await, other.database().name());
        let load = Load::start(&clients, &endpoint);
        for _ in 0..tier(1, 5) {
            let wanted = receiver.seen().len() + 100;
            receiver.wait_for_count(wanted).await;
            other.database().set_reachable(false).await;
            let refused = load.refused.load(Ordering::Relaxed);
            pass_time(Duration::from_secs(3)).await;
            assert!(load.refused.load(Ordering::Relaxed) > refused, "publishers were told");
            let before = receiver.seen().len();
            other.database().set_reachable(true).await;
            receiver.wait_for_count(before + 1).await;
        }
        for _ in 0..tier(8, 60) {
            let wanted = receiver.seen().len() + 20;
            receiver.wait_for_count(wanted).await;
            cut_all(&mut admin, name).await;
        }
        let events = load.end(&receiver).await;
        println!("{events} events");
        other.database().until("the queue is empty", "SELECT COUNT(*) FROM queue", 0).await;
        let orphans = "SELECT COUNT(*) FROM leases WHERE expires_at < \
                       (EXTRACT(EPOCH FROM clock_timestamp()) * 1000)::bigint";
        other.database().until("old leases are gone", orphans, 0).await;
    })
    .await;
}

/// The machine with the database vanishes without a word and another takes its place: old connections are silent
/// and never end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_fall_silent_are_given_up() {
    in_time(async {
        let world = World::new(Database::postgres().await).await;
        let proxy = Proxy::before(world.server.database().url().expect("PostgreSQL")).await;
        let mut node = world.server;
        let through = node.join_through(proxy.url()).await;
        node.terminate().await;
        let client = Client::connect(through.address(), hawser_client::Key::new(world.key)).await.unwrap();
        let receiver = Receiver::ok().await;
        let endpoint = pb::Endpoint { url: receiver.url("/hook"), ..Default::default() };
        let request = pb::CreateEndpointRequest { endpoint: Some(endpoint), ..Default::default() };
        let endpoint = client.endpoints().create_endpoint(request).await.expect("created").into_inner();
        let load = Load::start(std::slice::from_ref(&client), &endpoint.endpoint.expect("an endpoint"));
        receiver.wait_for_count(100).await;
        proxy.silence_present();
        let before = receiver.quiet_for(Duration::from_secs(1)).await.len();
        // The kernel would give the connections up long after the test has.
        receiver.wait_for_count(before + 1).await;
        load.end(&receiver).await;
    })
    .await;
}

/// The server of PostgreSQL turns read-only, as when it became a standby: that passes, and is no refusal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_turned_read_only_is_away() {
    in_time(async {
        let world = World::new(Database::postgres().await).await;
        let receiver = Receiver::ok().await;
        let (endpoint, _) = world.endpoint(&receiver.url("/hook"), "").await;
        let database = world.server.database();
        let (mut admin, name) = (database.admin_session().await, database.name());
        let load = Load::start(std::slice::from_ref(&world.client), &endpoint);
        receiver.wait_for_count(100).await;
        for read_only in [true, false] {
            let set = format!("ALTER DATABASE {name} SET default_transaction_read_only = {read_only}");
            admin.execute(AssertSqlSafe(set)).await.expect("set");
            cut_all(&mut admin, name).await;
            // The load's publishers take no answer but UNAVAILABLE.
            let refused = load.refused.load(Ordering::Relaxed);
            while read_only && load.refused.load(Ordering::Relaxed) < refused + 50 {
                pass_time(Duration::from_millis(20)).await;
            }
        }
        let before = receiver.seen().len();
        receiver.wait_for_count(before + 100).await;
        load.end(&receiver).await;
    })
    .await;
}

/// An endpoint, once a call that makes it is answered, and the stream's telling of it.
async fn made_and_told(client: &Client, stream: &mut tonic::Streaming<pb::WatchResponse>) {
    let made = feed::eventually("an endpoint", || {
        let endpoint = pb::Endpoint { url: "https://example.com/".to_owned(), ..Default::default() };
        let request = pb::CreateEndpointRequest { endpoint: Some(endpoint), ..Default::default() };
        let mut endpoints = client.endpoints();
        async move { endpoints.create_endpoint(request).await }
    });
    let made = made.await.into_inner().endpoint.expect("an endpoint");
    // Those before it may have been made by calls that were not answered.
    while !feed::told(&feed::change(stream).await).is_some_and(|told| told.starts_with(&made.id)) {}
}

/// The connection on which the change log is being read falls silent: watchers are told of what comes after all the
/// same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_go_on_after_their_readers_connection_fell_silent() {
    in_time(async {
        let mut world = World::new(Database::postgres().await).await;
        let proxy = Proxy::before(world.server.database().url().expect("PostgreSQL")).await;
        let node = world.server.join_through(proxy.url()).await;
        world.server.terminate().await;
        let client = world.client_of(&node).await;
        let now = feed::from(Start::Now(pb::StartNow {}));
        let mut stream = feed::open(&node.address(), &world.key, now).await.expect("a stream");
        feed::message(&mut stream).await;
        // A stream that is not yet past the beginning of what the reader keeps reads for itself, and ends when it
        // cannot. One that was told of something later than what the reader has is past it.
        loop {
            let (_, measures) = web::get(node.admin(), "/metrics").await;
            made_and_told(&client, &mut stream).await;
            if scrape::value(&measures, "hawser_feed_position").is_some_and(|position| position > 0.0) {
                break;
            }
        }
        let mut session = node.database().session().await;
        session.execute("BEGIN").await.expect("begun");
        session.execute("LOCK TABLE changes IN ACCESS EXCLUSIVE MODE").await.expect("locked");
        let waiting = "SELECT COUNT(DISTINCT 1) FROM pg_stat_activity WHERE wait_event_type = 'Lock' \
                       AND datname = current_database() AND query LIKE '%FROM changes%'";
        node.database().until("the reader waits for an answer", waiting, 1).await;
        proxy.silence_present();
        session.execute("ROLLBACK").await.expect("let go");
        made_and_told(&client, &mut stream).await;
    })
    .await;
}
