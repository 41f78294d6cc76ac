//! Where services hand events over: a queue that is bounded in events and in bytes, before which projects with a limit
//! are held to it.

use std::sync::Arc;

use tokio::sync::mpsc::Permit;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Mutex, MutexGuard, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use super::publish_rates::PublishRates;
use super::routing::RoutingTable;
use crate::domain::error::{Error, ErrorKind, OVERLOADED, Result};
use crate::domain::event::{Event, Receipt};
use crate::domain::id::ProjectId;
use crate::metrics::Metrics;

/// Events that may wait for a turn.
pub const QUEUE: usize = 4096;
/// The bytes that they may have together, with those of the turn that is being written.
const QUEUE_BYTES: usize = 64 * 1024 * 1024;

/// An event on its way in, and who waits for it.
pub struct Publish {
    pub event: Event,
    pub reply: oneshot::Sender<Result<Receipt>>,
    pub handed_over: Instant,
    /// Its part of the bytes that may wait, given back when it was answered.
    _bytes: OwnedSemaphorePermit,
}

/// Where services hand events over.
#[derive(Clone)]
pub struct IngestHandle {
    queue: mpsc::Sender<Publish>,
    bytes: Arc<Semaphore>,
    routing: Arc<RoutingTable>,
    rates: Arc<PublishRates>,
    metrics: Arc<Metrics>,
}

impl IngestHandle {
    pub(super) fn new(
        queue: mpsc::Sender<Publish>,
        routing: Arc<RoutingTable>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let bytes = Arc::new(Semaphore::new(QUEUE_BYTES));
        Self { queue, bytes, routing, rates: Arc::default(), metrics }
    }

    /// Waits until the event and its deliveries are durable, or are certain not to be. What was handed over is
    /// written even if the caller stops waiting; where too much waits already, nothing is handed over.
    pub async fn submit(&self, event: Event) -> Result<Receipt> {
        let room = async {
            self.admit(event.message.project).await?;
            self.room_now(size(&event))
        };
        let room = room.await;
        self.hand_over(event, room, None).await
    }

    /// The same, but waits for a place: for callers that read no further meanwhile. Events are handed over in the order in
    /// which they ask for `order`, which is given back before the answer is awaited.
    pub async fn submit_in_turn(&self, event: Event, order: &Mutex<()>) -> Result<Receipt> {
        let turn = order.lock().await;
        let room = async {
            self.admit(event.message.project).await?;
            self.room(size(&event)).await
        };
        let room = room.await;
        self.hand_over(event, room, Some(turn)).await
    }

    /// Waits until an event might be taken: for callers that hold what they read until it is.
    pub async fn has_room(&self) {
        // Closed it would say so to whoever submits.
        let _room = self.bytes.acquire().await;
    }

    async fn hand_over(
        &self,
        event: Event,
        room: Result<Room<'_>>,
        turn: Option<MutexGuard<'_, ()>>,
    ) -> Result<Receipt> {
        let started = Instant::now();
        let handing_over = async {
            let (place, bytes) = room?;
            let (reply, answer) = oneshot::channel();
            place.send(Publish { event, reply, handed_over: started, _bytes: bytes });
            drop(turn);
            answer.await.unwrap_or_else(|_| Err(stopping()))
        };
        let result = handing_over.await;
        self.metrics.engine.published(result_name(&result), started.elapsed());
        result
    }

    /// The same for several events, with an answer each. They are handed over together or not at all, in their
    /// order, but for those that their project may not publish now.
    pub async fn submit_all(&self, events: Vec<Event>) -> Result<Vec<Result<Receipt>>> {
        let started = Instant::now();
        let mut admitted = Vec::with_capacity(events.len());
        for event in events {
            admitted.push(self.admit(event.message.project).await.map(|()| event));
        }
        let count = admitted.iter().flatten().count();
        let mut places = self.queue.try_reserve_many(count).map_err(refused)?;
        let mut bytes = self.take_bytes(admitted.iter().flatten().map(size).sum())?;
        let mut answers = Vec::with_capacity(admitted.len());
        for admitted in admitted {
            let (reply, answer) = oneshot::channel();
            let room = admitted.and_then(|event| {
                let room = places.next().zip(bytes.split(size(&event) as usize)).ok_or_else(overloaded)?;
                Ok((event, room))
            });
            match room {
                Ok((event, (place, bytes))) => {
                    // Not when the call began: admitting it may have taken long.
                    let handed_over = Instant::now();
                    place.send(Publish { event, reply, handed_over, _bytes: bytes })
                }
                Err(error) => drop(reply.send(Err(error))),
            }
            answers.push(answer);
        }
        let mut receipts = Vec::with_capacity(answers.len());
        for answer in answers {
            let result = answer.await.unwrap_or_else(|_| Err(stopping()));
            self.metrics.engine.published(result_name(&result), started.elapsed());
            receipts.push(result);
        }
        Ok(receipts)
    }
}

/// A place in the queue and the bytes for it.
type Room<'a> = (Permit<'a, Publish>, OwnedSemaphorePermit);

/// What an event weighs in the queue.
fn size(event: &Event) -> u32 {
    let headers = event.message.headers.iter().map(|(name, value)| name.len() + value.len());
    u32::try_from(event.message.payload.len() + headers.sum::<usize>()).unwrap_or(u32::MAX)
}

impl IngestHandle {
    fn room_now(&self, bytes: u32) -> Result<Room<'_>> {
        let place = self.queue.try_reserve().map_err(refused)?;
        Ok((place, self.take_bytes(bytes)?))
    }

    /// The same, but waits for it.
    async fn room(&self, bytes: u32) -> Result<Room<'_>> {
        let bytes = self.bytes.clone().acquire_many_owned(bytes).await.map_err(|_| stopping())?;
        Ok((self.queue.reserve().await.map_err(|_| stopping())?, bytes))
    }

    fn take_bytes(&self, bytes: u32) -> Result<OwnedSemaphorePermit> {
        self.bytes.clone().try_acquire_many_owned(bytes).map_err(|_| overloaded())
    }

    /// Counts an event against its project's limit; what is over it takes no place from others.
    async fn admit(&self, project: ProjectId) -> Result<()> {
        // That there is no such project is told by the turn.
        let Some(routes) = self.routing.patiently(project).await? else { return Ok(()) };
        match routes.publishes_per_second {
            Some(limit) => self.rates.take(project, limit, std::time::Instant::now()),
            None => {
                self.rates.forget(project);
                Ok(())
            }
        }
    }
}

fn stopping() -> Error {
    Error::unavailable("the server is stopping")
}

fn refused(refused: TrySendError<()>) -> Error {
    match refused {
        TrySendError::Full(()) => overloaded(),
        TrySendError::Closed(()) => stopping(),
    }
}

fn overloaded() -> Error {
    Error::overloaded("more events wait to be written than the server takes")
}

fn result_name(result: &Result<Receipt>) -> &'static str {
    match result {
        Ok(receipt) if receipt.duplicate => "duplicate",
        Ok(_) => "accepted",
        Err(error) if error.reason == OVERLOADED => "overloaded",
        Err(error) if matches!(error.kind, ErrorKind::Unavailable | ErrorKind::Internal) => "failed",
        Err(_) => "refused",
    }
}
