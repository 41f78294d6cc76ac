//! Through an egress proxy: a tunnel (CONNECT) to an address that was checked here, for https and http alike.
//!
//! The proxy itself is the operator's, and is dialled whatever its address. It is told the address and not the name,
//! so that what was checked is what is reached.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode_str;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use zeroize::Zeroizing;

use super::failure::{Failure, is_lack};
use crate::domain::attempt::ErrorClass;
use crate::domain::secret::SecretText;

/// A proxy's answer is its head alone.
const HEAD_MAX: usize = 8 * 1024;

/// The proxy that all connections go through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressProxy {
    host: String,
    port: u16,
    /// What `proxy-authorization` says, where the URL has a user and a password.
    authorization: Option<SecretText>,
}

/// Why a text names no proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be http://HOST:PORT or http://USER:PASSWORD@HOST:PORT")]
pub struct InvalidProxy;

impl FromStr for EgressProxy {
    type Err = InvalidProxy;

    fn from_str(text: &str) -> Result<Self, InvalidProxy> {
        let url = url::Url::parse(text).map_err(|_| InvalidProxy)?;
        let is_bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
        if url.scheme() != "http" || !is_bare {
            return Err(InvalidProxy);
        }
        let host = url.host_str().ok_or(InvalidProxy)?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = url.port_or_known_default().ok_or(InvalidProxy)?;
        Ok(Self { host, port, authorization: authorization(&url)? })
    }
}

/// HTTP Basic, by the user and password of a URL.
fn authorization(url: &url::Url) -> Result<Option<SecretText>, InvalidProxy> {
    let (user, password) = match (url.username(), url.password()) {
        ("", None) => return Ok(None),
        ("", Some(_)) => return Err(InvalidProxy),
        // `USER:@` reads as `USER@` does: the password is empty.
        (user, password) => (percent_decode_str(user), percent_decode_str(password.unwrap_or_default())),
    };
    let mut pair = Zeroizing::new(user.collect::<Vec<u8>>());
    // It would end the user's name.
    if pair.contains(&b':') {
        return Err(InvalidProxy);
    }
    pair.push(b':');
    pair.extend(password);
    Ok(Some(SecretText::new(format!("Basic {}", STANDARD.encode(&*pair)))))
}

impl fmt::Display for EgressProxy {
    /// Without credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "http://[{}]:{}", self.host, self.port),
            false => write!(f, "http://{}:{}", self.host, self.port),
        }
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
            if is_lack(&error) {
                return Failure::lack(&error);
            }
            tracing::debug!(%error, "the egress proxy cannot be used");
            Failure::new(ErrorClass::Connect, "the egress proxy cannot be reached")
        };
        let mut stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(lost)?;
        let mut request = Zeroizing::new(format!("CONNECT {address} HTTP/1.1\r\nhost: {address}\r\n"));
        if let Some(authorization) = &self.authorization {
            request.push_str("proxy-authorization: ");
            request.push_str(authorization.expose());
            request.push_str("\r\n");
        }
        request.push_str("\r\n");
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
        let bare = |host: &str, port| EgressProxy { host: host.to_owned(), port, authorization: None };
        let read = |text: &str| text.parse::<EgressProxy>().expect("a proxy");
        assert_eq!(read("http://proxy.internal:3128"), bare("proxy.internal", 3128));
        assert_eq!(read("http://[fd00::1]"), bare("fd00::1", 80));
        assert_eq!(read("http://[fd00::1]").to_string(), "http://[fd00::1]:80");
        for text in [
            "",
            "proxy:3128",
            "https://proxy:3128",
            "http://proxy:3128/path",
            "http://proxy/?q",
            "http://:secret@proxy:3128",
            "http://m%3ae:secret@proxy:3128",
            "socks5://p:1",
        ] {
            assert_eq!(text.parse::<EgressProxy>(), Err(InvalidProxy), "{text:?}");
        }
    }

    #[test]
    fn credentials_are_sent_as_they_were_meant_and_never_shown() {
        for (url, meant) in [
            ("http://m%C3%A9:p%40ss:word@proxy:3128", "mé:p@ss:word"),
            ("http://token:@proxy:3128", "token:"),
            ("http://token@proxy:3128", "token:"),
        ] {
            let proxy: EgressProxy = url.parse().expect("a proxy");
            let sent = proxy.authorization.as_ref().map(SecretText::expose).expect("credentials");
            let sent = STANDARD.decode(sent.strip_prefix("Basic ").expect("Basic")).expect("base64");
            assert_eq!(String::from_utf8(sent).expect("text"), meant);
            assert_eq!(proxy.to_string(), "http://proxy:3128");
            assert!(!format!("{proxy:?}").contains("Basic"), "{proxy:?}");
        }
    }
}
