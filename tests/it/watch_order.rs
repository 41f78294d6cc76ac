//! The order of commits on PostgreSQL, where transactions that overlap may finish in any order.

use hawser_client::pb;
use hawser_client::pb::publish_event_request::Target;
use hawser_client::pb::watch_request::Start;
use sqlx::Executor;

use crate::support::feed::{change, from, open, told};
use crate::support::world::publish;
use crate::support::{Database, Receiver, World, in_time, tier};

/// Makes each transaction that writes a change record linger before its commit, each for another time: without a
/// lock that is held until then, positions and commits disagree.
const LINGER: &str = "\
    CREATE FUNCTION linger() RETURNS trigger LANGUAGE plpgsql AS \
    $$ BEGIN PERFORM pg_sleep(random() * 0.01); RETURN NULL; END $$; \
    CREATE CONSTRAINT TRIGGER linger AFTER INSERT ON changes DEFERRABLE INITIALLY DEFERRED \
    FOR EACH ROW EXECUTE FUNCTION linger()";
/// Takes the lock away, in this database only, so that it can be seen what it is for.
const NO_LOCK: &str = "\
    SET allow_system_table_mods = on; \
    ALTER FUNCTION pg_catalog.pg_advisory_xact_lock(bigint) RENAME TO pg_advisory_xact_lock_away; \
    CREATE FUNCTION pg_catalog.pg_advisory_xact_lock(bigint) RETURNS void LANGUAGE sql AS 'SELECT'";
/// The name of the endpoints that are made last: what came before the first is compared.
const LAST: &str = "the last";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overlapping_transactions_are_told_in_the_order_of_their_commits() {
    in_time(async {
        let rounds = tier(40, 1_000);
        let told = overlap(Database::postgres().await, rounds).await;
        for watcher in told.watchers {
            assert!(watcher == told.log, "of {} changes it was told {}", told.log.len(), watcher.len());
        }
        let count = |what: &str| told.log.iter().filter(|line| line.contains(what)).count();
        assert_eq!(count(" Created Scheduled"), 2 * rounds);
        assert_eq!(count(" Paused ") + count(" Resumed "), rounds);
        eprintln!("{rounds} rounds, {} transactions, {} changes", told.records, told.log.len());
    })
    .await;
}

/// What the test above would miss if it could not fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_lock_some_would_be_skipped() {
    in_time(async {
        let database = Database::postgres().await;
        // Before the server's connections know the function.
        database.session().await.execute(NO_LOCK).await.expect("the lock is away");
        let told = overlap(database, 40).await;
        let wrong = told.watchers.iter().filter(|seen| **seen != told.log).count();
        assert!(wrong > 0, "the transactions did not overlap");
    })
    .await;
}

struct Told {
    /// What each watcher was told as it happened.
    watchers: Vec<Vec<String>>,
    /// The log by positions, read afterwards.
    log: Vec<String>,
    records: i64,
}

/// In each round three transactions on two nodes overlap, with those that write the outcomes of the round before.
async fn overlap(database: Database, rounds: usize) -> Told {
    let world = World::new(database).await;
    let other = world.server.join().await;
    let there = world.client_of(&other).await;
    let receiver = Receiver::ok().await;
    let (here_endpoint, _) = world.endpoint(&receiver.url("/here"), "").await;
    let (there_endpoint, _) = world.endpoint(&receiver.url("/there"), "").await;
    let (paused, _) = world.endpoint(&receiver.url("/paused"), "").await;
    let mut session = world.server.database().session().await;
    session.execute(LINGER).await.expect("a trigger");

    let watching = |address: String| {
        let key = world.key.clone();
        tokio::spawn(async move {
            let request = from(Start::Earliest(pb::StartEarliest {}));
            let mut stream = open(&address, &key, request).await.expect("a stream");
            let mut seen = Vec::new();
            while seen.last().is_none_or(|line: &String| !line.ends_with(LAST)) {
                seen.extend(told(&change(&mut stream).await));
            }
            seen
        })
    };
    let running = [watching(world.server.address()), watching(other.address())];

    for round in 0..rounds {
        let target = |endpoint: &pb::Endpoint| Target::EndpointId(endpoint.id.clone());
        let switching = async {
            let endpoint_id = paused.id.clone();
            if round % 2 == 0 {
                let request = pb::PauseEndpointRequest { endpoint_id, ..Default::default() };
                world.client.endpoints().pause_endpoint(request).await.expect("paused");
            } else {
                let request = pb::ResumeEndpointRequest { endpoint_id, ..Default::default() };
                world.client.endpoints().resume_endpoint(request).await.expect("resumed");
            }
        };
        let (one, two, ()) = tokio::join!(
            publish(&world.client, target(&here_endpoint), b"{}", ""),
            publish(&there, target(&there_endpoint), b"{}", ""),
            switching,
        );
        one.expect("published");
        two.expect("published");
    }
    receiver.wait_for_count(2 * rounds).await;
    // Without the lock one of them could be skipped.
    for _ in 0..3 {
        let last = pb::Endpoint { url: receiver.url("/"), name: LAST.to_owned(), ..Default::default() };
        world.create(last, &["*"]).await;
    }
    let mut watchers = Vec::new();
    for watcher in running {
        watchers.push(watcher.await.expect("what it was told"));
    }
    let log = watching(world.server.address()).await.expect("the log");
    let records = sqlx::query_scalar("SELECT COUNT(*) FROM changes").fetch_one(&mut session).await;
    Told { watchers, log, records: records.expect("read") }
}
