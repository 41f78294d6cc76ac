//! The pacer: attempts to endpoints with a rate limit start at slots, which are reserved in the store together with
//! the work that they are for, in batches of half a second.
//!
//! Slots are moments of the database's clock, so nodes share a limit by asking the same row. What waits for slots
//! lies parked in the table; a lane holds no more of it than it has slots for, and starts nothing without one. A
//! slot whose attempt did not start in time is gone, and another one is reserved.

mod agenda;
mod clock;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use agenda::Agenda;
use clock::{Clock, micros};

use super::lanes::LaneRule;
use super::routing::Unread;
use super::turn::Outcome;
use super::writer::chain;
use super::{Shared, worker};
use crate::domain::endpoint::EndpointStatus;
use crate::domain::id::{DeliveryId, EndpointId, LeaseId, ProjectId};
use crate::domain::rate::{RateLimit, Slots};
use crate::store::{ClaimRequest, Claimed, Due, Hold, Lane, Result, Store, StoreError};

/// How far ahead slots are reserved.
const AHEAD: Duration = Duration::from_millis(500);
/// Between two looks at an endpoint that has work: at least, and where no slot or no room was free.
const SOON: Duration = Duration::from_millis(5);
const LATER: Duration = Duration::from_millis(50);
/// Between two looks that others ask for.
const BETWEEN: Duration = Duration::from_millis(10);
/// The slow round, which finds work that others left.
const ROUND: Duration = Duration::from_secs(1);
const WALKED: u32 = 1000;
/// Endpoints that one look serves.
const SERVED: usize = 64;
/// Endpoints that may wait to be taken up; the slow round finds those beyond.
const TOLD_MAX: usize = 10_000;
const LOOK_LONGEST: Duration = Duration::from_secs(5);
/// A reservation that takes longer is not waited for by slots.
const LEAD_MAX: Duration = Duration::from_secs(1);
/// Until it is known how long one takes.
const LEAD_FIRST: Duration = Duration::from_millis(50);
/// No endpoint is before it.
const START: EndpointId = EndpointId::from_uuid(Uuid::nil());

/// What other tasks tell the pacer: an endpoint's work waits for slots, from some moment on.
#[derive(Default)]
pub struct Pacer {
    told: Mutex<HashMap<EndpointId, (ProjectId, Instant)>>,
    bell: Notify,
    /// When the next slot of each lane comes.
    starts: Mutex<Agenda>,
    /// Rings when a slot comes sooner than was known.
    reserved: Notify,
}

impl Pacer {
    fn starts(&self) -> MutexGuard<'_, Agenda> {
        self.starts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn told(&self) -> MutexGuard<'_, HashMap<EndpointId, (ProjectId, Instant)>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn tell(&self, project: ProjectId, endpoint: EndpointId) {
        self.tell_at(project, endpoint, Instant::now());
    }

    /// The same for what has just missed its slot.
    pub fn tell_soon(&self, project: ProjectId, endpoint: EndpointId) {
        self.tell_at(project, endpoint, Instant::now() + SOON);
    }

    pub fn tell_at(&self, project: ProjectId, endpoint: EndpointId, at: Instant) {
        let mut told = self.told();
        if told.len() < TOLD_MAX {
            let entry = told.entry(endpoint).or_insert((project, at));
            entry.1 = entry.1.min(at);
        }
        drop(told);
        self.bell.notify_one();
    }
}

/// An endpoint that a look serves.
struct Guest {
    project: ProjectId,
    id: EndpointId,
    limit: RateLimit,
    /// Deliveries that its lane has room for, and those in it that want slots.
    room: usize,
    wanting: usize,
}

/// What a look reserved for one of them.
struct Served {
    slots: Slots,
    /// None of them is of use before.
    from: i64,
    /// The first moment that nobody has.
    next: i64,
    /// More is due than was claimed.
    more: bool,
}

struct Pacing {
    store: Store,
    shared: Arc<Shared>,
    looks: Agenda,
    /// When each was looked at last.
    looked: HashMap<EndpointId, Instant>,
    clock: Clock,
    /// How long a reservation takes: slots before its end are of no use.
    lead: Duration,
    walked: EndpointId,
}

pub async fn run(store: Store, shared: Arc<Shared>, stop: CancellationToken) {
    let (clock, lead) = (Clock::new(), LEAD_FIRST);
    let (looks, looked) = (Agenda::default(), HashMap::new());
    let mut pacing = Pacing { store, shared, looks, looked, clock, lead, walked: START };
    let mut round = tokio::time::interval(ROUND);
    round.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let next = pacing.looks.next();
        let shared = pacing.shared.clone();
        let walk = tokio::select! {
            () = until(next) => false,
            () = shared.pacer.bell.notified() => false,
            _ = round.tick() => true,
            () = stop.cancelled() => return,
        };
        if let Err(error) = pacing.turn(walk).await {
            tracing::warn!(error = chain(&error), "slots could not be reserved; the next round tries again");
            tokio::time::sleep(LATER).await;
        }
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// Lets attempts start when their slots come; beside the reserving, which may take longer than a slot stands open.
pub async fn start(shared: Arc<Shared>, stop: CancellationToken) {
    loop {
        let next = shared.pacer.starts().next();
        tokio::select! {
            () = until(next) => {}
            () = shared.pacer.reserved.notified() => continue,
            () = stop.cancelled() => return,
        }
        let due = shared.pacer.starts().take_due(Instant::now(), usize::MAX);
        for (project, endpoint) in due {
            if let Some(next) = shared.lanes.start_due(endpoint) {
                shared.pacer.starts().put(project, endpoint, next);
            }
        }
        worker::pump(&shared);
    }
}

impl Pacing {
    async fn turn(&mut self, walk: bool) -> Result<()> {
        for (endpoint, (project, at)) in std::mem::take(&mut *self.shared.pacer.told()) {
            // However often it is told of, one look serves all of it.
            let earliest = self.looked.get(&endpoint).map_or(at, |looked| at.max(*looked + BETWEEN));
            self.looks.put(project, endpoint, earliest);
        }
        if walk {
            let walking = self.store.endpoints_with_paced_work(self.walked, WALKED);
            let (found, next) = self.store.in_time(LOOK_LONGEST, walking).await?;
            self.walked = next.unwrap_or(START);
            for (project, endpoint) in found {
                self.looks.put(project, endpoint, Instant::now());
            }
        }
        let due = self.looks.take_due(Instant::now(), SERVED);
        if due.is_empty() {
            return Ok(());
        }
        if self.looked.len() > TOLD_MAX {
            self.looked.clear();
        }
        self.looked.extend(due.iter().map(|(_, endpoint)| (*endpoint, Instant::now())));
        let guests = self.guests(&due).await;
        let served = self.serve(guests).await;
        if served.is_err() {
            // None of them is forgotten.
            for (project, endpoint) in due {
                self.looks.put(project, endpoint, Instant::now() + LATER);
            }
        }
        served
    }

    /// Those to reserve slots for. What waits in the lanes of others is not held up any longer.
    async fn guests(&mut self, due: &[(ProjectId, EndpointId)]) -> Vec<Guest> {
        let mut guests = Vec::new();
        // Others' slots are not to wait for some projects' routes.
        let patience = tokio::time::Instant::now() + LATER;
        for (project, id) in due.iter().copied() {
            let reading = self.shared.routing.soon(project, 0);
            let routes = match tokio::time::timeout_at(patience, reading).await {
                Ok(Ok(routes)) => routes,
                Ok(Err(Unread)) => {
                    self.looks.put(project, id, Instant::now() + ROUND);
                    continue;
                }
                Err(_) => {
                    self.looks.put(project, id, Instant::now() + LATER);
                    continue;
                }
            };
            let route = routes.as_ref().and_then(|routes| routes.endpoint(id));
            let sends = route.filter(|route| route.status == EndpointStatus::Active);
            match sends.map(|route| (route, route.rate_limit)) {
                Some((route, Some(limit))) => {
                    let (mut room, wanting) = self.shared.lanes.wants(id, LaneRule::of(route));
                    if self.shared.breakers.is_open(id) {
                        // Nothing but its probe, which a lane has. What waits for slots all the same is parked for the
                        // breaker, so that it is there to be probed with.
                        room = 0;
                        self.shared.align.tell(id);
                    }
                    if room + wanting > 0 {
                        guests.push(Guest { project, id, limit, room, wanting });
                    } else if self.shared.lanes.waits(id) {
                        self.looks.put(project, id, Instant::now() + LATER);
                    }
                }
                // Without a limit they go as they come; and what must not be sent is given back by the workers.
                sends => {
                    if sends.is_some() {
                        // It was parked by an attempt that still knew the limit.
                        self.shared.align.tell(id);
                    }
                    self.shared.lanes.unpace(id);
                    worker::pump(&self.shared);
                }
            }
        }
        guests
    }

    async fn serve(&mut self, guests: Vec<Guest>) -> Result<()> {
        let lease = self.shared.keeper.lease();
        if guests.is_empty() {
            return Ok(());
        }
        if !self.shared.may_start(lease) {
            for guest in guests {
                self.looks.put(guest.project, guest.id, Instant::now() + LATER);
            }
            return Ok(());
        }
        let room = guests.iter().map(|guest| guest.room).max().unwrap_or_default();
        let ids: Vec<EndpointId> =
            guests.iter().filter(|guest| guest.room > 0).map(|guest| guest.id).collect();
        let limit = u32::try_from(room).unwrap_or(u32::MAX);
        let looking = self.store.due_of(&ids, Hold::Rate, limit);
        let due = self.store.in_time(LOOK_LONGEST, looking).await?;
        let (store, clock) = (self.store.clone(), &mut self.clock);
        let reserving = reserve(&store, clock, lease, self.lead, &guests, &due);
        let reserved = store.in_time(LOOK_LONGEST, reserving).await;
        if reserved.as_ref().is_err_and(StoreError::is_ambiguous) {
            // It may have claimed what nobody here knows of.
            self.shared.keeper.give_up(lease);
        }
        let (claimed, mut served, took) = match reserved {
            Err(StoreError::LeaseGone) => {
                self.shared.keeper.give_up(lease);
                return Ok(());
            }
            reserved => reserved?,
        };
        self.lead = (2 * took).max(self.lead - self.lead / 8).min(LEAD_MAX);
        // They have their slots, or have them soon.
        drop(self.shared.push(claimed, LATER).await);
        let now = Instant::now();
        for guest in guests {
            let one = served.remove(&guest.id);
            let slots = one.iter().flat_map(|one| one.slots.times().map(|slot| slot.max(one.from)));
            let slots: Vec<Instant> = slots.map(|slot| self.clock.instant(slot)).collect();
            let last = slots.last().copied();
            let first = slots.first().copied();
            self.shared.lanes.add_slots(guest.id, slots);
            if let Some(first) = first {
                self.shared.pacer.starts().put(guest.project, guest.id, first);
                self.shared.pacer.reserved.notify_one();
            }
            let again = match (one, last) {
                // Half of what was reserved is still to come, and time enough to reserve more.
                (Some(one), Some(last)) if one.more => Some(
                    now + (last.saturating_duration_since(now) / 2).saturating_sub(self.lead / 2).max(SOON),
                ),
                // Whether each of them was in time.
                (Some(_), Some(last)) => Some(last + guest.limit.late() + SOON),
                (Some(one), None) if one.more => {
                    let free = self.clock.instant(one.next);
                    if free > now + ROUND {
                        self.park(guest.id);
                    }
                    let soon = free.checked_sub(AHEAD / 2).unwrap_or(free).max(now + LATER);
                    // The limit may change meanwhile.
                    Some(soon.min(now + ROUND))
                }
                // Another node has it in hand just now.
                (None, _) => Some(now + LATER),
                (Some(_), None) => None,
            };
            if let Some(again) = again {
                self.looks.put(guest.project, guest.id, again);
            }
        }
        Ok(())
    }

    /// What missed its slot, or needs another, does not wait long in memory for the next one: like all else that waits
    /// for slots it lies parked in the table, for any node. A repeat after a stale connection is an attempt like any
    /// other then.
    fn park(&self, endpoint: EndpointId) {
        let waiting = self.shared.lanes.take_slotless(endpoint);
        let released = waiting.iter().map(|job| Outcome::Released(job.release(Hold::Rate)));
        worker::hand_over(&self.shared, released.collect());
    }
}

type Reserved = (Claimed, HashMap<EndpointId, Served>, Duration);

/// Slots for what the lanes hold without, and for as much due work as there are slots and room for, with that work.
async fn reserve(
    store: &Store,
    clock: &mut Clock,
    lease: LeaseId,
    lead: Duration,
    guests: &[Guest],
    due: &[Due],
) -> Result<Reserved> {
    let tx = store.begin(Lane::Engine).await?;
    let began = Instant::now();
    let ids: Vec<EndpointId> = guests.iter().map(|guest| guest.id).collect();
    let taken = tx.lock_slots(&ids).await?;
    clock.heard(taken.now, Instant::now());
    let now = taken.now + micros(lead);
    let until = now + micros(AHEAD);
    let horizon = taken.now + micros(LEAD_MAX + AHEAD);
    let mut waiting: HashMap<EndpointId, Vec<DeliveryId>> = HashMap::new();
    for one in due {
        waiting.entry(one.endpoint).or_default().push(one.id);
    }
    let free = |next: i64, limit: &RateLimit, want: usize| {
        limit.slots(limit.within(next, horizon), now, until, u32::try_from(want).unwrap_or(u32::MAX))
    };
    let mut ids = Vec::new();
    for guest in guests {
        let (Some((next, limit)), Some(due)) = (taken.next.get(&guest.id), waiting.get(&guest.id)) else {
            continue;
        };
        let slots = free(*next, limit, guest.wanting + guest.room).count as usize;
        ids.extend(due.iter().take(slots.saturating_sub(guest.wanting).min(guest.room)));
    }
    let claimed = if ids.is_empty() {
        Claimed::default()
    } else {
        tx.claim(lease, &ClaimRequest { ids, hold: Hold::Rate }).await?
    };
    let mut counts: HashMap<EndpointId, usize> = HashMap::new();
    for one in &claimed.deliveries {
        *counts.entry(one.endpoint).or_default() += 1;
    }
    let (mut served, mut moved) = (HashMap::new(), Vec::new());
    for guest in guests {
        let Some((before, limit)) = taken.next.get(&guest.id) else { continue };
        let count = counts.get(&guest.id).copied().unwrap_or_default();
        let slots = free(*before, limit, guest.wanting + count);
        let next = if slots.count > 0 { slots.next() } else { limit.within(*before, horizon) };
        // Also where it only came nearer, or it would stay as far away as it is now.
        if next != *before {
            moved.push((guest.id, next));
        }
        let seen = waiting.get(&guest.id).map_or(0, Vec::len);
        let more = seen > count || seen >= guest.room.max(1) || guest.wanting > slots.count as usize;
        served.insert(guest.id, Served { slots, from: now, next, more });
    }
    tx.move_slots(&moved).await?;
    tx.commit().await?;
    Ok((claimed, served, began.elapsed()))
}
