//! Writing published events with their deliveries: many events in one transaction.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use sea_orm::DbBackend;

use super::error::{Result, StoreError};
use super::lease::stands_sql;
use super::notify::Bells;
use super::outcomes::Hold;
use super::rows::{Kind, Rows, Script};
use super::tx::Tx;
use crate::domain::change::{Change, DeliveryChange, DeliveryChangeKind};
use crate::domain::clock::Timestamp;
use crate::domain::delivery::DeliveryStatus;
use crate::domain::event::{Event, EventHead, IdempotencyKey, Target};
use crate::domain::id::{DeliveryId, EndpointId, EventId, LeaseId, ProjectId};

/// An event with what routing made of it.
pub struct NewEvent<'a> {
    pub event: &'a Event,
    pub deliveries: Vec<NewDelivery>,
    /// Where an event reaches many endpoints, these, in place of deliveries: they are made step by step later.
    pub targets: Vec<EndpointId>,
}

impl NewEvent<'_> {
    fn delivery_count(&self) -> usize {
        self.deliveries.len() + self.targets.len()
    }
}

/// A delivery about to be written.
#[derive(Clone, Debug)]
pub struct NewDelivery {
    pub id: DeliveryId,
    pub endpoint: EndpointId,
    pub owner: Option<Arc<str>>,
    /// SCHEDULED, or DISCARDED where the endpoint's state says so.
    pub status: DeliveryStatus,
    /// Born claimed: goes straight to its lane in this process. Otherwise it lies due for any node.
    pub claimed: bool,
    /// Kept out of the scan, and why.
    pub hold: Hold,
}

impl NewDelivery {
    /// Whether it may be sent at once.
    pub fn is_due(&self) -> bool {
        !self.status.is_final() && self.hold == Hold::No
    }
}

/// The fencing token of deliveries that are born claimed.
pub const FIRST_TOKEN: i64 = 1;

/// The event that an idempotency key belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirstUse {
    pub event: EventId,
    pub deliveries: u32,
    /// Of what was published with it.
    pub content_hash: Vec<u8>,
}

/// What a turn of events stands on.
pub struct Footing {
    /// The routing versions of its projects; one that is gone is absent.
    pub versions: HashMap<ProjectId, i64>,
    /// Whether deliveries may be born claimed.
    pub lease_stands: bool,
}

/// How long a key is remembered.
const KEY_LIFE_MS: i64 = 24 * 3600 * 1000;

impl Tx {
    /// What a turn of events must know first, in one statement. A lease that stands is kept standing until the
    /// end.
    pub async fn footing(&self, lease: LeaseId, projects: &[ProjectId]) -> Result<Footing> {
        let mut rows = Rows::new([("id", Kind::Uuid)]);
        for project in projects {
            rows.push([project.uuid().into()]);
        }
        // MATERIALIZED, so that the lease is asked for once.
        let sql = format!(
            ", fence(stands) AS MATERIALIZED (SELECT {}) SELECT projects.id, projects.routing_version, fence.stands \
             FROM v JOIN projects ON projects.id = v.id CROSS JOIN fence",
            stands_sql(self.backend(), lease)
        );
        let mut footing = Footing { versions: HashMap::new(), lease_stands: true };
        for row in rows.query(self.db(), &sql).await? {
            footing.versions.insert(ProjectId::from_uuid(row.try_get_by_index(0)?), row.try_get_by_index(1)?);
            footing.lease_stands &= row.try_get_by_index::<bool>(2)?;
        }
        Ok(footing)
    }

    /// Claims idempotency keys for events of this transaction, which must all be different. Says for each whose
    /// the key is: the event's own, which may then be written, or that of one before it. Waits for other
    /// transactions that claim the same keys.
    pub async fn claim_keys(
        &self,
        claims: &[(ProjectId, &IdempotencyKey, EventId, u32)],
    ) -> Result<Vec<FirstUse>> {
        let now = Timestamp::now().as_millis();
        // Everyone claims in the same order, so that two transactions cannot wait for each other.
        let mut sorted: Vec<_> = claims.iter().collect();
        sorted.sort_by(|a, b| (a.0, &a.1.key).cmp(&(b.0, &b.1.key)));
        let columns = [
            ("project_id", Kind::Uuid),
            ("key", Kind::Text),
            ("event_id", Kind::Uuid),
            ("content_hash", Kind::Bytes),
            ("delivery_count", Kind::Int),
            ("expires_at", Kind::BigInt),
            ("now", Kind::BigInt),
        ];
        let mut rows = Rows::new(columns);
        for (project, key, event, deliveries) in sorted {
            rows.push([
                project.uuid().into(),
                key.key.clone().into(),
                event.uuid().into(),
                key.content_hash.to_vec().into(),
                i32::try_from(*deliveries).unwrap_or(i32::MAX).into(),
                (now + KEY_LIFE_MS).into(),
                now.into(),
            ]);
        }
        // `WHERE true` keeps SQLite from reading ON CONFLICT as a join's ON.
        let sql = "INSERT INTO idempotency_keys \
                   (project_id, key, event_id, content_hash, delivery_count, expires_at) \
                   SELECT project_id, key, event_id, content_hash, delivery_count, expires_at FROM v WHERE true \
                   ON CONFLICT (project_id, key) DO UPDATE SET event_id = excluded.event_id, \
                   content_hash = excluded.content_hash, delivery_count = excluded.delivery_count, \
                   expires_at = excluded.expires_at \
                   WHERE idempotency_keys.expires_at <= excluded.expires_at - 86400000 \
                   RETURNING event_id";
        let won = rows.query(self.db(), sql).await?;
        let won: Vec<uuid::Uuid> = won.iter().map(|row| row.try_get_by_index(0)).collect::<Result<_, _>>()?;
        let lost = claims.iter().filter(|(_, _, event, _)| !won.contains(&event.uuid()));
        let taken = self.first_uses(lost.map(|(project, key, ..)| (*project, *key))).await?;
        let first_use = |(project, key, event, deliveries): &(ProjectId, &IdempotencyKey, EventId, u32)| {
            if won.contains(&event.uuid()) {
                let content_hash = key.content_hash.to_vec();
                return Ok(FirstUse { event: *event, deliveries: *deliveries, content_hash });
            }
            // A key that was not won is locked by its row, which therefore is there.
            let gone = || StoreError::Corrupt("an idempotency key that is taken has no row".to_owned());
            taken.get(&(*project, key.key.clone())).cloned().ok_or_else(gone)
        };
        claims.iter().map(first_use).collect()
    }

    /// Whose these idempotency keys are, where they are anyone's.
    pub async fn first_uses<'a>(
        &self,
        keys: impl Iterator<Item = (ProjectId, &'a IdempotencyKey)>,
    ) -> Result<HashMap<(ProjectId, String), FirstUse>> {
        let mut rows = Rows::new([("project_id", Kind::Uuid), ("key", Kind::Text), ("now", Kind::BigInt)]);
        let now = Timestamp::now().as_millis();
        for (project, key) in keys {
            rows.push([project.uuid().into(), key.key.clone().into(), now.into()]);
        }
        let sql = "SELECT k.project_id, k.key, k.event_id, k.content_hash, k.delivery_count \
                   FROM v JOIN idempotency_keys k ON k.project_id = v.project_id AND k.key = v.key \
                   WHERE k.expires_at > v.now";
        let mut taken = HashMap::new();
        for row in rows.query(self.db(), sql).await? {
            let project = ProjectId::from_uuid(row.try_get_by_index(0)?);
            let first = FirstUse {
                event: EventId::from_uuid(row.try_get_by_index(2)?),
                deliveries: u32::try_from(row.try_get_by_index::<i32>(4)?).unwrap_or_default(),
                content_hash: row.try_get_by_index(3)?,
            };
            taken.insert((project, row.try_get_by_index(1)?), first);
        }
        Ok(taken)
    }

    /// Writes events with their deliveries or their targets, and notes what Watch will tell. Returns the endpoints
    /// whose breaker was believed to be open and is not.
    pub async fn insert_events(
        &mut self,
        lease: LeaseId,
        events: &[NewEvent<'_>],
    ) -> Result<Vec<EndpointId>> {
        insert_event_rows(events, self.last());
        self.insert_expansions(events).await?;
        let heads: Vec<EventHead> = events.iter().map(|new| new.event.head()).collect();
        let made: Vec<_> =
            heads.iter().zip(events).map(|(head, new)| (head, new.deliveries.as_slice())).collect();
        self.insert_deliveries(lease, &made).await
    }

    /// Writes deliveries, with their places in the queue, of events that are stored; returns the same.
    pub(super) async fn insert_deliveries(
        &mut self,
        lease: LeaseId,
        made: &[(&EventHead, &[NewDelivery])],
    ) -> Result<Vec<EndpointId>> {
        let all = || made.iter().flat_map(|(_, deliveries)| *deliveries);
        let resting: HashSet<EndpointId> = all()
            .filter(|delivery| delivery.hold == Hold::Breaker)
            .map(|delivery| delivery.endpoint)
            .collect();
        let open = self.held_open(resting.iter().copied()).await?;
        let backend = self.backend();
        insert_delivery_rows(made, self.last());
        insert_queue_rows(backend, lease, made, &open, self.last());
        if all().any(|delivery| delivery.is_due() && !delivery.claimed) {
            self.ring(Bells::DUE);
        }
        for (event, deliveries) in made {
            for delivery in *deliveries {
                self.record(Change::Delivery(created(event, delivery)));
            }
        }
        Ok(resting.difference(&open).copied().collect())
    }
}

fn insert_event_rows(events: &[NewEvent<'_>], script: &mut Script) {
    let mut rows = Rows::new([
        ("id", Kind::Uuid),
        ("project_id", Kind::Uuid),
        ("event_type", Kind::Text),
        ("target_kind", Kind::SmallInt),
        ("target", Kind::Text),
        ("payload", Kind::Bytes),
        ("headers", Kind::Text),
        ("idempotency_key", Kind::Text),
        ("delivery_count", Kind::Int),
        ("created_at", Kind::BigInt),
    ]);
    for new in events {
        let event = new.event;
        let (kind, target) = match &event.target {
            Target::Endpoint(id) => (1_i16, id.to_string()),
            Target::Owner(owner) => (2, owner.clone()),
            Target::Broadcast => (3, String::new()),
        };
        let key = event.idempotency.as_ref().map(|key| key.key.clone()).unwrap_or_default();
        rows.push([
            event.message.event.uuid().into(),
            event.message.project.uuid().into(),
            event.message.event_type.to_string().into(),
            kind.into(),
            target.into(),
            event.message.payload.to_vec().into(),
            headers_json(&event.message.headers).into(),
            key.into(),
            i32::try_from(new.delivery_count()).unwrap_or(i32::MAX).into(),
            event.created_at.as_millis().into(),
        ]);
    }
    let into = "events (id, project_id, event_type, target_kind, target, payload, headers, idempotency_key, \
                delivery_count, created_at)";
    let values = ":id, :project_id, :event_type, :target_kind, NULLIF(:target, ''), :payload, NULLIF(:headers, ''), \
                  NULLIF(:idempotency_key, ''), :delivery_count, :created_at";
    rows.insert(script, into, values, "");
}

fn insert_delivery_rows(made: &[(&EventHead, &[NewDelivery])], script: &mut Script) {
    let mut rows = Rows::new([
        ("id", Kind::Uuid),
        ("project_id", Kind::Uuid),
        ("event_id", Kind::Uuid),
        ("endpoint_id", Kind::Uuid),
        ("status", Kind::SmallInt),
        ("created_at", Kind::BigInt),
    ]);
    for (event, deliveries) in made {
        for delivery in *deliveries {
            rows.push([
                delivery.id.uuid().into(),
                event.project.uuid().into(),
                event.event.uuid().into(),
                delivery.endpoint.uuid().into(),
                delivery.status.code().into(),
                event.created_at.as_millis().into(),
            ]);
        }
    }
    // 6 is DISCARDED: it ends as it begins.
    let into = "deliveries (id, project_id, event_id, endpoint_id, status, attempts, next_attempt_at, created_at, ended_at)";
    let values = ":id, :project_id, :event_id, :endpoint_id, :status, 0, \
                  CASE :status WHEN 6 THEN NULL ELSE :created_at END, :created_at, \
                  CASE :status WHEN 6 THEN :created_at ELSE NULL END";
    rows.insert(script, into, values, "");
}

/// `open` are the breakers that are.
fn insert_queue_rows(
    backend: DbBackend,
    lease: LeaseId,
    made: &[(&EventHead, &[NewDelivery])],
    open: &HashSet<EndpointId>,
    script: &mut Script,
) {
    let mut rows = Rows::new([
        ("id", Kind::Uuid),
        ("project_id", Kind::Uuid),
        ("endpoint_id", Kind::Uuid),
        ("event_id", Kind::Uuid),
        ("created_at", Kind::BigInt),
        ("parked", Kind::SmallInt),
        ("claimed_by", Kind::Uuid),
    ]);
    for (event, deliveries) in made {
        for delivery in deliveries.iter().filter(|delivery| !delivery.status.is_final()) {
            let hold = match delivery.hold {
                Hold::Breaker if !open.contains(&delivery.endpoint) => Hold::No,
                hold => hold,
            };
            let holder = if delivery.claimed { lease.uuid() } else { uuid::Uuid::nil() };
            rows.push([
                delivery.id.uuid().into(),
                event.project.uuid().into(),
                delivery.endpoint.uuid().into(),
                event.event.uuid().into(),
                event.created_at.as_millis().into(),
                hold.code().into(),
                holder.into(),
            ]);
        }
    }
    let nil = nil_sql(backend);
    let due = super::due_now_sql(backend, ":created_at");
    let into = "queue (id, project_id, endpoint_id, event_id, due_at, parked, claimed_by, token, budget_start, attempts, \
                created_at)";
    let values = format!(
        ":id, :project_id, :endpoint_id, :event_id, {due}, :parked, NULLIF(:claimed_by, {nil}), {FIRST_TOKEN}, 0, 0, \
         :created_at"
    );
    rows.insert(script, into, &values, "");
}

fn created(event: &EventHead, delivery: &NewDelivery) -> DeliveryChange {
    let is_final = delivery.status.is_final();
    DeliveryChange {
        kind: DeliveryChangeKind::Created,
        project: event.project,
        delivery: delivery.id,
        event: event.event,
        endpoint: delivery.endpoint,
        owner: delivery.owner.clone(),
        event_type: event.event_type.clone(),
        status: delivery.status,
        attempts: 0,
        next_attempt_at: (!is_final).then_some(event.created_at),
        last_error: None,
        last_status: None,
        created_at: event.created_at,
        ended_at: is_final.then_some(event.created_at),
        attempt: None,
    }
}

/// Headers as JSON text, empty where there are none.
pub(super) fn headers_json(headers: &[(String, String)]) -> String {
    if headers.is_empty() {
        return String::new();
    }
    serde_json::to_string(headers).unwrap_or_default()
}

/// The nil UUID as a literal: no id is nil, so it stands for NULL among rows.
pub(super) fn nil_sql(backend: DbBackend) -> &'static str {
    match backend {
        DbBackend::Postgres => "'00000000-0000-0000-0000-000000000000'::uuid",
        _ => "zeroblob(16)",
    }
}
