//! Events that reach many endpoints: the limit, and deliveries that are made step by step after the
//! acknowledgement, exactly one for each endpoint whatever happens in between.

use std::collections::{HashMap, HashSet};

use hawser_client::pb::publish_event_request::Target;
use hawser_client::{Client, pb, reason};
use tonic::Code;

use crate::support::world::{next, publish};
use crate::support::{Database, Receiver, Server, World, in_time, on_both, tier};

on_both!(
    the_limit_is_exact_and_nothing_is_written_above_it,
    deliveries_are_made_once_each_across_kills,
    an_endpoint_counts_as_it_is_when_its_delivery_is_made,
    many_wide_events_share_turns_with_others,
);

/// A server where small numbers are many.
async fn world(database: Database, max: usize, at_once: usize) -> World {
    let (max, at_once) = (max.to_string(), at_once.to_string());
    let arguments = [
        "--allow-http",
        "--allow-net",
        "127.0.0.0/8",
        "--fan-out-max",
        max.as_str(),
        "--fan-out-at-once",
        at_once.as_str(),
    ];
    World::on(Server::start_with(database, &arguments).await, pb::PausedPolicy::Hold).await
}

/// So many endpoints of one owner, made by many callers at once.
async fn endpoints(client: &Client, url: &str, owner: &str, count: usize) -> Vec<pb::Endpoint> {
    let mut tasks = tokio::task::JoinSet::new();
    const CALLERS: usize = 4;
    for caller in 0..CALLERS {
        let (client, url, owner) = (client.clone(), url.to_owned(), owner.to_owned());
        tasks.spawn(async move {
            let mut made = Vec::new();
            for number in (caller..count).step_by(CALLERS) {
                let url = format!("{url}/{number}");
                let endpoint = pb::Endpoint { url, owner_id: owner.clone(), ..Default::default() };
                let request = pb::CreateEndpointRequest { endpoint: Some(endpoint), ..Default::default() };
                let reply = client.endpoints().create_endpoint(request).await.expect("created").into_inner();
                made.push(reply.endpoint.expect("an endpoint"));
            }
            made
        });
    }
    tasks.join_all().await.concat()
}

fn owner(name: &str) -> Target {
    Target::OwnerId(name.to_owned())
}

async fn count_of(client: &Client, event: &str) -> i32 {
    let request = pb::GetEventRequest { event_id: event.to_owned(), ..Default::default() };
    let event = client.events().get_event(request).await.expect("found").into_inner().event;
    event.expect("an event").delivery_count
}

/// Waits for so many different deliveries; one that was slow may come twice.
async fn all_arrive(receiver: &Receiver, count: usize) {
    let (mut different, mut looked_at) = (HashSet::new(), 0);
    receiver
        .wait_for("every delivery", |seen| {
            different.extend(seen[looked_at..].iter().map(|one| (one.event(), one.path.clone())));
            looked_at = seen.len();
            different.len() >= count
        })
        .await;
}

/// All deliveries of an event, page by page.
async fn deliveries(client: &Client, event: &str) -> Vec<pb::Delivery> {
    let mut all = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = pb::ListDeliveriesRequest {
            event_id: event.to_owned(),
            page_size: 1000,
            page_token,
            ..Default::default()
        };
        let page = client.deliveries().list_deliveries(request).await.expect("listed").into_inner();
        all.extend(page.deliveries);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return all;
        }
    }
}

async fn has_one_each(client: &Client, event: &str, endpoints: &HashSet<String>) {
    let deliveries = deliveries(client, event).await;
    assert_eq!(deliveries.len(), endpoints.len(), "one delivery for each endpoint, no more");
    assert_eq!(&deliveries.iter().map(|one| one.endpoint_id.clone()).collect::<HashSet<_>>(), endpoints);
}

async fn the_limit_is_exact_and_nothing_is_written_above_it(database: Database) {
    let limit = tier(60, 10_000);
    let world = world(database, limit, 1_000).await;
    let receiver = Receiver::ok().await;
    endpoints(&world.client, &receiver.url(""), "acme", limit).await;
    let reply = publish(&world.client, owner("acme"), b"{}", "key").await.expect("published");
    assert_eq!(usize::try_from(reply.delivery_count), Ok(limit));
    all_arrive(&receiver, limit).await;

    world.endpoint(&receiver.url("/one-more"), "acme").await;
    let status = publish(&world.client, owner("acme"), b"{}", "other").await.expect_err("too many");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert_eq!(reason(&status).as_deref(), Some("FAN_OUT_TOO_LARGE"));
    let listed = world.client.events().list_events(pb::ListEventsRequest::default()).await.expect("listed");
    assert_eq!(listed.into_inner().events.len(), 1);
    // Nor is its key: it serves another event.
    let reply = publish(&world.client, owner("nobody"), b"else", "other").await.expect("published");
    assert!(!reply.duplicate);
}

async fn deliveries_are_made_once_each_across_kills(database: Database) {
    let (count, at_once) = (tier(250, 2_500), tier(10, 100));
    let (events, kills) = (4, 3);
    let mut world = world(database, 10_000, at_once).await;
    let receiver = Receiver::ok().await;
    let made = endpoints(&world.client, &receiver.url(""), "acme", count).await;
    let ids: HashSet<_> = made.into_iter().map(|endpoint| endpoint.id).collect();
    let mut published = Vec::new();
    let mut cut = 0;
    for kill in 0..kills {
        for number in 0..events {
            let key = format!("{kill}-{number}");
            let reply = publish(&world.client, owner("acme"), b"{}", &key).await.expect("published");
            assert_eq!(usize::try_from(reply.delivery_count), Ok(count));
            published.push((reply.event_id, key));
        }
        world.server.kill().await;
        cut += world.server.sql().await.count("expansions").await;
        world.restart().await;
    }
    println!("{cut} expansions were cut short by {kills} kills");
    assert!(cut > 0, "no kill came in the middle");
    for (event, key) in &published {
        // The whole count from the first, and in a repeat.
        assert_eq!(usize::try_from(count_of(&world.client, event).await), Ok(count));
        let again = publish(&world.client, owner("acme"), b"{}", key).await.expect("published");
        assert_eq!((&again.event_id, again.duplicate), (event, true));
        assert_eq!(usize::try_from(again.delivery_count), Ok(count));
    }
    all_arrive(&receiver, published.len() * count).await;
    for (event, _) in &published {
        has_one_each(&world.client, event, &ids).await;
    }
    assert_eq!(world.server.sql().await.count("expansions").await, 0, "nothing is left behind");
}

/// A node dies for good while it makes the deliveries of events: another makes the rest of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_node_makes_the_deliveries_that_a_dead_one_left() {
    const WAIT: &str = "SELECT COUNT(*) FROM pg_locks WHERE NOT granted AND relation = 'deliveries'::regclass \
                        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    in_time(async {
        let (count, at_once) = (tier(250, 2_500), tier(10, 100));
        let mut world = world(Database::postgres().await, 10_000, at_once).await;
        let other = world.server.join().await;
        let there = world.client_of(&other).await;
        let receiver = Receiver::ok().await;
        let made = endpoints(&world.client, &receiver.url(""), "acme", count).await;
        let ids: HashSet<_> = made.into_iter().map(|endpoint| endpoint.id).collect();
        let (mut sql, mut holder) = (other.sql().await, other.sql().await);
        // Steps begin, and cannot end.
        holder.run("BEGIN; LOCK TABLE deliveries IN SHARE MODE").await;
        let mut published = Vec::new();
        for _ in 0..4 {
            let reply = publish(&world.client, owner("acme"), b"{}", "").await.expect("published");
            published.push(reply.event_id);
        }
        other.database().until("each node is in the middle of a step", WAIT, 2).await;
        world.server.kill().await;
        holder.run("COMMIT").await;
        all_arrive(&receiver, published.len() * count).await;
        for event in &published {
            assert_eq!(usize::try_from(count_of(&there, event).await), Ok(count));
            has_one_each(&there, event, &ids).await;
        }
        assert_eq!(sql.count("expansions").await, 0, "nothing is left behind");
    })
    .await;
}

/// Paused and deleted between the publish and the step that makes the delivery, which is possible because the
/// database refuses the steps until it is told otherwise.
async fn an_endpoint_counts_as_it_is_when_its_delivery_is_made(database: Database) {
    let world = world(database, 10_000, 5).await;
    let receiver = Receiver::ok().await;
    let mut made = endpoints(&world.client, &receiver.url(""), "acme", 40).await;
    let mut sql = world.server.sql().await;
    sql.refuse("deliveries", "NEW.created_at > 0", "no_deliveries").await;
    let mut watch = world.watch().await;
    let reply = publish(&world.client, owner("acme"), b"{}", "").await.expect("published");
    assert_eq!((reply.delivery_count, count_of(&world.client, &reply.event_id).await), (40, 40));
    let (paused, deleted) = (made.remove(7), made.remove(30));
    let request = pb::PauseEndpointRequest { endpoint_id: paused.id.clone(), ..Default::default() };
    world.client.endpoints().pause_endpoint(request).await.expect("paused");
    let request = pb::DeleteEndpointRequest { endpoint_id: deleted.id.clone(), ..Default::default() };
    world.client.endpoints().delete_endpoint(request).await.expect("deleted");
    sql.allow("deliveries", "no_deliveries").await;

    // Watch tells of all of them as of any other delivery.
    let mut first = HashMap::new();
    while first.len() < 40 {
        if let Some(pb::watch_response::Change::DeliveryChange(change)) = next(&mut watch).await.change {
            let delivery = change.delivery.as_ref().expect("a delivery").clone();
            if change.r#type() == pb::DeliveryChangeType::Created {
                assert!(first.insert(delivery.endpoint_id.clone(), delivery).is_none());
            }
        }
    }
    assert_eq!(first[&deleted.id].status(), pb::DeliveryStatus::Discarded);
    assert_eq!(first[&paused.id].status(), pb::DeliveryStatus::Scheduled, "held, as the project says");
    receiver.wait_for_count(38).await;
    let request = pb::ResumeEndpointRequest { endpoint_id: paused.id.clone(), ..Default::default() };
    world.client.endpoints().resume_endpoint(request).await.expect("resumed");
    let seen = receiver.wait_for_count(39).await;
    assert_eq!(seen.iter().map(|one| &one.path).collect::<HashSet<_>>().len(), 39);
}

/// One batch holds more deliveries than a turn takes; events that come after it are acknowledged all the same,
/// and all of it arrives.
async fn many_wide_events_share_turns_with_others(database: Database) {
    const AWAKE: usize = 5;
    let (count, wide) = (100, 110);
    let world = world(database, 10_000, 1_000).await;
    let receiver = Receiver::ok().await;
    // Most are paused, and their deliveries only recorded: it is the writing that is at stake here.
    for endpoint in &endpoints(&world.client, &receiver.url(""), "acme", count).await[AWAKE..] {
        let request = pb::PauseEndpointRequest { endpoint_id: endpoint.id.clone(), ..Default::default() };
        world.client.endpoints().pause_endpoint(request).await.expect("paused");
    }
    let (other, _) = world.endpoint(&receiver.url("/other"), "").await;
    let request = pb::PublishEventRequest {
        event_type: "wide.event".to_owned(),
        target: Some(owner("acme")),
        ..Default::default()
    };
    let batch = pb::BatchPublishEventsRequest { requests: vec![request; wide], ..Default::default() };
    let client = world.client.clone();
    let batch = tokio::spawn(async move { client.events().batch_publish_events(batch).await });
    for _ in 0..20 {
        assert_eq!(world.publish_to(&other, b"{}").await.delivery_count, 1);
    }
    let results = batch.await.expect("ended").expect("taken").into_inner().results;
    let accepted = |result: &pb::PublishResult| match &result.result {
        Some(pb::publish_result::Result::Receipt(receipt)) => {
            usize::try_from(receipt.delivery_count) == Ok(count)
        }
        _ => false,
    };
    assert!(results.len() == wide && results.iter().all(accepted));
    all_arrive(&receiver, wide * AWAKE + 20).await;
}
