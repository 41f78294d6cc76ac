//! The change log: writing a transaction's record, and reading records in their order.

use sea_orm::{ConnectionTrait, DbBackend, QueryResult, Statement, Value};
use uuid::Uuid;

use super::Store;
use super::error::{Result, StoreError};
use crate::domain::change::{self, Change, ChangeRecord};
use crate::domain::clock::Timestamp;

/// Any number will do, so long as all versions agree: held from drawing a position to the commit.
const POSITION_LOCK: i64 = 0x6861_7773_6572_0002;

/// Writes the record; nothing may follow it but the commit.
pub(super) async fn append(db: &impl ConnectionTrait, changes: &[Change]) -> Result<()> {
    let body = change::encode(changes).map_err(|error| StoreError::Corrupt(error.to_string()))?;
    let backend = db.get_database_backend();
    let sql = match backend {
        // MATERIALIZED, so that the lock is held before the position is drawn.
        DbBackend::Postgres => format!(
            "WITH held AS MATERIALIZED (SELECT pg_advisory_xact_lock({POSITION_LOCK})) \
             INSERT INTO changes (position, id, created_at, body) \
             SELECT nextval('changes_position'), $1, $2, $3 FROM held"
        ),
        _ => "INSERT INTO changes (id, created_at, body) VALUES ($1, $2, $3)".to_owned(),
    };
    let values = [Value::from(Uuid::now_v7()), Value::from(Timestamp::now().as_millis()), Value::from(body)];
    db.execute_raw(Statement::from_sql_and_values(backend, sql, values)).await?;
    Ok(())
}

/// Where reading the log begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangesFrom {
    /// The record at this position and later ones.
    At(i64),
    /// Later ones only.
    After(i64),
}

impl Store {
    /// Up to `limit` records in the order of commits.
    pub async fn changes(&self, from: ChangesFrom, limit: u32) -> Result<Vec<ChangeRecord>> {
        let after = match from {
            ChangesFrom::At(position) => position.saturating_sub(1),
            ChangesFrom::After(position) => position,
        };
        let sql =
            "SELECT position, created_at, body FROM changes WHERE position > $1 ORDER BY position LIMIT $2";
        let values = [Value::from(after), Value::from(i64::from(limit))];
        let statement = Statement::from_sql_and_values(self.backend(), sql, values);
        self.reader().query_all_raw(statement).await?.iter().map(read).collect()
    }

    /// The position of the newest record, 0 where there is none.
    pub async fn last_position(&self) -> Result<i64> {
        self.position("SELECT COALESCE(MAX(position), 0) FROM changes").await
    }

    /// The position of the oldest record that is kept, 0 where there is none.
    pub async fn earliest_position(&self) -> Result<i64> {
        self.position("SELECT COALESCE(MIN(position), 0) FROM changes").await
    }

    async fn position(&self, sql: &str) -> Result<i64> {
        let row = self.reader().query_one_raw(Statement::from_string(self.backend(), sql)).await?;
        row.map_or(Ok(0), |row| Ok(row.try_get_by_index(0)?))
    }
}

fn read(row: &QueryResult) -> Result<ChangeRecord> {
    let body: Vec<u8> = row.try_get_by_index(2)?;
    Ok(ChangeRecord {
        position: row.try_get_by_index(0)?,
        committed_at: Timestamp::from_millis(row.try_get_by_index(1)?),
        changes: change::decode(&body).map_err(|error| StoreError::Corrupt(error.to_string()))?,
    })
}
