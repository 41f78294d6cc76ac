//! Opening SQLite: its schema, one connection that writes, and readers, each of which ends a read that takes too long.
//!
//! A reader keeps the write-ahead log from beginning anew, and the driver runs a statement to its end even where nobody
//! waits for it any more. So no read may last: the connection itself breaks it off.

use std::fs::{File, OpenOptions};
use std::path::Path;
use std::time::Duration;

use hawser_migrations::{Migrator, MigratorTrait};
use sea_orm::{DbBackend, SqlxSqliteConnector};
use sqlx::ConnectOptions;
use sqlx::SqlitePool;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous,
};
use tokio::time::Instant;

use super::connect::{ACQUIRE_TIMEOUT, CALL_CONNECTIONS, OWN_CONNECTIONS, Pools, check_migrated};
use super::error::{Result, StoreError};
use super::session::Writer;
use super::silence::Suspicion;
use super::writers::Writers;

/// How long a caller may read at once.
const CALLERS_LONGEST: Duration = Duration::from_secs(1);
/// And the server itself, which asks for a bounded number of rows, or now and then for one look through the queue.
const OWN_LONGEST: Duration = Duration::from_secs(10);
/// Steps of SQLite's machine between two looks at the clock: a fraction of a millisecond.
const STEPS: i32 = 10_000;
/// What is left of the log's file where it begins anew.
pub(super) const LOG_KEPT: &str = "67108864";

pub(super) async fn open_sqlite(path: &Path, read_connections: u32, migrate: bool) -> Result<Pools> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder)
            .map_err(|error| StoreError::Setup(format!("cannot make {}: {error}", folder.display())))?;
    }
    let lock = lock_file(path)?;
    let migrating = options(path).create_if_missing(true).journal_mode(SqliteJournalMode::Wal);
    let migrating = SqlitePoolOptions::new().max_connections(1).connect_with(migrating).await?;
    let schema = SqlxSqliteConnector::from_sqlx_sqlite_pool(migrating.clone());
    match migrate {
        true => Migrator::up(&schema, None).await?,
        false => check_migrated(&schema).await?,
    }
    let writer = Writer::open(path)?;
    // After the writer is open: the last connection that closes moves all of the log.
    migrating.close().await;
    let own = readers(path, OWN_CONNECTIONS, OWN_LONGEST);
    let calls = readers(path, CALL_CONNECTIONS, CALLERS_LONGEST);
    let read = readers(path, read_connections, CALLERS_LONGEST);
    Ok(Pools {
        backend: DbBackend::Sqlite,
        writers: Writers::Sqlite(writer),
        own: SqlxSqliteConnector::from_sqlx_sqlite_pool(own),
        calls: SqlxSqliteConnector::from_sqlx_sqlite_pool(calls),
        read: SqlxSqliteConnector::from_sqlx_sqlite_pool(read),
        suspicion: Suspicion::default(),
        lock: Some(lock),
    })
}

/// What all connections have in common.
pub(super) fn options(path: &Path) -> SqliteConnectOptions {
    // The driver sets busy_timeout before any pragma, as switching to WAL needs.
    SqliteConnectOptions::new()
        .filename(path)
        .busy_timeout(Duration::from_secs(5))
        .foreign_keys(false)
        // A commit is on the disk before it is acknowledged, and what a checkpoint moves before the log goes.
        .synchronous(SqliteSynchronous::Full)
        .pragma("journal_size_limit", LOG_KEPT)
        .disable_statement_logging()
}

/// Connections that only read, each no longer at once than `longest`. They are opened when they are needed.
fn readers(path: &Path, most: u32, longest: Duration) -> SqlitePool {
    SqlitePoolOptions::new()
        .max_connections(most)
        .min_connections(0)
        .test_before_acquire(false)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .after_connect(move |connection, _| Box::pin(end_after(connection, longest)))
        .before_acquire(move |connection, _| {
            Box::pin(async move { end_after(connection, longest).await.map(|()| true) })
        })
        .connect_lazy_with(options(path).pragma("query_only", "on"))
}

/// Whoever takes the connection now has it for so long; what it reads then is broken off.
async fn end_after(connection: &mut SqliteConnection, longest: Duration) -> Result<(), sqlx::Error> {
    let end = Instant::now() + longest;
    connection.lock_handle().await?.set_progress_handler(STEPS, move || Instant::now() < end);
    Ok(())
}

/// One process per file: two would both believe all old claims to be a dead process's.
fn lock_file(path: &Path) -> Result<File> {
    let lock_path = path.with_added_extension("lock");
    let describe =
        |error: std::io::Error| StoreError::Setup(format!("cannot lock {}: {error}", lock_path.display()));
    let file =
        OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path).map_err(describe)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(StoreError::Setup(format!(
            "another hawser process uses {}; a SQLite store has one process, PostgreSQL takes many",
            path.display()
        ))),
        Err(std::fs::TryLockError::Error(error)) => Err(describe(error)),
    }
}
