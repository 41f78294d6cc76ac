//! SQLite's write-ahead log: moved beside the commits, it stays short under load and is emptied when nobody writes.

use hawser_client::pb::publish_event_request::Target;
use tokio::task::JoinSet;

use crate::support::feed::eventually;
use crate::support::world::publish;
use crate::support::{Database, Receiver, World, in_time, tier};

const PUBLISHERS: usize = 8;
const PAYLOAD: usize = 256 << 10;
/// What all events weigh together.
const WRITTEN: u64 = 192 << 20;
/// Less than was written, and more than the 64 MiB at which readers are waited for: there may be one.
const LONGEST: u64 = 128 << 20;
/// What the renewals of the lease leave.
const NEXT_TO_NOTHING: u64 = 256 << 10;

fn log_length(world: &World) -> u64 {
    std::fs::metadata(world.server.data().join("hawser.db-wal")).map_or(0, |file| file.len())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_stays_short_under_load_and_is_emptied_after_it() {
    in_time(async {
        let mut world = World::new(Database::sqlite()).await;
        let receiver = Receiver::ok().await;
        let (endpoint, _) = world.endpoint(&receiver.url("/hook"), "").await;
        let each = tier(1, 4) * WRITTEN as usize / PAYLOAD / PUBLISHERS;
        let payload = format!("\"{}\"", "x".repeat(PAYLOAD));
        let mut publishers = JoinSet::new();
        for _ in 0..PUBLISHERS {
            let (client, endpoint, payload) = (world.client.clone(), endpoint.id.clone(), payload.clone());
            publishers.spawn(async move {
                for _ in 0..each {
                    publish(&client, Target::EndpointId(endpoint.clone()), payload.as_bytes(), "")
                        .await
                        .expect("published");
                }
            });
        }
        let mut longest = 0;
        for count in 1..=PUBLISHERS * each {
            receiver.wait_for_count(count).await;
            longest = longest.max(log_length(&world));
        }
        publishers.join_all().await;
        assert!(longest < LONGEST, "the log grew to {} MiB", longest >> 20);
        eventually("the log is emptied", || async {
            let length = log_length(&world);
            if length <= NEXT_TO_NOTHING { Ok(()) } else { Err(length) }
        })
        .await;
        world.publish_to(&endpoint, b"{}").await;
        assert!(world.server.terminate().await.success(), "{}", world.server.log());
        assert_eq!(log_length(&world), 0, "nothing is left of it");
    })
    .await;
}
