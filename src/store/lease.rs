//! A process's lease: the name under which it holds claims, and how others see that it died.
//!
//! On PostgreSQL a lease is a row with an end by the database's clock and a session's advisory lock; when
//! the process dies its session ends, so whoever can take the lock frees its claims at once. On SQLite the
//! file lock proves that every older process is dead.

use std::time::Duration;

use sea_orm::{ConnectionTrait, DbBackend, Statement, Value};
use sqlx::{ConnectOptions, Connection, PgConnection};
use uuid::Uuid;

use super::connect::DatabaseUrl;
use super::error::Result;
use super::{Store, now_sql};
use crate::domain::id::LeaseId;

/// How long a lease lasts unless it is renewed.
pub const LEASE_LIFE: Duration = Duration::from_secs(15);

/// This process's lease.
pub struct Lease {
    pub id: LeaseId,
    /// Holds the advisory lock for as long as the process lives.
    session: Option<PgConnection>,
}

impl Store {
    /// Takes a new lease for this process.
    pub async fn take_lease(&self, node: &str) -> Result<Lease> {
        let id = LeaseId::new();
        let session = match &self.inner.url {
            DatabaseUrl::Postgres(options) => {
                let mut session = options.connect().await?;
                sqlx::query("SELECT pg_advisory_lock($1)").bind(lock_key(id)).execute(&mut session).await?;
                Some(session)
            }
            DatabaseUrl::Sqlite(_) => None,
        };
        let now = now_sql(self.backend());
        let sql = format!(
            "INSERT INTO leases (id, node, acquired_at, expires_at) VALUES ($1, $2, {now}, {now} + $3)"
        );
        let values = [Value::from(id.uuid()), Value::from(node), life()];
        self.inner.engine.execute_raw(Statement::from_sql_and_values(self.backend(), sql, values)).await?;
        Ok(Lease { id, session })
    }

    /// Renews a lease; says whether it still stood. A lapsed one is never revived.
    pub async fn renew_lease(&self, lease: &mut Lease) -> Result<bool> {
        if let Some(session) = &mut lease.session {
            // A dead session lost the advisory lock, and with it the lease.
            if session.ping().await.is_err() {
                return Ok(false);
            }
        }
        let now = now_sql(self.backend());
        let sql = format!("UPDATE leases SET expires_at = {now} + $2 WHERE id = $1 AND expires_at > {now}");
        let statement = Statement::from_sql_and_values(self.backend(), sql, [lease.id.uuid().into(), life()]);
        Ok(self.inner.engine.execute_raw(statement).await?.rows_affected() == 1)
    }

    /// Gives the lease back with whatever it still holds.
    pub async fn drop_lease(&self, lease: Lease) -> Result<()> {
        self.free_claims(lease.id.uuid()).await?;
        if let Some(session) = lease.session {
            session.close().await?;
        }
        Ok(())
    }

    /// Frees the claims of processes that died; says how many deliveries that made due.
    pub async fn free_dead_leases(&self, own: LeaseId) -> Result<u64> {
        let now = now_sql(self.backend());
        let sql =
            format!("SELECT id, CASE WHEN expires_at <= {now} THEN 1 ELSE 0 END FROM leases WHERE id <> $1");
        let statement = Statement::from_sql_and_values(self.backend(), sql, [own.uuid().into()]);
        let mut freed = 0;
        for row in self.inner.engine.query_all_raw(statement).await? {
            let id: Uuid = row.try_get_by_index(0)?;
            let expired = match self.backend() {
                DbBackend::Postgres => row.try_get_by_index::<i32>(1)? == 1,
                _ => true,
            };
            if expired || self.lock_is_free(LeaseId::from_uuid(id)).await? {
                freed += self.free_claims(id).await?;
            }
        }
        Ok(freed)
    }

    /// Whether no living session holds that lease's advisory lock.
    async fn lock_is_free(&self, id: LeaseId) -> Result<bool> {
        // Of the transaction, which this statement is by itself: it is given back at once.
        let statement = Statement::from_sql_and_values(
            self.backend(),
            "SELECT pg_try_advisory_xact_lock($1)",
            [Value::from(lock_key(id))],
        );
        let row = self.inner.engine.query_one_raw(statement).await?;
        row.map_or(Ok(false), |row| Ok(row.try_get_by_index(0)?))
    }

    /// Ends a lease and makes what it holds due again, in one transaction.
    async fn free_claims(&self, id: Uuid) -> Result<u64> {
        let tx = self.begin(super::Lane::Engine).await?;
        let free = "UPDATE queue SET claimed_by = NULL WHERE claimed_by = $1";
        let statement = Statement::from_sql_and_values(self.backend(), free, [Value::from(id)]);
        let freed = tx.db().execute_raw(statement).await?.rows_affected();
        let forget = "DELETE FROM leases WHERE id = $1";
        let statement = Statement::from_sql_and_values(self.backend(), forget, [Value::from(id)]);
        tx.db().execute_raw(statement).await?;
        tx.commit().await?;
        Ok(freed)
    }
}

fn life() -> Value {
    Value::from(i64::try_from(LEASE_LIFE.as_millis()).unwrap_or(i64::MAX))
}

/// 64 of the id's random bits, so that a lease's lock has a key of its own.
fn lock_key(id: LeaseId) -> i64 {
    id.uuid().as_u64_pair().1.cast_signed()
}
