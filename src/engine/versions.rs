//! Keeps the routing table as new as what other nodes acknowledged.
//!
//! A node learns of another's change when it publishes or claims for the project, because those transactions
//! read its routing version. For what already waits in memory this task reads the versions of all projects in
//! the table, about once a second and when a bell says that one changed. A node that could not confirm them for
//! five seconds starts no attempt. On SQLite the one process makes every change itself.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::RoutingTable;
use super::uptime::Uptime;
use super::writer::chain;
use crate::domain::id::ProjectId;
use crate::store::{Result, Store};

const ROUND: Duration = Duration::from_secs(1);
/// How old the last confirmation may be.
const CONFIRMED: Duration = Duration::from_secs(5);
/// Projects whose routes are read ahead of need in one round.
const AHEAD: usize = 64;

/// When the routing table was last known to be current.
pub struct Versions {
    /// Counted from before the database was asked; none at all where it need not be.
    confirmed_at: Option<Mutex<Uptime>>,
    bell: Notify,
}

impl Versions {
    pub fn new(store: &Store) -> Arc<Self> {
        let confirmed_at = (!store.has_single_writer()).then(|| Mutex::new(Uptime::now()));
        Arc::new(Self { confirmed_at, bell: Notify::new() })
    }

    /// Whether attempts may go by the routing table.
    pub fn are_confirmed(&self) -> bool {
        self.confirmed_at.as_ref().is_none_or(|at| {
            Uptime::now().since(*at.lock().unwrap_or_else(PoisonError::into_inner)) < CONFIRMED
        })
    }

    /// A project's routes changed somewhere.
    pub fn ring(&self) {
        self.bell.notify_one();
    }

    fn confirm(&self, at: Uptime) {
        if let Some(confirmed_at) = &self.confirmed_at {
            *confirmed_at.lock().unwrap_or_else(PoisonError::into_inner) = at;
        }
    }
}

/// Confirms until told to stop. On SQLite it only waits.
pub async fn run(store: Store, routing: Arc<RoutingTable>, versions: Arc<Versions>, stop: CancellationToken) {
    if versions.confirmed_at.is_none() {
        return stop.cancelled().await;
    }
    loop {
        tokio::select! {
            () = tokio::time::sleep(ROUND) => {}
            () = versions.bell.notified() => {}
            () = stop.cancelled() => return,
        }
        let asked = Uptime::now();
        let outdated = match store.in_time(CONFIRMED, outdate(&store, &routing)).await {
            Ok(outdated) => outdated,
            Err(error) => {
                tracing::warn!(error = chain(&error), "routing versions could not be confirmed");
                continue;
            }
        };
        versions.confirm(asked);
        // Ahead of need; what is left is read by whoever needs it.
        for (project, version) in outdated.into_iter().take(AHEAD) {
            routing.renew_aside(project, version);
        }
    }
}

/// Forgets what is older here than in the database; says what that was.
async fn outdate(store: &Store, routing: &RoutingTable) -> Result<Vec<(ProjectId, i64)>> {
    let known = routing.versions();
    let projects: Vec<_> = known.keys().copied().collect();
    let current = store.routing_versions(&projects).await?;
    let mut outdated = Vec::new();
    for (project, version) in known {
        // A project that is gone is newer than any version of it.
        let wanted = current.get(&project).copied().unwrap_or(i64::MAX);
        if version < wanted {
            routing.outdate(project, wanted);
            outdated.push((project, wanted));
        }
    }
    Ok(outdated)
}
