//! Bells between processes on one PostgreSQL: what a commit here should wake there, sent by NOTIFY.
//!
//! Only hints. A transaction says which bells its commit rings; they are gathered, and a task of the engine
//! sends them at a bounded rate over a connection of its own, because NOTIFY takes a lock of the whole cluster
//! at commit. Whoever hears nothing finds everything by its polls. SQLite has one process and rings nothing.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use sqlx::{ConnectOptions, PgConnection};
use tokio::sync::Notify;
use uuid::Uuid;

use super::Store;
use super::connect::DatabaseUrl;
use super::error::{Result, StoreError};

const CHANNEL: &str = "hawser";

/// A set of bells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bells(u8);

impl Bells {
    /// Work is due that nobody holds.
    pub const DUE: Self = Self(1);
    /// A change record was committed.
    pub const CHANGES: Self = Self(2);
    /// A project's endpoints or subscriptions changed.
    pub const ROUTES: Self = Self(4);
    pub const ALL: Self = Self(7);

    pub const fn has(self, bell: Self) -> bool {
        self.0 & bell.0 != 0
    }

    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Bells that this process's commits rang and that were not sent yet.
#[derive(Default)]
pub(super) struct Outbox {
    waiting: AtomicU8,
    rung: Notify,
}

impl Outbox {
    pub(super) fn ring(&self, bells: Bells) {
        if bells != Bells::default() {
            self.waiting.fetch_or(bells.0, Ordering::AcqRel);
            self.rung.notify_one();
        }
    }
}

/// Sends bells to the other processes.
pub struct Ringer {
    session: PgConnection,
    sender: Uuid,
}

/// Hears the bells of the other processes.
pub struct Listener {
    listener: PgListener,
    own: Uuid,
}

impl Store {
    /// Waits for bells that this process's commits rang, and takes them.
    pub async fn rung_here(&self) -> Bells {
        let outbox = &self.inner.outbox;
        loop {
            let bells = Bells(outbox.waiting.swap(0, Ordering::AcqRel));
            if bells != Bells::default() {
                return bells;
            }
            outbox.rung.notified().await;
        }
    }

    /// What could not be sent waits for the next try.
    pub fn ring_later(&self, bells: Bells) {
        self.inner.outbox.ring(bells);
    }

    /// Wakes whoever follows the change log here, because another process committed to it.
    pub fn committed_elsewhere(&self) {
        self.inner.recent.hear_of_others();
        self.inner.committed.send_replace(());
    }

    /// Connects for sending; none on SQLite.
    pub async fn ringer(&self) -> Result<Option<Ringer>> {
        let Some(options) = self.bell_options() else { return Ok(None) };
        let session = options.connect().await?;
        Ok(Some(Ringer { session, sender: self.inner.process }))
    }

    /// Connects for hearing; none on SQLite. What was sent before is not heard.
    pub async fn listen(&self) -> Result<Option<Listener>> {
        let Some(options) = self.bell_options() else { return Ok(None) };
        // The listener wants a pool to reconnect from; we rather make another listener, so as to know.
        let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(options);
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.ignore_pool_close_event(true);
        listener.eager_reconnect(false);
        listener.listen(CHANNEL).await?;
        Ok(Some(Listener { listener, own: self.inner.process }))
    }

    fn bell_options(&self) -> Option<PgConnectOptions> {
        match &self.inner.url {
            // A bell need not survive anything: no flush.
            DatabaseUrl::Postgres(options) => Some(
                options
                    .as_ref()
                    .clone()
                    .application_name("hawser bells")
                    .options([("synchronous_commit", "off"), ("statement_timeout", "10000")])
                    .disable_statement_logging(),
            ),
            DatabaseUrl::Sqlite(_) => None,
        }
    }
}

impl Ringer {
    pub async fn ring(&mut self, bells: Bells) -> Result<()> {
        sqlx::query("SELECT pg_notify($1, $2)")
            .bind(CHANNEL)
            .bind(format!("{} {}", bells.0, self.sender.simple()))
            .execute(&mut self.session)
            .await?;
        Ok(())
    }
}

impl Listener {
    /// The bells that another process rang next. An error means that the connection is gone, and with it an
    /// unknown number of bells. A silent connection is proved alive every `patience`.
    pub async fn next(&mut self, patience: Duration) -> Result<Bells> {
        loop {
            match tokio::time::timeout(patience, self.listener.try_recv()).await {
                Ok(Ok(Some(heard))) => {
                    if let Some(bells) = read(heard.payload(), self.own) {
                        return Ok(bells);
                    }
                }
                Ok(Ok(None)) => return Err(StoreError::TimedOut),
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => {
                    let proof = sqlx::query("SELECT 1").execute(&mut self.listener);
                    tokio::time::timeout(patience, proof).await.map_err(|_| StoreError::TimedOut)??;
                }
            }
        }
    }
}

/// What another process's message says; bells that this version does not know are passed over.
fn read(payload: &str, own: Uuid) -> Option<Bells> {
    let (bells, sender) = payload.split_once(' ')?;
    if sender.parse::<Uuid>().ok()? == own {
        return None;
    }
    let bells = Bells(bells.parse::<u8>().ok()? & Bells::ALL.0);
    (bells != Bells::default()).then_some(bells)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bells_of_others_are_heard_and_own_and_unknown_ones_are_not() {
        let (own, other) = (Uuid::now_v7(), Uuid::now_v7());
        let said = |bells: u8, sender: Uuid| read(&format!("{bells} {}", sender.simple()), own);
        let heard = said(5, other).expect("another's");
        assert!(heard.has(Bells::DUE) && heard.has(Bells::ROUTES) && !heard.has(Bells::CHANGES));
        assert_eq!(said(5, own), None);
        assert_eq!(said(64, other), None);
        assert_eq!(said(65, other), Some(Bells::DUE));
        assert_eq!(read("noise", own), None);
    }
}
