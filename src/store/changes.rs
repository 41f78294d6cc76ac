//! The change log: writing a transaction's record, reading records in their order, and forgetting the oldest.

use sea_orm::{DbBackend, Statement, Value};
use uuid::Uuid;

use super::db::{Db, Row};
use super::error::{Result, StoreError};
use super::rows::Script;
use super::{Lane, Reads, Store};
use crate::domain::change::{self, Change, ChangeRecord, Cursor};
use crate::domain::clock::Timestamp;

/// Any number will do, so long as all versions agree: held from drawing a position to the commit.
const POSITION_LOCK: i64 = 0x6861_7773_6572_0002;

/// Writes what was left for the end, then the record; nothing may follow it but the commit.
pub(super) async fn append(db: Db<'_>, before: Script, changes: Vec<Change>) -> Result<ChangeRecord> {
    let committed_at = Timestamp::now();
    let body = change::encode(&changes).map_err(|error| StoreError::Corrupt(error.to_string()))?;
    let values = [Value::from(Uuid::now_v7()), Value::from(committed_at.as_millis()), Value::from(body)];
    let position = match db {
        Db::Session(session) => {
            before.run(db).await?;
            let sql = "INSERT INTO changes (id, created_at, body) VALUES ($1, $2, $3)";
            session.execute(&Statement::from_sql_and_values(DbBackend::Sqlite, sql, values).into())?;
            session.last_inserted()?
        }
        _ => {
            // One round trip with what was left for the end, which comes first: the lock is held from drawing the position
            // to the commit, and no longer.
            let sql = |first: usize| {
                format!(
                    ", held AS MATERIALIZED (SELECT pg_advisory_xact_lock({POSITION_LOCK}) FROM before WHERE n >= 0) \
                     INSERT INTO changes (position, id, created_at, body) \
                     SELECT nextval('changes_position'), ${first}, ${}, ${} FROM held RETURNING position",
                    first + 1,
                    first + 2
                )
            };
            let statement = before.ended(sql, values);
            let drawn = db.query_one_raw(statement).await?;
            drawn
                .ok_or_else(|| StoreError::Corrupt("no position was drawn".to_owned()))?
                .try_get_by_index(0)?
        }
    };
    Ok(ChangeRecord { position, committed_at, changes })
}

/// Records that follow a cursor, in the order of commits.
pub struct ChangePage {
    pub records: Vec<ChangeRecord>,
    /// There may be more at once.
    pub full: bool,
}

/// How far the log reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogBounds {
    /// The position of the newest record that was forgotten, 0 where none was.
    pub floor: i64,
    /// The position of the newest record, 0 where there is none.
    pub last: i64,
}

/// The highest position that was forgotten, as eight bytes of `store_meta`; absent before the first.
const FLOOR: &str = "changes_floor";

impl Store {
    /// What follows the cursor: at most so many records of so many encoded bytes, but one at least if there is
    /// one. `None` where some of what follows was forgotten.
    pub async fn changes(
        &self,
        reads: Reads,
        from: Cursor,
        records: u32,
        bytes: u32,
    ) -> Result<Option<ChangePage>> {
        let after = if from.is_whole() { from.position } else { from.position.saturating_sub(1) };
        // The floor is read by the same statement, so from the same snapshot: where nothing at all follows,
        // nothing was missed, because the newest record is never forgotten. The limit is no parameter: SQLite would plan
        // the statement anew each time.
        let sql = format!(
            "SELECT position, created_at, body, (SELECT value FROM store_meta WHERE name = '{FLOOR}') FROM \
             (SELECT position, created_at, body, SUM(LENGTH(body)) OVER (ORDER BY position) AS upto FROM \
             (SELECT position, created_at, body FROM changes WHERE position > $1 ORDER BY position LIMIT {records}) AS page) \
             AS sized WHERE upto - LENGTH(body) < $2 ORDER BY position"
        );
        let values = [Value::from(after), Value::from(i64::from(bytes))];
        let statement = Statement::from_sql_and_values(self.backend(), sql, values);
        let rows = self.reader_of(reads).query_all_raw(statement).await?;
        if let Some(row) = rows.first()
            && !from.has_passed(floor(row.try_get_by_index(3)?)?)
        {
            return Ok(None);
        }
        let read: usize = rows.len();
        let mut size = 0;
        let mut page = ChangePage { records: Vec::with_capacity(read), full: read == records as usize };
        for row in &rows {
            let (record, length) = read_record(row)?;
            size += length;
            page.records.push(record);
        }
        page.full |= size >= bytes as usize;
        Ok(Some(page))
    }

    pub async fn log_bounds(&self, reads: Reads) -> Result<LogBounds> {
        let sql = format!(
            "SELECT (SELECT value FROM store_meta WHERE name = '{FLOOR}'), \
             COALESCE((SELECT MAX(position) FROM changes), 0)"
        );
        let row = self.reader_of(reads).query_one_raw(Statement::from_string(self.backend(), sql)).await?;
        let row = row.ok_or_else(|| StoreError::Corrupt("the bounds of the change log".to_owned()))?;
        Ok(LogBounds { floor: floor(row.try_get_by_index(0)?)?, last: row.try_get_by_index(1)? })
    }

    /// Forgets records from before `before`: oldest first, at most `limit`, never the newest of all. Says
    /// whether there may be more. Safe on several nodes at once.
    pub async fn forget_changes(&self, before: Timestamp, limit: u32) -> Result<bool> {
        // Oldest first by position: clocks of nodes differ, and what is forgotten must have no hole.
        let sql = "SELECT position, created_at FROM changes ORDER BY position LIMIT $1";
        let values = [Value::from(i64::from(limit) + 1)];
        let statement = Statement::from_sql_and_values(self.backend(), sql, values);
        let rows = self.own_reader().query_all_raw(statement).await?;
        let mut upto = None;
        // The last row read may be the newest of all.
        for row in rows.iter().take(rows.len().saturating_sub(1)) {
            if row.try_get_by_index::<i64>(1)? >= before.as_millis() {
                break;
            }
            upto = Some(row.try_get_by_index::<i64>(0)?);
        }
        let Some(upto) = upto else { return Ok(false) };
        let tx = self.begin(Lane::Engine).await?;
        // Raised in the transaction that deletes, so that no reader sees the hole without the floor. Positive
        // numbers as big-endian bytes compare like numbers.
        let raise = "INSERT INTO store_meta (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE \
                     SET value = excluded.value WHERE store_meta.value < excluded.value";
        let values = [Value::from(FLOOR), Value::from(upto.to_be_bytes().to_vec())];
        tx.db().execute_raw(Statement::from_sql_and_values(self.backend(), raise, values)).await?;
        let forget = "DELETE FROM changes WHERE position <= $1";
        tx.db()
            .execute_raw(Statement::from_sql_and_values(self.backend(), forget, [Value::from(upto)]))
            .await?;
        tx.commit().await?;
        Ok(rows.len() > limit as usize)
    }
}

fn floor(stored: Option<Vec<u8>>) -> Result<i64> {
    let Some(stored) = stored else { return Ok(0) };
    let bytes =
        stored.try_into().map_err(|_| StoreError::Corrupt("the floor of the change log".to_owned()))?;
    Ok(i64::from_be_bytes(bytes))
}

fn read_record(row: &Row) -> Result<(ChangeRecord, usize)> {
    let body: Vec<u8> = row.try_get_by_index(2)?;
    let record = ChangeRecord {
        position: row.try_get_by_index(0)?,
        committed_at: Timestamp::from_millis(row.try_get_by_index(1)?),
        changes: change::decode(&body).map_err(|error| StoreError::Corrupt(error.to_string()))?,
    };
    Ok((record, body.len()))
}
