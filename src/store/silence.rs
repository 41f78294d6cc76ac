//! Connections that fall silent.
//!
//! A machine that vanishes ends no connection: whoever reads from one waits until the kernel gives up, which
//! takes a quarter of an hour, and a pool full of such connections serves nobody meanwhile. So whatever the
//! engine asks has a limit, and when one is reached all connections are suspect for a while: a pool hands out,
//! and takes back, only those that answer at once.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tokio::time::Instant;

use super::Store;
use super::error::StoreError;

/// How long connections stay suspect, which is longer than any of them stays idle under load.
const SUSPECT_FOR: Duration = Duration::from_secs(60);
/// What answers at once answers within this.
const AT_ONCE: Duration = Duration::from_secs(2);

/// Whether connections may have fallen silent.
#[derive(Clone, Default)]
pub(super) struct Suspicion(Arc<Mutex<Option<Instant>>>);

impl Suspicion {
    fn raise(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn is_raised(&self) -> bool {
        let raised = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        raised.is_some_and(|at| at.elapsed() < SUSPECT_FOR)
    }

    /// For a pool, before it hands a connection out or takes it back: an error closes it without farewell.
    pub(super) async fn pass(&self, connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
        if self.is_raised() {
            tokio::time::timeout(AT_ONCE, connection.ping())
                .await
                .map_err(|_| sqlx::Error::PoolTimedOut)??;
        }
        Ok(true)
    }
}

impl Store {
    /// Waits for the database no longer than `limit`.
    pub async fn in_time<T, E: From<StoreError>>(
        &self,
        limit: Duration,
        asking: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        tokio::select! {
            answer = asking => answer,
            () = tokio::time::sleep(limit) => {
                // Raised before the question is dropped and its connection goes back.
                self.inner.suspicion.raise();
                Err(StoreError::TimedOut.into())
            }
        }
    }
}
