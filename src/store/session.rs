//! SQLite's only writing connection. Its statements run where they are called for: no thread of the driver's stands between,
//! which would cost more than most of them do.
//!
//! So they block whoever calls, for as long as a commit takes to reach the disk; the runtime is told, and goes on with
//! other tasks on another thread. The engine's writer, which calls most of all, has a thread of its own.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, OpenFlags, ToSql};
use sea_orm::sea_query::ColumnType;
use sea_orm::{
    ActiveModelTrait, ColumnTrait, ConnAcquireErr, DbBackend, DbErr, EntityTrait, IdenStatic, Iterable,
    QueryTrait, Select, Statement, TryIntoModel, Value,
};
use tokio::sync::OwnedMutexGuard;

use super::connect::ACQUIRE_TIMEOUT;
use super::db::{Row, Stored};
use super::error::{Result, StoreError};
use super::sqlite::LOG_KEPT;

/// Texts of statements that are kept prepared: all that the engine runs, and many of what people's calls do.
const PREPARED: usize = 256;
/// A longer text, such as one of many rows, hardly comes again, and would take its memory for nothing.
const PREPARED_LONGEST: usize = 8 * 1024;
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The connection, which one at a time may use.
#[derive(Clone)]
pub(super) struct Writer(Arc<tokio::sync::Mutex<Option<Connection>>>);

/// The connection while it is ours. Dropped inside a transaction, it undoes that.
pub(super) struct Session {
    connection: Mutex<OwnedMutexGuard<Option<Connection>>>,
    /// A transaction was begun: a statement outside it would be one of its own.
    begun: bool,
}

/// A statement to be run once or more often.
pub(super) struct Runs {
    pub text: String,
    /// Names of the values that one run takes, where they have names; without, all are for one run.
    pub names: Vec<&'static str>,
    /// Those of all runs, one after the other.
    pub values: Vec<Value>,
}

impl Writer {
    /// Opens the file, which must be there.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let connection = Connection::open_with_flags(
            path,
            OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        // A commit is on the disk before it is acknowledged.
        connection.execute_batch(&format!(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = OFF; \
             PRAGMA temp_store = MEMORY; PRAGMA cache_size = -16000; PRAGMA journal_size_limit = {LOG_KEPT}"
        ))?;
        connection.set_prepared_statement_cache_capacity(PREPARED);
        Ok(Self(Arc::new(tokio::sync::Mutex::new(Some(connection)))))
    }

    /// Waits for its turn. Turns are given in the order in which they were asked for.
    pub(super) async fn session(&self) -> Result<Session> {
        let guard = tokio::time::timeout(ACQUIRE_TIMEOUT, self.0.clone().lock_owned())
            .await
            .map_err(|_| DbErr::ConnectionAcquire(ConnAcquireErr::Timeout))?;
        let session = Session { connection: Mutex::new(guard), begun: false };
        session.with(|connection| match connection.is_autocommit() {
            true => Ok(()),
            // Whoever had it before could not undo what was begun.
            false => Ok(connection.execute_batch("ROLLBACK")?),
        })?;
        Ok(session)
    }

    /// Waits for its turn and begins a transaction that writes.
    pub(super) async fn begin(&self) -> Result<Session> {
        let mut session = self.session().await?;
        // A deferred one could fail when it first writes, and waiting would not help.
        session.with(|connection| run(connection, "BEGIN IMMEDIATE"))?;
        session.begun = true;
        Ok(session)
    }

    /// Whether nobody uses it.
    pub(super) fn is_idle(&self) -> bool {
        self.0.try_lock().is_ok()
    }

    /// Closes it once it is idle.
    pub(super) async fn close(&self) -> Result<()> {
        let Some(connection) = self.0.lock().await.take() else { return Ok(()) };
        // Aside, since it may move a long log, and whoever waits for it has a limit.
        let closed =
            tokio::task::spawn_blocking(move || connection.close().map_err(|(_, error)| error)).await;
        Ok(closed.map_err(|error| StoreError::Setup(format!("closing the database: {error}")))??)
    }
}

impl Session {
    pub(super) fn commit(mut self) -> Result<()> {
        self.with(|connection| run(connection, "COMMIT"))?;
        self.begun = false;
        Ok(())
    }

    pub(super) fn rollback(mut self) -> Result<()> {
        self.begun = false;
        // SQLite may have undone it by itself.
        self.with(|connection| if connection.is_autocommit() { Ok(()) } else { run(connection, "ROLLBACK") })
    }

    /// Returns all rows that the runs return.
    pub(super) fn query(&self, runs: &Runs) -> Result<Vec<Row>> {
        self.with(|connection| {
            let mut statement = connection.prepare_cached(&runs.text)?;
            let (places, columns) = (runs.places(&statement)?, statement.column_count());
            let mut found = Vec::new();
            for values in runs.each() {
                bind(&mut statement, &places, values)?;
                let mut rows = statement.raw_query();
                while let Some(row) = rows.next()? {
                    let values = (0..columns).map(|at| row.get_ref(at).map(Stored::from));
                    found.push(Row::Sqlite(values.collect::<Result<_, _>>()?));
                }
            }
            Ok(found)
        })
    }

    /// Says how many rows the runs changed.
    pub(super) fn execute(&self, runs: &Runs) -> Result<u64> {
        Ok(self.counts(runs)?.into_iter().sum())
    }

    /// Says which of the runs changed something.
    pub(super) fn changed(&self, runs: &Runs) -> Result<Vec<bool>> {
        Ok(self.counts(runs)?.into_iter().map(|changed| changed > 0).collect())
    }

    /// How many rows each run changed.
    fn counts(&self, runs: &Runs) -> Result<Vec<u64>> {
        self.with(|connection| {
            let mut statement = connection.prepare_cached(&runs.text)?;
            let places = runs.places(&statement)?;
            let count = |values| {
                bind(&mut statement, &places, values)?;
                Ok(statement.raw_execute()? as u64)
            };
            let counts = runs.each().map(count).collect();
            if runs.text.len() > PREPARED_LONGEST {
                statement.discard();
            }
            counts
        })
    }

    /// The number of the row that was inserted last.
    pub(super) fn last_inserted(&self) -> Result<i64> {
        self.with(|connection| Ok(connection.last_insert_rowid()))
    }

    /// Runs statements without parameters.
    pub(super) fn run_text(&self, sql: &str) -> Result<()> {
        self.with(|connection| Ok(connection.execute_batch(sql)?))
    }

    /// What a select of an entity finds.
    pub(super) fn models<E: EntityTrait>(&self, select: &Select<E>) -> Result<Vec<E::Model>>
    where
        E::ActiveModel: TryIntoModel<E::Model>,
    {
        let runs = Runs::from(select.build(DbBackend::Sqlite));
        self.with(|connection| {
            let mut prepared = connection.prepare_cached(&runs.text)?;
            let places = runs.places(&prepared)?;
            bind(&mut prepared, &places, &runs.values)?;
            let mut rows = prepared.raw_query();
            let mut models = Vec::new();
            while let Some(row) = rows.next()? {
                let mut model = <E::ActiveModel as ActiveModelTrait>::default();
                for column in E::Column::iter() {
                    model.try_set(column, typed(column.def().get_column_type(), row, column.as_str())?)?;
                }
                models.push(model.try_into_model()?);
            }
            Ok(models)
        })
    }

    /// Uses the connection. It may wait for the disk, or for another process that writes.
    fn with<T>(&self, work: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        let guard = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let closed = || DbErr::ConnectionAcquire(ConnAcquireErr::ConnectionClosed);
        let connection = guard.as_ref().ok_or_else(closed)?;
        if self.begun && connection.is_autocommit() {
            return Err(StoreError::Interrupted);
        }
        tokio::task::block_in_place(|| work(connection))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let guard = self.connection.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(connection) = guard.as_ref()
            && !connection.is_autocommit()
            && let Err(error) = connection.execute_batch("ROLLBACK")
        {
            // Whoever has it next tries again.
            tracing::warn!(error = %error, "a transaction could not be undone at once");
        }
    }
}

fn run(connection: &Connection, sql: &str) -> Result<()> {
    connection.prepare_cached(sql)?.raw_execute()?;
    Ok(())
}

impl Runs {
    /// The values of each run; without values there is one run.
    fn each(&self) -> impl Iterator<Item = &[Value]> {
        let once = self.values.is_empty().then_some(self.values.as_slice());
        once.into_iter().chain(self.values.chunks(self.width().max(1)))
    }

    fn width(&self) -> usize {
        if self.names.is_empty() { self.values.len() } else { self.names.len() }
    }

    /// Which value each parameter takes: `$2` the second, `:name` the one of that name, and `?` the next.
    fn places(&self, statement: &rusqlite::Statement<'_>) -> Result<Vec<usize>> {
        let mut next = 0..;
        let place = |parameter| {
            let name = statement.parameter_name(parameter).unwrap_or("?");
            let place = match name.split_at(1) {
                ("$", number) => number.parse::<usize>().ok().and_then(|number| number.checked_sub(1)),
                (":", name) => self.names.iter().position(|known| *known == name),
                _ => next.next(),
            };
            place
                .filter(|place| *place < self.width())
                .ok_or_else(|| StoreError::Statement(format!("parameter {name} has no value")))
        };
        (1..=statement.parameter_count()).map(place).collect()
    }
}

impl From<Statement> for Runs {
    /// One run.
    fn from(statement: Statement) -> Self {
        let values = statement.values.map_or_else(Vec::new, |values| values.0);
        Self { text: statement.sql, names: Vec::new(), values }
    }
}

fn bind(statement: &mut rusqlite::Statement<'_>, places: &[usize], values: &[Value]) -> Result<()> {
    for (at, place) in places.iter().enumerate() {
        statement.raw_bind_parameter(at + 1, Bound(&values[*place]))?;
    }
    Ok(())
}

/// A value as SQLite stores it.
struct Bound<'a>(&'a Value);

impl ToSql for Bound<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        let integer = |number: Option<i64>| number.map_or(ValueRef::Null, ValueRef::Integer);
        let value = match self.0 {
            Value::Bool(flag) => integer(flag.map(i64::from)),
            Value::SmallInt(number) => integer(number.map(i64::from)),
            Value::Int(number) => integer(number.map(i64::from)),
            Value::BigInt(number) => integer(*number),
            Value::BigUnsigned(number) => {
                let number = number.map(i64::try_from).transpose();
                integer(number.map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?)
            }
            Value::String(text) => {
                text.as_ref().map_or(ValueRef::Null, |text| ValueRef::Text(text.as_bytes()))
            }
            Value::Bytes(bytes) => bytes.as_ref().map_or(ValueRef::Null, |bytes| ValueRef::Blob(bytes)),
            Value::Uuid(id) => id.as_ref().map_or(ValueRef::Null, |id| ValueRef::Blob(id.as_bytes())),
            _ => return Err(rusqlite::Error::ToSqlConversionFailure("no column holds such a value".into())),
        };
        Ok(ToSqlOutput::Borrowed(value))
    }
}

/// A column's value as the type that its entity declares: SQLite knows one kind of integer, of which no other could be read.
fn typed(kind: &ColumnType, row: &rusqlite::Row<'_>, name: &str) -> Result<Value> {
    Ok(match kind {
        ColumnType::Boolean => Value::Bool(row.get(name)?),
        ColumnType::SmallInteger => Value::SmallInt(row.get(name)?),
        ColumnType::Integer => Value::Int(row.get(name)?),
        ColumnType::BigInteger => Value::BigInt(row.get(name)?),
        ColumnType::Uuid => Value::Uuid(row.get(name)?),
        ColumnType::String(_) | ColumnType::Text => Value::String(row.get(name)?),
        ColumnType::Binary(_) | ColumnType::VarBinary(_) | ColumnType::Blob => Value::Bytes(row.get(name)?),
        _ => return Err(StoreError::Statement(format!("column {name} is of a type that is not read"))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(folder: &tempfile::TempDir) -> Writer {
        let path = folder.path().join("a.db");
        Connection::open(&path).unwrap().execute_batch("CREATE TABLE t (a INTEGER, b TEXT)").unwrap();
        Writer::open(&path).unwrap()
    }

    fn rows(session: &Session) -> Vec<(Option<i64>, Option<String>)> {
        let all = Statement::from_string(DbBackend::Sqlite, "SELECT a, b FROM t ORDER BY rowid");
        let rows = session.query(&all.into()).unwrap();
        rows.iter().map(|row| (row.try_get_by_index(0).unwrap(), row.try_get_by_index(1).unwrap())).collect()
    }

    fn insert(values: &str, given: [Value; 2], names: &[&'static str]) -> Runs {
        Runs { text: format!("INSERT INTO t VALUES ({values})"), names: names.into(), values: given.into() }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_dropped_transaction_is_undone() {
        let folder = tempfile::tempdir().unwrap();
        let writer = opened(&folder);
        let session = writer.begin().await.unwrap();
        session.execute(&insert("?, ?", [1.into(), "a".into()], &[])).unwrap();
        drop(session);
        let session = writer.begin().await.unwrap();
        assert_eq!(rows(&session), []);
        session.execute(&insert("?, ?", [2.into(), "b".into()], &[])).unwrap();
        session.commit().unwrap();
        assert_eq!(rows(&writer.session().await.unwrap()), [(Some(2), Some("b".to_owned()))]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn no_statement_runs_after_sqlite_ended_the_transaction() {
        let folder = tempfile::tempdir().unwrap();
        let writer = opened(&folder);
        let session = writer.begin().await.unwrap();
        session.run_text("ROLLBACK").unwrap();
        let late = session.execute(&insert("?, ?", [1.into(), "a".into()], &[]));
        assert!(matches!(late, Err(StoreError::Interrupted)), "{late:?}");
        assert!(session.commit().is_err());
        let session = writer.begin().await.unwrap();
        session.run_text("ROLLBACK").unwrap();
        session.rollback().unwrap();
        assert_eq!(rows(&writer.session().await.unwrap()), []);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn each_parameter_takes_its_value() {
        let folder = tempfile::tempdir().unwrap();
        let session = opened(&folder).begin().await.unwrap();
        session.execute(&insert("$2, $1", ["a".into(), 1.into()], &[])).unwrap();
        session.execute(&insert(":n + :n, :text", ["b".into(), 1.into()], &["text", "n"])).unwrap();
        session.execute(&insert("?, ?", [Value::Int(None), Value::String(None)], &[])).unwrap();
        assert_eq!(
            rows(&session),
            [(Some(1), Some("a".to_owned())), (Some(2), Some("b".to_owned())), (None, None)]
        );
        let missing = session.execute(&insert("$1, $3", ["a".into(), 1.into()], &[]));
        assert!(missing.is_err());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_statement_runs_once_for_each_row() {
        let folder = tempfile::tempdir().unwrap();
        let session = opened(&folder).begin().await.unwrap();
        let names = vec!["a", "b"];
        let values = vec![1.into(), "a".into(), 2.into(), "b".into()];
        let runs = Runs { text: "INSERT INTO t VALUES (:a, :b)".to_owned(), names: names.clone(), values };
        assert_eq!(session.execute(&runs).unwrap(), 2);
        let values = vec![2.into(), "b".into(), 3.into(), "c".into()];
        let runs = Runs { text: "DELETE FROM t WHERE a = :a AND b = :b".to_owned(), names, values };
        assert_eq!(session.changed(&runs).unwrap(), [true, false]);
    }
}
