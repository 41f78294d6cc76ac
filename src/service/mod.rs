//! The use cases: authorise, validate, decide, store, wake the engine. One file per resource.
//!
//! Services know the engine by two handles only: events are submitted to ingest, and changes wake it. All
//! transports call these methods, so what they enforce holds everywhere.

mod alerts;
mod audit;
mod auto_rotation;
mod bulk;
mod credentials;
mod deliveries;
mod endpoint_states;
mod endpoint_writes;
mod endpoints;
mod events;
mod headers;
mod keys;
mod operational;
mod pings;
mod projects;
mod rotation;
mod secrets;
mod subscriptions;
mod watch;

use std::sync::Arc;
use std::time::Duration;

pub use bulk::{BULK_ROWS, Bulk, BulkOutcome, BulkPing, BulkResult, BulkRow};
pub use endpoints::{CreatedEndpoint, EndpointField, EndpointUpdate, PingFirst, REDACTED};
pub use events::PublishRequest;
pub use keys::{KeySecret, NewKey, generate_operator_key, offline};
pub use pings::{Ping, PingSettings, PingTry, TokenSubject, TokenTest};
pub use projects::{ChangedProject, ProjectField};
pub use rotation::{Rotation, RotationRequest};
pub use secrets::NewSecret;
pub use subscriptions::SubscriptionField;
pub use watch::{Payload, Start, WatchFilter, WatchItem, WatchPayload, WatchSettings, Watcher};

use crate::domain::error::{Error, Result};
use crate::domain::id::ProjectId;
use crate::domain::url_rules::UrlRules;
use crate::engine::{IngestHandle, Wake};
use crate::metrics::Metrics;
use crate::store::{Store, Tx};
use keys::KeyCache;
pub use pings::Pinger;
use watch::Feed;

/// All use cases; clones share everything.
#[derive(Clone)]
pub struct Services {
    store: Store,
    ingest: IngestHandle,
    wake: Wake,
    rules: Arc<UrlRules>,
    keys: Arc<KeyCache>,
    feed: Arc<Feed>,
    /// Rings when an endpoint's next rotation by itself may be another.
    rotations: Arc<tokio::sync::Notify>,
    limits: ServiceLimits,
    pinger: Arc<Pinger>,
    /// Whether alerts can be sent by e-mail.
    has_mail: bool,
}

/// What bounds projects and their endpoints.
#[derive(Clone, Copy, Debug)]
pub struct ServiceLimits {
    /// The shortest period of rotations that endpoints make by themselves.
    pub rotation_period_min: Duration,
    /// Endpoints that a project may have.
    pub endpoints_max: u32,
}

/// What services may do beyond the store: two handles of the engine, and pings.
pub struct Handles {
    pub ingest: IngestHandle,
    pub wake: Wake,
    pub pinger: Pinger,
    /// Whether the engine has a mail server.
    pub has_mail: bool,
}

impl Services {
    pub fn new(
        store: Store,
        handles: Handles,
        rules: UrlRules,
        watch: WatchSettings,
        limits: ServiceLimits,
        metrics: Arc<Metrics>,
    ) -> Self {
        let Handles { ingest, wake, pinger, has_mail } = handles;
        let feed = Feed::new(store.clone(), watch, metrics);
        Self {
            store,
            ingest,
            wake,
            rules: Arc::new(rules),
            keys: Arc::default(),
            feed,
            rotations: Arc::default(),
            limits,
            pinger: Arc::new(pinger),
            has_mail,
        }
    }

    /// The feed's reader: to be run for as long as the server serves.
    pub async fn run_feed(self, stop: tokio_util::sync::CancellationToken) {
        self.feed.run(stop).await;
    }

    /// Commits, then does what must follow the commit, in a task of its own: a caller that goes away, or whose
    /// deadline passes, cuts neither the one nor the other. Before this, a dropped transaction changes nothing.
    async fn commit<T, F>(&self, tx: Tx, then: F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let finishing = tokio::spawn(async move {
            tx.commit().await?;
            then.await
        });
        finishing.await.map_err(Error::internal)?
    }

    /// Commits a change of a project's endpoints or subscriptions; older routes are out of force when this returns,
    /// so that no attempt of this process starts by them once the change is acknowledged.
    async fn commit_routes(&self, tx: Tx, project: ProjectId, version: i64) -> Result<()> {
        let wake = self.wake.clone();
        self.commit(tx, async move {
            wake.routes_changed(project, version).await;
            Ok(())
        })
        .await
    }

    /// Reads `page_size` and `page_token`.
    pub fn page(&self, size: i32, token: &str, context: &[&str]) -> Result<crate::domain::page::PageRequest> {
        self.store.token_key().page_request(size, token, context)
    }

    /// The token of the page after this one.
    pub fn next_page<T>(&self, page: &crate::domain::page::Page<T>, context: &[&str]) -> String {
        self.store.token_key().next_token(page, context)
    }
}

/// The row that a change needs, or NOT_FOUND.
fn found<T>(row: Option<T>, resource: &'static str, id: impl std::fmt::Display) -> Result<T> {
    row.ok_or_else(|| Error::not_found(resource, id))
}
