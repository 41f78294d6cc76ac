//! Events in: what services hand over, and what one turn makes of them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::Shared;
use super::lanes::Reservation;
use crate::domain::delivery::{Claim, DeliveryStatus};
use crate::domain::endpoint::EndpointStatus;
use crate::domain::error::{Error, ErrorKind, OVERLOADED, Result};
use crate::domain::event::{Event, FAN_OUT_MAX, Receipt};
use crate::domain::id::{DeliveryId, LeaseId, ProjectId};
use crate::domain::project::PausedPolicy;
use crate::domain::routing::{EndpointRoute, ProjectRoutes};
use crate::metrics::Metrics;
use crate::store::{
    ClaimedDelivery, FIRST_TOKEN, Footing, Hold, KeyVerdict, NewDelivery, NewEvent, StoreError, Tx,
};

/// An event on its way in, and who waits for it.
pub struct Publish {
    pub event: Event,
    pub reply: oneshot::Sender<Result<Receipt>>,
}

/// Where services hand events over.
#[derive(Clone)]
pub struct IngestHandle {
    queue: mpsc::Sender<Publish>,
    metrics: Arc<Metrics>,
}

impl IngestHandle {
    pub(super) fn new(queue: mpsc::Sender<Publish>, metrics: Arc<Metrics>) -> Self {
        Self { queue, metrics }
    }

    /// Waits until the event and its deliveries are durable, or are certain not to be. What was handed over is
    /// written even if the caller stops waiting; where too much waits already, nothing is handed over.
    pub async fn submit(&self, event: Event) -> Result<Receipt> {
        let started = Instant::now();
        let result = self.hand_over(event).await;
        self.metrics.engine.published(result_name(&result), started.elapsed());
        result
    }

    async fn hand_over(&self, event: Event) -> Result<Receipt> {
        let stopping = || Error::unavailable("the server is stopping");
        let (reply, answer) = oneshot::channel();
        self.queue.try_send(Publish { event, reply }).map_err(|refused| match refused {
            TrySendError::Full(_) => {
                Error::overloaded("more events wait to be written than the server takes")
            }
            TrySendError::Closed(_) => stopping(),
        })?;
        answer.await.map_err(|_| stopping())?
    }
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

/// What a turn made of one event, to be told once the turn is committed.
pub enum Verdict {
    Answer(Result<Receipt>),
    Accepted(Receipt, Vec<(Reservation, ClaimedDelivery)>),
    /// Another event of this turn has the same idempotency key: this one's turn is the next.
    Later,
}

/// An event that routing let through.
struct Planned<'a> {
    index: usize,
    event: &'a Event,
    routes: Arc<ProjectRoutes>,
    targets: Vec<Arc<EndpointRoute>>,
}

/// Writes a turn's events into its transaction.
pub async fn write(
    tx: &mut Tx,
    shared: &Shared,
    lease: LeaseId,
    publishes: &[Publish],
) -> Result<Vec<Verdict>, StoreError> {
    let footing = footing(tx, lease, publishes).await?;
    if !footing.lease_stands {
        shared.keeper.give_up(lease);
    }
    let may_start = footing.lease_stands && shared.may_start(lease);
    let routes = current_routes(shared, footing).await?;
    let mut verdicts: Vec<Option<Verdict>> = Vec::with_capacity(publishes.len());
    let mut planned = Vec::new();
    let mut keys = HashSet::new();
    for (index, publish) in publishes.iter().enumerate() {
        let event = &publish.event;
        let message = &event.message;
        let again =
            event.idempotency.as_ref().is_some_and(|key| !keys.insert((message.project, key.key.as_str())));
        let verdict = if again {
            Some(Verdict::Later)
        } else {
            match plan(event, index, &routes) {
                Ok(plan) => {
                    planned.push(plan);
                    None
                }
                Err(error) => Some(Verdict::Answer(Err(error))),
            }
        };
        verdicts.push(verdict);
    }
    claim_keys(tx, &mut planned, &mut verdicts).await?;

    let mut events = Vec::with_capacity(planned.len());
    for plan in &planned {
        let (deliveries, jobs) = deliver(shared, may_start.then_some(lease), plan);
        let receipt = Receipt {
            event: plan.event.message.event,
            deliveries: u32::try_from(deliveries.len()).unwrap_or(u32::MAX),
            duplicate: false,
        };
        events.push(NewEvent { event: plan.event, deliveries });
        verdicts[plan.index] = Some(Verdict::Accepted(receipt, jobs));
    }
    for closed in tx.insert_events(lease, &events).await? {
        shared.breakers.close(closed);
    }
    let unplanned = || Verdict::Answer(Err(Error::unavailable("the event was not written; try again")));
    Ok(verdicts.into_iter().map(|verdict| verdict.unwrap_or_else(unplanned)).collect())
}

/// What the turn stands on, as read by its transaction.
async fn footing(tx: &Tx, lease: LeaseId, publishes: &[Publish]) -> Result<Footing, StoreError> {
    let mut projects: Vec<ProjectId> =
        publishes.iter().map(|publish| publish.event.message.project).collect();
    projects.sort_unstable();
    projects.dedup();
    tx.footing(lease, &projects).await
}

/// The routes of all projects in the turn, at the versions that its transaction read: whatever was acknowledged
/// before these events were published is seen.
async fn current_routes(
    shared: &Shared,
    footing: Footing,
) -> Result<HashMap<ProjectId, Arc<ProjectRoutes>>, StoreError> {
    let mut routes = HashMap::with_capacity(footing.versions.len());
    for (project, version) in footing.versions {
        if let Some(current) = shared.routing.at_least(project, version).await? {
            routes.insert(project, current);
        }
    }
    Ok(routes)
}

fn plan<'a>(
    event: &'a Event,
    index: usize,
    routes: &HashMap<ProjectId, Arc<ProjectRoutes>>,
) -> Result<Planned<'a>> {
    let project = event.message.project;
    let routes = routes.get(&project).ok_or_else(|| Error::not_found("project", project))?;
    let targets = routes.resolve(&event.target, &event.message.event_type)?;
    if targets.len() > FAN_OUT_MAX {
        let message =
            format!("the event would reach {} endpoints; at most {FAN_OUT_MAX} are allowed", targets.len());
        return Err(Error::new(ErrorKind::ResourceExhausted, "FAN_OUT_TOO_LARGE", message));
    }
    Ok(Planned { index, event, routes: routes.clone(), targets })
}

/// Leaves in `planned` only what wins its idempotency key, and answers the rest.
async fn claim_keys(
    tx: &Tx,
    planned: &mut Vec<Planned<'_>>,
    verdicts: &mut [Option<Verdict>],
) -> Result<(), StoreError> {
    let claims: Vec<_> = planned
        .iter()
        .filter_map(|plan| {
            let key = plan.event.idempotency.as_ref()?;
            let deliveries = u32::try_from(plan.targets.len()).unwrap_or(u32::MAX);
            Some((plan.event.message.project, key, plan.event.message.event, deliveries))
        })
        .collect();
    if claims.is_empty() {
        return Ok(());
    }
    let results = tx.claim_keys(&claims).await?;
    let mut lost = HashMap::new();
    for ((_, _, event, _), result) in claims.iter().zip(results) {
        let answer = match result {
            KeyVerdict::Won => continue,
            KeyVerdict::Duplicate { event, deliveries } => Ok(Receipt { event, deliveries, duplicate: true }),
            KeyVerdict::Conflict => Err(Error::new(
                ErrorKind::AlreadyExists,
                "IDEMPOTENCY_KEY_REUSED",
                "the idempotency key was used within 24 hours for an event with other content",
            )),
        };
        lost.insert(*event, answer);
    }
    planned.retain(|plan| match lost.remove(&plan.event.message.event) {
        Some(answer) => {
            verdicts[plan.index] = Some(Verdict::Answer(answer));
            false
        }
        None => true,
    });
    Ok(())
}

/// The deliveries of an event, and those of them that go straight to their lanes: none without a lease.
fn deliver(
    shared: &Shared,
    lease: Option<LeaseId>,
    plan: &Planned<'_>,
) -> (Vec<NewDelivery>, Vec<(Reservation, ClaimedDelivery)>) {
    let mut deliveries = Vec::with_capacity(plan.targets.len());
    let mut jobs = Vec::new();
    for route in &plan.targets {
        let mut delivery = NewDelivery {
            id: DeliveryId::new(),
            endpoint: route.id,
            owner: route.owner.clone(),
            status: DeliveryStatus::Scheduled,
            claimed: false,
            hold: Hold::No,
        };
        match (route.status, plan.routes.paused_policy) {
            (EndpointStatus::Active, _) if shared.breakers.is_open(route.id) => delivery.hold = Hold::Breaker,
            (EndpointStatus::Active, _) => {
                if let Some(lease) = lease
                    && let Some(reservation) = shared.lanes.reserve(route.id, route.max_in_flight)
                {
                    delivery.claimed = true;
                    jobs.push((reservation, job(&delivery, lease, plan.event)));
                }
            }
            (EndpointStatus::Paused, PausedPolicy::Hold) => delivery.hold = Hold::Paused,
            (EndpointStatus::Paused, PausedPolicy::Discard) | (EndpointStatus::Inactive, _) => {
                delivery.status = DeliveryStatus::Discarded;
            }
        }
        deliveries.push(delivery);
    }
    (deliveries, jobs)
}

fn job(delivery: &NewDelivery, lease: LeaseId, event: &Event) -> ClaimedDelivery {
    ClaimedDelivery {
        id: delivery.id,
        endpoint: delivery.endpoint,
        claim: Claim { lease, token: FIRST_TOKEN },
        attempts: 0,
        budget_start: 0,
        created_at: event.created_at,
        probe: false,
        message: event.message.clone(),
    }
}
