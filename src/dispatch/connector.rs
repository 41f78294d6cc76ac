//! Making a connection: resolve, check, dial, check the peer, TLS.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::failure::ConnectFailure;
use super::resolver::Resolver;
use super::tls;
use crate::domain::attempt::ErrorClass;

const DIAL_BUDGET: Duration = Duration::from_secs(10);

/// What is known of a connection, for the attempts that go over it.
#[derive(Debug)]
pub struct ConnectionFacts {
    pub peer: SocketAddr,
    pub dns_us: Option<u32>,
    pub connect_us: u32,
    pub tls_us: Option<u32>,
    used: AtomicBool,
}

impl ConnectionFacts {
    /// Whether an attempt went over it before this one.
    pub fn take_reused(&self) -> bool {
        self.used.swap(true, Ordering::Relaxed)
    }
}

/// Makes connections for the HTTP client's pool.
#[derive(Clone)]
pub struct Connector {
    resolver: Arc<Resolver>,
    tls: TlsConnector,
}

impl Connector {
    pub fn new(resolver: Resolver, tls: TlsConnector) -> Self {
        Self { resolver: Arc::new(resolver), tls }
    }

    async fn connect(self, uri: http::Uri) -> Result<Stream, ConnectFailure> {
        let host = uri.host().unwrap_or_default();
        let is_tls = uri.scheme() == Some(&http::uri::Scheme::HTTPS);
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });

        let started = Instant::now();
        let literal = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().ok();
        let (addresses, dns_us) = match literal {
            Some(address) => {
                self.resolver.check(address)?;
                (vec![address], None)
            }
            None => (self.resolver.resolve(host).await?, Some(micros(started))),
        };

        let started = Instant::now();
        let stream = tokio::time::timeout(DIAL_BUDGET, dial(&addresses, port))
            .await
            .map_err(|_| ConnectFailure::new(ErrorClass::Connect, "no connection within 10 s"))??;
        let connect_us = micros(started);
        let peer = stream.peer_addr().map_err(|_| refused())?;
        self.resolver.check(peer.ip())?;

        let started = Instant::now();
        let (io, tls_us) = if is_tls {
            let stream = tokio::time::timeout(DIAL_BUDGET, tls::handshake(&self.tls, host, stream))
                .await
                .map_err(|_| ConnectFailure::new(ErrorClass::Tls, "no TLS handshake within 10 s"))??;
            (Io::Tls(TokioIo::new(Box::new(stream))), Some(micros(started)))
        } else {
            (Io::Plain(TokioIo::new(stream)), None)
        };
        let facts = ConnectionFacts { peer, dns_us, connect_us, tls_us, used: AtomicBool::new(false) };
        Ok(Stream { io, facts: Arc::new(facts) })
    }
}

/// Tries the checked addresses in turn.
async fn dial(addresses: &[IpAddr], port: u16) -> Result<TcpStream, ConnectFailure> {
    for address in addresses {
        if let Ok(stream) = TcpStream::connect(SocketAddr::new(*address, port)).await {
            // Without it small requests wait for acknowledgements; a socket that refuses works all the same.
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(error = %error, "TCP_NODELAY was refused");
            }
            return Ok(stream);
        }
    }
    Err(refused())
}

fn refused() -> ConnectFailure {
    ConnectFailure::new(ErrorClass::Connect, "the connection was refused or the host is unreachable")
}

pub fn micros(since: Instant) -> u32 {
    u32::try_from(since.elapsed().as_micros()).unwrap_or(u32::MAX)
}

impl tower::Service<http::Uri> for Connector {
    type Response = Stream;
    type Error = ConnectFailure;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, ConnectFailure>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectFailure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: http::Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

/// A connection with what is known of it.
pub struct Stream {
    io: Io,
    facts: Arc<ConnectionFacts>,
}

enum Io {
    Plain(TokioIo<TcpStream>),
    Tls(TokioIo<Box<TlsStream<TcpStream>>>),
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new().extra(self.facts.clone())
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_read(context, buffer),
            Io::Tls(io) => Pin::new(io).poll_read(context, buffer),
        }
    }
}

impl Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_write(context, bytes),
            Io::Tls(io) => Pin::new(io).poll_write(context, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_flush(context),
            Io::Tls(io) => Pin::new(io).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_shutdown(context),
            Io::Tls(io) => Pin::new(io).poll_shutdown(context),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(io) => io.is_write_vectored(),
            Io::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_write_vectored(context, buffers),
            Io::Tls(io) => Pin::new(io).poll_write_vectored(context, buffers),
        }
    }
}
