//! Taking due work from the queue.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use sea_orm::DbBackend;

use super::db::Row;
use super::error::{Result, StoreError};
use super::now_sql;
use super::outcomes::Hold;
use super::releases::Released;
use super::rows::{Kind, Rows};
use super::tx::Tx;
use crate::domain::clock::Timestamp;
use crate::domain::delivery::{Claim, Probe};
use crate::domain::event::Message;
use crate::domain::id::{DeliveryId, EndpointId, EventId, LeaseId, ProjectId};

/// What a claim asks for.
#[derive(Clone, Debug)]
pub struct ClaimRequest {
    /// Deliveries that were seen to be due.
    pub ids: Vec<DeliveryId>,
    /// How they are parked: not at all, or for a slot.
    pub hold: Hold,
}

/// A delivery that is ours to attempt.
#[derive(Clone, Debug)]
pub struct ClaimedDelivery {
    pub id: DeliveryId,
    pub endpoint: EndpointId,
    pub claim: Claim,
    /// Attempts made in all, and when this budget began.
    pub attempts: u16,
    pub budget_start: u16,
    pub created_at: Timestamp,
    pub probe: Option<Probe>,
    /// Where its endpoint has a rate limit: until when it may start, by the slot that it has.
    pub start_by: Option<Instant>,
    /// The attempt before this one met a connection that had gone stale.
    pub again: bool,
    /// Why its event cannot be sent. The message then holds what is known of it.
    pub lost: Option<Lost>,
    pub message: Arc<Message>,
}

/// What is wrong with a delivery's event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Its row is gone.
    Gone,
    /// Its row is there, and does not read.
    Unreadable,
}

/// What a claim took.
#[derive(Default)]
pub struct Claimed {
    pub deliveries: Vec<ClaimedDelivery>,
    /// The routing versions of their projects: none is to be attempted by older routes.
    pub versions: HashMap<ProjectId, i64>,
}

/// An event as far as it can be read, with its project's routing version.
#[derive(Clone)]
struct Found {
    message: Arc<Message>,
    lost: Option<Lost>,
    version: i64,
}

impl ClaimedDelivery {
    /// Gives it back without an attempt.
    pub fn release(&self, hold: Hold) -> Released {
        let hold = match self.probe {
            Some(Probe::Endpoint) => Hold::Probe,
            Some(Probe::Breaker) if hold == Hold::No => Hold::Breaker,
            _ => hold,
        };
        Released { delivery: self.id, endpoint: self.endpoint, claim: self.claim, hold, due: None }
    }

    /// Gives it back without an attempt, and not to be claimed before that time.
    pub fn postpone(&self, due: Timestamp) -> Released {
        Released { due: Some(due), ..self.release(Hold::No) }
    }
}

struct QueueRow {
    id: DeliveryId,
    project: ProjectId,
    endpoint: EndpointId,
    event: EventId,
    token: i64,
    attempts: u16,
    budget_start: u16,
    created_at: Timestamp,
}

/// What a statement that claims returns of the queue.
pub(super) const RETURNED: &str = "queue.id, queue.project_id, queue.endpoint_id, queue.event_id, queue.token, \
                                   queue.attempts, queue.budget_start, queue.created_at";

impl Tx {
    /// Claims those of the deliveries that are still due and nobody's, and reads their events. Fails with
    /// [`StoreError::LeaseGone`] where the lease was given up.
    pub async fn claim(&self, lease: LeaseId, request: &ClaimRequest) -> Result<Claimed> {
        if !self.lease_stands(lease).await? {
            return Err(StoreError::LeaseGone);
        }
        let rows = self.claim_rows(lease, request).await?;
        self.claimed(lease, rows).await
    }

    /// What the queue's rows say that a claim returned, with their events. Whoever claims a delivery gets it, or nothing
    /// would ever end it: also where its event is gone, or does not read.
    pub(super) async fn claimed(&self, lease: LeaseId, rows: Vec<Row>) -> Result<Claimed> {
        let mut rows = rows.iter().map(queue_row).collect::<Result<Vec<_>>>()?;
        // RETURNING is in no order; ids are in the order of creation.
        rows.sort_by_key(|row| row.id);
        let events = self.events_of(&rows).await?;
        let mut versions = HashMap::new();
        let mut deliveries = Vec::with_capacity(rows.len());
        for row in rows {
            let found = events.get(&row.event).cloned().unwrap_or_else(|| {
                tracing::error!(delivery = %row.id, event = %row.event, "the event of a delivery is gone");
                Found::lost(row.event, row.project, "", Lost::Gone)
            });
            let version = versions.entry(row.project).or_default();
            *version = found.version.max(*version);
            deliveries.push(ClaimedDelivery {
                id: row.id,
                endpoint: row.endpoint,
                claim: Claim { lease, token: row.token },
                attempts: row.attempts,
                budget_start: row.budget_start,
                created_at: row.created_at,
                probe: None,
                start_by: None,
                again: false,
                lost: found.lost,
                message: found.message,
            });
        }
        Ok(Claimed { deliveries, versions })
    }

    async fn claim_rows(&self, lease: LeaseId, request: &ClaimRequest) -> Result<Vec<Row>> {
        let mut wanted = Rows::new([("id", Kind::Uuid), ("lease", Kind::Uuid)]);
        for id in &request.ids {
            wanted.push([id.uuid().into(), lease.uuid().into()]);
        }
        let (parked, now) = (request.hold.code(), now_sql(self.backend()));
        let sql = match self.backend() {
            // What another node is about to take is left to it. The rows are asked for by their key, and the rest is said
            // so that no other index fits: by statistics from when little was waiting, those of what waits look better
            // than the key, and all of it would be read once for each row.
            DbBackend::Postgres => format!(
                "UPDATE queue SET claimed_by = mine.lease, token = token + 1 FROM ( \
                   SELECT q.id, v.lease FROM v JOIN queue AS q ON q.id = v.id \
                   WHERE COALESCE(q.claimed_by, q.id) = q.id AND parked + 0 = {parked} AND due_at <= {now} \
                   FOR UPDATE OF q SKIP LOCKED \
                 ) AS mine WHERE queue.id = mine.id RETURNING {RETURNED}"
            ),
            _ => format!(
                "UPDATE queue SET claimed_by = v.lease, token = token + 1 FROM v \
                 WHERE queue.id = v.id AND claimed_by IS NULL AND parked = {parked} AND due_at <= {now} \
                 RETURNING {RETURNED}"
            ),
        };
        wanted.query(self.db(), &sql).await
    }

    /// The events of claimed deliveries. One that does not read concerns its own deliveries alone.
    async fn events_of(&self, queue: &[QueueRow]) -> Result<HashMap<EventId, Found>> {
        let wanted: BTreeMap<EventId, ProjectId> = queue.iter().map(|row| (row.event, row.project)).collect();
        let damage_met = &self.store().inner.damage_met;
        // Where the database itself fails to read a row, its transaction on PostgreSQL is of no more use. That is so
        // rare that only a process that has met it pays for the way back.
        if !damage_met.load(Ordering::Relaxed) {
            let found = self.read_events(&wanted).await;
            if found.as_ref().is_err_and(StoreError::is_damage) {
                damage_met.store(true, Ordering::Relaxed);
            }
            return found;
        }
        self.db().execute_unprepared("SAVEPOINT events").await?;
        match self.read_events(&wanted).await {
            Err(error) if error.is_damage() => {}
            found => return found,
        }
        let mut found = HashMap::with_capacity(wanted.len());
        for (event, project) in wanted {
            self.db().execute_unprepared("ROLLBACK TO SAVEPOINT events").await?;
            match self.read_events(&BTreeMap::from([(event, project)])).await {
                Err(error) if error.is_damage() => {
                    tell_unreadable(event, &error);
                    found.insert(event, Found::lost(event, project, "", Lost::Unreadable));
                }
                one => found.extend(one?),
            }
        }
        self.db().execute_unprepared("ROLLBACK TO SAVEPOINT events").await?;
        Ok(found)
    }

    async fn read_events(&self, wanted: &BTreeMap<EventId, ProjectId>) -> Result<HashMap<EventId, Found>> {
        let mut rows = Rows::new([("id", Kind::Uuid)]);
        for event in wanted.keys() {
            rows.push([event.uuid().into()]);
        }
        let sql = "SELECT events.id, events.project_id, COALESCE(projects.routing_version, 0), events.event_type, \
                   events.payload, events.headers FROM v JOIN events ON events.id = v.id \
                   LEFT JOIN projects ON projects.id = events.project_id";
        let mut events = HashMap::with_capacity(wanted.len());
        for row in rows.query(self.db(), sql).await? {
            let event = EventId::from_uuid(row.try_get_by_index(0)?);
            let project = ProjectId::from_uuid(row.try_get_by_index(1)?);
            let found = match message(&row, event, project) {
                Ok(message) => {
                    Found { message: Arc::new(message), lost: None, version: row.try_get_by_index(2)? }
                }
                Err(error) => {
                    tell_unreadable(event, &error);
                    let event_type: String = row.try_get_by_index(3).unwrap_or_default();
                    Found::lost(event, project, &event_type, Lost::Unreadable)
                }
            };
            events.insert(event, found);
        }
        Ok(events)
    }
}

impl Found {
    /// What is known of an event that cannot be sent. Nothing of it hangs on the routes.
    fn lost(event: EventId, project: ProjectId, event_type: &str, lost: Lost) -> Self {
        let message = Message {
            event,
            project,
            event_type: Arc::from(event_type),
            payload: bytes::Bytes::new(),
            headers: Vec::new(),
        };
        Self { message: Arc::new(message), lost: Some(lost), version: 0 }
    }
}

fn message(row: &Row, event: EventId, project: ProjectId) -> Result<Message> {
    let event_type: String = row.try_get_by_index(3)?;
    let payload: Vec<u8> = row.try_get_by_index(4)?;
    let headers: Option<String> = row.try_get_by_index(5)?;
    Ok(Message {
        event,
        project,
        event_type: event_type.into(),
        payload: payload.into(),
        headers: parse_headers(headers.as_deref())?,
    })
}

fn tell_unreadable(event: EventId, error: &StoreError) {
    tracing::error!(%event, ?error, "a stored event does not read; attempts to deliver it fail");
}

fn queue_row(row: &Row) -> Result<QueueRow> {
    Ok(QueueRow {
        id: DeliveryId::from_uuid(row.try_get_by_index(0)?),
        project: ProjectId::from_uuid(row.try_get_by_index(1)?),
        endpoint: EndpointId::from_uuid(row.try_get_by_index(2)?),
        event: EventId::from_uuid(row.try_get_by_index(3)?),
        token: row.try_get_by_index(4)?,
        attempts: count(row.try_get_by_index(5)?),
        budget_start: count(row.try_get_by_index(6)?),
        created_at: Timestamp::from_millis(row.try_get_by_index(7)?),
    })
}

fn count(stored: i16) -> u16 {
    u16::try_from(stored).unwrap_or_default()
}

/// Reads what `headers_json` wrote.
pub(super) fn parse_headers(json: Option<&str>) -> Result<Vec<(String, String)>> {
    match json {
        None | Some("") => Ok(Vec::new()),
        Some(json) => serde_json::from_str(json)
            .map_err(|error| super::StoreError::Corrupt(format!("headers: {error}"))),
    }
}
