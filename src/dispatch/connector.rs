//! Makes connections: resolve, check every address, dial, check the peer, TLS.
//!
//! The check stands between resolution and dialling, on the very addresses dialled, so neither a name that
//! changes its mind nor a literal gets around it.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::failure::{Failure, is_lack, seconds};
use super::own::OwnPlaces;
use super::proxy::EgressProxy;
use super::resolver::Resolver;
use crate::domain::address::AddressPolicy;
use crate::domain::attempt::ErrorClass;

/// A host with more addresses has all of them checked, but only this many dialled.
const ADDRESSES_DIALLED: usize = 8;
/// How long one address may stay silent before the next is tried beside it (RFC 8305).
const NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(250);

/// Makes guarded connections for the HTTP client's pool.
#[derive(Clone)]
pub(super) struct Connector {
    inner: Arc<Inner>,
    tls: TlsConnector,
}

struct Inner {
    policy: AddressPolicy,
    own: OwnPlaces,
    resolver: Resolver,
    proxy: Option<EgressProxy>,
    budget: Duration,
    kept_max: usize,
    /// Held by every open connection: its holders are counted.
    open: Arc<()>,
}

impl Connector {
    /// `budget` bounds dialling and the TLS handshake together. Connections made while `kept_max` others are open are
    /// for one use each: the pool that keeps the rest has no bound over all hosts.
    pub(super) fn new(
        policy: AddressPolicy,
        own: OwnPlaces,
        resolver: Resolver,
        proxy: Option<EgressProxy>,
        tls: TlsConnector,
        budget: Duration,
        kept_max: usize,
    ) -> Self {
        let inner = Inner { policy, own, resolver, proxy, budget, kept_max, open: Arc::default() };
        Self { inner: Arc::new(inner), tls }
    }

    /// The same with another TLS configuration.
    pub(super) fn with_tls(&self, config: Arc<rustls::ClientConfig>) -> Self {
        Self { inner: self.inner.clone(), tls: config.into() }
    }

    /// Whether this address may be connected to.
    pub(super) fn permits(&self, address: IpAddr) -> bool {
        self.inner.policy.permits(address)
    }
}

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<Conn>;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Failure>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (inner, tls) = (Arc::clone(&self.inner), self.tls.clone());
        Box::pin(async move { inner.connect(&uri, &tls).await.map(TokioIo::new) })
    }
}

impl Inner {
    async fn connect(&self, uri: &Uri, tls: &TlsConnector) -> Result<Conn, Failure> {
        let opened_at = Instant::now();
        let https = uri.scheme_str() == Some("https");
        let host = uri.host().unwrap_or_default();
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });

        let (found, dns_us) = match host.parse::<IpAddr>() {
            Ok(literal) => (vec![literal], None),
            Err(_) => (self.resolver.lookup(host).await?, Some(micros(opened_at.elapsed()))),
        };
        self.check(host, &found).map_err(|failure| Failure { dns_us, ..failure })?;
        if self.own.include(&found, port).await {
            tracing::info!(host, port, "refused to connect: a listener of ours, or our database");
            return Err(Failure { dns_us, ..Failure::blocked() });
        }

        let dialled_at = Instant::now();
        let deadline = tokio::time::Instant::from_std(dialled_at + self.budget);
        let addresses = in_turn(found, port);
        let (stream, peer) = match tokio::time::timeout_at(deadline, self.dial(&addresses)).await {
            Ok(Ok(dialled)) => dialled,
            Ok(Err(failure)) => return Err(Failure { dns_us, ..failure }),
            Err(_) => {
                let detail = format!("no connection within {}", seconds(self.budget));
                return Err(Failure { dns_us, ..Failure::new(ErrorClass::Connect, detail) });
            }
        };
        let connect_us = micros(dialled_at.elapsed());
        let with_times = |failure| Failure { dns_us, connect_us: Some(connect_us), ..failure };

        self.check(host, &[peer.ip()]).map_err(with_times)?;
        stream.set_nodelay(true).map_err(|error| with_times(Failure::from_dial(&error)))?;

        // The first holder is `self`.
        let is_kept = Arc::strong_count(&self.open) <= self.kept_max;
        let open = self.open.clone();
        let mut info = ConnInfo {
            peer,
            opened_at,
            dns_us,
            connect_us,
            tls_us: None,
            used: AtomicBool::new(false),
            heard_us: AtomicU64::new(SILENT),
        };
        if !https {
            return Ok(Conn { stream: Stream::Plain(stream), info: Arc::new(info), is_kept, _open: open });
        }
        let secured_at = Instant::now();
        let handshake = handshake(tls, host, stream);
        let stream = match tokio::time::timeout_at(deadline, handshake).await {
            Ok(done) => done.map_err(with_times)?,
            Err(_) => {
                let detail = format!("no TLS handshake within {}", seconds(self.budget));
                return Err(with_times(Failure::new(ErrorClass::Tls, detail)));
            }
        };
        info.tls_us = Some(micros(secured_at.elapsed()));
        Ok(Conn { stream: Stream::Tls(Box::new(stream)), info: Arc::new(info), is_kept, _open: open })
    }

    /// A connection to one of the addresses, and which it leads to.
    async fn dial(&self, addresses: &[SocketAddr]) -> Result<(TcpStream, SocketAddr), Failure> {
        match &self.proxy {
            Some(proxy) => proxy.dial(addresses).await,
            None => {
                let stream = dial(addresses).await.map_err(|error| Failure::from_dial(&error))?;
                let peer = stream.peer_addr().map_err(|error| Failure::from_dial(&error))?;
                Ok((stream, peer))
            }
        }
    }

    /// One address that is not allowed refuses them all: a mixed answer is somebody's trick.
    fn check(&self, host: &str, addresses: &[IpAddr]) -> Result<(), Failure> {
        match addresses.iter().find(|address| !self.policy.permits(**address)) {
            None => Ok(()),
            Some(address) => {
                // For the operator only: told to the customer, this would map our network.
                tracing::info!(host, %address, "refused to connect: address not allowed");
                Err(Failure::blocked())
            }
        }
    }
}

/// SNI and verification go by the host's name, though a checked address was dialled.
async fn handshake(
    tls: &TlsConnector,
    host: &str,
    stream: TcpStream,
) -> Result<TlsStream<TcpStream>, Failure> {
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| Failure::new(ErrorClass::Tls, "host name cannot be used with TLS"))?;
    tls.connect(name, stream).await.map_err(|error| {
        let described = error.get_ref().and_then(|inner| inner.downcast_ref()).map(super::tls::describe);
        let detail = described.unwrap_or_else(|| "connection closed during the TLS handshake".into());
        Failure::new(ErrorClass::Tls, detail)
    })
}

/// The addresses to dial: families in turn, IPv4 first, each address once, not too many.
fn in_turn(found: Vec<IpAddr>, port: u16) -> Vec<SocketAddr> {
    let (v4, v6): (Vec<_>, Vec<_>) = found.into_iter().partition(IpAddr::is_ipv4);
    let (mut v4, mut v6) = (v4.into_iter(), v6.into_iter());
    let mut ordered: Vec<SocketAddr> = Vec::new();
    loop {
        let round = [v4.next(), v6.next()];
        if round == [None, None] || ordered.len() >= ADDRESSES_DIALLED {
            ordered.truncate(ADDRESSES_DIALLED);
            return ordered;
        }
        for address in round.into_iter().flatten().map(|address| SocketAddr::new(address, port)) {
            if !ordered.contains(&address) {
                ordered.push(address);
            }
        }
    }
}

/// The first connection that one of the addresses accepts. The next address is tried when one before it has
/// failed, or all have been silent for a while.
async fn dial(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut waiting = addresses.iter();
    let mut dialling = FuturesUnordered::new();
    let mut failed: Option<io::Error> = None;
    loop {
        if let Some(address) = waiting.next() {
            dialling.push(TcpStream::connect(address));
        }
        let ended = if waiting.len() == 0 {
            dialling.next().await
        } else {
            match tokio::time::timeout(NEXT_ADDRESS_AFTER, dialling.next()).await {
                Ok(ended) => ended,
                Err(_) => continue,
            }
        };
        match ended {
            Some(Ok(stream)) => return Ok(stream),
            // What one address says counts for more than what we lack for another, such as IPv6.
            Some(Err(error)) if failed.is_none() || !is_lack(&error) => failed = Some(error),
            Some(Err(_)) => {}
            None => return Err(failed.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into())),
        }
    }
}

/// What is known of a connection; shared by all attempts that use it.
pub(super) struct ConnInfo {
    pub(super) peer: SocketAddr,
    pub(super) dns_us: Option<u32>,
    pub(super) connect_us: u32,
    pub(super) tls_us: Option<u32>,
    opened_at: Instant,
    used: AtomicBool,
    /// When the first byte came since something was last sent, in microseconds since it was opened.
    heard_us: AtomicU64,
}

/// No byte came.
const SILENT: u64 = u64::MAX;

impl ConnInfo {
    /// Whether the connection was made for an attempt that began then. The pool finishes connections in the
    /// background when another becomes free first; whoever finds such a one later has waited for nothing.
    pub(super) fn made_for(&self, attempt_began: Instant) -> bool {
        let first = !self.used.swap(true, Ordering::Relaxed);
        first && self.opened_at >= attempt_began
    }

    /// When the first byte of an answer came, however little of it.
    pub(super) fn heard_at(&self) -> Option<Instant> {
        match self.heard_us.load(Ordering::Relaxed) {
            SILENT => None,
            heard => Some(self.opened_at + Duration::from_micros(heard)),
        }
    }

    fn sends(&self) {
        self.heard_us.store(SILENT, Ordering::Relaxed);
    }

    fn hears(&self) {
        if self.heard_us.load(Ordering::Relaxed) == SILENT {
            self.heard_us.store(u64::from(micros(self.opened_at.elapsed())), Ordering::Relaxed);
        }
    }
}

/// A connection to a receiver.
pub(super) struct Conn {
    stream: Stream,
    info: Arc<ConnInfo>,
    /// Whether it may be used again.
    is_kept: bool,
    _open: Arc<()>,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connection for Conn {
    fn connected(&self) -> Connected {
        let connected = Connected::new().extra(Arc::clone(&self.info));
        if !self.is_kept {
            connected.poison();
        }
        connected
    }
}

impl AsyncRead for Conn {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = match &mut this.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        };
        if buf.filled().len() > before {
            this.info.hears();
        }
        read
    }
}

impl AsyncWrite for Conn {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.info.sends();
        match &mut this.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.info.sends();
        match &mut this.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// Microseconds, at most what the store keeps.
pub(super) fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}
