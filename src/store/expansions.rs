//! Expansions: events that reach so many endpoints that their deliveries are made afterwards, step by step.
//!
//! The row of an expansion is written with its event, so the event may be acknowledged: it names every endpoint
//! that gets a delivery, and how many of them have theirs. A step makes the next deliveries and moves on in one
//! transaction, so each endpoint gets one, however often a step is interrupted.

use std::sync::Arc;

use sea_orm::{DbBackend, Statement, Value};
use uuid::Uuid;

use super::error::{Result, StoreError};
use super::ingest::{NewDelivery, NewEvent};
use super::rows::{Kind, Rows};
use super::tx::Tx;
use crate::domain::clock::Timestamp;
use crate::domain::event::EventHead;
use crate::domain::id::{EndpointId, EventId, LeaseId, ProjectId};

/// Targets are stored as their ids' bytes, one after the other.
pub(super) const ID_BYTES: i32 = 16;

/// The next step of an expansion, which this transaction has locked.
pub struct ExpansionStep {
    pub event: EventHead,
    /// The endpoints whose turn it is.
    pub targets: Vec<EndpointId>,
    /// How many endpoints have their delivery after this step, and how many there are.
    expanded: i32,
    total: i32,
}

impl Tx {
    /// Stores the targets of those events that have any.
    pub(super) async fn insert_expansions(&self, events: &[NewEvent<'_>]) -> Result<()> {
        let mut rows = Rows::new([
            ("event_id", Kind::Uuid),
            ("project_id", Kind::Uuid),
            ("event_type", Kind::Text),
            ("created_at", Kind::BigInt),
            ("targets", Kind::Bytes),
        ]);
        for new in events.iter().filter(|new| !new.targets.is_empty()) {
            let targets: Vec<u8> = new.targets.iter().flat_map(|id| id.uuid().into_bytes()).collect();
            let message = &new.event.message;
            rows.push([
                message.event.uuid().into(),
                message.project.uuid().into(),
                message.event_type.to_string().into(),
                new.event.created_at.as_millis().into(),
                targets.into(),
            ]);
        }
        let sql = "INSERT INTO expansions (event_id, project_id, event_type, created_at, targets, expanded) \
                   SELECT event_id, project_id, event_type, created_at, targets, 0 FROM v";
        rows.execute(self.db(), sql).await?;
        Ok(())
    }

    /// Locks the first expansion of an event after `after` that nobody else works on, and names it.
    pub async fn next_expansion(&self, after: EventId) -> Result<Option<EventId>> {
        let backend = self.backend();
        let lock = match backend {
            DbBackend::Postgres => "FOR UPDATE SKIP LOCKED",
            _ => "",
        };
        let sql =
            format!("SELECT event_id FROM expansions WHERE event_id > $1 ORDER BY event_id LIMIT 1 {lock}");
        let statement = Statement::from_sql_and_values(backend, sql, [Value::from(after.uuid())]);
        let row = self.db().query_one_raw(statement).await?;
        row.map(|row| Ok(EventId::from_uuid(row.try_get_by_index(0)?))).transpose()
    }

    /// The next targets, `limit` at most, of an expansion that this transaction has locked.
    pub async fn expansion_step(&self, event: EventId, limit: u16) -> Result<ExpansionStep> {
        let sql = format!(
            "SELECT project_id, event_type, created_at, expanded, \
             substr(targets, expanded * {ID_BYTES} + 1, $2), length(targets) FROM expansions WHERE event_id = $1"
        );
        let values = [Value::from(event.uuid()), Value::from(i32::from(limit) * ID_BYTES)];
        let statement = Statement::from_sql_and_values(self.backend(), sql, values);
        let corrupt = || StoreError::Corrupt(format!("the targets of {event}"));
        let row = self.db().query_one_raw(statement).await?.ok_or_else(corrupt)?;
        let event_type: String = row.try_get_by_index(1)?;
        let head = EventHead {
            event,
            project: ProjectId::from_uuid(row.try_get_by_index(0)?),
            event_type: Arc::from(event_type),
            created_at: Timestamp::from_millis(row.try_get_by_index(2)?),
        };
        let bytes: Vec<u8> = row.try_get_by_index(4)?;
        let ids = bytes.chunks(16).map(|id| Uuid::from_slice(id).map(EndpointId::from_uuid));
        let targets = ids.collect::<Result<Vec<_>, _>>().map_err(|_| corrupt())?;
        let expanded: i32 = row.try_get_by_index(3)?;
        let expanded = expanded + i32::try_from(targets.len()).map_err(|_| corrupt())?;
        let total = row.try_get_by_index::<i32>(5)? / ID_BYTES;
        Ok(ExpansionStep { event: head, targets, expanded, total })
    }

    /// Writes a step's deliveries and moves on; the last step ends the expansion. Returns the endpoints whose breaker
    /// was believed to be open and is not.
    pub async fn expand(
        &mut self,
        lease: LeaseId,
        step: &ExpansionStep,
        deliveries: &[NewDelivery],
    ) -> Result<Vec<EndpointId>> {
        let closed = self.insert_deliveries(lease, &[(&step.event, deliveries)]).await?;
        let id = Value::from(step.event.event.uuid());
        let (sql, values) = if step.expanded < step.total {
            let sql = "UPDATE expansions SET expanded = $2 WHERE event_id = $1";
            (sql, vec![id, Value::from(step.expanded)])
        } else {
            ("DELETE FROM expansions WHERE event_id = $1", vec![id])
        };
        self.db().execute_raw(Statement::from_sql_and_values(self.backend(), sql, values)).await?;
        Ok(closed)
    }
}
