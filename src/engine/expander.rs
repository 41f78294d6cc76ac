//! The expander: makes the deliveries of events that reach many endpoints, in steps between the turns of others.
//!
//! Expansions take turns too, so that none waits for another's end, and one that fails does not hold up the rest.
//! What a step makes lies due for any node. Any number of nodes may expand at once; each step finds its own work.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Shared;
use super::ingest::{new_delivery, paced};
use super::routing::Unread;
use super::writer::chain;
use crate::domain::delivery::DeliveryStatus;
use crate::domain::id::{DeliveryId, EndpointId, EventId};
use crate::store::{Hold, Lane, NewDelivery, Result, Store};

/// The slow round, which also finds what a process that ended left undone.
const ROUND: Duration = Duration::from_secs(2);
/// Deliveries in one step: so few that it is a short turn for those who wait.
const STEP: usize = 500;
const STEP_LONGEST: Duration = Duration::from_secs(15);
/// Before one that failed is tried again.
const REST: Duration = Duration::from_secs(10);
/// No event is before it.
const START: EventId = EventId::from_uuid(Uuid::nil());

/// What is to be expanded next, and what is passed over.
struct Expander {
    store: Store,
    shared: Arc<Shared>,
    /// Whose turn was last.
    after: EventId,
    /// Expansions that failed, and until when they are left alone.
    resting: HashMap<EventId, Instant>,
}

/// What a step came to.
enum Stepped {
    On,
    /// The next one rests.
    Over,
    /// There is none after it.
    End,
}

pub async fn run(store: Store, shared: Arc<Shared>, stop: CancellationToken) {
    let mut expander = Expander { store, shared: shared.clone(), after: START, resting: HashMap::new() };
    while !stop.is_cancelled() {
        if expander.lap(&stop).await {
            continue;
        }
        tokio::select! {
            () = shared.expansions.notified() => {}
            () = tokio::time::sleep(ROUND) => {}
            () = stop.cancelled() => {}
        }
    }
}

impl Expander {
    /// One step of each expansion to the last; says whether any of them went on.
    async fn lap(&mut self, stop: &CancellationToken) -> bool {
        let mut went_on = false;
        while !stop.is_cancelled() {
            let (store, before) = (self.store.clone(), self.after);
            match store.in_time(STEP_LONGEST, self.step()).await {
                Ok(Stepped::On) => went_on = true,
                Ok(Stepped::Over) => {}
                Ok(Stepped::End) => {
                    self.after = START;
                    return went_on;
                }
                Err(error) => {
                    let event = self.after;
                    tracing::warn!(error = chain(&error), %event, "deliveries could not be made; it is tried again");
                    if error.is_transient() || event == before {
                        return false;
                    }
                    // It concerns this one alone.
                    self.rest(event);
                }
            }
        }
        false
    }

    fn rest(&mut self, event: EventId) {
        let now = Instant::now();
        self.resting.retain(|_, until| *until > now);
        self.resting.insert(event, now + REST);
    }

    /// One step of the expansion after `after`.
    async fn step(&mut self) -> Result<Stepped> {
        let (store, shared) = (&self.store, &self.shared);
        let mut tx = store.begin(Lane::Engine).await?;
        let Some(event) = tx.next_expansion(self.after).await? else {
            tx.rollback().await?;
            return Ok(Stepped::End);
        };
        self.after = event;
        if self.resting.get(&event).is_some_and(|until| *until > Instant::now()) {
            tx.rollback().await?;
            return Ok(Stepped::Over);
        }
        // No more than what would have been made at once.
        let limit = u16::try_from(STEP.min(shared.fan_out.at_once).max(1)).unwrap_or(u16::MAX);
        let step = tx.expansion_step(event, limit).await?;
        let project = step.event.project;
        let lease = shared.keeper.lease();
        let routes = match tx.footing(lease, &[project]).await?.versions.get(&project) {
            Some(version) => match shared.routing.at_once(project, *version).await {
                Ok(routes) => routes,
                Err(Unread) => {
                    tx.rollback().await?;
                    self.rest(event);
                    return Ok(Stepped::Over);
                }
            },
            None => None,
        };
        let mut deliveries = Vec::with_capacity(step.targets.len());
        let mut deleted = Vec::new();
        for endpoint in &step.targets {
            match routes.as_ref().and_then(|routes| Some((routes.endpoint(*endpoint)?, routes.paused_policy)))
            {
                Some((route, paused_policy)) => deliveries.push(new_delivery(shared, route, paused_policy)),
                None => deleted.push(*endpoint),
            }
        }
        let owners = tx.owners_of(deleted.iter().copied()).await?;
        deliveries
            .extend(deleted.iter().map(|endpoint| of_deleted(*endpoint, owners.get(endpoint).cloned())));
        for closed in tx.expand(lease, &step, &deliveries).await? {
            shared.breakers.close(closed);
        }
        tx.commit().await?;
        for endpoint in paced(&deliveries) {
            shared.pacer.tell(project, endpoint);
        }
        shared.claims.ring();
        Ok(Stepped::On)
    }
}

/// The delivery of an endpoint that was deleted since the event was accepted.
fn of_deleted(endpoint: EndpointId, owner: Option<Arc<str>>) -> NewDelivery {
    NewDelivery {
        id: DeliveryId::new(),
        endpoint,
        owner,
        status: DeliveryStatus::Discarded,
        claimed: false,
        hold: Hold::No,
    }
}
