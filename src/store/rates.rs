//! Rate limits: slots are reserved here, by the database's clock, so that no two nodes have the same one.
//!
//! What is queued for an endpoint with a limit is parked, outside the index that claims scan; whoever reserves
//! slots claims the work for them in the same transaction.

use std::collections::HashMap;

use sea_orm::{DbBackend, Statement, Value};

use super::Store;
use super::error::Result;
use super::outcomes::PARKED_RATE;
use super::routes::rate_of;
use super::rows::{Kind, Rows};
use super::tx::Tx;
use crate::domain::endpoint::Endpoint;
use crate::domain::id::{EndpointId, ProjectId};
use crate::domain::rate::RateLimit;

/// How far the slots of some endpoints are taken, while this transaction holds their rows.
#[derive(Default)]
pub struct TakenSlots {
    /// By the database's clock, in microseconds.
    pub now: i64,
    /// The first free moment of each, and the limit that it has now, whatever routes say. One that another node is about
    /// to reserve is absent, and one without a limit.
    pub next: HashMap<EndpointId, (i64, RateLimit)>,
}

/// The database's clock in microseconds, as SQL.
fn micros_sql(backend: DbBackend) -> &'static str {
    match backend {
        DbBackend::Postgres => "(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000)::bigint",
        _ => "CAST(unixepoch('subsec') * 1000 AS INTEGER) * 1000",
    }
}

impl Store {
    /// Endpoints after `after` whose work waits for slots and is due, out of the next `limit` endpoints with parked
    /// work; and where the next look goes on, none at the end.
    pub async fn endpoints_with_paced_work(
        &self,
        after: EndpointId,
        limit: u32,
    ) -> Result<(Vec<(ProjectId, EndpointId)>, Option<EndpointId>)> {
        let backend = self.backend();
        let next = |after: &str| {
            format!(
                "(SELECT endpoint_id FROM queue WHERE parked > 0 AND endpoint_id > {after} \
                 ORDER BY endpoint_id LIMIT 1)"
            )
        };
        let sql = format!(
            "WITH RECURSIVE walk(endpoint_id, place) AS ( \
               SELECT {first}, 1 UNION ALL \
               SELECT {then}, place + 1 FROM walk WHERE walk.endpoint_id IS NOT NULL AND place < $2 \
             ) SELECT endpoint_id, (SELECT project_id FROM queue WHERE queue.endpoint_id = walk.endpoint_id \
             AND claimed_by IS NULL AND parked = {PARKED_RATE} AND due_at <= {now} LIMIT 1) \
             FROM walk WHERE endpoint_id IS NOT NULL ORDER BY place",
            first = next("$1"),
            then = next("walk.endpoint_id"),
            now = super::now_sql(backend),
        );
        let values = [Value::from(after.uuid()), Value::from(i64::from(limit))];
        let statement = Statement::from_sql_and_values(backend, sql, values);
        let rows = self.for_claims().query_all_raw(statement).await?;
        let (mut found, mut last) = (Vec::new(), None);
        for row in &rows {
            let endpoint = EndpointId::from_uuid(row.try_get_by_index(0)?);
            last = Some(endpoint);
            if let Some(project) = row.try_get_by_index::<Option<uuid::Uuid>>(1)? {
                found.push((ProjectId::from_uuid(project), endpoint));
            }
        }
        Ok((found, last.filter(|_| rows.len() >= limit as usize)))
    }
}

impl Tx {
    /// Makes room for the slots of those endpoints that have a limit.
    pub(super) async fn prepare_slots(&self, endpoints: &[&Endpoint]) -> Result<()> {
        let mut rows = Rows::new([("id", Kind::Uuid)]);
        for endpoint in endpoints.iter().filter(|endpoint| endpoint.settings.rate_limit.is_some()) {
            rows.push([endpoint.id.uuid().into()]);
        }
        // The condition, because SQLite would take ON for a join's.
        let sql = "INSERT INTO rate_slots (endpoint_id, next_at) SELECT id, 0 FROM v WHERE TRUE ON CONFLICT DO NOTHING";
        rows.execute(self.db(), sql).await?;
        Ok(())
    }

    /// Locks the slots of these endpoints and says how far they are taken.
    pub async fn lock_slots(&self, endpoints: &[EndpointId]) -> Result<TakenSlots> {
        let mut rows = Rows::new([("id", Kind::Uuid)]);
        for endpoint in endpoints {
            rows.push([endpoint.uuid().into()]);
        }
        let lock = match self.backend() {
            DbBackend::Postgres => "ORDER BY r.endpoint_id FOR UPDATE OF r SKIP LOCKED",
            _ => "",
        };
        let sql = format!(
            "SELECT r.endpoint_id, r.next_at, {}, e.rate_requests, e.rate_per_ms, e.rate_burst FROM v \
             JOIN rate_slots r ON r.endpoint_id = v.id JOIN endpoints e ON e.id = v.id {lock}",
            micros_sql(self.backend())
        );
        let mut taken = TakenSlots::default();
        for row in rows.query(self.db(), &sql).await? {
            taken.now = taken.now.max(row.try_get_by_index(2)?);
            let limit = rate_of(row.try_get_by_index(3)?, row.try_get_by_index(4)?, row.try_get_by_index(5)?);
            if let Some(limit) = limit {
                let id = EndpointId::from_uuid(row.try_get_by_index(0)?);
                taken.next.insert(id, (row.try_get_by_index(1)?, limit));
            }
        }
        Ok(taken)
    }

    /// Notes the first free moments of endpoints whose slots this transaction has locked.
    pub async fn move_slots(&self, next: &[(EndpointId, i64)]) -> Result<()> {
        let mut rows = Rows::new([("id", Kind::Uuid), ("next_at", Kind::BigInt)]);
        for (endpoint, next) in next {
            rows.push([endpoint.uuid().into(), (*next).into()]);
        }
        let sql = "UPDATE rate_slots SET next_at = v.next_at FROM v WHERE endpoint_id = v.id";
        rows.execute(self.db(), sql).await?;
        Ok(())
    }

    /// A probe does not wait for a slot, but what follows it does.
    pub(super) async fn charge_probe(&self, endpoint: EndpointId) -> Result<()> {
        let now = micros_sql(self.backend());
        let sql = format!(
            "UPDATE rate_slots SET next_at = CASE WHEN next_at > {now} THEN next_at ELSE {now} END \
             + COALESCE((SELECT rate_per_ms * 1000 / rate_requests FROM endpoints \
             WHERE endpoints.id = rate_slots.endpoint_id), 0) WHERE endpoint_id = $1"
        );
        self.run(&sql, [endpoint.uuid().into()]).await?;
        Ok(())
    }
}
