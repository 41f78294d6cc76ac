//! The listener that customers may reach: so far, the public keys of endpoints. Whoever comes is bounded: in number, in
//! the time for a request's head, and in the time for an answer.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::jwks;
use crate::service::Services;

/// Connections at once; more are closed as they come.
const CONNECTIONS: usize = 1000;
/// For a request's head, and for what a connection that is kept open says next.
const HEAD: Duration = Duration::from_secs(10);
/// For one connection, however much it asks.
const LIFE: Duration = Duration::from_secs(60);
/// The wait after an error of accepting, such as too many open files.
const BREATH: Duration = Duration::from_millis(100);

/// Answers customers and their machines.
pub struct PortalServer {
    router: Router,
}

impl PortalServer {
    pub fn new(services: Services) -> Self {
        Self { router: jwks::router(services) }
    }

    /// Serves until the stop token; then closes at once, since nothing here must be finished.
    pub async fn run(self, listener: TcpListener, stop: CancellationToken) {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => return,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!(error = %error, "a connection could not be accepted");
                    tokio::time::sleep(BREATH).await;
                    continue;
                }
            };
            let Ok(place) = places.clone().try_acquire_owned() else { continue };
            let (router, stop) = (self.router.clone(), stop.clone());
            tokio::spawn(async move {
                let _place = place;
                tokio::select! {
                    _ended = tokio::time::timeout(LIFE, serve(stream, router)) => {}
                    () = stop.cancelled() => {}
                }
            });
        }
    }
}

async fn serve(stream: TcpStream, router: Router) {
    let mut server = hyper::server::conn::http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD);
    if let Err(error) = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)).await
    {
        tracing::debug!(error = %error, "a connection failed");
    }
}
