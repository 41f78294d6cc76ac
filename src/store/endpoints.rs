//! Endpoints.

use std::collections::HashMap;

use sea_orm::entity::prelude::*;
use sea_orm::{QueryOrder, QuerySelect, Statement};
use uuid::Uuid;

use super::Store;
use super::db::Db;
use super::endpoint_rows::entity::{self, Column};
use super::error::{Result, StoreError};
use super::labels;
use super::routes::from_json;
use super::rows::{Kind, Rows};
use super::tx::Tx;
use crate::domain::alert::AlertDetail;
use crate::domain::attempt::ErrorClass;
use crate::domain::change::{Change, EndpointChange, EndpointChangeKind};
use crate::domain::clock::Timestamp;
use crate::domain::endpoint::{Circuit, Endpoint, EndpointFilter, LastResponse};
use crate::domain::id::{EndpointId, ProjectId};
use crate::domain::page::{Page, PageRequest};

impl Store {
    /// How many more endpoints the project may have now, of `most`.
    pub async fn endpoint_room(&self, project: ProjectId, most: u32) -> Result<u32> {
        room(self.reader(), project, most).await
    }
}

async fn room(db: Db<'_>, project: ProjectId, most: u32) -> Result<u32> {
    let sql = "SELECT endpoint_count FROM projects WHERE id = $1";
    let statement = Statement::from_sql_and_values(db.backend(), sql, [project.uuid().into()]);
    let row = db.query_one_raw(statement).await?;
    let count: i64 = row.map(|row| row.try_get_by_index(0)).transpose()?.unwrap_or_default();
    Ok(most.saturating_sub(u32::try_from(count).unwrap_or(u32::MAX)))
}

impl Tx {
    /// How many more endpoints the project may have, of `most`. Its row is locked, so that this stays right.
    pub async fn endpoint_room(&self, project: ProjectId, most: u32) -> Result<u32> {
        room(self.db(), project, most).await
    }

    /// Writes new endpoints of a project, or none where it would have more than `most`. The project's row is locked, so
    /// that the count is right.
    pub async fn insert_endpoints(
        &mut self,
        project: ProjectId,
        endpoints: &[&Endpoint],
        most: u32,
    ) -> Result<()> {
        let rows = endpoints.iter().map(|endpoint| self.store().row_of(endpoint));
        let rows = rows.collect::<Result<Vec<_>>>()?;
        let count = "UPDATE projects SET endpoint_count = endpoint_count + $2 WHERE id = $1 \
                     AND endpoint_count + $2 <= $3";
        let new = i64::try_from(endpoints.len()).unwrap_or(i64::MAX);
        if self.run(count, [project.uuid().into(), new.into(), i64::from(most).into()]).await? == 0 {
            return Err(StoreError::ProjectFull { project, most });
        }
        self.db().insert_all::<entity::Entity>(rows).await?;
        self.insert_labels(endpoints).await?;
        self.prepare_slots(endpoints).await?;
        self.tell(EndpointChangeKind::Created, endpoints).await
    }

    /// An endpoint as of this transaction.
    pub async fn endpoint(&self, project: ProjectId, id: EndpointId) -> Result<Option<Endpoint>> {
        let row = self.db().one(find(project, id)).await?;
        let mut endpoints =
            row.map(|row| self.store().endpoint_of(row)).transpose()?.into_iter().collect::<Vec<_>>();
        add_health(self.db(), &mut endpoints).await?;
        Ok(endpoints.pop())
    }

    /// Writes a changed endpoint, which was read in this transaction, under its next revision.
    pub async fn update_endpoint(&mut self, kind: EndpointChangeKind, endpoint: &Endpoint) -> Result<()> {
        let endpoint = next_revision(endpoint);
        let row = self.store().row_of(&endpoint)?;
        self.db().update_one(&entity::Entity::update(row).validate()?).await?;
        // All else that changes an endpoint leaves its settings alone.
        if kind == EndpointChangeKind::Updated {
            self.delete_labels(endpoint.id).await?;
            self.insert_labels(&[&endpoint]).await?;
        }
        self.prepare_slots(&[&endpoint]).await?;
        self.tell(kind, &[&endpoint]).await
    }

    /// Notes for those who watch its owner that an endpoint, as it was before this transaction, will be another's.
    pub async fn leave_owner(&mut self, before: &Endpoint) -> Result<()> {
        self.tell(EndpointChangeKind::Left, &[&next_revision(before)]).await
    }

    /// Removes an endpoint with its subscriptions, secrets and health. Its history stays.
    pub async fn delete_endpoint(&mut self, endpoint: &Endpoint) -> Result<()> {
        let id = sea_orm::Value::from(endpoint.id.uuid());
        for sql in [
            "DELETE FROM subscriptions WHERE endpoint_id = $1",
            "DELETE FROM secrets WHERE endpoint_id = $1",
            "DELETE FROM rotation_requests WHERE endpoint_id = $1",
            "DELETE FROM endpoint_health WHERE endpoint_id = $1",
            "DELETE FROM rate_slots WHERE endpoint_id = $1",
            "DELETE FROM endpoint_labels WHERE endpoint_id = $1",
            "DELETE FROM endpoints WHERE id = $1",
        ] {
            self.db().execute_raw(Statement::from_sql_and_values(self.backend(), sql, [id.clone()])).await?;
        }
        self.keep_owner(endpoint).await?;
        let count = "UPDATE projects SET endpoint_count = endpoint_count - 1 WHERE id = $1";
        self.run(count, [endpoint.project.uuid().into()]).await?;
        self.tell(EndpointChangeKind::Deleted, &[&next_revision(endpoint)]).await
    }

    /// Notes for Watch what happened to endpoints of one project, and writes the alerts that it makes.
    async fn tell(&mut self, kind: EndpointChangeKind, endpoints: &[&Endpoint]) -> Result<()> {
        for endpoint in endpoints {
            self.reroute(endpoint.id);
            let snapshot = snapshot::write(endpoint)?;
            self.record(Change::Endpoint(EndpointChange {
                kind,
                project: endpoint.project,
                endpoint: endpoint.id,
                owner: endpoint.settings.owner_id.as_deref().map(Into::into),
                snapshot,
            }));
        }
        match kind.alert() {
            Some(event) => self.raise_all(event, endpoints, AlertDetail::None).await,
            None => Ok(()),
        }
    }
}

impl Store {
    pub async fn endpoint(&self, project: ProjectId, id: EndpointId) -> Result<Option<Endpoint>> {
        let row = self.reader().one(find(project, id)).await?;
        let mut endpoints = row.map(|row| self.endpoint_of(row)).transpose()?.into_iter().collect::<Vec<_>>();
        add_health(self.reader(), &mut endpoints).await?;
        Ok(endpoints.pop())
    }

    /// Oldest first.
    pub async fn endpoints(
        &self,
        project: ProjectId,
        filter: &EndpointFilter,
        page: PageRequest,
    ) -> Result<Page<Endpoint>> {
        let mut query = entity::Entity::find()
            .filter(Column::ProjectId.eq(project.uuid()))
            .order_by_asc(Column::Id)
            .limit(u64::from(page.size) + 1);
        if let Some(owner) = &filter.owner {
            query = query.filter(Column::OwnerId.eq(owner.as_str()));
        }
        if let Some(status) = filter.status {
            query = query.filter(Column::Status.eq(status.code()));
        }
        if !filter.ids.is_empty() {
            query = query.filter(Column::Id.is_in(filter.ids.iter().map(|id| id.uuid())));
        }
        if let Some(uid) = &filter.uid {
            query = query.filter(Column::Uid.eq(uid.as_str()));
        }
        for ids in labels::having(project, &filter.labels) {
            query = query.filter(Column::Id.in_subquery(ids));
        }
        if let Some(after) = page.after {
            query = query.filter(Column::Id.gt(after));
        }
        let found = self.reader().all(query).await;
        let rows = found.map_err(|error| error.of_list("endpoints", "owner_id or uid"))?;
        let mut endpoints = rows.into_iter().map(|row| self.endpoint_of(row)).collect::<Result<Vec<_>>>()?;
        add_health(self.reader(), &mut endpoints).await?;
        Ok(Page::from_rows(endpoints, page.size, |endpoint| endpoint.id.uuid()))
    }
}

/// Adds what attempts know of endpoints: failures in a row, the breaker and the newest answer.
async fn add_health(db: Db<'_>, endpoints: &mut [Endpoint]) -> Result<()> {
    let mut rows = Rows::new([("id", Kind::Uuid)]);
    for endpoint in endpoints.iter() {
        rows.push([endpoint.id.uuid().into()]);
    }
    let sql = "SELECT v.id, h.consecutive_failures, r.last_at, r.last_status, r.last_error, h.breaker_opens, \
               h.breaker_until, q.id FROM v \
               LEFT JOIN endpoint_health h ON h.endpoint_id = v.id \
               LEFT JOIN queue q ON q.id = h.breaker_probe AND q.claimed_by IS NOT NULL \
               LEFT JOIN rollups r ON r.endpoint_id = v.id AND r.bucket_at = \
               (SELECT MAX(bucket_at) FROM rollups n WHERE n.endpoint_id = v.id)";
    let mut health = HashMap::new();
    for row in rows.query(db, sql).await? {
        let id: Uuid = row.try_get_by_index(0)?;
        let failures: Option<i32> = row.try_get_by_index(1)?;
        let last = match row.try_get_by_index::<Option<i64>>(2)? {
            None => None,
            Some(at) => Some(LastResponse {
                at: Timestamp::from_millis(at),
                status: row.try_get_by_index::<Option<i16>>(3)?.and_then(|code| u16::try_from(code).ok()),
                error: row.try_get_by_index::<Option<i16>>(4)?.and_then(ErrorClass::from_code),
            }),
        };
        let opens = row.try_get_by_index::<Option<i16>>(5)?.unwrap_or_default();
        let circuit = match row.try_get_by_index::<Option<i64>>(6)? {
            _ if opens == 0 => Circuit::Closed,
            Some(until) if row.try_get_by_index::<Option<Uuid>>(7)?.is_none() => {
                Circuit::Open(Timestamp::from_millis(until))
            }
            _ => Circuit::HalfOpen,
        };
        let failures = failures.and_then(|count| u32::try_from(count).ok()).unwrap_or_default();
        health.insert(id, (failures, circuit, last));
    }
    for endpoint in endpoints {
        if let Some((failures, circuit, last)) = health.remove(&endpoint.id.uuid()) {
            endpoint.consecutive_failures = failures;
            endpoint.circuit = circuit;
            endpoint.last_response = last;
        }
    }
    Ok(())
}

/// The endpoints with these ids, in no particular order.
pub(super) async fn with_ids(store: &Store, db: Db<'_>, ids: &[Uuid]) -> Result<Vec<Endpoint>> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let rows = db.all(entity::Entity::find().filter(Column::Id.is_in(ids.iter().copied()))).await?;
    let mut endpoints = rows.into_iter().map(|row| store.endpoint_of(row)).collect::<Result<Vec<_>>>()?;
    add_health(db, &mut endpoints).await?;
    Ok(endpoints)
}

fn next_revision(endpoint: &Endpoint) -> Endpoint {
    Endpoint { revision: endpoint.revision + 1, ..endpoint.clone() }
}

fn find(project: ProjectId, id: EndpointId) -> sea_orm::Select<entity::Entity> {
    entity::Entity::find_by_id(id.uuid()).filter(Column::ProjectId.eq(project.uuid()))
}

pub(super) fn to_json<T: serde::Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|error| StoreError::Corrupt(error.to_string()))
}

/// An endpoint inside a change record.
pub mod snapshot {
    use super::{Result, from_json, to_json};
    use crate::domain::endpoint::{CustomHeader, Endpoint};

    /// As JSON in which every header's value that may be a credential is left out.
    pub(super) fn write(endpoint: &Endpoint) -> Result<String> {
        let mut shown = endpoint.clone();
        for header in &mut shown.settings.headers {
            if header.is_sensitive() {
                *header = CustomHeader { name: header.name.clone(), value: String::new() };
            }
        }
        to_json(&shown)
    }

    /// Reads what a change record holds.
    pub fn read(json: &str) -> Result<Endpoint> {
        from_json(json)
    }
}
