//! Reading deliveries, and retrying by hand.

use sea_orm::{Statement, Value};

use super::Store;
use super::db::{Db, Row};
use super::error::{Result, StoreError};
use super::events::Conditions;
use super::notify::Bells;
use super::outcomes::Hold;
use super::tx::Tx;
use crate::domain::attempt::ErrorClass;
use crate::domain::change::{Change, DeliveryChange, DeliveryChangeKind};
use crate::domain::clock::Timestamp;
use crate::domain::delivery::{Delivery, DeliveryFilter, DeliveryStatus};
use crate::domain::id::{DeliveryId, EndpointId, EventId, ProjectId};
use crate::domain::page::{Page, PageRequest};

/// What is stored says less than all. PROCESSING is an open delivery whose queue row a live process holds. And what
/// is queued for an endpoint that is INACTIVE (3), PENDING (4) or gone is DISCARDED from that commit on, though its row
/// changes a little later. The probe of a PENDING one is not (parked 3).
macro_rules! dead {
    () => {
        "q.id IS NOT NULL AND q.claimed_by IS NULL \
         AND (p.id IS NULL OR p.status = 3 OR (p.status = 4 AND q.parked <> 3))"
    };
}
macro_rules! status {
    () => {
        concat!("CASE WHEN q.claimed_by IS NOT NULL THEN 2 WHEN ", dead!(), " THEN 6 ELSE d.status END")
    };
}
const STATUS: &str = status!();
const SELECT: &str = concat!(
    "SELECT d.id, d.project_id, d.event_id, d.endpoint_id, e.event_type, ",
    status!(),
    ", d.attempts, CASE WHEN ",
    dead!(),
    " THEN NULL ELSE d.next_attempt_at END, d.last_error, d.last_status, d.created_at, CASE WHEN ",
    dead!(),
    " THEN COALESCE(p.status_changed_at, d.next_attempt_at) ELSE d.ended_at END \
     FROM deliveries d JOIN events e ON e.id = d.event_id LEFT JOIN queue q ON q.id = d.id \
     LEFT JOIN endpoints p ON p.id = d.endpoint_id"
);

impl Store {
    pub async fn delivery(&self, project: ProjectId, id: DeliveryId) -> Result<Option<Delivery>> {
        find(self.reader(), project, id).await
    }

    /// Newest first.
    pub async fn deliveries(
        &self,
        project: ProjectId,
        filter: &DeliveryFilter,
        page: PageRequest,
    ) -> Result<Page<Delivery>> {
        let mut conditions = Conditions::new("d.project_id", project.uuid().into());
        if let Some(endpoint) = filter.endpoint {
            conditions.add("d.endpoint_id =", endpoint.uuid().into());
        }
        if let Some(event) = filter.event {
            conditions.add("d.event_id =", event.uuid().into());
        }
        if !filter.statuses.is_empty() {
            conditions.add_in(STATUS, filter.statuses.iter().map(|status| i32::from(status.code()).into()));
        }
        if let Some(from) = filter.from {
            conditions.add("d.id >=", super::partitions::first_id(from.as_millis()).into());
        }
        if let Some(before) = filter.before {
            conditions.add("d.id <", super::partitions::first_id(before.as_millis()).into());
        }
        if let Some(after) = page.after {
            conditions.add("d.id <", after.into());
        }
        let (sql, values) = conditions.finish(SELECT, "d.id DESC", page);
        let statement = Statement::from_sql_and_values(self.backend(), sql, values);
        let found = self.reader().query_all_raw(statement).await;
        let rows = found
            .map_err(|error| error.of_list("deliveries", "endpoint_id, event_id, start_time or end_time"))?;
        let rows = rows.iter().map(read).collect::<Result<Vec<_>>>()?;
        Ok(Page::from_rows(rows, page.size, |delivery| delivery.id.uuid()))
    }
}

impl Tx {
    /// A delivery as of this transaction.
    pub async fn delivery(&self, project: ProjectId, id: DeliveryId) -> Result<Option<Delivery>> {
        find(self.db(), project, id).await
    }

    /// Opens an ended delivery again with a fresh budget, due now unless it is held. False where it was opened
    /// meanwhile.
    pub async fn reopen(
        &mut self,
        delivery: &Delivery,
        owner: Option<String>,
        hold: Hold,
        now: Timestamp,
    ) -> Result<bool> {
        // Two retries at once meet at the queue's key. The fencing token goes on from the time, far above those
        // of the claims before, so that an outcome of an older claim that is written again cannot fit.
        let due = super::due_now_sql(self.backend(), "$5");
        let sql = format!(
            "INSERT INTO queue (id, project_id, endpoint_id, event_id, due_at, parked, token, budget_start, \
             attempts, created_at) VALUES ($1, $2, $3, $4, {due}, $8, $5, $6, $6, $7) ON CONFLICT (id) DO NOTHING"
        );
        let attempts = i16::try_from(delivery.attempts).unwrap_or(i16::MAX);
        let values: [Value; 8] = [
            delivery.id.uuid().into(),
            delivery.project.uuid().into(),
            delivery.endpoint.uuid().into(),
            delivery.event.uuid().into(),
            now.as_millis().into(),
            attempts.into(),
            delivery.created_at.as_millis().into(),
            hold.code().into(),
        ];
        let statement = Statement::from_sql_and_values(self.backend(), sql, values);
        if self.db().execute_raw(statement).await? == 0 {
            return Ok(false);
        }
        let status = DeliveryStatus::Scheduled;
        let sql = "UPDATE deliveries SET status = $2, next_attempt_at = $3, ended_at = NULL WHERE id = $1";
        let values: [Value; 3] = [delivery.id.uuid().into(), status.code().into(), now.as_millis().into()];
        self.db().execute_raw(Statement::from_sql_and_values(self.backend(), sql, values)).await?;
        self.ring(Bells::DUE);
        self.record(Change::Delivery(DeliveryChange {
            kind: DeliveryChangeKind::Retried,
            project: delivery.project,
            delivery: delivery.id,
            event: delivery.event,
            endpoint: delivery.endpoint,
            owner: owner.map(Into::into),
            event_type: delivery.event_type.clone(),
            status,
            attempts: delivery.attempts,
            next_attempt_at: Some(now),
            last_error: delivery.last_error,
            last_status: delivery.last_status,
            created_at: delivery.created_at,
            ended_at: None,
            attempt: None,
        }));
        Ok(true)
    }
}

async fn find(db: Db<'_>, project: ProjectId, id: DeliveryId) -> Result<Option<Delivery>> {
    let sql = format!("{SELECT} WHERE d.id = $1 AND d.project_id = $2");
    let values = [Value::from(id.uuid()), Value::from(project.uuid())];
    let statement = Statement::from_sql_and_values(db.backend(), sql, values);
    db.query_one_raw(statement).await?.map(|row| read(&row)).transpose()
}

fn read(row: &Row) -> Result<Delivery> {
    let id = DeliveryId::from_uuid(row.try_get_by_index(0)?);
    let status: i32 = row.try_get_by_index(5)?;
    let event_type: String = row.try_get_by_index(4)?;
    Ok(Delivery {
        id,
        project: ProjectId::from_uuid(row.try_get_by_index(1)?),
        event: EventId::from_uuid(row.try_get_by_index(2)?),
        endpoint: EndpointId::from_uuid(row.try_get_by_index(3)?),
        event_type: event_type.into(),
        status: i16::try_from(status)
            .ok()
            .and_then(DeliveryStatus::from_code)
            .ok_or_else(|| StoreError::Corrupt(format!("the status of {id}")))?,
        attempts: unsigned(row.try_get_by_index(6)?).unwrap_or_default(),
        next_attempt_at: time(row.try_get_by_index(7)?),
        last_error: row.try_get_by_index::<Option<i16>>(8)?.and_then(ErrorClass::from_code),
        last_status: row.try_get_by_index::<Option<i16>>(9)?.and_then(unsigned),
        created_at: Timestamp::from_millis(row.try_get_by_index(10)?),
        ended_at: time(row.try_get_by_index(11)?),
    })
}

pub(super) fn unsigned(stored: i16) -> Option<u16> {
    u16::try_from(stored).ok()
}

fn time(stored: Option<i64>) -> Option<Timestamp> {
    stored.map(Timestamp::from_millis)
}
