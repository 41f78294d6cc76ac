//! The composition root: what is made of what, in which order it starts, and in which it stops.

use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::dispatch::Dispatcher;
use crate::engine::Engine;
use crate::grpc::{GrpcServer, Health};
use crate::service::{KeySecret, Services};
use crate::store::Store;

/// A running server.
pub struct App {
    pub address: SocketAddr,
    /// The operator key, where this start made one.
    pub operator_key: Option<KeySecret>,
    store: Store,
    engine: Engine,
    health: Health,
    /// Ends the server's streams and its listening.
    stop_serving: CancellationToken,
    /// Ends background tasks of services.
    stop_tasks: CancellationToken,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
    tasks: tokio_util::task::TaskTracker,
    drain: Duration,
}

/// Calls and streams end within this after they were told to.
const CALLS_END: Duration = Duration::from_secs(5);
const KEY_USES_EVERY: Duration = Duration::from_secs(30);

impl App {
    /// Starts everything; the server answers when this returns.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        let place = config.store.url.to_string();
        let store =
            Store::open(config.store).await.with_context(|| format!("cannot open the store {place}"))?;
        let dispatcher = Dispatcher::new(config.dispatch)?;
        let engine = Engine::start(store.clone(), dispatcher, config.engine).await?;
        let (ingest, wake) = (engine.ingest.clone(), engine.wake.clone());
        let services = Services::new(store.clone(), ingest, wake, config.rules, config.watch);
        let given = config.operator_key.as_ref().map(|key| key.0.as_str());
        let made = services.ensure_operator_key(given).await?;

        let (stop_serving, stop_tasks) = (CancellationToken::new(), CancellationToken::new());
        let tasks = tokio_util::task::TaskTracker::new();
        tasks.spawn(services.clone().run_feed(stop_tasks.clone()));
        tasks.spawn(flush_key_uses(services.clone(), stop_tasks.clone()));

        let listener = TcpListener::bind(config.listen)
            .await
            .with_context(|| format!("cannot listen on {}", config.listen))?;
        let address = listener.local_addr()?;
        let health = Health::new(stop_serving.clone());
        let server = GrpcServer::new(services, health.clone(), &config.grpc, stop_serving.clone())
            .map_err(|error| anyhow::anyhow!("the gRPC server cannot be set up: {error}"))?;
        let server = tokio::spawn(server.run(listener));
        health.set_serving(true);
        tracing::info!(%address, store = %place, "serving");
        if let Some(path) = &config.ready_file {
            write_ready(path, address)?;
        }
        Ok(Self {
            address,
            operator_key: if given.is_none() { made } else { None },
            store,
            engine,
            health,
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
            () = failed.cancelled() => Some(anyhow::anyhow!("the engine failed; the log says why")),
            ended = &mut self.server => match ended {
                Ok(Ok(())) => Some(anyhow::anyhow!("the gRPC server ended by itself")),
                Ok(Err(error)) => Some(anyhow::Error::new(error).context("the gRPC server failed")),
                Err(error) => Some(anyhow::Error::new(error).context("the gRPC server failed")),
            },
        };
        self.stop().await;
        reason.map_or(Ok(()), Err)
    }

    /// Not ready; streams and calls end; attempts in flight end; what they came to is written; the lease and
    /// the connections are given back.
    async fn stop(mut self) {
        tracing::info!("stopping");
        self.health.set_serving(false);
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

/// Tells whoever started the server where it listens. Written as a whole, so that a reader never sees half.
fn write_ready(path: &Path, address: SocketAddr) -> anyhow::Result<()> {
    let draft = path.with_added_extension("new");
    let text = format!("{}\n", serde_json::json!({ "grpc": address.to_string() }));
    std::fs::write(&draft, text)
        .and_then(|()| std::fs::rename(&draft, path))
        .with_context(|| format!("cannot write {}", path.display()))
}
