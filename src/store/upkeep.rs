//! Housekeeping in bounded statements.

use sea_orm::{Statement, Value};

use super::Store;
use super::error::Result;
use crate::domain::clock::Timestamp;

const EXPIRED_BATCH: i64 = 5000;

impl Store {
    /// Forgets idempotency keys and request ids whose time is up; a bounded number each time.
    pub async fn forget_expired_keys(&self) -> Result<()> {
        for sql in [
            "DELETE FROM idempotency_keys WHERE (project_id, key) IN \
             (SELECT project_id, key FROM idempotency_keys WHERE expires_at <= $1 LIMIT $2)",
            "DELETE FROM rotation_requests WHERE (project_id, request_id) IN \
             (SELECT project_id, request_id FROM rotation_requests WHERE expires_at <= $1 LIMIT $2)",
        ] {
            let values = [Value::from(Timestamp::now().as_millis()), Value::from(EXPIRED_BATCH)];
            let statement = Statement::from_sql_and_values(self.backend(), sql, values);
            self.inner.writers.engine().await?.db().execute_raw(statement).await?;
        }
        Ok(())
    }

    /// Asks the database for a sign of life, on connections that callers cannot use up.
    pub async fn ping(&self) -> Result<()> {
        self.own_reader().execute_unprepared("SELECT 1").await?;
        Ok(())
    }
}
