//! What one HTTP attempt came to.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;

use super::clock::Timestamp;

/// Why an attempt failed: a closed set. Stored numbers; never reuse one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum ErrorClass {
    /// The host's name did not resolve.
    Dns = 1,
    /// The address is one that Hawser must not connect to.
    BlockedAddress = 2,
    /// No connection within 10 s: refused, unreachable, silent.
    Connect = 3,
    /// The TLS handshake failed: certificate, name, version.
    Tls = 4,
    /// The attempt's time was up.
    Timeout = 5,
    /// The connection ended before the answer did.
    Reset = 6,
    /// The answer was not HTTP, or its head was too large.
    Protocol = 7,
    /// The answer's status was not 2xx.
    HttpStatus = 8,
    /// No credential could be had for the endpoint.
    Auth = 9,
    /// The client certificate cannot be used.
    Certificate = 10,
    /// It was called off, or this machine was short of what it takes.
    Cancelled = 11,
}

impl ErrorClass {
    /// Every class, in the order of their numbers.
    pub const ALL: [Self; 11] = [
        Self::Dns,
        Self::BlockedAddress,
        Self::Connect,
        Self::Tls,
        Self::Timeout,
        Self::Reset,
        Self::Protocol,
        Self::HttpStatus,
        Self::Auth,
        Self::Certificate,
        Self::Cancelled,
    ];

    /// The number it is stored under.
    pub const fn code(self) -> i16 {
        self as i16
    }

    /// The class of a stored number; None for one that this version does not know.
    pub fn from_code(code: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.code() == code)
    }

    /// Its name, as the API shows it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dns => "DNS",
            Self::BlockedAddress => "BLOCKED_ADDRESS",
            Self::Connect => "CONNECT",
            Self::Tls => "TLS",
            Self::Timeout => "TIMEOUT",
            Self::Reset => "RESET",
            Self::Protocol => "PROTOCOL",
            Self::HttpStatus => "HTTP_STATUS",
            Self::Auth => "AUTH",
            Self::Certificate => "CERTIFICATE",
            Self::Cancelled => "CANCELLED",
        }
    }
}

/// Where an attempt's time went, in microseconds. The phases of making a connection are absent on a reused
/// one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    pub dns_us: Option<u32>,
    pub connect_us: Option<u32>,
    pub tls_us: Option<u32>,
    /// From the start of the attempt to the answer's head, or to its first byte where its head did not come whole.
    pub first_byte_us: Option<u32>,
    pub total_us: u32,
    pub reused: bool,
}

/// The result of one HTTP request.
#[derive(Clone, Debug)]
pub struct AttemptOutcome {
    pub started_at: Timestamp,
    pub status: Option<u16>,
    /// The class and a sentence that a customer may read. None exactly where it succeeded.
    pub error: Option<(ErrorClass, String)>,
    /// At most 64, credentials redacted.
    pub response_headers: Vec<(String, String)>,
    pub headers_truncated: bool,
    /// At most the first 16 KiB, as they came.
    pub body: Bytes,
    pub body_truncated: bool,
    /// Absent where nothing was dialled.
    pub peer: Option<SocketAddr>,
    pub timings: Timings,
    /// Of a 429 or 503.
    pub retry_after: Option<Duration>,
}

const GONE: u16 = 410;

impl AttemptOutcome {
    /// Only 2xx is success. An answer cut short after its 2xx head is one: the receiver has accepted.
    pub const fn is_success(&self) -> bool {
        self.error.is_none()
    }

    /// Whether the receiver answered 410: it will never want anything again.
    pub fn is_gone(&self) -> bool {
        self.status == Some(GONE)
    }

    /// Whether it says something about the endpoint: all but what was called off does.
    pub const fn counts(&self) -> bool {
        !matches!(self.error, Some((ErrorClass::Cancelled, _)))
    }

    /// Whether the connection was lost that an earlier attempt had left open, before any byte of an answer: most likely
    /// the receiver had closed it already.
    pub fn is_stale_connection(&self) -> bool {
        matches!(self.error, Some((ErrorClass::Reset, _)))
            && self.timings.reused
            && self.timings.first_byte_us.is_none()
    }

    /// An attempt that failed before anything was sent.
    pub fn unsent(started_at: Timestamp, class: ErrorClass, detail: impl Into<String>) -> Self {
        Self {
            started_at,
            status: None,
            error: Some((class, detail.into())),
            response_headers: Vec::new(),
            headers_truncated: false,
            body: Bytes::new(),
            body_truncated: false,
            peer: None,
            timings: Timings::default(),
            retry_after: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[rustfmt::skip]
    fn class_numbers_are_stable() {
        let names = ErrorClass::ALL.map(|class| (class.code(), class.as_str()));
        let stored = [
            (1, "DNS"), (2, "BLOCKED_ADDRESS"), (3, "CONNECT"), (4, "TLS"), (5, "TIMEOUT"), (6, "RESET"),
            (7, "PROTOCOL"), (8, "HTTP_STATUS"), (9, "AUTH"), (10, "CERTIFICATE"), (11, "CANCELLED"),
        ];
        assert_eq!(names, stored);
        for class in ErrorClass::ALL {
            assert_eq!(ErrorClass::from_code(class.code()), Some(class));
        }
        assert_eq!(ErrorClass::from_code(0), None);
        assert_eq!(ErrorClass::from_code(12), None);
    }
}
