//! Checkpoints: SQLite's write-ahead log is moved into the database's file by a connection of its own, so that no commit
//! waits for it. PostgreSQL sees to its own.
//!
//! A PASSIVE checkpoint moves what is committed and waits for nobody. But the log begins anew only where a writer finds
//! all of it moved and nobody reading from it, and under steady load there is always a commit that came after. So once
//! the log is long the writer rests for a moment: what was committed since the last checkpoint is moved, and readers are
//! waited for, briefly; for longer where the log is twice as long. No reader of ours lasts (see [`super::sqlite`]), so
//! that is what bounds it; only another process that reads the file can keep it growing, until it ends. Commits wait for
//! such a one each time the log has doubled.
//!
//! The commands that open the store without this leave checkpoints to the commits, as SQLite does by itself.

use std::time::Duration;

use sqlx::sqlite::SqliteConnection;
use sqlx::{ConnectOptions, Connection, Executor, Row};

use super::Store;
use super::connect::DatabaseUrl;
use super::error::Result;
use super::session::Writer;
use super::writers::Writers;

/// Pages (4 KiB) that wait to be moved before any are: as many as SQLite itself lets come together, since a page that
/// changed often is moved once.
const MOVE_AT: i64 = 1_000;
/// Pages of the log with which the writer rests for a moment, so that it can begin anew: 32 MiB.
const RENEW_AT: i64 = 8_000;
/// And with which it rests for as long as a reader of ours may last: 64 MiB.
const RENEW_BY_FORCE_AT: i64 = 16_000;
/// How long the writer rests for readers: what nobody notices, and twice what callers' reads last, since one may begin just
/// before the log is moved and one just after.
const MOMENT: Duration = Duration::from_millis(20);
const READERS_END: Duration = Duration::from_millis(2_500);

/// Makes the checkpoints, on a connection of its own.
pub struct Checkpoints {
    connection: SqliteConnection,
    writer: Writer,
    /// The length of the log from which the writer rests for longer.
    force_at: i64,
}

/// Pages in the log, and those of them that are in the database's file too.
#[derive(Clone, Copy)]
struct Log {
    pages: i64,
    moved: i64,
}

impl Store {
    /// Takes over the checkpoints from the commits; none on PostgreSQL.
    pub async fn checkpoints(&self) -> Result<Option<Checkpoints>> {
        let (DatabaseUrl::Sqlite(path), Writers::Sqlite(writer)) = (&self.inner.url, &self.inner.writers)
        else {
            return Ok(None);
        };
        let connection = super::sqlite::options(path).connect().await?;
        writer.session().await?.run_text("PRAGMA wal_autocheckpoint = 0")?;
        Ok(Some(Checkpoints { connection, writer: writer.clone(), force_at: RENEW_BY_FORCE_AT }))
    }

    /// Waits for the next commit of this process, or for none if there was one since the last wait.
    pub async fn written(&self) {
        self.inner.written.notified().await;
    }
}

impl Checkpoints {
    /// Moves what has come together.
    pub async fn advance(&mut self) -> Result<()> {
        let log = self.run("PRAGMA wal_checkpoint(NOOP)").await?;
        if log.pages - log.moved < MOVE_AT {
            return Ok(());
        }
        // Whatever its length, most of it is moved while the writer goes on.
        let log = self.run("PRAGMA wal_checkpoint(PASSIVE)").await?;
        if log.pages < RENEW_AT {
            return Ok(());
        }
        let by_force = log.pages >= self.force_at;
        let patience = if by_force { READERS_END } else { MOMENT };
        let done = self.with_writer_at_rest("PRAGMA wal_checkpoint(RESTART)", patience).await?;
        if done {
            self.force_at = RENEW_BY_FORCE_AT;
        } else if by_force {
            // It outlasts every reader of ours: waiting again and again would only keep the commits waiting.
            self.force_at = 2 * log.pages;
            tracing::warn!(
                pages = log.pages,
                "the database's log cannot begin anew: something reads from it"
            );
        }
        Ok(())
    }

    /// Moves all of the log and makes its file empty; says whether that could be done.
    pub async fn empty(&mut self) -> Result<bool> {
        self.run("PRAGMA wal_checkpoint(PASSIVE)").await?;
        self.with_writer_at_rest("PRAGMA wal_checkpoint(TRUNCATE)", MOMENT).await
    }

    pub async fn close(self) -> Result<()> {
        Ok(self.connection.close().await?)
    }

    /// Nobody here writes until it ends, and nobody waits by trying again and again.
    async fn with_writer_at_rest(&mut self, checkpoint: &'static str, patience: Duration) -> Result<bool> {
        let timeout = format!("PRAGMA busy_timeout = {}", patience.as_millis());
        self.connection.execute(sqlx::AssertSqlSafe(timeout)).await?;
        let _resting = self.writer.session().await?;
        let row = self.connection.fetch_one(checkpoint).await?;
        Ok(row.try_get::<i64, _>(0)? == 0)
    }

    async fn run(&mut self, checkpoint: &'static str) -> Result<Log> {
        let row = self.connection.fetch_one(checkpoint).await?;
        Ok(Log { pages: row.try_get(1)?, moved: row.try_get(2)? })
    }
}
