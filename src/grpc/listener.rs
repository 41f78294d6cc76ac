//! Connections: accepted up to a limit, secured in time, ended at an age. tonic's own listener gives a handshake
//! for ever, takes any number, and ends all connections of one age at once.

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use sha2::{Digest, Sha256};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tower::{Service, ServiceExt};

use super::first_bytes::FirstBytes;
use crate::metrics::Metrics;
use crate::tls::Identity;

/// What bounds connections.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// Connections at once; more are closed as they come.
    pub max: usize,
    /// When a connection is asked to go, give or take a tenth; none: never.
    pub age: Option<Duration>,
}

/// What a call knows of the connection it came by.
#[derive(Clone)]
pub struct Connection {
    /// The peer's address, and the fingerprint of its certificate if it showed one; for the audit log.
    pub origin: Arc<str>,
    /// Rings when the connection is to go: its streams end.
    pub leaving: CancellationToken,
    /// Its places for streams that need no key.
    pub keyless: Arc<Semaphore>,
}

/// Streams of a connection that need no key: a client asks for the health of each service at most, and reflects on one.
pub const KEYLESS: usize = 32;

/// The listener's settings.
pub struct Listener {
    pub limits: ConnectionLimits,
    pub tls: Option<Arc<Identity>>,
    pub metrics: Arc<Metrics>,
    /// Ends listening; connections then end with their calls.
    pub stop: CancellationToken,
}

/// For the TLS handshake, and then for the first bytes of HTTP.
const FIRST_WORDS: Duration = Duration::from_secs(10);
/// Handshakes at once: they cost more than anything else that a stranger can ask for.
const HANDSHAKES: usize = 128;
/// From the farewell to the end of a connection that reached its age.
const GRACE: Duration = Duration::from_secs(30);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const STREAMS: u32 = 256;
const HEADERS: u32 = 16 * 1024;
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

impl Listener {
    /// Serves until the stop token; returns when the last connection has ended. Dropped, it cuts them.
    pub async fn run<S>(self, listener: TcpListener, service: S)
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
        S::Future: Send,
    {
        let this = Arc::new(self);
        let places = Arc::new(Semaphore::new(this.limits.max.min(Semaphore::MAX_PERMITS)));
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(_ended) = connections.join_next() => continue,
                () = this.stop.cancelled() => break,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Such as too many open files: trying again at once would only spin.
                    tracing::warn!(error = %error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(place) = places.clone().try_acquire_owned() else {
                this.metrics.connections.refused.inc();
                continue;
            };
            let (this, service, handshakes) = (this.clone(), service.clone(), handshakes.clone());
            connections.spawn(async move {
                this.metrics.connections.open.inc();
                match tokio::time::timeout(FIRST_WORDS, this.secure(stream, peer, &handshakes)).await {
                    Ok(Ok((io, origin))) => this.serve(io, origin, service).await,
                    Ok(Err(error)) => this.not_secured(peer, &error),
                    Err(_) => this.not_secured(peer, &"not in time"),
                }
                this.metrics.connections.open.dec();
                drop(place);
            });
        }
        drop(listener);
        while connections.join_next().await.is_some() {}
    }

    fn not_secured(&self, peer: SocketAddr, error: &dyn std::fmt::Display) {
        self.metrics.connections.handshakes_failed.inc();
        tracing::debug!(%peer, error = %error, "a TLS handshake failed");
    }

    async fn secure(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        handshakes: &Semaphore,
    ) -> std::io::Result<(Io, Arc<str>)> {
        stream.set_nodelay(true)?;
        let address = peer.ip().to_canonical();
        let Some(identity) = &self.tls else {
            return Ok((Either::Left(stream), address.to_string().into()));
        };
        let _turn = handshakes.acquire().await.map_err(std::io::Error::other)?;
        let stream = TlsAcceptor::from(identity.current().grpc.clone()).accept(stream).await?;
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let origin = match certificate {
            Some(certificate) => {
                format!("{address} certificate sha256:{}", hex(&Sha256::digest(certificate)))
            }
            None => address.to_string(),
        };
        Ok((Either::Right(Box::new(stream)), origin.into()))
    }

    async fn serve<S>(&self, io: Io, origin: Arc<str>, service: S)
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
        S::Future: Send,
    {
        let leaving = CancellationToken::new();
        let keyless = Arc::new(Semaphore::new(KEYLESS));
        let connection = Connection { origin, leaving: leaving.clone(), keyless };
        let service = TowerToHyperService::new(service.map_request(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(connection.clone());
            request.map(Body::new)
        }));
        let (io, heard) = FirstBytes::new(io);
        let builder = builder();
        let mut serving = std::pin::pin!(builder.serve_connection(TokioIo::new(io), service));
        let mut silence = std::pin::pin!(tokio::time::sleep(FIRST_WORDS));
        let mut age = std::pin::pin!(until(self.limits.age.map(jitter)));
        let (mut silent, mut stopping, mut let_others) = (true, false, false);
        loop {
            tokio::select! {
                ended = after_others(serving.as_mut(), &mut let_others) => {
                    if let Err(error) = ended {
                        tracing::debug!(error = %error, "a connection failed");
                    }
                    return;
                }
                () = &mut silence, if silent => {
                    if !heard.enough() {
                        return;
                    }
                    silent = false;
                }
                () = &mut age => {
                    if leaving.is_cancelled() {
                        return;
                    }
                    // The farewell first, so that nothing new comes by this connection.
                    serving.as_mut().graceful_shutdown();
                    leaving.cancel();
                    age.set(until(Some(GRACE)));
                }
                () = self.stop.cancelled(), if !stopping => {
                    stopping = true;
                    serving.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

type Io = Either<TcpStream, Box<tokio_rustls::server::TlsStream<TcpStream>>>;

fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEADERS)
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT);
    // With a timer, a request's head must come within 30 s; for gRPC-Web.
    builder.http1().timer(TokioTimer::new()).max_buf_size(4 * HEADERS as usize);
    builder
}

/// Each time it is woken, the tasks that are ready go first: what they answer then leaves in one write, not in one each, since
/// whatever wakes a connection would otherwise be followed by it at once.
fn after_others<F: Future>(
    mut connection: Pin<&mut F>,
    let_others: &mut bool,
) -> impl Future<Output = F::Output> {
    poll_fn(move |context| {
        *let_others = !*let_others;
        if *let_others {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        connection.as_mut().poll(context)
    })
}

async fn until(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep_until(Instant::now() + time).await,
        None => std::future::pending().await,
    }
}

/// Connections that came together do not go together.
fn jitter(age: Duration) -> Duration {
    age.mul_f64(rand::random_range(0.9..1.1))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
