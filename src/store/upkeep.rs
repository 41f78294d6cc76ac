//! Housekeeping in bounded statements.

use sea_orm::{Statement, Value};

use super::Store;
use super::error::Result;
use crate::domain::clock::Timestamp;

const EXPIRED_BATCH: i64 = 5000;

impl Store {
    /// Forgets idempotency keys, request ids and owners of deleted endpoints whose time is up; a bounded number each
    /// time. Says whether there may be
    /// more.
    pub async fn forget_expired_keys(&self) -> Result<bool> {
        let mut more = false;
        for sql in [
            "DELETE FROM idempotency_keys WHERE (project_id, key) IN \
             (SELECT project_id, key FROM idempotency_keys WHERE expires_at <= $1 LIMIT $2)",
            "DELETE FROM rotation_requests WHERE (project_id, request_id) IN \
             (SELECT project_id, request_id FROM rotation_requests WHERE expires_at <= $1 LIMIT $2)",
            "DELETE FROM deleted_owners WHERE endpoint_id IN \
             (SELECT endpoint_id FROM deleted_owners WHERE expires_at <= $1 LIMIT $2)",
        ] {
            let values = [Value::from(Timestamp::now().as_millis()), Value::from(EXPIRED_BATCH)];
            let statement = Statement::from_sql_and_values(self.backend(), sql, values);
            let forgotten = self.inner.writers.engine().await?.db().execute_raw(statement).await?;
            more |= forgotten >= EXPIRED_BATCH.unsigned_abs();
        }
        Ok(more)
    }

    /// Asks the database for a sign of life, on connections that callers cannot use up.
    pub async fn ping(&self) -> Result<()> {
        self.own_reader().execute_unprepared("SELECT 1").await?;
        Ok(())
    }
}
