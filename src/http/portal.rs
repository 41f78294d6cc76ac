//! The listener that customers may reach: so far, the public keys of endpoints. It speaks TLS where the server has a
//! certificate. Whoever comes is bounded: in number, in the time for a handshake and for a request's head, and in the
//! time for an answer.

use std::io::{Error, ErrorKind, Result};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::jwks;
use crate::service::Services;
use crate::tls::Identity;

/// Handshakes at once: they cost more than anything else that a stranger can ask for.
const HANDSHAKES: usize = 128;
/// For a handshake, its turn included; for a request's head, and for what a connection that is kept open says next.
const HEAD: Duration = Duration::from_secs(10);
/// For one connection, however much it asks.
const LIFE: Duration = Duration::from_secs(60);
/// The wait after an error of accepting, such as too many open files.
const BREATH: Duration = Duration::from_millis(100);

/// Answers customers and their machines.
#[derive(Clone)]
pub struct PortalServer {
    router: Router,
    /// None: plain HTTP.
    tls: Option<Arc<Identity>>,
    handshakes: Arc<Semaphore>,
}

impl PortalServer {
    /// Connections at once; more are closed as they come.
    pub const CONNECTIONS: usize = 1000;

    pub fn new(services: Services, tls: Option<Arc<Identity>>) -> Self {
        Self { router: jwks::router(services), tls, handshakes: Arc::new(Semaphore::new(HANDSHAKES)) }
    }

    /// Serves until the stop token; then closes at once, since nothing here must be finished.
    pub async fn run(self, listener: TcpListener, stop: CancellationToken) {
        let places = Arc::new(Semaphore::new(Self::CONNECTIONS));
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
            let (this, stop) = (self.clone(), stop.clone());
            tokio::spawn(async move {
                let _place = place;
                tokio::select! {
                    _ended = tokio::time::timeout(LIFE, this.serve(stream)) => {}
                    () = stop.cancelled() => {}
                }
            });
        }
    }

    async fn serve(self, stream: TcpStream) {
        let Some(identity) = &self.tls else { return answer(stream, self.router).await };
        let secured = tokio::time::timeout(HEAD, secure(stream, identity, &self.handshakes)).await;
        match secured.unwrap_or_else(|_| Err(Error::from(ErrorKind::TimedOut))) {
            Ok(stream) => answer(stream, self.router).await,
            Err(error) => tracing::debug!(error = %error, "a TLS handshake failed"),
        }
    }
}

async fn secure(
    stream: TcpStream,
    identity: &Identity,
    handshakes: &Semaphore,
) -> Result<TlsStream<TcpStream>> {
    let _turn = handshakes.acquire().await.map_err(Error::other)?;
    TlsAcceptor::from(identity.current().portal.clone()).accept(stream).await
}

async fn answer(stream: impl AsyncRead + AsyncWrite + Unpin, router: Router) {
    let mut server = hyper::server::conn::http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD);
    if let Err(error) = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)).await
    {
        tracing::debug!(error = %error, "a connection failed");
    }
}
