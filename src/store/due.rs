//! Looking for due work, without touching it: what a claim may then take.

use sea_orm::{DbBackend, Statement, Value};

use super::db::{Db, Row};
use super::error::Result;
use super::outcomes::Hold;
use super::rows::{Kind, Rows};
use super::writers::Writers;
use super::{Store, now_sql};
use crate::domain::id::{DeliveryId, EndpointId};

/// A delivery that is due and that nobody holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    pub id: DeliveryId,
    pub endpoint: EndpointId,
}

impl Store {
    /// On PostgreSQL the connections whose plans are made for it. SQLite's engine has only the one that writes.
    pub(super) fn for_claims(&self) -> Db<'_> {
        match &self.inner.writers {
            Writers::Postgres { engine, .. } => Db::Pool(engine),
            Writers::Sqlite(_) => self.own_reader(),
        }
    }

    /// The oldest due deliveries, `limit` at most.
    pub async fn due(&self, limit: u32) -> Result<Vec<Due>> {
        let now = now_sql(self.backend());
        let sql = format!(
            "SELECT id, endpoint_id FROM queue WHERE claimed_by IS NULL AND parked = 0 AND due_at <= {now} \
             ORDER BY due_at LIMIT $1"
        );
        let statement = Statement::from_sql_and_values(self.backend(), sql, [Value::from(i64::from(limit))]);
        self.for_claims().query_all_raw(statement).await?.iter().map(read).collect()
    }

    /// The oldest due deliveries of each of these endpoints that are parked in this way, `limit` at most of each.
    pub async fn due_of(&self, endpoints: &[EndpointId], hold: Hold, limit: u32) -> Result<Vec<Due>> {
        let mut rows = Rows::new([("endpoint_id", Kind::Uuid)]);
        for endpoint in endpoints {
            rows.push([endpoint.uuid().into()]);
        }
        let (parked, now) = (hold.code(), now_sql(self.backend()));
        let own = format!(
            "SELECT id FROM queue WHERE queue.endpoint_id = v.endpoint_id AND claimed_by IS NULL AND parked = {parked} \
             AND due_at <= {now} ORDER BY due_at LIMIT {limit}"
        );
        let sql = match self.backend() {
            DbBackend::Postgres => {
                format!("SELECT own.id, v.endpoint_id FROM v CROSS JOIN LATERAL ({own}) AS own")
            }
            _ => format!("SELECT q.id, v.endpoint_id FROM v CROSS JOIN queue AS q ON q.id IN ({own})"),
        };
        rows.query(self.for_claims(), &sql).await?.iter().map(read).collect()
    }

    /// Endpoints with due work after `after`, in the order of their ids, out of the next `limit` endpoints with
    /// work that waits for anything; and where the next look goes on, none at the end. However much work an
    /// endpoint has, it costs one look.
    pub async fn endpoints_with_due_work(
        &self,
        after: EndpointId,
        limit: u32,
    ) -> Result<(Vec<EndpointId>, Option<EndpointId>)> {
        let backend = self.backend();
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
             ) SELECT endpoint_id, EXISTS (SELECT 1 FROM queue WHERE queue.endpoint_id = walk.endpoint_id \
             AND claimed_by IS NULL AND parked = 0 AND due_at <= {now}) \
             FROM walk WHERE endpoint_id IS NOT NULL ORDER BY place",
            first = next("$1"),
            then = next("walk.endpoint_id"),
            now = now_sql(backend),
        );
        let values = [Value::from(after.uuid()), Value::from(i64::from(limit))];
        let found =
            self.for_claims().query_all_raw(Statement::from_sql_and_values(backend, sql, values)).await?;
        let mut due = Vec::new();
        let mut last = None;
        for row in &found {
            let endpoint = EndpointId::from_uuid(row.try_get_by_index(0)?);
            last = Some(endpoint);
            if row.try_get_by_index::<bool>(1)? {
                due.push(endpoint);
            }
        }
        Ok((due, last.filter(|_| found.len() >= limit as usize)))
    }
}

fn read(row: &Row) -> Result<Due> {
    Ok(Due {
        id: DeliveryId::from_uuid(row.try_get_by_index(0)?),
        endpoint: EndpointId::from_uuid(row.try_get_by_index(1)?),
    })
}
