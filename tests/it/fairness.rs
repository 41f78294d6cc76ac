//! Dead and slow endpoints do not hold up the others, and old work is not overtaken for ever.

use std::collections::HashSet;
use std::time::Duration;

use hawser_client::pb::publish_event_request::Target;
use hawser_client::{Client, pb};

use crate::support::failing::{NO_BREAKER, world_with};
use crate::support::{Database, Receiver, Reply, Server, World, in_time, on_both, tier};

on_both!(
    a_dead_endpoint_holds_its_few_slots_and_no_more,
    hundreds_of_dead_endpoints_leave_the_others_theirs,
    spilled_work_is_overtaken_by_a_bounded_number,
);

const HOUR: Duration = Duration::from_secs(3600);

/// Publishes so many events to each of these, at once.
async fn publish_many(world: &World, targets: &[Target], each: usize) -> Vec<String> {
    let request = |target: &Target| pb::PublishEventRequest {
        event_type: "test.event".to_owned(),
        target: Some(target.clone()),
        payload: b"{}".as_slice().into(),
        ..Default::default()
    };
    let requests: Vec<_> = (0..each).flat_map(|_| targets.iter().map(request)).collect();
    let mut ids = Vec::new();
    for requests in requests.chunks(1000) {
        let batch = pb::BatchPublishEventsRequest { requests: requests.to_vec(), ..Default::default() };
        let reply = world.client.events().batch_publish_events(batch).await.expect("taken").into_inner();
        for result in reply.results {
            match result.result {
                Some(pb::publish_result::Result::Receipt(receipt)) => ids.push(receipt.event_id),
                other => panic!("not accepted: {other:?}"),
            }
        }
    }
    ids
}

async fn a_dead_endpoint_holds_its_few_slots_and_no_more(database: Database) {
    let world = World::new(database).await;
    let dead_receiver = Receiver::scripted(|_, _| Reply::after(HOUR)).await;
    let receiver = Receiver::ok().await;
    let timeout = Some(prost_types::Duration { seconds: 60, nanos: 0 });
    let dead = pb::Endpoint { url: dead_receiver.url("/"), http_timeout: timeout, ..Default::default() };
    let (dead, _) = world.create(dead, &["*"]).await;
    let mut healthy = Vec::new();
    for number in 0..tier(20, 99) {
        let (endpoint, _) = world.endpoint(&receiver.url(&format!("/{number}")), "healthy").await;
        healthy.push(Target::EndpointId(endpoint.id));
    }
    publish_many(&world, &[Target::EndpointId(dead.id)], tier(1000, 10_000)).await;
    let ids = publish_many(&world, &healthy, 50).await;
    let seen = receiver.wait_for_count(ids.len()).await;
    assert_eq!(seen.iter().map(|one| one.event()).collect::<HashSet<_>>(), ids.into_iter().collect());
    let held = dead_receiver.wait_for_count(1).await.len();
    assert!(held <= 16, "the dead endpoint holds {held} slots");
}

/// More dead endpoints than there are slots, each with more work than its lane holds, all of it older than what the
/// others get. No breaker helps: by turns alone, without slots that the dead leave free, the others would need ten minutes.
async fn hundreds_of_dead_endpoints_leave_the_others_theirs(database: Database) {
    let arguments = [&["--slots", "128"], NO_BREAKER.as_slice()].concat();
    let world = world_with(database, pb::PausedPolicy::Discard, &arguments).await;
    let dead_receiver = Receiver::scripted(|_, _| Reply::after(HOUR)).await;
    let receiver = Receiver::ok().await;
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..4 {
        let (client, url) = (world.client.clone(), dead_receiver.url(&format!("/{task}")));
        tasks.spawn(async move {
            for _ in 0..150 {
                let endpoint = pb::Endpoint {
                    url: url.clone(),
                    owner_id: "dead".to_owned(),
                    http_timeout: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
                    ..Default::default()
                };
                let request = pb::CreateEndpointRequest { endpoint: Some(endpoint), ..Default::default() };
                client.endpoints().create_endpoint(request).await.expect("created");
            }
        });
    }
    tasks.join_all().await;
    let mut healthy = Vec::new();
    for number in 0..20 {
        let (endpoint, _) = world.endpoint(&receiver.url(&format!("/{number}")), "healthy").await;
        healthy.push(Target::EndpointId(endpoint.id));
    }
    publish_many(&world, &[Target::OwnerId("dead".to_owned())], 40).await;
    dead_receiver.wait_for_count(64).await;
    let ids = publish_many(&world, &healthy, 100).await;
    let seen = receiver.wait_for_count(ids.len()).await;
    assert_eq!(seen.iter().map(|one| one.event()).collect::<HashSet<_>>(), ids.into_iter().collect());
}

/// With 16 in flight at most, an endpoint's lane holds 32; a turn brings 512 new ones and a claim 256 old ones.
const BOUND: usize = 16 + 32 + 512 + 256;
const ONE_NODE: [&str; 5] = ["--allow-http", "--allow-net", "127.0.0.0/8", "--slots", "64"];

async fn spilled_work_is_overtaken_by_a_bounded_number(database: Database) {
    let world = World::on(Server::start_with(database, &ONE_NODE).await, pb::PausedPolicy::Discard).await;
    overtaking_is_bounded(&world, std::slice::from_ref(&world.client)).await;
}

/// Each node has a lane, turns and claims of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spilled_work_is_overtaken_by_a_bounded_number_through_two_nodes() {
    in_time(async {
        let server = Server::start_with(Database::postgres().await, &ONE_NODE).await;
        let world = World::on(server, pb::PausedPolicy::Discard).await;
        let other = world.server.join().await;
        let there = world.client_of(&other).await;
        overtaking_is_bounded(&world, &[world.client.clone(), there]).await;
    })
    .await;
}

/// Whatever was published so many after a delivery must not arrive before it, for as long as publishing goes on, through
/// the nodes in turn.
async fn overtaking_is_bounded(world: &World, nodes: &[Client]) {
    let bound = BOUND * nodes.len();
    let backlog = 2 * bound;
    let receiver = Receiver::scripted(|_, _| Reply::after(Duration::from_millis(50))).await;
    let (endpoint, _) = world.endpoint(&receiver.url("/"), "").await;
    let total = nodes.len() * tier(4_000, 20_000);
    let mut published = 0;
    for node in nodes.iter().cycle() {
        if published == total {
            break;
        }
        let request = |number: usize| pb::PublishEventRequest {
            event_type: "test.event".to_owned(),
            target: Some(Target::EndpointId(endpoint.id.clone())),
            payload: number.to_string().into(),
            ..Default::default()
        };
        let requests = (published..published + 200).map(request).collect();
        let batch = pb::BatchPublishEventsRequest { requests, ..Default::default() };
        node.events().batch_publish_events(batch).await.expect("taken");
        published += 200;
        // The backlog stays, and publishing goes on.
        receiver.wait_for_count(published.saturating_sub(backlog)).await;
    }
    assert!(receiver.seen().len() + bound < total, "there was no backlog to overtake");
    let seen = receiver.wait_for_count(total).await;
    let mut newest = 0;
    let mut worst = 0;
    for one in &seen {
        let number: usize = std::str::from_utf8(&one.body).expect("text").parse().expect("a number");
        newest = newest.max(number);
        worst = worst.max(newest - number);
    }
    println!("at most {worst} newer ones came before one");
    assert!(worst <= bound, "{worst} newer ones came before one");
}
