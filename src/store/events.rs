//! Reading events.

use std::collections::HashMap;

use bytes::Bytes;
use sea_orm::{Statement, Value};

use super::Store;
use super::claim::parse_headers;
use super::db::Row;
use super::error::{Result, StoreError};
use super::rows::{Kind, Rows};
use crate::domain::clock::Timestamp;
use crate::domain::event::{EventFilter, StoredEvent, Target};
use crate::domain::id::{EventId, ProjectId};
use crate::domain::page::{Page, PageRequest};

const COLUMNS: &str = "id, project_id, event_type, target_kind, target, headers, idempotency_key, delivery_count, \
                       created_at";

impl Store {
    /// An event with its payload.
    pub async fn event(&self, project: ProjectId, id: EventId) -> Result<Option<StoredEvent>> {
        let sql = format!(
            "SELECT {COLUMNS}, LENGTH(payload), payload FROM events WHERE id = $1 AND project_id = $2"
        );
        let values = [Value::from(id.uuid()), Value::from(project.uuid())];
        let statement = Statement::from_sql_and_values(self.backend(), sql, values);
        self.reader().query_one_raw(statement).await?.map(|row| read(&row, true)).transpose()
    }

    /// The payloads of these events that are no larger than `max` bytes; `None` for a larger one.
    pub async fn payloads(&self, ids: &[EventId], max: u32) -> Result<HashMap<EventId, Option<Bytes>>> {
        let mut rows = Rows::new([("event_id", Kind::Uuid)]);
        for id in ids {
            rows.push([id.uuid().into()]);
        }
        let sql = format!(
            "SELECT events.id, CASE WHEN LENGTH(payload) <= {max} THEN payload END \
             FROM v JOIN events ON events.id = v.event_id"
        );
        let found = rows.query(self.reader(), &sql).await?;
        let read = |row: &Row| {
            let payload: Option<Vec<u8>> = row.try_get_by_index(1)?;
            Ok((EventId::from_uuid(row.try_get_by_index(0)?), payload.map(Bytes::from)))
        };
        found.iter().map(read).collect()
    }

    /// Newest first, without payloads.
    pub async fn events(
        &self,
        project: ProjectId,
        filter: &EventFilter,
        page: PageRequest,
    ) -> Result<Page<StoredEvent>> {
        let mut conditions = Conditions::new("project_id", project.uuid().into());
        if let Some(event_type) = &filter.event_type {
            conditions.add("event_type =", event_type.clone().into());
        }
        conditions.between(filter.from, filter.before);
        if let Some(after) = page.after {
            conditions.add("id <", after.into());
        }
        let (sql, values) =
            conditions.finish(&format!("SELECT {COLUMNS}, LENGTH(payload) FROM events"), "id DESC", page);
        let statement = Statement::from_sql_and_values(self.backend(), sql, values);
        let found = self.reader().query_all_raw(statement).await;
        let rows = found.map_err(|error| error.of_list("events", "start_time or end_time"))?;
        let rows = rows.iter().map(|row| read(row, false)).collect::<Result<Vec<_>>>()?;
        Ok(Page::from_rows(rows, page.size, |event| event.id.uuid()))
    }
}

fn read(row: &Row, with_payload: bool) -> Result<StoredEvent> {
    let id = EventId::from_uuid(row.try_get_by_index(0)?);
    let target: Option<String> = row.try_get_by_index(4)?;
    let corrupt = || StoreError::Corrupt(format!("the target of {id}"));
    let target = match (row.try_get_by_index::<i16>(3)?, target) {
        (1, Some(endpoint)) => Target::Endpoint(endpoint.parse().map_err(|_| corrupt())?),
        (2, Some(owner)) => Target::Owner(owner),
        (3, None) => Target::Broadcast,
        _ => return Err(corrupt()),
    };
    let headers: Option<String> = row.try_get_by_index(5)?;
    let payload: Vec<u8> = if with_payload { row.try_get_by_index(10)? } else { Vec::new() };
    Ok(StoredEvent {
        id,
        project: ProjectId::from_uuid(row.try_get_by_index(1)?),
        event_type: row.try_get_by_index(2)?,
        target,
        headers: parse_headers(headers.as_deref())?,
        idempotency_key: row.try_get_by_index(6)?,
        deliveries: u32::try_from(row.try_get_by_index::<i32>(7)?).unwrap_or_default(),
        created_at: Timestamp::from_millis(row.try_get_by_index(8)?),
        payload_size: u32::try_from(row.try_get_by_index::<i32>(9)?).unwrap_or_default(),
        payload: payload.into(),
    })
}

/// The conditions of a list, each with its value.
pub(super) struct Conditions {
    text: String,
    values: Vec<Value>,
}

impl Conditions {
    /// Begins with the project (or another owner of the rows), so that no list can forget it.
    pub fn new(column: &str, value: Value) -> Self {
        Self { text: format!("WHERE {column} = $1"), values: vec![value] }
    }

    /// Adds `left $n`, such as `id < $2`.
    pub fn add(&mut self, left: &str, value: Value) {
        self.values.push(value);
        self.text.push_str(&format!(" AND {left} ${}", self.values.len()));
    }

    /// Adds `column IN (…)`.
    pub fn add_in(&mut self, column: &str, values: impl IntoIterator<Item = Value>) {
        let places: Vec<String> = values
            .into_iter()
            .map(|value| {
                self.values.push(value);
                format!("${}", self.values.len())
            })
            .collect();
        self.text.push_str(&format!(" AND {column} IN ({})", places.join(", ")));
    }

    /// By creation time. Ids hold it, so the index on them bounds the scan.
    pub fn between(&mut self, from: Option<Timestamp>, before: Option<Timestamp>) {
        if let Some(from) = from {
            self.add("id >=", super::partitions::first_id(from.as_millis()).into());
        }
        if let Some(before) = before {
            self.add("id <", super::partitions::first_id(before.as_millis()).into());
        }
    }

    /// The statement: one row more than the page, to know whether there is another.
    pub fn finish(mut self, select: &str, order: &str, page: PageRequest) -> (String, Vec<Value>) {
        self.values.push((i64::from(page.size) + 1).into());
        (format!("{select} {} ORDER BY {order} LIMIT ${}", self.text, self.values.len()), self.values)
    }
}
