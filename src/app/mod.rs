//! The composition root: what is made of what, in which order it starts, and in which it stops.

mod listeners;
mod open_files;
mod readiness;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Config, write_operator_key};
use crate::dispatch::Dispatcher;
use crate::domain::clock::Timestamp;
use crate::engine::{Engine, supervise_until};
use crate::grpc::{GrpcServer, Health};
use crate::http::{AdminServer, PortalServer};
use crate::metrics::Metrics;
use crate::service::{Handles, KeySecret, Pinger, Services};
use crate::store::Store;
use crate::tls::Identity;
use listeners::Listeners;
use readiness::Readiness;

/// A running server.
pub struct App {
    pub address: SocketAddr,
    /// The operator key, where this start made one and wrote it into the data folder.
    pub operator_key: Option<KeySecret>,
    store: Store,
    engine: Engine,
    /// Ends readiness, before anything else ends.
    stop_ready: CancellationToken,
    ready: JoinHandle<()>,
    /// Ends the server's streams and its listening.
    stop_serving: CancellationToken,
    /// Ends background tasks of services, and the admin listener.
    stop_tasks: CancellationToken,
    server: JoinHandle<()>,
    tasks: TaskTracker,
    drain: Duration,
}

/// Calls and streams end within this after they were told to.
const CALLS_END: Duration = Duration::from_secs(5);
const KEY_USES_EVERY: Duration = Duration::from_secs(30);

impl App {
    /// Starts everything; the server answers when this returns.
    pub async fn start(mut config: Config) -> anyhow::Result<Self> {
        open_files::raise(open_files::needed(&config));
        let place = config.store.url.to_string();
        let identity = config.tls.map(Identity::read).transpose()?;
        let metrics = Metrics::new(env!("CARGO_PKG_VERSION"), Timestamp::now().as_secs());
        let store =
            Store::open(config.store).await.with_context(|| format!("cannot open the store {place}"))?;
        let listeners = Listeners::bind(config.listen, config.admin_listen, config.portal_listen).await?;
        let addresses = listeners.addresses()?;
        config.dispatch.own.listeners = addresses.all();
        let dispatcher = Dispatcher::new(config.dispatch)?;
        let pinger = Pinger::new(dispatcher.clone(), config.pings);
        let has_mail = config.engine.alerts.mail.is_some();
        let engine = Engine::start(store.clone(), dispatcher, config.engine, metrics.clone()).await?;
        let handles = Handles { ingest: engine.ingest.clone(), wake: engine.wake.clone(), pinger, has_mail };
        let services =
            Services::new(store.clone(), handles, config.rules, config.watch, config.limits, metrics.clone());
        let given = config.operator_key.as_ref().map(|key| key.0.as_str());
        let made = services.ensure_operator_key(given).await?.filter(|_| given.is_none());
        if let Some(key) = &made {
            // Before anyone can see that the server is ready.
            let path = write_operator_key(&config.data, key.reveal())?;
            tracing::info!(file = %path.display(), "made the first operator key");
        }

        let (stop_ready, stop_serving, stop_tasks) =
            (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
        let tasks = TaskTracker::new();
        let failed = engine.failed.clone();
        let task = services.clone().run_feed(stop_tasks.clone());
        supervise_until(&tasks, &failed, &stop_tasks, "reader of the change log", task);
        let task = flush_key_uses(services.clone(), stop_tasks.clone());
        supervise_until(&tasks, &failed, &stop_tasks, "noting of uses of keys", task);
        // Ends before the engine does: what it commits wakes the engine.
        let task = services.clone().run_rotations(stop_serving.clone());
        supervise_until(&tasks, &failed, &stop_serving, "rotation of secrets", task);
        if let Some(identity) = &identity {
            let task = reload_on_hangup(identity.clone(), stop_tasks.clone())?;
            supervise_until(&tasks, &failed, &stop_tasks, "reading of certificates", task);
        }

        let readiness = Readiness::new();
        let health = Health::new(readiness.subscribe(), stop_serving.clone());
        let portal_server = PortalServer::new(services.clone(), identity.clone());
        let server =
            GrpcServer::new(services, health, config.grpc, identity, metrics.clone(), stop_serving.clone())
                .map_err(|error| anyhow::anyhow!("the gRPC server cannot be set up: {error}"))?;
        if let Some(listener) = listeners.admin {
            let admin = AdminServer { metrics, ready: readiness.subscribe() };
            let task = admin.run(listener, stop_tasks.clone());
            supervise_until(&tasks, &failed, &stop_tasks, "admin listener", task);
        }
        if let Some(listener) = listeners.portal {
            let task = portal_server.run(listener, stop_serving.clone());
            supervise_until(&tasks, &failed, &stop_serving, "portal listener", task);
        }
        let server = tokio::spawn(server.run(listeners.grpc));
        readiness.begin();
        let ready = tokio::spawn(readiness.run(store.clone(), stop_ready.clone()));
        let address = addresses.grpc;
        tracing::info!(%address, store = %place, "serving");
        if let Some(path) = &config.ready_file {
            addresses.write(path)?;
        }
        Ok(Self {
            address,
            operator_key: made,
            store,
            engine,
            stop_ready,
            ready,
            stop_serving,
            stop_tasks,
            server,
            tasks,
            drain: config.drain,
        })
    }

    /// Serves until `signal`, or until something fails that must not; then stops in bounded phases.
    pub async fn run_until(mut self, signal: impl Future<Output = ()>) -> anyhow::Result<()> {
        let failed = self.engine.failed.clone();
        let reason = tokio::select! {
            () = signal => None,
            () = failed.cancelled() => Some(anyhow::anyhow!("a part of the server failed; the log says which")),
            _ = &mut self.server => Some(anyhow::anyhow!("the gRPC server ended by itself; the log says why")),
            _ = &mut self.ready => Some(anyhow::anyhow!("the watch over the database ended by itself")),
        };
        self.stop().await;
        reason.map_or(Ok(()), Err)
    }

    /// Not ready; nothing more is claimed; streams and calls end; attempts in flight end; what they came to is written;
    /// the lease and the connections are given back.
    async fn stop(mut self) {
        tracing::info!("stopping");
        self.stop_ready.cancel();
        if !self.ready.is_finished() {
            let _told = tokio::time::timeout(CALLS_END, &mut self.ready).await;
        }
        self.engine.stop_claiming();
        self.stop_serving.cancel();
        if !self.server.is_finished() && tokio::time::timeout(CALLS_END, &mut self.server).await.is_err() {
            // A client that never answers the farewell would hold the server open for ever.
            tracing::warn!("some calls did not end in time and are cut");
            self.server.abort();
        }
        self.engine.shutdown(self.drain).await;
        self.stop_tasks.cancel();
        self.tasks.close();
        if tokio::time::timeout(CALLS_END, self.tasks.wait()).await.is_err() {
            tracing::warn!("background tasks did not end in time");
        }
        if tokio::time::timeout(CALLS_END, self.store.close()).await.is_err() {
            tracing::warn!("the database did not close in time");
        }
        tracing::info!("stopped");
    }
}

/// SIGHUP reads the server's certificate again.
fn reload_on_hangup(
    identity: Arc<Identity>,
    stop: CancellationToken,
) -> std::io::Result<impl Future<Output = ()>> {
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        loop {
            tokio::select! {
                Some(()) = hangup.recv() => identity.reload(),
                () = stop.cancelled() => return,
            }
        }
    })
}

/// Writes down now and then when keys were last used, and once more at the end.
async fn flush_key_uses(services: Services, stop: CancellationToken) {
    loop {
        let stopping = tokio::select! {
            () = tokio::time::sleep(KEY_USES_EVERY) => false,
            () = stop.cancelled() => true,
        };
        if let Err(error) = services.flush_key_uses().await {
            tracing::warn!(error = %error, "when keys were last used could not be written");
        }
        if stopping {
            return;
        }
    }
}
