//! The circuit breaker's rows: which are open, and who may probe.

use std::collections::HashSet;

use sea_orm::{DbBackend, Statement, Value};

use super::claim::{Claimed, RETURNED};
use super::error::Result;
use super::outcomes::PARKED_BREAKER;
use super::rows::{Kind, Rows};
use super::tx::Tx;
use super::{Store, now_sql};
use crate::domain::delivery::Probe;
use crate::domain::id::{EndpointId, LeaseId};

/// A breaker `h` that has rested, whose endpoint is ACTIVE (1), that nobody probes, and that has work to probe with.
/// A probe is under way for as long as its delivery is claimed: it ends with its process.
fn is_due(now: &str) -> String {
    format!(
        "h.breaker_opens > 0 AND h.breaker_until <= {now} \
         AND EXISTS (SELECT 1 FROM endpoints e WHERE e.id = h.endpoint_id AND e.status = 1) \
         AND NOT EXISTS (SELECT 1 FROM queue p WHERE p.id = h.breaker_probe AND p.claimed_by IS NOT NULL) \
         AND EXISTS (SELECT 1 FROM queue q WHERE q.endpoint_id = h.endpoint_id AND q.parked = {PARKED_BREAKER} \
         AND q.claimed_by IS NULL AND q.due_at <= {now})"
    )
}

impl Store {
    /// The endpoints whose breaker is open, up to `limit`.
    pub async fn open_breakers(&self, limit: u32) -> Result<HashSet<EndpointId>> {
        let sql = "SELECT h.endpoint_id FROM endpoint_health h JOIN endpoints e ON e.id = h.endpoint_id \
                   WHERE h.breaker_opens > 0 LIMIT $1";
        let statement = Statement::from_sql_and_values(self.backend(), sql, [Value::from(i64::from(limit))]);
        let rows = self.own_reader().query_all_raw(statement).await?;
        rows.iter().map(|row| Ok(EndpointId::from_uuid(row.try_get_by_index(0)?))).collect()
    }

    /// Endpoints whose breaker has rested and that have work to probe with, the longest waiting first.
    pub async fn due_breakers(&self, limit: u32) -> Result<Vec<EndpointId>> {
        let sql = format!(
            "SELECT h.endpoint_id FROM endpoint_health h WHERE {} ORDER BY h.breaker_until LIMIT $1",
            is_due(now_sql(self.backend()))
        );
        let statement = Statement::from_sql_and_values(self.backend(), sql, [Value::from(i64::from(limit))]);
        let rows = self.own_reader().query_all_raw(statement).await?;
        rows.iter().map(|row| Ok(EndpointId::from_uuid(row.try_get_by_index(0)?))).collect()
    }
}

impl Tx {
    pub(super) async fn close_breaker(&self, endpoint: EndpointId) -> Result<()> {
        let sql = "UPDATE endpoint_health SET breaker_opens = 0, breaker_until = NULL, breaker_probe = NULL \
                   WHERE endpoint_id = $1";
        let values = [endpoint.uuid().into()];
        self.db().execute_raw(Statement::from_sql_and_values(self.backend(), sql, values)).await?;
        Ok(())
    }

    /// Wins the right to probe and claims the delivery to do it with; none where another node was faster, or
    /// there is nothing to send. Its row stays parked while it is claimed, so that it waits again if this
    /// process dies.
    pub async fn claim_probe(&self, endpoint: EndpointId, lease: LeaseId) -> Result<Option<Claimed>> {
        if !self.lease_stands(lease).await? {
            return Ok(None);
        }
        let now = now_sql(self.backend());
        // One node after the other, and each sees what the one before it did.
        if self.backend() == DbBackend::Postgres {
            let sql = "SELECT 1 FROM endpoint_health WHERE endpoint_id = $1 FOR UPDATE";
            self.run(sql, [endpoint.uuid().into()]).await?;
        }
        let sql = format!("SELECT 1 FROM endpoint_health h WHERE h.endpoint_id = $1 AND {}", is_due(now));
        let statement = Statement::from_sql_and_values(self.backend(), sql, [endpoint.uuid().into()]);
        if self.db().query_one_raw(statement).await?.is_none() {
            return Ok(None);
        }
        let lock = if self.backend() == DbBackend::Postgres { "FOR UPDATE SKIP LOCKED" } else { "" };
        let sql = format!(
            "UPDATE queue SET claimed_by = $2, token = token + 1 WHERE claimed_by IS NULL AND id IN ( \
               SELECT id FROM queue WHERE endpoint_id = $1 AND parked = {PARKED_BREAKER} AND claimed_by IS NULL \
               AND due_at <= {now} ORDER BY due_at LIMIT 1 {lock} \
             ) RETURNING {RETURNED}"
        );
        let values = [endpoint.uuid().into(), lease.uuid().into()];
        let statement = Statement::from_sql_and_values(self.backend(), sql, values);
        let mut claimed = self.claimed(lease, self.db().query_all_raw(statement).await?).await?;
        let Some(probe) = claimed.deliveries.first_mut() else { return Ok(None) };
        probe.probe = Some(Probe::Breaker);
        let sql = "UPDATE endpoint_health SET breaker_probe = $2 WHERE endpoint_id = $1";
        let values = [endpoint.uuid().into(), probe.id.uuid().into()];
        self.run(sql, values).await?;
        Ok(Some(claimed))
    }

    /// Which of these endpoints have an open breaker. On PostgreSQL none of them closes before this transaction
    /// ends, so that whoever closes it finds what is parked here.
    pub(super) async fn held_open(
        &self,
        endpoints: impl IntoIterator<Item = EndpointId>,
    ) -> Result<HashSet<EndpointId>> {
        let mut endpoints: Vec<EndpointId> = endpoints.into_iter().collect();
        endpoints.sort_unstable();
        endpoints.dedup();
        let mut rows = Rows::new([("id", Kind::Uuid)]);
        for endpoint in endpoints {
            rows.push([endpoint.uuid().into()]);
        }
        let lock =
            if self.backend() == DbBackend::Postgres { "ORDER BY h.endpoint_id FOR SHARE OF h" } else { "" };
        let sql = format!(
            "SELECT h.endpoint_id FROM v JOIN endpoint_health h ON h.endpoint_id = v.id \
             WHERE h.breaker_opens > 0 {lock}"
        );
        let rows = rows.query(self.db(), &sql).await?;
        rows.iter().map(|row| Ok(EndpointId::from_uuid(row.try_get_by_index(0)?))).collect()
    }

    pub(super) async fn run<const N: usize>(&self, sql: &str, values: [Value; N]) -> Result<u64> {
        let statement = Statement::from_sql_and_values(self.backend(), sql, values);
        self.db().execute_raw(statement).await
    }
}
