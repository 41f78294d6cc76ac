//! Kill -9 at random: what was acknowledged is delivered, and repeats are few and carry the same id.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hawser_client::pb::publish_event_request::Target;
use hawser_client::{Client, Key};
use sqlx::{Connection, SqliteConnection};
use tokio::sync::{Mutex, watch};
use tonic::Code;

use crate::support::sql::Session;
use crate::support::world::publish;
use crate::support::{Database, Receiver, Server, World, on_both, tier};

on_both!(no_acknowledged_event_is_lost_to_kills);

const PUBLISHERS: usize = 8;

async fn no_acknowledged_event_is_lost_to_kills(database: Database) {
    let (events, kills) = (tier(1_500, 100_000), tier(3, 50));
    let mut world = World::new(database).await;
    let receiver = Receiver::ok().await;
    let (endpoint, _) = world.endpoint(&receiver.url("/hook"), "acme").await;
    // Publishers follow the server's address; each event has an idempotency key, so trying again is harmless.
    let address = watch::Sender::new(world.server.address());
    let acknowledged = Arc::<AtomicUsize>::default();
    let ledger = Arc::<Mutex<HashMap<String, usize>>>::default();
    let mut tasks = tokio::task::JoinSet::new();
    for publisher in 0..PUBLISHERS {
        let work = Publisher {
            address: address.subscribe(),
            key: world.key.clone(),
            endpoint: endpoint.id.clone(),
            acknowledged: acknowledged.clone(),
            ledger: ledger.clone(),
        };
        tasks.spawn(async move {
            for number in (publisher..events).step_by(PUBLISHERS) {
                work.publish(number).await;
            }
        });
    }
    let mut held = 0;
    for kill in 1..=kills {
        // At a random place within each part of the run.
        let part = events / (kills + 1);
        let place = part * kill + rand::random_range(0..part / 2);
        receiver.wait_for("deliveries go on", |seen| seen.len() >= place.min(events - 1)).await;
        world.server.kill().await;
        held += held_by_the_dead(&world.server).await;
        world.restart().await;
        address.send_replace(world.server.address());
    }
    tasks.join_all().await;
    assert_eq!(acknowledged.load(Ordering::Relaxed), events);
    let ledger = ledger.lock().await;
    assert_eq!(ledger.len(), events, "each acknowledged event has an id of its own");
    let seen = receiver.wait_for_events(ledger.keys()).await;
    for one in &seen {
        // What came was published, under its id and with its bytes; an event whose acknowledgement was lost in a
        // kill was acknowledged to the second try, by its idempotency key.
        let number = ledger.get(&one.event()).expect("no event came that was not acknowledged in the end");
        assert_eq!(one.body, number.to_string());
    }
    let repeats = seen.len() - events;
    println!("{events} events, {kills} kills, {held} deliveries held at them, {repeats} repeats");
    assert!(repeats <= held, "{repeats} repeats of {held} deliveries held at {kills} kills");
}

/// Deliveries that a killed process had claimed. What it sent, it had claimed in a commit before, and holds until the
/// outcome is written: so each kill may repeat each of these once, in flight or with an unwritten outcome, and nothing
/// else.
async fn held_by_the_dead(server: &Server) -> usize {
    const HELD: &str = "SELECT COUNT(*) FROM queue WHERE claimed_by IS NOT NULL";
    let copy = tempfile::tempdir().expect("a folder");
    let mut session = if server.database().url().is_some() {
        server.sql().await
    } else {
        // The server itself is to be the first that opens what the kill left behind.
        for file in ["hawser.db", "hawser.db-wal"] {
            std::fs::copy(server.data().join(file), copy.path().join(file)).expect("copied");
        }
        let file = format!("sqlite:{}", copy.path().join("hawser.db").display());
        Session::Sqlite(SqliteConnection::connect(&file).await.expect("opened"))
    };
    usize::try_from(session.numbers(HELD).await[0]).expect("a count")
}

struct Publisher {
    address: watch::Receiver<String>,
    key: String,
    endpoint: String,
    acknowledged: Arc<AtomicUsize>,
    ledger: Arc<Mutex<HashMap<String, usize>>>,
}

impl Publisher {
    /// Publishes until it is acknowledged.
    async fn publish(&self, number: usize) {
        let mut address = self.address.clone();
        loop {
            let here = address.borrow_and_update().clone();
            if let Ok(client) = Client::connect(here, Key::new(self.key.clone())).await {
                let target = Target::EndpointId(self.endpoint.clone());
                let payload = number.to_string();
                let result = publish(&client, target, payload.as_bytes(), &format!("event-{number}")).await;
                match result {
                    Ok(reply) => {
                        self.ledger.lock().await.insert(reply.event_id, number);
                        self.acknowledged.fetch_add(1, Ordering::Relaxed);
                        return;
                    }
                    Err(status) => {
                        let passing =
                            matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled);
                        assert!(passing, "{status}");
                    }
                }
            }
            // The server is down: wait for its next address.
            address.changed().await.expect("the test goes on");
        }
    }
}
