//! The store: SQLite inside the process, or PostgreSQL, behind one handle. The only module that knows SeaORM.
//!
//! Reads go through `Store`, writes through a [`Tx`], which ends with the change record of what it changed.
//! Nothing here decides what should happen; it says what is stored and changes it in one piece.

mod alerts;
mod align;
mod attempts;
mod audit;
mod breaker;
mod bulk;
mod certificates;
mod changes;
mod checkpoint;
mod claim;
mod connect;
mod counters;
mod credentials;
mod db;
mod deleted_owners;
mod deliveries;
mod due;
mod egress;
mod endpoint_rows;
mod endpoints;
mod error;
mod events;
mod expansions;
mod gauges;
mod health;
mod ingest;
mod labels;
mod lease;
mod meta;
mod notify;
mod operational;
mod outcomes;
mod partitions;
mod probe;
mod projects;
mod rates;
mod recent;
mod releases;
mod rotations;
mod routes;
mod rows;
mod secrets;
mod session;
mod silence;
mod sqlite;
mod streaks;
mod subscriptions;
mod tx;
mod upkeep;
mod vault;
mod warnings;
mod writers;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use sea_orm::{DatabaseConnection, DbBackend};
use tokio::sync::{Notify, watch};
use uuid::Uuid;

pub use alerts::{AlertFate, AlertTarget, ClaimedAlert, HeldAlert};
pub use bulk::EndpointKey;
pub use changes::{ChangePage, LogBounds};
pub use checkpoint::Checkpoints;
pub use claim::{ClaimRequest, Claimed, ClaimedDelivery, Lost};
pub use connect::{DatabaseUrl, StoreSettings};
pub use due::Due;
pub use endpoints::snapshot;
pub use error::{Result, StoreError};
pub use expansions::ExpansionStep;
pub use gauges::{PendingCount, QueueGauges};
pub use health::{Aftermath, FailureRules};
pub use ingest::{FIRST_TOKEN, FirstUse, Footing, NewDelivery, NewEvent};
pub use lease::Lease;
pub use notify::{Bells, Listener, Ringer};
pub use outcomes::{FinishedAttempt, Hold, Next};
pub use rates::TakenSlots;
pub use recent::Committed;
pub use releases::{Discarded, Released};
pub use rotations::KeptReply;
pub use tx::{AuditEntry, Tx};
pub use upkeep::Expiring;
pub use vault::{MasterKey, Place, Vault};

use crate::domain::page::TokenKey;
use db::Db;

/// A handle on the database; clones share it.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    backend: DbBackend,
    url: DatabaseUrl,
    writers: writers::Writers,
    /// What the server itself must read to go on: routes, keys, the change log, looks of the engine.
    own: DatabaseConnection,
    calls: DatabaseConnection,
    /// What callers ask for.
    read: DatabaseConnection,
    vault: Vault,
    token_key: TokenKey,
    incarnation: Uuid,
    /// Rings after each commit here.
    written: Notify,
    /// Rings after each commit that wrote a change record, here or, as far as is heard, elsewhere.
    committed: watch::Sender<()>,
    /// What this process committed last.
    recent: recent::Recent,
    /// Rings after each commit here that wrote an alert.
    alerted: watch::Sender<()>,
    suspicion: silence::Suspicion,
    /// The database failed to read an event that was to be claimed.
    damage_met: AtomicBool,
    /// What other processes should hear.
    outbox: notify::Outbox,
    /// Names this process among its bells.
    process: Uuid,
    /// Keeps a second process off a SQLite file.
    _lock: Option<std::fs::File>,
}

/// Which pool a transaction takes its connection from, so that one kind of work cannot starve another.
#[derive(Clone, Copy, Debug)]
pub enum Lane {
    Service,
    Ingest,
    Engine,
}

/// Whose reads: on connections of their own, so that callers cannot keep the server from going on.
#[derive(Clone, Copy, Debug)]
pub enum Reads {
    Own,
    /// What a call must read before it may begin.
    Call,
    Callers,
}

impl Store {
    /// Whether all writes share one connection, so that writing them together is cheaper.
    pub fn has_single_writer(&self) -> bool {
        self.inner.backend == DbBackend::Sqlite
    }

    /// For what callers read outside a transaction.
    fn reader(&self) -> Db<'_> {
        Db::Pool(&self.inner.read)
    }

    /// For what a call must read before it may begin.
    fn call_reader(&self) -> Db<'_> {
        Db::Pool(&self.inner.calls)
    }

    /// For what the server itself must read.
    fn own_reader(&self) -> Db<'_> {
        Db::Pool(&self.inner.own)
    }

    fn reader_of(&self, reads: Reads) -> Db<'_> {
        match reads {
            Reads::Own => self.own_reader(),
            Reads::Call => self.call_reader(),
            Reads::Callers => self.reader(),
        }
    }

    pub(crate) fn backend(&self) -> DbBackend {
        self.inner.backend
    }

    pub fn vault(&self) -> &Vault {
        &self.inner.vault
    }

    /// Authenticates page and resume tokens.
    pub fn token_key(&self) -> &TokenKey {
        &self.inner.token_key
    }

    /// This database's identity. A restored or replaced database has another, so that positions of the old
    /// one are not mistaken for its own.
    pub fn incarnation(&self) -> Uuid {
        self.inner.incarnation
    }

    /// Rings after commits that wrote a change record: those of this process, and of others as far as they
    /// are heard.
    pub fn commits(&self) -> watch::Receiver<()> {
        self.inner.committed.subscribe()
    }

    /// Rings after commits of this process that wrote an alert.
    pub fn alerts(&self) -> watch::Receiver<()> {
        self.inner.alerted.subscribe()
    }

    /// Closes all connections once they are idle: on SQLite the writing one last, which then moves what is left of the log
    /// and removes it.
    pub async fn close(&self) {
        let inner = &self.inner;
        let readers = [
            inner.read.clone().close().await,
            inner.calls.clone().close().await,
            inner.own.clone().close().await,
        ];
        let closed = readers.map(|closed| closed.map_err(StoreError::from));
        for error in closed.into_iter().chain([inner.writers.close().await]).filter_map(Result::err) {
            tracing::warn!(error = %error, "closing the database failed");
        }
    }
}

/// The database's clock in Unix milliseconds, as SQL.
pub(crate) fn now_sql(backend: DbBackend) -> &'static str {
    match backend {
        DbBackend::Postgres => "(EXTRACT(EPOCH FROM clock_timestamp()) * 1000)::bigint",
        _ => "CAST(unixepoch('subsec') * 1000 AS INTEGER)",
    }
}

/// The earlier of a time and the database's now, as SQL: work of a process whose clock is ahead is due at once
/// all the same.
pub(crate) fn due_now_sql(backend: DbBackend, time: &str) -> String {
    let least = match backend {
        DbBackend::Postgres => "LEAST",
        _ => "MIN",
    };
    format!("{least}({time}, {})", now_sql(backend))
}
