//! Watch: every change once and in order, for clients that are cut at random places and resume, while servers
//! stop, die and start again, and from node to node.

use std::collections::HashMap;

use hawser_client::pb::publish_event_request::Target;
use hawser_client::pb::watch_request::Start;
use hawser_client::{Client, Key, pb};
use rand::RngExt;
use tokio::sync::watch;

use crate::support::feed::{from, open, told};
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
            let Ok(Some(message)) = message else { break };
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
            if publish(&current, target, b"{}", &format!("event-{number}")).await.is_ok() {
                client = Some(current);
                break;
            }
        }
    }
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
    let restarting = async {
        for round in 0..restarts {
            receiver.wait_for_count(events * (round + 1) / (restarts + 2)).await;
            let turn = round % servers.len();
            let going = servers[turn].address();
            running.send_modify(|running| running.retain(|address| *address != going));
            if round % 2 == 0 {
                servers[turn].terminate().await;
            } else {
                servers[turn].kill().await;
            }
            servers[turn].spawn().await;
            let address = servers[turn].address();
            running.send_modify(|running| running.push(address));
        }
    };
    let ending = async {
        tokio::join!(publishing, restarting);
        let client = Client::connect(running.borrow()[0].clone(), Key::new(key.clone())).await;
        let endpoint =
            pb::Endpoint { url: receiver.url("/last"), name: LAST.to_owned(), ..Default::default() };
        let request = pb::CreateEndpointRequest { endpoint: Some(endpoint), ..Default::default() };
        client.expect("connected").endpoints().create_endpoint(request).await.expect("created");
    };
    let start = Start::Earliest(pb::StartEarliest {});
    let (one, two, ()) = tokio::join!(
        follow(running.subscribe(), &key, start.clone(), tier(20, 200) as u32),
        follow(running.subscribe(), &key, start.clone(), 0),
        ending,
    );
    // The log as a whole, read at once from the store.
    let reference = follow(running.subscribe(), &key, start, 0).await;
    assert!(one == reference, "the stream that was cut tells another story");
    assert!(two == reference, "the stream that only servers cut tells another story");

    // Each delivery's own story is in order, and each was made once.
    let (mut created, mut attempts) = (0, HashMap::<&str, i32>::new());
    for line in &reference {
        created += usize::from(line.contains(" Created Scheduled"));
        if let Some((delivery, attempt)) = line.split_once(" attempt ") {
            let number = attempt.split(' ').next().expect("a number").parse::<i32>().expect("a number");
            let last = attempts.insert(delivery, number).unwrap_or_default();
            assert!(number > last, "{line} after {last}");
        }
    }
    assert_eq!(created, events);
    eprintln!("{events} events, {} changes, {restarts} restarts", reference.len());
}
