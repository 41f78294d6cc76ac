//! Weekly partitions of the hot tables on PostgreSQL, made ahead of time. SQLite has none.

use std::time::Duration;

use sea_orm::DbBackend;
use uuid::Uuid;

use super::error::Result;
use super::{Lane, Store};
use crate::domain::clock::Timestamp;

/// Each partitioned table with the storage settings of its partitions.
const TABLES: [(&str, &str); 4] = [
    ("events", "autovacuum_vacuum_insert_scale_factor = 0.1"),
    ("deliveries", "fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02"),
    ("attempts", "autovacuum_vacuum_insert_scale_factor = 0.1"),
    ("changes", "autovacuum_vacuum_insert_scale_factor = 0.1"),
];

const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);
/// Any number will do, so long as all versions agree: one maker of partitions at a time.
const PARTITION_LOCK: i64 = 0x6861_7773_6572_0003;

/// This week's and the next two.
const WEEKS_AHEAD: i64 = 3;

impl Store {
    /// Makes the partitions of this week and the next ones where they are missing. Idempotent. One whose rows lie in the
    /// default partition already, because some node's clock was ahead, cannot be made: they stay there, and more of them
    /// come, which works as well but cannot be dropped by the week.
    pub async fn make_partitions(&self) -> Result<()> {
        if self.inner.backend != DbBackend::Postgres {
            return Ok(());
        }
        // Nodes that make the same one at once would collide. Other connections do the work, so that no partition's
        // lock is held longer than its own making takes.
        let guard = self.begin(Lane::Service).await?;
        guard.db().execute_unprepared("SET LOCAL idle_in_transaction_session_timeout = '60s'").await?;
        let lock = format!("SELECT pg_advisory_xact_lock({PARTITION_LOCK})");
        guard.db().execute_unprepared(&lock).await?;
        let week = i64::try_from(WEEK.as_millis()).unwrap_or(i64::MAX);
        let this_week = Timestamp::now().as_millis().div_euclid(week);
        let mut kept_out = Vec::new();
        for number in this_week..this_week + WEEKS_AHEAD {
            let (from, to) = (first_id(number * week), first_id((number + 1) * week));
            for (table, storage) in TABLES {
                let sql = format!(
                    "CREATE TABLE IF NOT EXISTS {table}_w{number} PARTITION OF {table} \
                     FOR VALUES FROM ('{from}') TO ('{to}') WITH ({storage})"
                );
                match self.inner.writers.service().await?.db().execute_unprepared(&sql).await {
                    Err(error) if error.is_check_violation() => kept_out.push(format!("{table}_w{number}")),
                    made => made?,
                }
            }
        }
        if !kept_out.is_empty() {
            tracing::warn!(
                partitions = kept_out.join(", "),
                "rows of these weeks are in the default partitions, written by a clock that was ahead"
            );
        }
        guard.rollback().await
    }
}

/// The least UUIDv7 of a millisecond; times before 1970 count as 1970.
pub(super) fn first_id(millis: i64) -> Uuid {
    Uuid::from_u128(u128::from(millis.max(0).cast_unsigned() & 0xffff_ffff_ffff) << 80)
}
