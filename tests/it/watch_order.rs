//! The order of commits on PostgreSQL, where transactions that overlap may finish in any order.

use hawser_client::pb;
use hawser_client::pb::publish_event_request::Target;
use hawser_client::pb::watch_request::Start;
use sqlx::Executor;

use crate::support::feed::{change, from, open, told};
use crate::support::world::publish;
use crate::support::{Database, Receiver, World, in_time, tier};

/// Makes each transaction that writes a change record linger before its commit, each for another time: without a
/// lock that is held until then, positions and commits would disagree most of the time.
const LINGER: &str = "\
    CREATE FUNCTION linger() RETURNS trigger LANGUAGE plpgsql AS \
    $$ BEGIN PERFORM pg_sleep(random() * 0.02); RETURN NULL; END $$; \
    CREATE CONSTRAINT TRIGGER linger AFTER INSERT ON changes DEFERRABLE INITIALLY DEFERRED \
    FOR EACH ROW EXECUTE FUNCTION linger()";
const LAST: &str = "the last";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overlapping_transactions_are_told_in_the_order_of_their_commits() {
    in_time(async {
        let world = World::new(Database::postgres().await).await;
        let other = world.server.join().await;
        let there = world.client_of(&other).await;
        let receiver = Receiver::ok().await;
        let (here_endpoint, _) = world.endpoint(&receiver.url("/here"), "").await;
        let (there_endpoint, _) = world.endpoint(&receiver.url("/there"), "").await;
        let (paused, _) = world.endpoint(&receiver.url("/paused"), "").await;
        let mut session = world.server.database().session().await;
        session.execute(LINGER).await.expect("a trigger");

        // One watcher on each node, both from the start.
        let earliest = || from(Start::Earliest(pb::StartEarliest {}));
        let watching = |address: String, key: String| {
            tokio::spawn(async move {
                let mut stream = open(&address, &key, earliest()).await.expect("a stream");
                let mut seen = Vec::new();
                while seen.last().is_none_or(|line: &String| !line.ends_with(LAST)) {
                    seen.extend(told(&change(&mut stream).await));
                }
                seen
            })
        };
        let watchers = [
            watching(world.server.address(), world.key.clone()),
            watching(other.address(), world.key.clone()),
        ];

        // Each round three transactions overlap, with those that write the outcomes of the round before.
        let rounds = tier(40, 1_000);
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
        let last = pb::Endpoint { url: receiver.url("/"), name: LAST.to_owned(), ..Default::default() };
        world.create(last, &["*"]).await;

        let reference = watching(world.server.address(), world.key.clone()).await.expect("the log");
        for watcher in watchers {
            let seen = watcher.await.expect("what it saw");
            assert!(seen == reference, "of {} changes it was told {}", reference.len(), seen.len());
        }
        let count = |what: &str| reference.iter().filter(|line| line.contains(what)).count();
        assert_eq!(count(" Created Scheduled"), 2 * rounds);
        assert_eq!(count(" Paused ") + count(" Resumed "), rounds);
        // The trigger did what it is for: no two commits share a moment, each lingered by itself.
        let records: i64 =
            sqlx::query_scalar("SELECT COUNT(*) FROM changes").fetch_one(&mut session).await.expect("read");
        assert!(records >= i64::try_from(3 * rounds).expect("small"), "{records} records");
        eprintln!("{rounds} rounds, {records} transactions, {} changes", reference.len());
    })
    .await;
}
