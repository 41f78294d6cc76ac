//! Events in: what one turn makes of those that were handed over.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future::join_all;

use super::Shared;
use super::intake::Publish;
use super::lanes::Reservation;
use super::routing::Unread;
use crate::domain::delivery::{Claim, DeliveryStatus};
use crate::domain::endpoint::{ContentType, EndpointStatus};
use crate::domain::error::{Error, ErrorKind, Result};
use crate::domain::event::{Event, IdempotencyKey, Receipt, Target};
use crate::domain::form;
use crate::domain::id::{DeliveryId, EndpointId, LeaseId, ProjectId};
use crate::domain::project::PausedPolicy;
use crate::domain::routing::{EndpointRoute, ProjectRoutes};
use crate::store::{
    ClaimedDelivery, FIRST_TOKEN, FirstUse, Footing, Hold, NewDelivery, NewEvent, StoreError, Tx,
};

/// Deliveries that one turn makes or promises. The first event of a turn may pass it alone.
const TURN_DELIVERIES: usize = 10_000;

/// What a turn made of one event, to be told once the turn is committed.
pub enum Verdict {
    Answer(Result<Receipt>),
    Accepted {
        receipt: Receipt,
        /// Those of its deliveries that are to be attempted, as far as that is known.
        open: u64,
        /// Those of its deliveries that go straight to their lanes.
        jobs: Vec<(Reservation, ClaimedDelivery)>,
        /// Endpoints for which some of them wait for slots.
        paced: Vec<EndpointId>,
        /// Endpoints whose deliveries lie in the table.
        spilled: Vec<EndpointId>,
        /// Its deliveries are made afterwards.
        expands: bool,
    },
    /// The turn was full before it: its turn is the next.
    Later,
    /// Its project's routes at this version take longer to read than the turn may wait.
    Unread(i64),
}

/// What a turn means to do with one event.
enum Plan {
    Refuse(Error),
    /// Write it, unless its idempotency key turns out to be taken.
    Write {
        routes: Arc<ProjectRoutes>,
        targets: Vec<Arc<EndpointRoute>>,
    },
    /// Answer it as a repeat of the event at this index, which has the same idempotency key.
    Repeat {
        of: usize,
    },
    Later,
    /// Have it wait for routes of this version, unless its key was used.
    Unread(i64),
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
    let claims_for = (footing.lease_stands && shared.may_start(lease)).then_some(lease);
    let routes = current_routes(shared, footing).await;
    let plans = plan_turn(publishes, &routes, shared);
    let first_uses = claim_keys(tx, publishes, &plans).await?;
    let earlier = earlier_uses(tx, publishes, &plans).await?;

    let mut events = Vec::with_capacity(plans.len());
    let mut verdicts = Vec::with_capacity(plans.len());
    for (index, plan) in plans.into_iter().enumerate() {
        let event = &publishes[index].event;
        let first_use = |index: usize| first_uses.get(&index).zip(event.idempotency.as_ref());
        verdicts.push(match (plan, first_use(index)) {
            (Plan::Refuse(error), _) => match earlier_use(&earlier, event) {
                Some((first, key)) => Verdict::Answer(repeat(first, key)),
                None => Verdict::Answer(Err(error)),
            },
            (Plan::Unread(version), _) => match earlier_use(&earlier, event) {
                Some((first, key)) => Verdict::Answer(repeat(first, key)),
                None => Verdict::Unread(version),
            },
            (Plan::Later, _) => Verdict::Later,
            (Plan::Repeat { of }, _) => match first_use(of) {
                Some((first, key)) => Verdict::Answer(repeat(first, key)),
                None => Verdict::Later,
            },
            (Plan::Write { .. }, Some((first, key))) if first.event != event.message.event => {
                Verdict::Answer(repeat(first, key))
            }
            (Plan::Write { routes, targets }, _) => {
                let deliveries = u32::try_from(targets.len()).unwrap_or(u32::MAX);
                let receipt = Receipt { event: event.message.event, deliveries, duplicate: false };
                if targets.len() > shared.fan_out.at_once {
                    let targets = targets.iter().map(|route| route.id).collect();
                    events.push(NewEvent { event, deliveries: Vec::new(), targets });
                    Verdict::Accepted {
                        receipt,
                        open: deliveries.into(),
                        jobs: Vec::new(),
                        spilled: Vec::new(),
                        paced: Vec::new(),
                        expands: true,
                    }
                } else {
                    let (deliveries, jobs) =
                        deliver(shared, claims_for, event, routes.paused_policy, &targets);
                    let paced = paced(&deliveries).collect();
                    let spilled = deliveries.iter().filter(|one| one.is_due() && !one.claimed);
                    let spilled = spilled.map(|one| one.endpoint).collect();
                    let open = deliveries.iter().filter(|one| !one.status.is_final()).count() as u64;
                    events.push(NewEvent { event, deliveries, targets: Vec::new() });
                    Verdict::Accepted { receipt, open, jobs, spilled, paced, expands: false }
                }
            }
        });
    }
    for closed in tx.insert_events(lease, &events).await? {
        shared.breakers.close(closed);
    }
    Ok(verdicts)
}

/// What the turn stands on, as read by its transaction.
async fn footing(tx: &Tx, lease: LeaseId, publishes: &[Publish]) -> Result<Footing, StoreError> {
    let mut projects: Vec<ProjectId> =
        publishes.iter().map(|publish| publish.event.message.project).collect();
    projects.sort_unstable();
    projects.dedup();
    tx.footing(lease, &projects).await
}

/// A turn's projects, each with its routes, or with the version of those that cannot be had at once.
type TurnRoutes = HashMap<ProjectId, Result<Arc<ProjectRoutes>, i64>>;

/// The routes of all projects in the turn, at the versions that its transaction read: whatever was acknowledged
/// before these events were published is seen. Those that are long to read concern their own project's events alone.
async fn current_routes(shared: &Shared, footing: Footing) -> TurnRoutes {
    let reading = footing.versions.into_iter().map(async |(project, version)| {
        let read = shared.routing.at_once(project, version).await;
        Some((project, read.map_err(|Unread| version).transpose()?))
    });
    // At once, so that their waits do not add up: the transaction is open.
    join_all(reading).await.into_iter().flatten().collect()
}

/// A plan for each event. When one does not fit any more, all after it wait too, so that none is overtaken.
fn plan_turn(publishes: &[Publish], routes: &TurnRoutes, shared: &Shared) -> Vec<Plan> {
    let mut plans = Vec::with_capacity(publishes.len());
    let (mut keys, mut open) = (HashMap::new(), HashMap::new());
    let (mut deliveries, mut is_full) = (0, false);
    for (index, publish) in publishes.iter().enumerate() {
        if is_full {
            plans.push(Plan::Later);
            continue;
        }
        let event = &publish.event;
        if let Some(Err(version)) = routes.get(&event.message.project) {
            plans.push(Plan::Unread(*version));
            continue;
        }
        let (routes, targets) = match resolve(event, routes, shared) {
            Ok(resolved) => resolved,
            Err(error) => {
                plans.push(Plan::Refuse(error));
                continue;
            }
        };
        let key = event.idempotency.as_ref().map(|key| (event.message.project, key.key.as_str()));
        if let Some(of) = key.and_then(|key| keys.get(&key).copied()) {
            plans.push(Plan::Repeat { of });
            continue;
        }
        is_full = deliveries > 0 && deliveries + targets.len() > TURN_DELIVERIES;
        if is_full {
            plans.push(Plan::Later);
            continue;
        }
        let pending: &mut usize = open.entry(event.message.project).or_default();
        // What is made afterwards counts in full until it is: rows are to be made of it in any case.
        let more = match targets.len() > shared.fan_out.at_once {
            true => targets.len(),
            false => targets.iter().filter(|route| opens(route, routes.paused_policy)).count(),
        };
        if let Err(error) = shared.pending.check(event.message.project, *pending, more) {
            plans.push(Plan::Refuse(error));
            continue;
        }
        *pending += more;
        deliveries += targets.len();
        keys.extend(key.map(|key| (key, index)));
        plans.push(Plan::Write { routes, targets });
    }
    plans
}

type Resolved = (Arc<ProjectRoutes>, Vec<Arc<EndpointRoute>>);

fn resolve(event: &Event, routes: &TurnRoutes, shared: &Shared) -> Result<Resolved> {
    let fan_out = shared.fan_out;
    let project = event.message.project;
    let Some(Ok(routes)) = routes.get(&project) else { return Err(Error::not_found("project", project)) };
    let targets = routes.resolve(&event.target, &event.message.event_type)?;
    if let (Target::Endpoint(_), Some(route)) = (&event.target, targets.first())
        && route.content_type == ContentType::Form
    {
        form::check(&event.message.payload).map_err(|error| Error::invalid("payload", error.to_string()))?;
    }
    if targets.len() > fan_out.max {
        let message =
            format!("the event would reach {} endpoints; at most {} are allowed", targets.len(), fan_out.max);
        return Err(Error::new(ErrorKind::ResourceExhausted, "FAN_OUT_TOO_LARGE", message));
    }
    Ok((routes.clone(), targets))
}

/// Whose the idempotency keys are of the events that are to be written, by their index.
async fn claim_keys(
    tx: &Tx,
    publishes: &[Publish],
    plans: &[Plan],
) -> Result<HashMap<usize, FirstUse>, StoreError> {
    let (mut indexes, mut claims) = (Vec::new(), Vec::new());
    for (index, plan) in plans.iter().enumerate() {
        let event = &publishes[index].event;
        if let (Plan::Write { targets, .. }, Some(key)) = (plan, &event.idempotency) {
            let deliveries = u32::try_from(targets.len()).unwrap_or(u32::MAX);
            claims.push((event.message.project, key, event.message.event, deliveries));
            indexes.push(index);
        }
    }
    if claims.is_empty() {
        return Ok(HashMap::new());
    }
    Ok(indexes.into_iter().zip(tx.claim_keys(&claims).await?).collect())
}

/// Who used the idempotency keys of events that are not written: one that was accepted before is answered so, though it would be
/// refused today.
async fn earlier_uses(
    tx: &Tx,
    publishes: &[Publish],
    plans: &[Plan],
) -> Result<HashMap<(ProjectId, String), FirstUse>, StoreError> {
    let unwritten =
        publishes.iter().zip(plans).filter(|(_, plan)| matches!(plan, Plan::Refuse(_) | Plan::Unread(_)));
    let keys = unwritten.filter_map(|(publish, _)| {
        let event = &publish.event;
        Some((event.message.project, event.idempotency.as_ref()?))
    });
    tx.first_uses(keys).await
}

fn earlier_use<'a>(
    earlier: &'a HashMap<(ProjectId, String), FirstUse>,
    event: &'a Event,
) -> Option<(&'a FirstUse, &'a IdempotencyKey)> {
    let key = event.idempotency.as_ref()?;
    Some((earlier.get(&(event.message.project, key.key.clone()))?, key))
}

/// The answer to an event whose key another one used first.
fn repeat(first: &FirstUse, key: &IdempotencyKey) -> Result<Receipt> {
    if first.content_hash == key.content_hash {
        return Ok(Receipt { event: first.event, deliveries: first.deliveries, duplicate: true });
    }
    Err(Error::new(
        ErrorKind::AlreadyExists,
        "IDEMPOTENCY_KEY_REUSED",
        "the idempotency key was used within 24 hours for an event with other content",
    ))
}

/// The deliveries of an event, and those of them that go straight to their lanes: none without a lease.
fn deliver(
    shared: &Shared,
    lease: Option<LeaseId>,
    event: &Event,
    policy: PausedPolicy,
    targets: &[Arc<EndpointRoute>],
) -> (Vec<NewDelivery>, Vec<(Reservation, ClaimedDelivery)>) {
    let mut deliveries = Vec::with_capacity(targets.len());
    let mut jobs = Vec::new();
    for route in targets {
        let mut delivery = new_delivery(shared, route, policy);
        if delivery.is_due()
            && let Some(lease) = lease
            && let Some(reservation) = shared.lanes.reserve(route.id, route.max_in_flight)
        {
            delivery.claimed = true;
            jobs.push((reservation, job(&delivery, lease, event)));
        }
        deliveries.push(delivery);
    }
    (deliveries, jobs)
}

/// Whether a delivery to an endpoint of this state waits to be attempted, or ends at its birth.
fn opens(route: &EndpointRoute, policy: PausedPolicy) -> bool {
    match route.status {
        EndpointStatus::Active => true,
        EndpointStatus::Paused => policy == PausedPolicy::Hold,
        EndpointStatus::Inactive | EndpointStatus::Pending => false,
    }
}

/// A delivery as its endpoint's state lets it begin.
pub fn new_delivery(shared: &Shared, route: &EndpointRoute, policy: PausedPolicy) -> NewDelivery {
    let (status, hold) = match route.status {
        _ if !opens(route, policy) => (DeliveryStatus::Discarded, Hold::No),
        EndpointStatus::Paused => (DeliveryStatus::Scheduled, Hold::Paused),
        _ if shared.breakers.is_open(route.id) => (DeliveryStatus::Scheduled, Hold::Breaker),
        _ if route.rate_limit.is_some() => (DeliveryStatus::Scheduled, Hold::Rate),
        _ => (DeliveryStatus::Scheduled, Hold::No),
    };
    NewDelivery {
        id: DeliveryId::new(),
        endpoint: route.id,
        owner: route.owner.clone(),
        status,
        claimed: false,
        hold,
    }
}

/// The endpoints whose deliveries wait for slots.
pub fn paced(deliveries: &[NewDelivery]) -> impl Iterator<Item = EndpointId> {
    deliveries.iter().filter(|one| one.hold == Hold::Rate).map(|one| one.endpoint)
}

fn job(delivery: &NewDelivery, lease: LeaseId, event: &Event) -> ClaimedDelivery {
    ClaimedDelivery {
        id: delivery.id,
        endpoint: delivery.endpoint,
        claim: Claim { lease, token: FIRST_TOKEN },
        attempts: 0,
        budget_start: 0,
        created_at: event.created_at,
        probe: None,
        start_by: None,
        again: false,
        lost: None,
        message: event.message.clone(),
    }
}
