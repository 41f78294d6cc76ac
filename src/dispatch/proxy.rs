//! Through an egress proxy: a tunnel (CONNECT) to an address that was checked here, for https and http alike.
//!
//! The proxy itself is the operator's, and is dialled whatever its address. It is told the address and not the name,
//! so that what was checked is what is reached.

use std::net::SocketAddr;
use std::str::FromStr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::failure::Failure;
use crate::domain::attempt::ErrorClass;

/// A proxy's answer is its head alone.
const HEAD_MAX: usize = 8 * 1024;

/// The proxy that all connections go through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressProxy {
    host: String,
    port: u16,
}

/// Why a text names no proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be http://HOST:PORT")]
pub struct InvalidProxy;

impl FromStr for EgressProxy {
    type Err = InvalidProxy;

    fn from_str(text: &str) -> Result<Self, InvalidProxy> {
        let url = url::Url::parse(text).map_err(|_| InvalidProxy)?;
        let is_bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
        if url.scheme() != "http" || !is_bare || !url.username().is_empty() || url.password().is_some() {
            return Err(InvalidProxy);
        }
        let host = url.host_str().ok_or(InvalidProxy)?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { host, port: url.port_or_known_default().ok_or(InvalidProxy)? })
    }
}

impl EgressProxy {
    /// A connection to the first of these addresses that the proxy reaches.
    pub(super) async fn dial(&self, addresses: &[SocketAddr]) -> Result<(TcpStream, SocketAddr), Failure> {
        let mut last = Failure::new(ErrorClass::Connect, "host name has no address");
        for address in addresses {
            match self.tunnel(*address).await {
                Ok(stream) => return Ok((stream, *address)),
                Err(failure) => last = failure,
            }
        }
        Err(last)
    }

    async fn tunnel(&self, address: SocketAddr) -> Result<TcpStream, Failure> {
        let lost = |error: std::io::Error| {
            tracing::debug!(%error, "the egress proxy cannot be used");
            Failure::new(ErrorClass::Connect, "the egress proxy cannot be reached")
        };
        let mut stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(lost)?;
        let request = format!("CONNECT {address} HTTP/1.1\r\nhost: {address}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.map_err(lost)?;
        let head = read_head(&mut stream).await.map_err(lost)?;
        // `HTTP/1.1 200 Connection established`
        let status = head.split(' ').nth(1).and_then(|status| status.parse::<u16>().ok());
        match status {
            Some(200..=299) if head.starts_with("HTTP/1.") => Ok(stream),
            Some(403 | 407) => Err(Failure::new(ErrorClass::Connect, "the egress proxy refused")),
            _ => Err(Failure::new(ErrorClass::Connect, "the egress proxy could not connect")),
        }
    }
}

/// Up to the empty line and not a byte more: what follows belongs to the receiver.
async fn read_head(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut head = Vec::with_capacity(128);
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= HEAD_MAX {
            return Err(std::io::Error::other("the answer's head is too large"));
        }
        head.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_strictly() {
        let proxy: EgressProxy = "http://proxy.internal:3128".parse().expect("a proxy");
        assert_eq!(proxy, EgressProxy { host: "proxy.internal".to_owned(), port: 3128 });
        let proxy: EgressProxy = "http://[fd00::1]".parse().expect("a proxy");
        assert_eq!(proxy, EgressProxy { host: "fd00::1".to_owned(), port: 80 });
        for text in [
            "",
            "proxy:3128",
            "https://proxy:3128",
            "http://proxy:3128/path",
            "http://proxy/?q",
            "http://me:secret@proxy:3128",
            "socks5://p:1",
        ] {
            assert_eq!(text.parse::<EgressProxy>(), Err(InvalidProxy), "{text:?}");
        }
    }
}
