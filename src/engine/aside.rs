//! Events whose project's routes take longer to read than a turn may wait: they wait aside, and then take part in another
//! turn.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};

use super::intake::{Publish, QUEUE};
use super::routing::{RoutingTable, Unread};

/// Events that may wait so: all that the queue may hold, with their bytes.
const PLACES: usize = QUEUE;
/// How long after it was handed over an event may still be put aside: versions may follow each other faster than they are
/// read.
const LONGEST: Duration = Duration::from_secs(10);

/// Where they wait.
pub struct Aside {
    /// Where they go afterwards.
    queue: mpsc::WeakSender<Publish>,
    routing: Arc<RoutingTable>,
    places: Arc<Semaphore>,
}

impl Aside {
    pub fn new(queue: mpsc::WeakSender<Publish>, routing: Arc<RoutingTable>) -> Self {
        Self { queue, routing, places: Arc::new(Semaphore::new(PLACES)) }
    }

    /// Has an event wait for its project's routes at this version, if there is a place.
    pub fn put(&self, publish: Publish, version: i64) {
        let place = self.places.clone().try_acquire_owned().ok();
        let Some(place) = place.filter(|_| publish.handed_over.elapsed() < LONGEST) else {
            // Whoever stopped waiting need not be told.
            let _gone = publish.reply.send(Err(Unread.into()));
            return;
        };
        let (queue, routing) = (self.queue.clone(), self.routing.clone());
        tokio::spawn(async move {
            let read = routing.soon(publish.event.message.project, version).await;
            match (read, queue.upgrade()) {
                (Err(unread), _) => _ = publish.reply.send(Err(unread.into())),
                // A queue that is closed drops it, which tells its publisher.
                (Ok(_), Some(queue)) => _ = queue.send(publish).await,
                (Ok(_), None) => {}
            }
            drop(place);
        });
    }
}
