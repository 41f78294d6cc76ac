//! Housekeeping in bounded statements.

use sea_orm::{DbBackend, Statement, Value};

use super::Store;
use super::error::Result;
use crate::domain::clock::Timestamp;

/// A small part of a second, for which SQLite writes nothing else.
const EXPIRED_BATCH: i64 = 2000;

/// What is kept until a time of its own.
#[derive(Clone, Copy, Debug)]
pub enum Expiring {
    IdempotencyKeys,
    RotationRequests,
    DeletedOwners,
}

impl Expiring {
    pub const ALL: [Self; 3] = [Self::IdempotencyKeys, Self::RotationRequests, Self::DeletedOwners];

    /// The table, and the columns of its key.
    const fn table(self) -> (&'static str, &'static str) {
        match self {
            Self::IdempotencyKeys => ("idempotency_keys", "project_id, key"),
            Self::RotationRequests => ("rotation_requests", "project_id, request_id"),
            Self::DeletedOwners => ("deleted_owners", "endpoint_id"),
        }
    }
}

impl Store {
    /// Forgets what has expired, a bounded number of rows; says whether there may be more.
    pub async fn forget_expired(&self, what: Expiring) -> Result<bool> {
        let (table, key) = what.table();
        // What others hold, because they claim the same key anew or forget it too, is left to them.
        let lock = if self.backend() == DbBackend::Postgres { "FOR UPDATE SKIP LOCKED" } else { "" };
        let sql = format!(
            "DELETE FROM {table} WHERE ({key}) IN (SELECT {key} FROM {table} WHERE expires_at <= $1 LIMIT $2 {lock})"
        );
        let values = [Value::from(Timestamp::now().as_millis()), Value::from(EXPIRED_BATCH)];
        let statement = Statement::from_sql_and_values(self.backend(), sql, values);
        let forgotten = self.inner.writers.engine().await?.db().execute_raw(statement).await?;
        Ok(forgotten >= EXPIRED_BATCH.unsigned_abs())
    }

    /// Asks the database for a sign of life, on connections that callers cannot use up.
    pub async fn ping(&self) -> Result<()> {
        self.own_reader().execute_unprepared("SELECT 1").await?;
        Ok(())
    }
}
