//! Taking due work from the queue.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use sea_orm::{DbBackend, QueryResult};

use super::error::{Result, StoreError};
use super::now_sql;
use super::outcomes::{Hold, Released};
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
    pub message: Arc<Message>,
}

/// What a claim took.
#[derive(Default)]
pub struct Claimed {
    pub deliveries: Vec<ClaimedDelivery>,
    /// The routing versions of their projects: none is to be attempted by older routes.
    pub versions: HashMap<ProjectId, i64>,
}

/// An event with its project's routing version.
type Found = (Arc<Message>, i64);

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
    endpoint: EndpointId,
    event: EventId,
    token: i64,
    attempts: u16,
    budget_start: u16,
    created_at: Timestamp,
}

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

    /// What the queue's rows say that a claim returned, with their events.
    pub(super) async fn claimed(&self, lease: LeaseId, rows: Vec<QueryResult>) -> Result<Claimed> {
        let mut rows = rows.iter().map(queue_row).collect::<Result<Vec<_>>>()?;
        // RETURNING is in no order; ids are in the order of creation.
        rows.sort_by_key(|row| row.id);
        let events = self.events_of(&rows).await?;
        let mut versions = HashMap::new();
        let deliveries = rows.into_iter().filter_map(|row| {
            // A delivery without its event cannot be sent; retention keeps events of open deliveries.
            let (message, version) = events.get(&row.event)?.clone();
            versions.insert(message.project, version);
            Some(ClaimedDelivery {
                id: row.id,
                endpoint: row.endpoint,
                claim: Claim { lease, token: row.token },
                attempts: row.attempts,
                budget_start: row.budget_start,
                created_at: row.created_at,
                probe: None,
                start_by: None,
                again: false,
                message,
            })
        });
        let deliveries = deliveries.collect();
        Ok(Claimed { deliveries, versions })
    }

    async fn claim_rows(&self, lease: LeaseId, request: &ClaimRequest) -> Result<Vec<QueryResult>> {
        let mut wanted = Rows::new([("id", Kind::Uuid), ("lease", Kind::Uuid)]);
        for id in &request.ids {
            wanted.push([id.uuid().into(), lease.uuid().into()]);
        }
        let (parked, now) = (request.hold.code(), now_sql(self.backend()));
        let returning =
            "RETURNING queue.id, endpoint_id, event_id, token, attempts, budget_start, created_at";
        let sql = match self.backend() {
            // What another node is about to take is left to it. The rows are asked for by their key, and the rest is said
            // so that no other index fits: by statistics from when little was waiting, those of what waits look better
            // than the key, and all of it would be read once for each row.
            DbBackend::Postgres => format!(
                "UPDATE queue SET claimed_by = mine.lease, token = token + 1 FROM ( \
                   SELECT q.id, v.lease FROM v JOIN queue AS q ON q.id = v.id \
                   WHERE COALESCE(q.claimed_by, q.id) = q.id AND parked + 0 = {parked} AND due_at <= {now} \
                   FOR UPDATE OF q SKIP LOCKED \
                 ) AS mine WHERE queue.id = mine.id {returning}"
            ),
            _ => format!(
                "UPDATE queue SET claimed_by = v.lease, token = token + 1 FROM v \
                 WHERE queue.id = v.id AND claimed_by IS NULL AND parked = {parked} AND due_at <= {now} {returning}"
            ),
        };
        wanted.query(self.db(), &sql).await
    }

    async fn events_of(&self, queue: &[QueueRow]) -> Result<HashMap<EventId, Found>> {
        let mut ids: Vec<EventId> = queue.iter().map(|row| row.event).collect();
        ids.sort_unstable();
        ids.dedup();
        let mut rows = Rows::new([("id", Kind::Uuid)]);
        for id in ids {
            rows.push([id.uuid().into()]);
        }
        let sql = "SELECT events.id, events.project_id, events.event_type, events.payload, events.headers, \
                   COALESCE(projects.routing_version, 0) FROM v JOIN events ON events.id = v.id \
                   LEFT JOIN projects ON projects.id = events.project_id";
        let mut events = HashMap::new();
        for row in rows.query(self.db(), sql).await? {
            let event = EventId::from_uuid(row.try_get_by_index(0)?);
            let event_type: String = row.try_get_by_index(2)?;
            let payload: Vec<u8> = row.try_get_by_index(3)?;
            let headers: Option<String> = row.try_get_by_index(4)?;
            let message = Message {
                event,
                project: ProjectId::from_uuid(row.try_get_by_index(1)?),
                event_type: event_type.into(),
                payload: payload.into(),
                headers: parse_headers(headers.as_deref())?,
            };
            events.insert(event, (Arc::new(message), row.try_get_by_index(5)?));
        }
        Ok(events)
    }
}

fn queue_row(row: &QueryResult) -> Result<QueueRow> {
    Ok(QueueRow {
        id: DeliveryId::from_uuid(row.try_get_by_index(0)?),
        endpoint: EndpointId::from_uuid(row.try_get_by_index(1)?),
        event: EventId::from_uuid(row.try_get_by_index(2)?),
        token: row.try_get_by_index(3)?,
        attempts: count(row.try_get_by_index(4)?),
        budget_start: count(row.try_get_by_index(5)?),
        created_at: Timestamp::from_millis(row.try_get_by_index(6)?),
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
