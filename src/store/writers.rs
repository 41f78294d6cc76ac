//! What writes: PostgreSQL's pools, one for each kind of work, or SQLite's only writing connection.

use sea_orm::{DatabaseConnection, DatabaseTransaction, TransactionTrait};

use super::Lane;
use super::db::Db;
use super::error::Result;
use super::session::{Session, Writer};

/// Gives connections that write.
pub(super) enum Writers {
    Postgres { service: DatabaseConnection, ingest: DatabaseConnection, engine: DatabaseConnection },
    Sqlite(Writer),
}

/// A transaction that may write.
pub(super) enum Txn {
    Postgres(DatabaseTransaction),
    Sqlite(Session),
}

/// Runs statements each of which is a transaction of its own.
pub(super) enum Plain<'a> {
    Postgres(&'a DatabaseConnection),
    Sqlite(Session),
}

impl Writers {
    pub(super) async fn begin(&self, lane: Lane) -> Result<Txn> {
        match self {
            Self::Sqlite(writer) => Ok(Txn::Sqlite(writer.begin().await?)),
            Self::Postgres { service, ingest, engine } => {
                let pool = match lane {
                    Lane::Service => service,
                    Lane::Ingest => ingest,
                    Lane::Engine => engine,
                };
                Ok(Txn::Postgres(pool.begin().await?))
            }
        }
    }

    /// For services.
    pub(super) async fn service(&self) -> Result<Plain<'_>> {
        Ok(match self {
            Self::Sqlite(writer) => Plain::Sqlite(writer.session().await?),
            Self::Postgres { service, .. } => Plain::Postgres(service),
        })
    }

    /// For the engine.
    pub(super) async fn engine(&self) -> Result<Plain<'_>> {
        Ok(match self {
            Self::Sqlite(writer) => Plain::Sqlite(writer.session().await?),
            Self::Postgres { engine, .. } => Plain::Postgres(engine),
        })
    }

    /// Closes the connections once they are idle.
    pub(super) async fn close(&self) -> Result<()> {
        match self {
            Self::Sqlite(writer) => writer.close().await,
            Self::Postgres { service, ingest, engine } => {
                for pool in [ingest, engine, service] {
                    pool.clone().close().await?;
                }
                Ok(())
            }
        }
    }
}

impl Txn {
    pub(super) fn db(&self) -> Db<'_> {
        match self {
            Self::Postgres(txn) => Db::Transaction(txn),
            Self::Sqlite(session) => Db::Session(session),
        }
    }

    pub(super) async fn commit(self) -> Result<()> {
        match self {
            Self::Postgres(txn) => Ok(txn.commit().await?),
            Self::Sqlite(session) => session.commit(),
        }
    }

    pub(super) async fn rollback(self) -> Result<()> {
        match self {
            Self::Postgres(txn) => Ok(txn.rollback().await?),
            Self::Sqlite(session) => session.rollback(),
        }
    }
}

impl Plain<'_> {
    pub(super) fn db(&self) -> Db<'_> {
        match self {
            Self::Postgres(pool) => Db::Pool(pool),
            Self::Sqlite(session) => Db::Session(session),
        }
    }
}
