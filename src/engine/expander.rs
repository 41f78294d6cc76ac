//! The expander: makes the deliveries of events that reach many endpoints, in steps between the turns of others.
//!
//! Expansions take turns too, so that none waits for another's end, and one that fails does not hold up the rest.
//! What a step makes lies due for any node. Any number of nodes may expand at once; each step finds its own work.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Shared;
use super::ingest::{new_delivery, paced};
use super::writer::chain;
use crate::domain::delivery::DeliveryStatus;
use crate::domain::id::{DeliveryId, EndpointId, EventId};
use crate::store::{Hold, Lane, NewDelivery, Result, Store};

/// The slow round, which also finds what a process that ended left undone.
const ROUND: Duration = Duration::from_secs(2);
/// Deliveries in one step: so few that it is a short turn for those who wait.
const STEP: usize = 500;
const STEP_LONGEST: Duration = Duration::from_secs(15);
/// No event is before it.
const START: EventId = EventId::from_uuid(Uuid::nil());

pub async fn run(store: Store, shared: Arc<Shared>, stop: CancellationToken) {
    let mut after = START;
    while !stop.is_cancelled() {
        match store.in_time(STEP_LONGEST, step(&store, &shared, &mut after)).await {
            Ok(true) => continue,
            Ok(false) if after != START => {
                after = START;
                continue;
            }
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(error = chain(&error), event = %after, "deliveries could not be made; the next round tries again");
            }
        }
        tokio::select! {
            () = shared.expansions.notified() => {}
            () = tokio::time::sleep(ROUND) => {}
            () = stop.cancelled() => {}
        }
    }
}

/// One step of the expansion after `after`; says whether there was one.
async fn step(store: &Store, shared: &Shared, after: &mut EventId) -> Result<bool> {
    let mut tx = store.begin(Lane::Engine).await?;
    // No more than what would have been made at once.
    let limit = u16::try_from(STEP.min(shared.fan_out.at_once).max(1)).unwrap_or(u16::MAX);
    let Some(step) = tx.next_expansion(*after, limit).await? else {
        tx.rollback().await?;
        return Ok(false);
    };
    *after = step.event.event;
    let project = step.event.project;
    let lease = shared.keeper.lease();
    let routes = match tx.footing(lease, &[project]).await?.versions.get(&project) {
        Some(version) => shared.routing.at_least(project, *version).await?,
        None => None,
    };
    let deliveries: Vec<NewDelivery> = step
        .targets
        .iter()
        .map(|endpoint| match &routes {
            Some(routes) => match routes.endpoint(*endpoint) {
                Some(route) => new_delivery(shared, route, routes.paused_policy),
                None => of_deleted(*endpoint),
            },
            None => of_deleted(*endpoint),
        })
        .collect();
    for closed in tx.expand(lease, &step, &deliveries).await? {
        shared.breakers.close(closed);
    }
    tx.commit().await?;
    for endpoint in paced(&deliveries) {
        shared.pacer.tell(project, endpoint);
    }
    shared.claims.ring();
    Ok(true)
}

/// The delivery of an endpoint that was deleted since the event was accepted.
fn of_deleted(endpoint: EndpointId) -> NewDelivery {
    NewDelivery {
        id: DeliveryId::new(),
        endpoint,
        owner: None,
        status: DeliveryStatus::Discarded,
        claimed: false,
        hold: Hold::No,
    }
}
