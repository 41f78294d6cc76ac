//! Bringing an endpoint's queued work in line with its state and its rate limit: held work goes on, an open breaker's is parked,
//! that of an INACTIVE, PENDING or deleted endpoint becomes DISCARDED. Always a bounded number of rows.

use std::sync::Arc;

use sea_orm::{DbBackend, Statement, Value};

use super::Store;
use super::error::{Result, StoreError};
use super::notify::Bells;
use super::outcomes::{PARKED_BREAKER, PARKED_PROBE, PARKED_RATE};
use super::rows::{Kind, Rows};
use super::tx::Tx;
use crate::domain::attempt::ErrorClass;
use crate::domain::change::{Change, DeliveryChange, DeliveryChangeKind};
use crate::domain::clock::Timestamp;
use crate::domain::delivery::DeliveryStatus;
use crate::domain::endpoint::EndpointStatus;
use crate::domain::id::{DeliveryId, EndpointId, EventId, ProjectId};

/// What one step did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Aligned {
    pub rows: u64,
    /// Some of it may be claimed now.
    pub due: bool,
    /// Some of it waits for slots now; the project.
    pub paced: Option<ProjectId>,
}

impl Store {
    /// The first endpoint after this one whose work may need to be brought in line: with parked work, or
    /// INACTIVE or PENDING with any. Of deleted ones only those with parked work: see [`Store::deleted_with_work`].
    pub async fn unaligned_after(&self, after: Option<EndpointId>) -> Result<Option<EndpointId>> {
        let after = after.map_or(uuid::Uuid::nil(), EndpointId::uuid);
        // 3 is INACTIVE, 4 PENDING.
        let mut next = None;
        for sql in [
            "SELECT endpoint_id FROM queue WHERE parked > 0 AND endpoint_id > $1 ORDER BY endpoint_id LIMIT 1",
            "SELECT id FROM endpoints WHERE status = 3 AND id > $1 AND EXISTS (SELECT 1 FROM queue \
             WHERE queue.endpoint_id = endpoints.id AND queue.claimed_by IS NULL) ORDER BY id LIMIT 1",
            "SELECT id FROM endpoints WHERE status = 4 AND id > $1 AND EXISTS (SELECT 1 FROM queue \
             WHERE queue.endpoint_id = endpoints.id AND queue.claimed_by IS NULL) ORDER BY id LIMIT 1",
        ] {
            let statement = Statement::from_sql_and_values(self.backend(), sql, [Value::from(after)]);
            if let Some(row) = self.own_reader().query_one_raw(statement).await? {
                let found = EndpointId::from_uuid(row.try_get_by_index(0)?);
                next = next.map_or(Some(found), |other: EndpointId| Some(other.min(found)));
            }
        }
        Ok(next)
    }

    /// Endpoints after `after` that are deleted and have work, out of the next `limit` endpoints with work that nobody
    /// holds; and where the next look goes on, none at the end. However much work an endpoint has, it costs one look.
    pub async fn deleted_with_work(
        &self,
        after: EndpointId,
        limit: u32,
    ) -> Result<(Vec<EndpointId>, Option<EndpointId>)> {
        let next = |after: &str| {
            format!(
                "(SELECT endpoint_id FROM queue WHERE claimed_by IS NULL AND endpoint_id > {after} \
                 ORDER BY endpoint_id LIMIT 1)"
            )
        };
        let sql = format!(
            "WITH RECURSIVE walk(endpoint_id, place) AS ( \
               SELECT {first}, 1 UNION ALL \
               SELECT {then}, place + 1 FROM walk WHERE walk.endpoint_id IS NOT NULL AND place < $2 \
             ) SELECT endpoint_id, EXISTS (SELECT 1 FROM endpoints WHERE endpoints.id = walk.endpoint_id) \
             FROM walk WHERE endpoint_id IS NOT NULL ORDER BY place",
            first = next("$1"),
            then = next("walk.endpoint_id"),
        );
        let values = [Value::from(after.uuid()), Value::from(i64::from(limit))];
        let statement = Statement::from_sql_and_values(self.backend(), sql, values);
        let rows = self.own_reader().query_all_raw(statement).await?;
        let (mut deleted, mut last) = (Vec::new(), None);
        for row in &rows {
            let endpoint = EndpointId::from_uuid(row.try_get_by_index(0)?);
            last = Some(endpoint);
            if !row.try_get_by_index::<bool>(1)? {
                deleted.push(endpoint);
            }
        }
        Ok((deleted, last.filter(|_| rows.len() >= limit as usize)))
    }
}

impl Tx {
    /// One step for one endpoint, up to `limit` rows. What is claimed is left to whoever holds it.
    pub async fn align(&mut self, endpoint: EndpointId, limit: u32) -> Result<Aligned> {
        // On PostgreSQL the state stays as it is read until the end, so that no row is moved by an old one. Locked
        // in the order in which everyone does: health, then the endpoint.
        let is_open = !self.held_open([endpoint]).await?.is_empty();
        let lock = if self.backend() == DbBackend::Postgres { "FOR SHARE" } else { "" };
        let sql =
            format!("SELECT status, owner_id, rate_requests, project_id FROM endpoints WHERE id = $1 {lock}");
        let statement = Statement::from_sql_and_values(self.backend(), sql, [endpoint.uuid().into()]);
        let mut limited = None;
        let state = match self.db().query_one_raw(statement).await? {
            None => None,
            Some(row) => {
                let status = EndpointStatus::from_code(row.try_get_by_index(0)?)
                    .ok_or_else(|| StoreError::Corrupt(format!("the status of {endpoint}")))?;
                if row.try_get_by_index::<Option<i32>>(2)?.is_some() {
                    limited = Some(ProjectId::from_uuid(row.try_get_by_index(3)?));
                }
                Some((status, row.try_get_by_index::<Option<String>>(1)?.map(Arc::from)))
            }
        };
        match state {
            None => {
                let owner = self.owners_of([endpoint].into_iter()).await?.remove(&endpoint);
                self.discard_queued(endpoint, owner, "parked >= 0", limit).await
            }
            Some((EndpointStatus::Inactive, owner)) => {
                self.discard_queued(endpoint, owner, "parked >= 0", limit).await
            }
            Some((EndpointStatus::Pending, owner)) => {
                let all_but_the_probe = format!("parked <> {PARKED_PROBE}");
                self.discard_queued(endpoint, owner, &all_but_the_probe, limit).await
            }
            // Held until resume.
            Some((EndpointStatus::Paused, _)) => Ok(Aligned::default()),
            Some((EndpointStatus::Active, _)) if is_open => {
                let which = format!("parked <> {PARKED_BREAKER}");
                let rows = self.park(endpoint, &which, PARKED_BREAKER, limit).await?;
                Ok(Aligned { rows, ..Aligned::default() })
            }
            Some((EndpointStatus::Active, _)) if limited.is_some() => {
                let which = format!("parked <> {PARKED_RATE}");
                let rows = self.park(endpoint, &which, PARKED_RATE, limit).await?;
                Ok(Aligned { rows, due: false, paced: limited })
            }
            Some((EndpointStatus::Active, _)) => {
                let rows = self.park(endpoint, "parked > 0", 0, limit).await?;
                if rows > 0 {
                    self.ring(Bells::DUE);
                }
                Ok(Aligned { rows, due: rows > 0, paced: None })
            }
        }
    }

    async fn park(&self, endpoint: EndpointId, which: &str, parked: i16, limit: u32) -> Result<u64> {
        let sql = format!("UPDATE queue SET parked = $3 WHERE id IN ({})", self.unclaimed(which));
        let values = [endpoint.uuid().into(), i64::from(limit).into(), parked.into()];
        self.run(&sql, values).await
    }

    /// Unclaimed rows of endpoint $1, at most $2.
    fn unclaimed(&self, which: &str) -> String {
        let lock = if self.backend() == DbBackend::Postgres { "FOR UPDATE SKIP LOCKED" } else { "" };
        format!(
            "SELECT id FROM queue WHERE endpoint_id = $1 AND claimed_by IS NULL AND {which} LIMIT $2 {lock}"
        )
    }

    async fn discard_queued(
        &mut self,
        endpoint: EndpointId,
        owner: Option<Arc<str>>,
        which: &str,
        limit: u32,
    ) -> Result<Aligned> {
        let sql = format!("DELETE FROM queue WHERE id IN ({}) RETURNING id", self.unclaimed(which));
        let values = [endpoint.uuid().into(), i64::from(limit).into()];
        let statement = Statement::from_sql_and_values(self.backend(), sql, values);
        let now = Timestamp::now();
        let mut ended = Rows::new([("id", Kind::Uuid)]);
        let mut rows = 0;
        for row in self.db().query_all_raw(statement).await? {
            ended.push([row.try_get_by_index::<uuid::Uuid>(0)?.into()]);
            rows += 1;
        }
        // 6 is DISCARDED.
        let sql = format!(
            "UPDATE deliveries SET status = 6, next_attempt_at = NULL, ended_at = {} FROM v \
             WHERE deliveries.id = v.id",
            now.as_millis()
        );
        ended.clone().execute(self.db(), &sql).await?;
        let sql = "SELECT d.id, d.project_id, d.event_id, COALESCE(e.event_type, ''), d.attempts, d.last_error, \
                   d.last_status, d.created_at FROM v JOIN deliveries d ON d.id = v.id \
                   LEFT JOIN events e ON e.id = d.event_id";
        for row in ended.query(self.db(), sql).await? {
            let event_type: String = row.try_get_by_index(3)?;
            self.record(Change::Delivery(DeliveryChange {
                kind: DeliveryChangeKind::Discarded,
                project: ProjectId::from_uuid(row.try_get_by_index(1)?),
                delivery: DeliveryId::from_uuid(row.try_get_by_index(0)?),
                event: EventId::from_uuid(row.try_get_by_index(2)?),
                endpoint,
                owner: owner.clone(),
                event_type: event_type.into(),
                status: DeliveryStatus::Discarded,
                attempts: u16::try_from(row.try_get_by_index::<i16>(4)?).unwrap_or_default(),
                next_attempt_at: None,
                last_error: row.try_get_by_index::<Option<i16>>(5)?.and_then(ErrorClass::from_code),
                last_status: row
                    .try_get_by_index::<Option<i16>>(6)?
                    .and_then(|code| u16::try_from(code).ok()),
                created_at: Timestamp::from_millis(row.try_get_by_index(7)?),
                ended_at: Some(now),
                attempt: None,
            }));
        }
        Ok(Aligned { rows, ..Aligned::default() })
    }

    /// Whether anything of this endpoint is still queued, claimed or not.
    pub async fn has_queued(&self, endpoint: EndpointId) -> Result<bool> {
        let sql = "SELECT 1 FROM queue WHERE endpoint_id = $1 LIMIT 1";
        let statement = Statement::from_sql_and_values(self.backend(), sql, [endpoint.uuid().into()]);
        Ok(self.db().query_one_raw(statement).await?.is_some())
    }
}
