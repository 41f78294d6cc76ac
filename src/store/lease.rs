//! A process's lease: the name under which it holds claims, and how others see that it died.
//!
//! On PostgreSQL a lease is a row with an end by the database's clock and a session's advisory lock; when
//! the process dies its session ends, so whoever can take the lock frees its claims at once. On SQLite the
//! file lock proves that every older process is dead.
//!
//! A lease is fenced: a transaction that claims asks first whether the lease stands ([`Tx::lease_stands`])
//! and keeps it standing until it ends; whoever frees a lease waits for such transactions, deletes the row, and
//! then frees the claims. So a process that slept through its lease's end can claim nothing under it any more,
//! and no claim is left behind that nobody would free.

use std::time::Duration;

use sea_orm::{DbBackend, Statement, Value};
use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};

use super::connect::{ACQUIRE_TIMEOUT, DatabaseUrl};
use super::error::Result;
use super::notify::Bells;
use super::tx::Tx;
use super::{Lane, Store, now_sql};
use crate::domain::id::LeaseId;

/// This process's lease.
pub struct Lease {
    pub id: LeaseId,
    life: Duration,
    /// Holds the advisory lock for as long as the process lives. It listens to nothing, but hears of its own end.
    session: Option<PgListener>,
}

impl Store {
    /// Takes a new lease for this process, which lasts `life` unless it is renewed.
    pub async fn take_lease(&self, node: &str, life: Duration) -> Result<Lease> {
        let id = LeaseId::new();
        let session = match &self.inner.url {
            DatabaseUrl::Postgres(options) => {
                let mut session = listening(options).await?;
                sqlx::query("SELECT pg_advisory_lock($1)").bind(lock_key(id)).execute(&mut session).await?;
                Some(session)
            }
            DatabaseUrl::Sqlite(_) => None,
        };
        let now = now_sql(self.backend());
        let sql = format!(
            "INSERT INTO leases (id, node, acquired_at, expires_at) VALUES ($1, $2, {now}, {now} + $3)"
        );
        let values = [Value::from(id.uuid()), Value::from(node), millis(life)];
        let statement = Statement::from_sql_and_values(self.backend(), sql, values);
        self.inner.writers.engine().await?.db().execute_raw(statement).await?;
        Ok(Lease { id, life, session })
    }

    /// Renews a lease; says whether it still stood. A lapsed one is never revived.
    pub async fn renew_lease(&self, lease: &mut Lease) -> Result<bool> {
        if let Some(session) = &mut lease.session {
            // A dead session lost the advisory lock, and with it the lease.
            if sqlx::query("SELECT 1").execute(session).await.is_err() {
                return Ok(false);
            }
        }
        let now = now_sql(self.backend());
        let sql = format!("UPDATE leases SET expires_at = {now} + $2 WHERE id = $1 AND expires_at > {now}");
        let values = [lease.id.uuid().into(), millis(lease.life)];
        let statement = Statement::from_sql_and_values(self.backend(), sql, values);
        Ok(self.inner.writers.engine().await?.db().execute_raw(statement).await? == 1)
    }

    /// Gives this process's lease back with whatever it still holds.
    pub async fn drop_lease(&self, lease: Lease) -> Result<()> {
        self.free_own_lease(lease.id).await?;
        // Its session closes with it.
        drop(lease);
        Ok(())
    }

    /// Frees a lease of this process that is not used any more; says how many deliveries that made due.
    pub async fn free_own_lease(&self, id: LeaseId) -> Result<u64> {
        let tx = self.begin(Lane::Engine).await?;
        tx.free_lease(id).await
    }

    /// Frees the claims of processes that died; says how many deliveries that made due.
    pub async fn free_dead_leases(&self, own: LeaseId) -> Result<u64> {
        let now = now_sql(self.backend());
        let sql =
            format!("SELECT id, CASE WHEN expires_at <= {now} THEN 1 ELSE 0 END FROM leases WHERE id <> $1");
        let statement = Statement::from_sql_and_values(self.backend(), sql, [own.uuid().into()]);
        let mut freed = 0;
        let others = self.inner.writers.engine().await?.db().query_all_raw(statement).await?;
        for row in others {
            let id = LeaseId::from_uuid(row.try_get_by_index(0)?);
            let tx = self.begin(Lane::Engine).await?;
            let dead = match self.backend() {
                DbBackend::Postgres => row.try_get_by_index::<i32>(1)? == 1 || tx.session_is_dead(id).await?,
                _ => true,
            };
            if dead {
                freed += tx.free_lease(id).await?;
            } else {
                tx.rollback().await?;
            }
        }
        Ok(freed)
    }
}

impl Lease {
    /// Waits for the end of the session that holds the lock: from then on others may free what the lease holds. Without end on
    /// SQLite, whose file lock ends with the process.
    pub async fn session_ended(&mut self) {
        let Some(session) = &mut self.session else { return std::future::pending().await };
        // Nobody notifies it.
        while let Ok(Some(_)) = session.try_recv().await {}
    }
}

/// A session that reads what the server says of its own accord, such as that it ends it.
async fn listening(options: &PgConnectOptions) -> Result<PgListener> {
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .connect_lazy_with(options.clone().application_name("hawser lease").disable_statement_logging());
    let mut session = PgListener::connect_with(&pool).await?;
    session.ignore_pool_close_event(true);
    session.eager_reconnect(false);
    Ok(session)
}

impl Tx {
    /// Whether claims may be made under this lease; it then stands until this transaction ends.
    pub(super) async fn lease_stands(&self, id: LeaseId) -> Result<bool> {
        let sql = format!("SELECT {}", stands_sql(self.backend(), id));
        let row = self.db().query_one_raw(Statement::from_string(self.backend(), sql)).await?;
        row.map_or(Ok(false), |row| row.try_get_by_index(0))
    }

    /// Whether no living session holds that lease's advisory lock; then this transaction does until it ends.
    async fn session_is_dead(&self, id: LeaseId) -> Result<bool> {
        let sql = "SELECT pg_try_advisory_xact_lock($1)";
        let statement = Statement::from_sql_and_values(self.backend(), sql, [Value::from(lock_key(id))]);
        let row = self.db().query_one_raw(statement).await?;
        row.map_or(Ok(false), |row| row.try_get_by_index(0))
    }

    /// Ends a lease with its probes, makes what else it holds due again, and commits.
    async fn free_lease(mut self, id: LeaseId) -> Result<u64> {
        if self.backend() == DbBackend::Postgres {
            let (high, low) = fence_key(id);
            let sql = "SELECT pg_advisory_xact_lock($1, $2)";
            let statement = Statement::from_sql_and_values(self.backend(), sql, [high.into(), low.into()]);
            self.db().execute_raw(statement).await?;
        }
        let forget = "DELETE FROM leases WHERE id = $1";
        let statement = Statement::from_sql_and_values(self.backend(), forget, [Value::from(id.uuid())]);
        if self.db().execute_raw(statement).await? == 0 {
            // Someone else was first, and freed its claims in the same transaction.
            self.rollback().await?;
            return Ok(0);
        }
        self.cancel_probes(id).await?;
        // No index finds the rows: every claim would have to keep it. This is rare, and one scan.
        if self.backend() == DbBackend::Postgres {
            self.db()
                .execute_unprepared("SET LOCAL statement_timeout = '60s'; SET LOCAL enable_seqscan = on")
                .await?;
        }
        let free = "UPDATE queue SET claimed_by = NULL WHERE claimed_by = $1";
        let statement = Statement::from_sql_and_values(self.backend(), free, [Value::from(id.uuid())]);
        let freed = self.db().execute_raw(statement).await?;
        if freed > 0 {
            self.ring(Bells::DUE);
        }
        let free = "UPDATE alerts SET claimed_by = NULL WHERE claimed_by = $1 AND status = 1";
        let statement = Statement::from_sql_and_values(self.backend(), free, [Value::from(id.uuid())]);
        self.db().execute_raw(statement).await?;
        self.commit().await?;
        Ok(freed)
    }
}

/// An expression that is true where the lease stands. On PostgreSQL it holds the lease's fence until the
/// transaction ends; SQLite's only writer needs none.
pub(super) fn stands_sql(backend: DbBackend, id: LeaseId) -> String {
    match backend {
        DbBackend::Postgres => {
            let (high, low) = fence_key(id);
            format!("lease_stands('{}'::uuid, {high}, {low})", id.uuid())
        }
        _ => format!("EXISTS (SELECT 1 FROM leases WHERE id = x'{}')", id.uuid().simple()),
    }
}

fn millis(life: Duration) -> Value {
    Value::from(i64::try_from(life.as_millis()).unwrap_or(i64::MAX))
}

/// 64 of the id's random bits, so that a lease's lock has a key of its own.
fn lock_key(id: LeaseId) -> i64 {
    id.uuid().as_u64_pair().1.cast_signed()
}

/// The same bits in PostgreSQL's other space of keys, that of two integers.
fn fence_key(id: LeaseId) -> (i32, i32) {
    let [a, b, c, d, e, f, g, h] = id.uuid().as_u64_pair().1.to_be_bytes();
    (i32::from_be_bytes([a, b, c, d]), i32::from_be_bytes([e, f, g, h]))
}
