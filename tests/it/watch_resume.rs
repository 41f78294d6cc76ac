//! Watch: every change once and in order, for clients that are cut at random places and resume, while servers
//! stop, die and start again, and from node to node; and all of it together is what the database holds.

use std::collections::{BTreeSet, HashMap, HashSet};

use hawser::domain::id::{AttemptId, DeliveryId};
use hawser_client::pb::publish_event_request::Target;
use hawser_client::pb::watch_request::Start;
use hawser_client::{Client, Key, pb};
use rand::RngExt;
use tokio::sync::watch;
use tonic::Code;
use tonic_types::StatusExt;

use crate::support::feed::{from, open, told};
use crate::support::sql::Session;
use crate::support::world::{publish, quick_retries};
use crate::support::{Database, PATIENCE, Receiver, Reply, Server, World, on_both, tier};

on_both!(a_stream_that_is_cut_and_resumed_sees_each_change_once_and_in_order);

/// Addresses of the nodes that run.
type Nodes = watch::Receiver<Vec<String>>;

async fn any(nodes: &mut Nodes) -> String {
    let running = nodes.wait_for(|running| !running.is_empty()).await.expect("nodes");
    running[rand::rng().random_range(0..running.len())].clone()
}

/// The name of the endpoint that is made last: what came before it is compared.
const LAST: &str = "the last";

/// Reads until the last change, resuming with the last token after each cut, random or not, on any node.
async fn follow(mut nodes: Nodes, key: &str, start: Start, cut_one_in: u32) -> Vec<String> {
    let (mut start, mut seen) = (start, Vec::<String>::new());
    loop {
        let address = any(&mut nodes).await;
        let Ok(mut stream) = open(&address, key, from(start.clone())).await else { continue };
        loop {
            let message = tokio::time::timeout(PATIENCE, stream.message()).await.expect("goes on");
            let message = match message {
                Ok(Some(message)) => message,
                Ok(None) => panic!("a stream ends with a status"),
                Err(status) => {
                    // A server that stops says where to go on, which may be beyond the last message.
                    let details = status.get_error_details();
                    let token = details.error_info().and_then(|info| info.metadata.get("resume_token"));
                    start = token.map_or(start, |token| Start::ResumeToken(token.clone()));
                    break;
                }
            };
            start = Start::ResumeToken(message.resume_token.clone());
            seen.extend(told(&message));
            if seen.last().is_some_and(|line| line.ends_with(LAST)) {
                return seen;
            }
            if cut_one_in > 0 && rand::rng().random_range(0..cut_one_in) == 0 {
                break;
            }
        }
    }
}

/// Publishes on any node until it is acknowledged.
async fn publish_all(mut nodes: Nodes, key: &str, endpoint: &str, numbers: impl Iterator<Item = usize>) {
    let mut client: Option<Client> = None;
    for number in numbers {
        loop {
            let current = match client.take() {
                Some(client) => client,
                None => match Client::connect(any(&mut nodes).await, Key::new(key)).await {
                    Ok(client) => client,
                    Err(_) => continue,
                },
            };
            let target = Target::EndpointId(endpoint.to_owned());
            // The key makes the repeat of an unanswered publish harmless.
            match publish(&current, target, b"{}", &format!("event-{number}")).await {
                Ok(_) => {
                    client = Some(current);
                    break;
                }
                Err(status) => {
                    // With a source it is not the server's word: the connection ended under the call.
                    let cut = std::error::Error::source(&status).is_some();
                    assert!(cut || status.code() == Code::Unavailable, "{status:?}");
                }
            }
        }
    }
}

/// Ends a server, softly or not, and starts it again; nobody is sent to it meanwhile.
async fn restart(server: &mut Server, running: &watch::Sender<Vec<String>>, softly: bool) {
    let going = server.address();
    running.send_modify(|running| running.retain(|address| *address != going));
    if softly {
        server.terminate().await;
    } else {
        server.kill().await;
    }
    server.spawn().await;
    running.send_modify(|running| running.push(server.address()));
}

async fn a_stream_that_is_cut_and_resumed_sees_each_change_once_and_in_order(database: Database) {
    let several = database.url().is_some();
    let world = World::new(database).await;
    let receiver =
        Receiver::scripted(|_, before| Reply::status(if before % 7 == 3 { 500 } else { 204 })).await;
    let events = tier(600, 50_000);
    // A budget that no run of failures can spend.
    let endpoint = pb::Endpoint {
        url: receiver.url("/hook"),
        retry_policy: Some(quick_retries(100)),
        ..Default::default()
    };
    let (endpoint, _) = world.create(endpoint, &["*"]).await;
    let (key, mut servers) = (world.key.clone(), vec![world.server]);
    if several {
        let second = servers[0].join().await;
        servers.push(second);
    }
    let running = watch::Sender::new(servers.iter().map(Server::address).collect::<Vec<_>>());

    let publishing = async {
        let mut tasks = tokio::task::JoinSet::new();
        for worker in 0..8 {
            let (nodes, key, endpoint) = (running.subscribe(), key.clone(), endpoint.id.clone());
            tasks.spawn(async move {
                publish_all(nodes, &key, &endpoint, (worker..events).step_by(8)).await;
            });
        }
        tasks.join_all().await;
    };
    // Servers end in turn, softly or not, while it goes on.
    let restarts = tier(3, 10);
    let working = async {
        let restarting = async {
            for round in 0..restarts {
                receiver.wait_for_count(events * (round + 1) / (restarts + 2)).await;
                let turn = round % servers.len();
                restart(&mut servers[turn], &running, round % 2 == 0).await;
            }
        };
        tokio::join!(publishing, restarting);
        servers[0].sql().await.until_numbers("SELECT COUNT(*) FROM queue", &[0]).await;
        // An attempt whose claim was lost may end after its delivery has; a server that ends softly has written it.
        for server in &mut servers {
            restart(server, &running, true).await;
        }
        let client = Client::connect(servers[0].address(), Key::new(key.clone())).await;
        let endpoint =
            pb::Endpoint { url: receiver.url("/last"), name: LAST.to_owned(), ..Default::default() };
        let request = pb::CreateEndpointRequest { endpoint: Some(endpoint), ..Default::default() };
        client.expect("connected").endpoints().create_endpoint(request).await.expect("created");
    };
    let start = Start::Earliest(pb::StartEarliest {});
    let (one, two, ()) = tokio::join!(
        follow(running.subscribe(), &key, start.clone(), tier(20, 200) as u32),
        follow(running.subscribe(), &key, start.clone(), 0),
        working,
    );
    // The log as a whole, read at once from the store.
    let reference = follow(running.subscribe(), &key, start, 0).await;
    assert!(one == reference, "the stream that was cut tells another story");
    assert!(two == reference, "the stream that only servers cut tells another story");
    let distinct: HashSet<&String> = reference.iter().collect();
    assert_eq!(distinct.len(), reference.len(), "something is told twice");

    let story = Story::of(&reference);
    assert_eq!(story.created, events);
    let (attempts, deliveries) = stored(&servers[0]).await;
    assert_same("attempts", &story.attempts, &attempts);
    assert_same("deliveries", &story.deliveries, &deliveries);
    let (changes, late) = (reference.len(), story.late);
    eprintln!("{events} events, {changes} changes, {restarts} restarts, {late} attempts without a claim");
}

/// What the log comes to, with ids as the database has them.
struct Story {
    created: usize,
    attempts: BTreeSet<String>,
    /// The last status that was told of each, and its count of attempts.
    deliveries: BTreeSet<String>,
    /// Attempts that led to nothing, because their claim was lost.
    late: usize,
}

impl Story {
    /// Reads the log; each delivery's own story in it must be in order.
    fn of(log: &[String]) -> Self {
        let (mut created, mut late, mut attempts) = (0, 0, BTreeSet::new());
        let (mut numbers, mut last) = (HashMap::<&str, i32>::new(), HashMap::<&str, String>::new());
        // The delivery and the number of the attempt that must be told next.
        let mut due: Option<(&str, &str)> = None;
        for line in log {
            let words: Vec<&str> = line.split(' ').collect();
            let led = due.take();
            match words[..] {
                [delivery, "attempt", number, attempt] => {
                    let attempt: AttemptId = attempt.parse().expect("an id");
                    attempts.insert(attempt.uuid().simple().to_string());
                    let Some(led) = led else {
                        late += 1;
                        continue;
                    };
                    assert_eq!((delivery, number), led, "{line}");
                    let number: i32 = number.parse().expect("a number");
                    let before = numbers.insert(delivery, number).unwrap_or_default();
                    assert!(number > before, "{line} after {before}");
                }
                _ if led.is_some() => panic!("{line}, where the attempt {led:?} was to be told"),
                [delivery, kind, status, count] if delivery.starts_with("dlv_") => {
                    created += usize::from(kind == "Created");
                    due = (kind == "Attempted").then_some((delivery, count));
                    last.insert(delivery, format!("{status} {count}"));
                }
                _ => {}
            }
        }
        let deliveries = last.into_iter().map(|(delivery, state)| {
            let delivery: DeliveryId = delivery.parse().expect("an id");
            format!("{} {state}", delivery.uuid().simple())
        });
        Self { created, attempts, deliveries: deliveries.collect(), late }
    }
}

/// What the database holds: the ids of attempts; deliveries with their status and count of attempts.
async fn stored(server: &Server) -> (BTreeSet<String>, BTreeSet<String>) {
    let mut session = server.sql().await;
    let id = match session {
        Session::Sqlite(_) => "LOWER(HEX(id))",
        Session::Postgres(_) => "REPLACE(CAST(id AS TEXT), '-', '')",
    };
    let attempts = texts(&mut session, format!("SELECT {id} FROM attempts")).await;
    let sql = format!(
        "SELECT {id} || ' ' || CASE status WHEN 1 THEN 'Scheduled' WHEN 3 THEN 'Retry' WHEN 4 THEN 'Success' \
         WHEN 5 THEN 'Failed' WHEN 6 THEN 'Discarded' END || ' ' || CAST(attempts AS TEXT) FROM deliveries"
    );
    (attempts, texts(&mut session, sql).await)
}

/// One column of texts.
async fn texts(session: &mut Session, sql: String) -> BTreeSet<String> {
    let sql = sqlx::AssertSqlSafe(sql);
    let read: Vec<String> = match session {
        Session::Sqlite(session) => sqlx::query_scalar(sql).fetch_all(session).await,
        Session::Postgres(session) => sqlx::query_scalar(sql).fetch_all(session).await,
    }
    .expect("read");
    read.into_iter().collect()
}

fn assert_same(what: &str, told: &BTreeSet<String>, stored: &BTreeSet<String>) {
    let some = |these: &BTreeSet<String>, those: &BTreeSet<String>| -> Vec<String> {
        these.difference(those).take(5).cloned().collect()
    };
    assert!(
        told == stored,
        "{what}: {} told and {} stored; told only: {:?}; stored only: {:?}",
        told.len(),
        stored.len(),
        some(told, stored),
        some(stored, told)
    );
}
