//! The order of commits on PostgreSQL, where transactions that overlap may finish in any order.

use std::collections::HashMap;

use hawser_client::pb::publish_event_request::Target;
use hawser_client::pb::watch_request::Start;
use hawser_client::{Client, pb};
use sqlx::{Executor, PgConnection};

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
const NEWEST: &str = "SELECT COALESCE(MAX(position), 0) FROM changes";
/// The name of the endpoints that are made last: what came before the first is compared.
const LAST: &str = "the last";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overlapping_transactions_are_told_in_the_order_of_their_commits() {
    in_time(async {
        let wanted = tier(40, 1_000);
        let told = overlap(Database::postgres().await, wanted).await;
        let rounds = told.rounds;
        for watcher in told.watchers {
            assert!(watcher == told.log, "of {} changes it was told {}", told.log.len(), watcher.len());
        }
        let count = |what: &str| told.log.iter().filter(|line| line.contains(what)).count();
        assert_eq!(count(" Created Scheduled"), 2 * rounds);
        assert_eq!(count(" Paused ") + count(" Resumed "), rounds);
        assert_eq!(count(" Updated "), 2 * rounds);
        assert_revisions_increase(&told.log);
        let (records, changes) = (told.records, told.log.len());
        eprintln!("{rounds} rounds, {wanted} of them interleaved, {records} transactions, {changes} changes");
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

/// A later change of an endpoint comes later.
fn assert_revisions_increase(log: &[String]) {
    let mut last = HashMap::<&str, i64>::new();
    for line in log {
        let words: Vec<&str> = line.split(' ').collect();
        let [id, _, revision, ..] = words[..] else { panic!("{line}") };
        if id.starts_with("ep_") {
            let revision: i64 = revision.parse().expect("a revision");
            let before = last.insert(id, revision).unwrap_or_default();
            assert!(revision > before, "{line:?} after revision {before}");
        }
    }
}

struct Told {
    /// What each watcher was told as it happened.
    watchers: Vec<Vec<String>>,
    /// The log by positions, read afterwards.
    log: Vec<String>,
    rounds: usize,
    records: i64,
}

/// How often, among the records after this position, one comes right before that of a transaction with a smaller number.
/// Transactions are numbered as they first write: the smaller one was at work before the other was, and drew its position,
/// and so committed, after it. Such two overlapped, whatever their clients did.
async fn interleaved(session: &mut PgConnection, after: i64) -> i64 {
    let sql = format!(
        "SELECT COUNT(*) FROM (SELECT xid < LAG(xid) OVER (ORDER BY position) AS overtaken FROM \
         (SELECT position, xmin::text::bigint AS xid FROM changes WHERE position > {after}) AS new) AS pairs \
         WHERE overtaken"
    );
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(session).await.expect("read")
}

/// In each round five transactions on two nodes overlap, with those that write the outcomes of the round before. Two of the
/// five change one endpoint. Ends when in so many rounds some were seen to overlap.
async fn overlap(database: Database, wanted: usize) -> Told {
    let world = World::new(database).await;
    let other = world.server.join().await;
    let there = world.client_of(&other).await;
    let receiver = Receiver::ok().await;
    let (here_endpoint, _) = world.endpoint(&receiver.url("/here"), "").await;
    let (there_endpoint, _) = world.endpoint(&receiver.url("/there"), "").await;
    let (paused, _) = world.endpoint(&receiver.url("/paused"), "").await;
    let (contended, _) = world.endpoint(&receiver.url("/contended"), "").await;
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

    let (mut rounds, mut overlapped) = (0, 0);
    while overlapped < wanted {
        assert!(rounds < 20 * wanted, "in {overlapped} of {rounds} rounds transactions overlapped");
        let before: i64 = sqlx::query_scalar(NEWEST).fetch_one(&mut session).await.expect("read");
        let target = |endpoint: &pb::Endpoint| Target::EndpointId(endpoint.id.clone());
        let switching = async {
            let endpoint_id = paused.id.clone();
            if rounds % 2 == 0 {
                let request = pb::PauseEndpointRequest { endpoint_id, ..Default::default() };
                world.client.endpoints().pause_endpoint(request).await.expect("paused");
            } else {
                let request = pb::ResumeEndpointRequest { endpoint_id, ..Default::default() };
                world.client.endpoints().resume_endpoint(request).await.expect("resumed");
            }
        };
        let updating = |client: &Client, node: &str| {
            let (id, description) = (contended.id.clone(), format!("{node}, {rounds}"));
            let endpoint = pb::Endpoint { id, description, ..Default::default() };
            let request = pb::UpdateEndpointRequest { endpoint: Some(endpoint), ..Default::default() };
            let mut endpoints = client.endpoints();
            async move { endpoints.update_endpoint(request).await }
        };
        let (one, two, three, four, ()) = tokio::join!(
            publish(&world.client, target(&here_endpoint), b"{}", ""),
            publish(&there, target(&there_endpoint), b"{}", ""),
            updating(&world.client, "here"),
            updating(&there, "there"),
            switching,
        );
        one.expect("published");
        two.expect("published");
        three.expect("updated");
        four.expect("updated");
        rounds += 1;
        overlapped += usize::from(interleaved(&mut session, before).await > 0);
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
    Told { watchers, log, rounds, records: records.expect("read") }
}
