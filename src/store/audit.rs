//! Reading the audit log.

use sea_orm::{Statement, Value};
use uuid::Uuid;

use super::Store;
use super::db::Row;
use super::error::Result;
use crate::domain::audit::{AuditEvent, AuditFilter};
use crate::domain::clock::Timestamp;
use crate::domain::id::{AuditId, KeyId, ProjectId};
use crate::domain::page::{Page, PageRequest};

impl Store {
    /// Newest first; of all projects where none is named.
    pub async fn audit_events(
        &self,
        project: Option<ProjectId>,
        filter: &AuditFilter,
        page: PageRequest,
    ) -> Result<Page<AuditEvent>> {
        let mut values: Vec<Value> = Vec::new();
        let mut conditions = String::from("1 = 1");
        let mut narrow = |condition: &str, value: Value| {
            values.push(value);
            conditions.push_str(&format!(" AND {condition} ${}", values.len()));
        };
        if let Some(project) = project {
            narrow("a.project_id =", project.uuid().into());
        }
        if let Some(resource) = &filter.resource {
            narrow("a.resource =", resource.as_str().into());
        }
        if let Some(action) = &filter.action {
            narrow("a.action =", action.as_str().into());
        }
        if let Some(start) = filter.start {
            narrow("a.created_at >=", start.as_millis().into());
            narrow("a.id >=", first_id(start.minus(ID_SLACK)).into());
        }
        if let Some(end) = filter.end {
            narrow("a.created_at <", end.as_millis().into());
            narrow("a.id <", first_id(end.plus(ID_SLACK)).into());
        }
        if let Some(after) = page.after {
            narrow("a.id <", after.into());
        }
        values.push(i64::from(page.size + 1).into());
        let limit = values.len();
        let sql = format!(
            "SELECT a.id, a.project_id, a.key_id, k.name, a.action, a.resource, a.origin, a.before, a.after, \
             a.created_at FROM audit_events a LEFT JOIN api_keys k ON k.id = a.key_id \
             WHERE {conditions} ORDER BY a.id DESC LIMIT ${limit}"
        );
        let statement = Statement::from_sql_and_values(self.backend(), sql, values);
        let found = self.reader().query_all_raw(statement).await;
        let rows = found.map_err(|error| error.of_list("audit events", "start_time or end_time"))?;
        let events = rows.iter().map(event_of).collect::<Result<Vec<_>>>()?;
        Ok(Page::from_rows(events, page.size, |event| event.id.uuid()))
    }
}

/// An entry's id is made a moment before its time is read.
const ID_SLACK: std::time::Duration = std::time::Duration::from_secs(1);

/// The smallest UUIDv7 of a millisecond.
pub(super) fn first_id(at: Timestamp) -> Uuid {
    let millis = u128::try_from(at.as_millis()).unwrap_or_default();
    Uuid::from_u128((millis << 80) | (7 << 76) | (0b10 << 62))
}

fn event_of(row: &Row) -> Result<AuditEvent> {
    let id: Uuid = row.try_get_by_index(0)?;
    let project: Option<Uuid> = row.try_get_by_index(1)?;
    let key: Option<Uuid> = row.try_get_by_index(2)?;
    Ok(AuditEvent {
        id: AuditId::from_uuid(id),
        project: project.map(ProjectId::from_uuid),
        key: key.map(KeyId::from_uuid),
        key_name: row.try_get_by_index(3)?,
        action: row.try_get_by_index(4)?,
        resource: row.try_get_by_index(5)?,
        origin: row.try_get_by_index(6)?,
        before: row.try_get_by_index(7)?,
        after: row.try_get_by_index(8)?,
        at: Timestamp::from_millis(row.try_get_by_index(9)?),
    })
}
