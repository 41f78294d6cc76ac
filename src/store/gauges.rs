//! What operators are told of the queue: bounded statements on its indexes, whatever its length.

use std::collections::HashMap;

use sea_orm::Statement;

use super::error::{Result, StoreError};
use super::expansions::ID_BYTES;
use super::outcomes::{Hold, PARKED_BREAKER, PARKED_PAUSED, PARKED_RATE};
use super::writers::Writers;
use super::{Store, now_sql};
use crate::domain::id::ProjectId;

/// More than these are not counted, so that a long queue is not made longer by counting it.
pub const COUNTED_MAX: u64 = 10_000;

const NOT_PARKED: i16 = Hold::No.code();

/// Open deliveries: how many each project has, and how many of those that nobody holds are kept from being due, by
/// what.
#[derive(Debug, Default)]
pub struct PendingCount {
    pub by_project: HashMap<ProjectId, u64>,
    pub paused: u64,
    pub breaker: u64,
    pub rate_limit: u64,
}

/// The unclaimed part of the queue.
#[derive(Clone, Copy, Debug)]
pub struct QueueGauges {
    /// Due now, at most 10,000.
    pub due: u64,
    /// For how long the oldest of them has been due, in milliseconds.
    pub oldest_due_ms: u64,
}

impl Store {
    pub async fn queue_gauges(&self) -> Result<QueueGauges> {
        let now = now_sql(self.backend());
        let sql = format!(
            "SELECT (SELECT count(*) FROM (SELECT 1 FROM queue WHERE claimed_by IS NULL AND parked = 0 \
             AND due_at <= {now} LIMIT {COUNTED_MAX}) AS due), \
             {now} - (SELECT min(due_at) FROM queue WHERE claimed_by IS NULL AND parked = 0)"
        );
        let statement = Statement::from_string(self.backend(), sql);
        let row = self.own_reader().query_one_raw(statement).await?;
        let row = row.ok_or_else(|| StoreError::Corrupt("a count gave no row".to_owned()))?;
        let (due, oldest): (i64, Option<i64>) = (row.try_get_by_index(0)?, row.try_get_by_index(1)?);
        let not_negative = |number: i64| u64::try_from(number).unwrap_or(0);
        Ok(QueueGauges { due: not_negative(due), oldest_due_ms: not_negative(oldest.unwrap_or(0)) })
    }

    /// Counts the open deliveries, with those that are still to be made of events that reach many endpoints. One look
    /// through the queue, however much of it is open.
    pub async fn count_pending(&self) -> Result<PendingCount> {
        // What is claimed keeps its mark, and waits no more.
        let sql = format!(
            "SELECT project_id, parked, COUNT(*), COUNT(*) - COUNT(claimed_by) FROM queue GROUP BY project_id, parked \
             UNION ALL SELECT project_id, CAST({NOT_PARKED} AS SMALLINT), SUM(length(targets) / {ID_BYTES} - expanded), 0 FROM expansions \
             GROUP BY project_id"
        );
        let statement = Statement::from_string(self.backend(), sql);
        let mut count = PendingCount::default();
        for row in self.own_reader().query_all_raw(statement).await? {
            let project = ProjectId::from_uuid(row.try_get_by_index(0)?);
            let deliveries = u64::try_from(row.try_get_by_index::<i64>(2)?).unwrap_or(0);
            let waiting = u64::try_from(row.try_get_by_index::<i64>(3)?).unwrap_or(0);
            *count.by_project.entry(project).or_default() += deliveries;
            match row.try_get_by_index(1)? {
                PARKED_PAUSED => count.paused += waiting,
                PARKED_BREAKER => count.breaker += waiting,
                PARKED_RATE => count.rate_limit += waiting,
                _ => {}
            }
        }
        Ok(count)
    }

    /// Connections of each pool: its name, how many are open, how many of them idle.
    pub fn pool_use(&self) -> Vec<(&'static str, u32, usize)> {
        let (own, calls, read) = (&self.inner.own, &self.inner.calls, &self.inner.read);
        match &self.inner.writers {
            Writers::Postgres { service, ingest, engine } => {
                let pools = [
                    ("service", service),
                    ("ingest", ingest),
                    ("engine", engine),
                    ("own", own),
                    ("calls", calls),
                    ("read", read),
                ];
                pools.map(|(name, pool)| (name, pool.get_postgres_connection_pool())).map(counts).into()
            }
            Writers::Sqlite(writer) => {
                let pools = [("own", own), ("calls", calls), ("read", read)];
                let readers = pools.map(|(name, pool)| (name, pool.get_sqlite_connection_pool())).map(counts);
                [("write", 1, usize::from(writer.is_idle()))].into_iter().chain(readers).collect()
            }
        }
    }
}

fn counts<D: sqlx::Database>((name, pool): (&'static str, &sqlx::Pool<D>)) -> (&'static str, u32, usize) {
    (name, pool.size(), pool.num_idle())
}
