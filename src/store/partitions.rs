//! Weekly partitions of the hot tables on PostgreSQL, made ahead of time. SQLite has none.

use std::time::Duration;

use sea_orm::{ConnectionTrait, DbBackend};
use uuid::Uuid;

use super::Store;
use super::error::Result;
use crate::domain::clock::Timestamp;

/// Each partitioned table with the storage settings of its partitions.
const TABLES: [(&str, &str); 4] = [
    ("events", "autovacuum_vacuum_insert_scale_factor = 0.1"),
    ("deliveries", "fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02"),
    ("attempts", "autovacuum_vacuum_insert_scale_factor = 0.1"),
    ("changes", "autovacuum_vacuum_insert_scale_factor = 0.1"),
];

const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);
/// This week's and the next two.
const WEEKS_AHEAD: i64 = 3;

impl Store {
    /// Makes the partitions of this week and the next ones where they are missing. Idempotent.
    pub async fn make_partitions(&self) -> Result<()> {
        if self.inner.backend != DbBackend::Postgres {
            return Ok(());
        }
        let week = i64::try_from(WEEK.as_millis()).unwrap_or(i64::MAX);
        let this_week = Timestamp::now().as_millis().div_euclid(week);
        for number in this_week..this_week + WEEKS_AHEAD {
            let (from, to) = (first_id(number * week), first_id((number + 1) * week));
            for (table, storage) in TABLES {
                let sql = format!(
                    "CREATE TABLE IF NOT EXISTS {table}_w{number} PARTITION OF {table} \
                     FOR VALUES FROM ('{from}') TO ('{to}') WITH ({storage})"
                );
                self.inner.write.execute_unprepared(&sql).await?;
            }
        }
        Ok(())
    }
}

/// The least UUIDv7 of a millisecond; times before 1970 count as 1970.
pub(super) fn first_id(millis: i64) -> Uuid {
    Uuid::from_u128(u128::from(millis.max(0).cast_unsigned() & 0xffff_ffff_ffff) << 80)
}
