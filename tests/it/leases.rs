//! Leases between nodes: a node that dies is taken over, one that sleeps through its lease's end overwrites
//! nothing, and no claim is left that nobody would free.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hawser_client::pb::publish_event_request::Target;
use hawser_client::{Client, pb};
use sqlx::Executor;
use tonic::Code;

use crate::support::feed::eventually;
use crate::support::world::{publish, quick_retries};
use crate::support::{Database, Proxy, Receiver, Reply, Server, World, in_time, pass_time, tier};

/// Claims under a lease that is not there: nobody would free them.
const ORPHANS: &str = "SELECT COUNT(*) FROM queue WHERE claimed_by IS NOT NULL \
                       AND NOT EXISTS (SELECT 1 FROM leases WHERE leases.id = queue.claimed_by)";
/// Within so long after the end of its lease a dead node's work has been sent by others.
const TAKE_OVER: Duration = Duration::from_secs(5);
const OPEN: &str = "SELECT COUNT(*) FROM queue";
const SHORT: Duration = Duration::from_secs(3);
/// However much fails, no breaker opens.
const SHORT_LEASE: &[&str] =
    &["--allow-http", "--allow-net", "127.0.0.0/8", "--lease", "3", "--breaker-failures", "10000"];

/// Publishes so many events at once and returns their ids.
async fn publish_many(client: &Client, endpoints: &[pb::Endpoint], count: usize) -> HashSet<String> {
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..count {
        let client = client.clone();
        let target = Target::EndpointId(endpoints[number % endpoints.len()].id.clone());
        tasks.spawn(async move {
            publish(&client, target, number.to_string().as_bytes(), "").await.expect("published").event_id
        });
    }
    tasks.join_all().await.into_iter().collect()
}

/// A node is killed with full lanes; the others deliver all of it, and repeat only what it had begun.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_nodes_claims_are_taken_over() {
    in_time(async {
        // So long that its end is not what frees the claims.
        const LEASE: Duration = Duration::from_secs(30);
        let arguments = ["--allow-http", "--allow-net", "127.0.0.0/8", "--lease", "30"];
        let server = Server::start_with(Database::postgres().await, &arguments).await;
        let world = World::on(server, pb::PausedPolicy::Discard).await;
        let (mut killed, other) = (world.server.join().await, world.server.join().await);
        let there = world.client_of(&killed).await;
        let receiver = Receiver::scripted(|_, _| Reply::after(Duration::from_secs(2))).await;
        let mut endpoints = Vec::new();
        for number in 0..4 {
            endpoints.push(world.endpoint(&receiver.url(&format!("/{number}")), "").await.0);
        }
        let events = publish_many(&there, &endpoints, tier(120, 400)).await;
        receiver.wait_for_count(40).await;
        let mut session = other.database().session().await;
        let before = leases(&mut session).await;
        killed.kill().await;
        let died = Instant::now();
        let begun: HashSet<_> = receiver.seen().iter().map(|one| one.event()).collect();
        other.database().until("the dead node's lease is gone", "SELECT COUNT(*) FROM leases", 2).await;
        let (now, after) = (database_time(&mut session).await, leases(&mut session).await);
        let (_, end) = before.iter().find(|(id, _)| !after.contains_key(id)).expect("one is gone");
        assert!(*end > now, "the end of its session freed it, not its own");
        let seen = receiver.wait_for_events(&events).await;
        assert!(died.elapsed() < LEASE, "the last came {:?} after the kill", died.elapsed());
        let mut times = HashMap::<String, usize>::new();
        for one in &seen {
            *times.entry(one.event()).or_default() += 1;
        }
        let repeated: Vec<_> = times.iter().filter(|(_, times)| **times > 1).map(|(id, _)| id).collect();
        assert!(repeated.iter().all(|id| begun.contains(*id)), "what had not begun came once");
        other.database().until("the queue is empty", OPEN, 0).await;
    })
    .await;
}

/// The session that holds the lease's lock is cut, so that others may free its claims at once: nothing more is sent under it,
/// and a new lease is taken long before the next renewal would have been due.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_whose_session_is_cut_is_given_up_at_once() {
    in_time(async {
        let arguments = ["--allow-http", "--allow-net", "127.0.0.0/8", "--lease", "300"];
        let server = Server::start_with(Database::postgres().await, &arguments).await;
        let world = World::on(server, pb::PausedPolicy::Discard).await;
        let receiver = Receiver::scripted(|_, _| Reply::after(Duration::from_secs(1))).await;
        let endpoint = pb::Endpoint { url: receiver.url("/hook"), max_in_flight: 16, ..Default::default() };
        let (endpoint, _) = world.create(endpoint, &["*"]).await;
        let events = publish_many(&world.client, std::slice::from_ref(&endpoint), 60).await;
        receiver.wait_for_count(16).await;
        let mut session = world.server.database().session().await;
        let before = leases(&mut session).await;
        let (old, _) = before.iter().next().expect("a lease");
        // Of the locks with a key of eight bytes the lease's is the only one that is held for long.
        let cut = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 \
                   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        session.execute(cut).await.expect("cut");
        let begun: HashSet<_> = receiver.seen().iter().map(|one| one.event()).collect();
        let gone = format!("SELECT COUNT(*) FROM leases WHERE id = '{old}'");
        world.server.database().until("the old lease is gone", &gone, 0).await;
        let log = world.server.log();
        assert!(
            log.contains("the database ended the session of the lease"),
            "it was not missed, but heard:\n{log}"
        );
        world.server.database().until("the queue is empty", OPEN, 0).await;
        let mut times = HashMap::<String, usize>::new();
        for one in receiver.seen() {
            *times.entry(one.event()).or_default() += 1;
        }
        assert!(events.iter().all(|id| times.contains_key(id)), "all of it came");
        // What began while the cut was on its way is not known here.
        let repeated: Vec<_> =
            times.iter().filter(|(id, times)| **times > 1 && !begun.contains(*id)).collect();
        assert!(repeated.len() <= 16, "what had not begun came once: {repeated:?}");
    })
    .await;
}

/// When each lease ends.
async fn leases(session: &mut sqlx::PgConnection) -> HashMap<uuid::Uuid, i64> {
    let rows: Vec<(uuid::Uuid, i64)> =
        sqlx::query_as("SELECT id, expires_at FROM leases").fetch_all(session).await.expect("read");
    rows.into_iter().collect()
}

async fn database_time(session: &mut sqlx::PgConnection) -> i64 {
    let now = "SELECT (EXTRACT(EPOCH FROM clock_timestamp()) * 1000)::bigint";
    sqlx::query_scalar(now).fetch_one(session).await.expect("read")
}

/// What the lease holds that holds most.
const HELD: &str = "SELECT COUNT(*) FROM queue WHERE claimed_by IS NOT NULL \
                    GROUP BY claimed_by ORDER BY COUNT(*) DESC LIMIT 1";

/// A node sleeps through its lease with attempts in flight and work in its lanes, and wakes: what others did
/// meanwhile stays as it is, what it did itself is recorded and counts for nothing, it sends no more of what it
/// held, and nothing is stuck.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_slept_through_its_lease_overwrites_nothing() {
    // Of four endpoints with 16 each.
    const IN_FLIGHT: usize = 64;
    // So many may have been between the look at the lease and the wire when it was stopped.
    const ON_THE_WAY: usize = 16;
    // Long enough that nothing is answered before it sleeps, also on a busy machine.
    const ANSWER: Duration = Duration::from_secs(6);
    in_time(async {
        let server = Server::start_with(Database::postgres().await, SHORT_LEASE).await;
        let world = World::on(server, pb::PausedPolicy::Discard).await;
        let (sleeper, _third) = (world.server.join().await, world.server.join().await);
        let there = world.client_of(&sleeper).await;
        // What the sleeper sends fails, and what others send succeeds.
        let sleeps = Arc::<AtomicBool>::default();
        let is_asleep = sleeps.clone();
        let receiver = Receiver::scripted(move |_, _| match is_asleep.load(Ordering::Acquire) {
            true => Reply::status(204),
            false => Reply { delay: ANSWER, ..Reply::status(500) },
        })
        .await;
        let mut session = world.server.database().session().await;
        let mut endpoints = Vec::new();
        for number in 0..4 {
            let endpoint = pb::Endpoint {
                url: receiver.url(&format!("/{number}")),
                max_in_flight: 16,
                retry_policy: Some(quick_retries(5)),
                ..Default::default()
            };
            endpoints.push(world.create(endpoint, &["*"]).await.0);
        }
        let mut events = HashSet::new();
        // The everyday run shares its machine with other tests.
        let spare = tier(2, 1) as u32;
        for round in 0..tier(2, 10) {
            sleeps.store(false, Ordering::Release);
            let first = receiver.seen().len();
            // As much as is in flight waits in its lanes, which have room for no more.
            events.extend(publish_many(&there, &endpoints, 2 * IN_FLIGHT).await);
            receiver.wait_for_count(first + IN_FLIGHT).await;
            sleeper.signal("STOP").await;
            let asleep = Instant::now();
            sleeps.store(true, Ordering::Release);
            let held: i64 = sqlx::query_scalar(HELD).fetch_one(&mut session).await.expect("read");
            let begun = receiver.seen().len() - first;
            assert!(
                usize::try_from(held).unwrap() >= begun + 2 * ON_THE_WAY,
                "the sleeper must hold more than it began: {held}, {begun}"
            );
            receiver.wait_for_events(&events).await;
            // Its session stands, so that only the lease's end frees its claims.
            let took = asleep.elapsed();
            assert!(took <= SHORT + TAKE_OVER * spare, "the last came {took:?} after it was stopped");
            // It wakes while its routes may still pass for current, so that only its lease stops it; or much later.
            if round % 2 == 1 {
                pass_time((2 * SHORT).saturating_sub(took)).await;
            }
            world.server.database().until("the others end it", OPEN, 0).await;
            let (before, failing) = (deliveries(&mut session).await, failures(&mut session).await);
            let came = receiver.seen().len();
            sleeper.signal("CONT").await;
            // It serves again, under a lease of its own.
            world.server.database().until("it has a lease", "SELECT COUNT(*) FROM leases", 3).await;
            let reply = until_accepted(&there, &endpoints[0], &format!("again {round}")).await;
            assert!(!reply.duplicate, "it is an event of its own");
            events.insert(reply.event_id);
            world.server.database().until("nothing is left", OPEN, 0).await;
            world.server.database().until("no claim is orphaned", ORPHANS, 0).await;
            // Only then all is written that the sleeper has to say.
            let late = all_recorded(&world.server, &receiver).await - came - 1;
            assert!(late <= ON_THE_WAY, "{late} were sent under the lease that it had lost");
            let after = deliveries(&mut session).await;
            for (id, row) in &before {
                assert_eq!(after.get(id), Some(row), "{id} was ended by another and stays as it was");
            }
            assert_eq!(failures(&mut session).await, failing, "its failures are no news of the endpoints");
        }
        // Each request that came is recorded as one attempt, whoever sent it: also the sleeper's.
        receiver.quiet_for(Duration::from_secs(2)).await;
        let requests = all_recorded(&world.server, &receiver).await;
        assert!(requests > events.len(), "the sleeper had attempts in flight that others repeated");
        let failed = "SELECT COUNT(*) FROM attempts WHERE status_code = 500";
        let failed: i64 = sqlx::query_scalar(failed).fetch_one(&mut session).await.expect("read");
        assert!(failed > 0, "they came to something else than those of the others");
        let unsent = "SELECT COUNT(*) FROM deliveries WHERE status <> 4";
        world.server.database().until("all are SUCCESS", unsent, 0).await;
    })
    .await;
}

/// Waits until each request that came is recorded as an attempt; says how many there are.
async fn all_recorded(node: &Server, receiver: &Receiver) -> usize {
    eventually("each request is recorded", || async {
        let recorded = node.sql().await.count("attempts").await;
        let came = receiver.seen().len();
        if usize::try_from(recorded) == Ok(came) { Ok(came) } else { Err((recorded, came)) }
    })
    .await
}

type DeliveryRow = (i16, i16, Option<i64>);

/// Status, attempts and end of each delivery.
async fn deliveries(session: &mut sqlx::PgConnection) -> HashMap<uuid::Uuid, DeliveryRow> {
    let rows: Vec<(uuid::Uuid, i16, i16, Option<i64>)> =
        sqlx::query_as("SELECT id, status, attempts, ended_at FROM deliveries")
            .fetch_all(session)
            .await
            .expect("read");
    rows.into_iter().map(|(id, status, attempts, end)| (id, (status, attempts, end))).collect()
}

/// Failures in a row of each endpoint that has had any.
async fn failures(session: &mut sqlx::PgConnection) -> HashMap<uuid::Uuid, i32> {
    let rows: Vec<(uuid::Uuid, i32)> =
        sqlx::query_as("SELECT endpoint_id, consecutive_failures FROM endpoint_health")
            .fetch_all(session)
            .await
            .expect("read");
    rows.into_iter().collect()
}

/// A node that was away may first answer UNAVAILABLE.
async fn until_accepted(client: &Client, endpoint: &pb::Endpoint, key: &str) -> pb::PublishEventResponse {
    loop {
        match publish(client, Target::EndpointId(endpoint.id.clone()), b"again", key).await {
            Ok(reply) => return reply,
            Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status}"),
        }
    }
}

/// Nothing is claimed under a lease that was freed while its process believed in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_claimed_under_a_freed_lease() {
    in_time(async {
        let world = World::new(Database::postgres().await).await;
        let receiver = Receiver::scripted(|_, _| Reply::after(Duration::from_secs(1))).await;
        let (endpoint, _) = world.endpoint(&receiver.url("/hook"), "").await;
        let database = world.server.database();
        let mut session = database.session().await;
        for round in 1..=3 {
            session.execute("DELETE FROM leases").await.expect("freed");
            let events = publish_many(&world.client, std::slice::from_ref(&endpoint), 20).await;
            assert_eq!(
                sqlx::query_scalar::<_, i64>(ORPHANS).fetch_one(&mut session).await.expect("read"),
                0,
                "born claimed by a lease that is gone"
            );
            assert_eq!(events.len(), 20);
            let seen = receiver.wait_for_count(20 * round).await;
            assert_eq!(seen.len(), 20 * round, "each is sent once");
            database.until("the queue is empty", OPEN, 0).await;
        }
    })
    .await;
}

/// The commit of a publish was carried out and its answer lost: the second try is acknowledged as a duplicate, and
/// then it must be delivered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_whose_commit_was_not_answered_is_delivered() {
    in_time(async {
        let world = World::new(Database::postgres().await).await;
        let proxy = Proxy::before(world.server.database().url().expect("PostgreSQL")).await;
        let node = world.server.join_through(proxy.url()).await;
        let there = world.client_of(&node).await;
        let receiver = Receiver::ok().await;
        let (endpoint, _) = world.endpoint(&receiver.url("/hook"), "").await;
        for round in 0..tier(2, 20) {
            let payload = format!("lost commit {round}");
            proxy.lose_commit_after(payload.as_bytes()).await;
            let target = || Target::EndpointId(endpoint.id.clone());
            let refused = publish(&there, target(), payload.as_bytes(), &payload).await.expect_err("unknown");
            assert_eq!(refused.code(), Code::Unavailable, "{refused}");
            assert!(proxy.lost_commit().await, "the test lost the answer");
            let reply = loop {
                match publish(&there, target(), payload.as_bytes(), &payload).await {
                    Ok(reply) => break reply,
                    Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status}"),
                }
            };
            assert!(reply.duplicate, "the first try was carried out");
            receiver.wait_for("the event", |seen| seen.iter().any(|one| one.event() == reply.event_id)).await;
        }
    })
    .await;
}

/// The commit of a claim was carried out and its answer lost: what it took is not stuck.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_whose_commit_was_not_answered_is_given_back() {
    in_time(async {
        let mut world =
            World::on(Server::start(Database::postgres().await).await, pb::PausedPolicy::Hold).await;
        let proxy = Proxy::before(world.server.database().url().expect("PostgreSQL")).await;
        let receiver = Receiver::ok().await;
        let (endpoint, _) = world.endpoint(&receiver.url("/hook"), "").await;
        let request = pb::PauseEndpointRequest { endpoint_id: endpoint.id.clone(), ..Default::default() };
        world.client.endpoints().pause_endpoint(request).await.expect("paused");
        let event = world.publish_to(&endpoint, b"claimed and not told").await.event_id;
        let node = world.server.join_through(proxy.url()).await;
        world.server.terminate().await;
        proxy.lose_commit_after(b"claimed and not told").await;
        let request = pb::ResumeEndpointRequest { endpoint_id: endpoint.id.clone(), ..Default::default() };
        world.client_of(&node).await.endpoints().resume_endpoint(request).await.expect("resumed");
        receiver.wait_for("the event", |seen| seen.iter().any(|one| one.event() == event)).await;
        assert!(proxy.lost_commit().await, "the test lost the answer");
    })
    .await;
}
