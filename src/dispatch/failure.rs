//! Names what went wrong: from the client's chain of errors to an error class and a sentence.
//!
//! The sentences are read by customers. They never hold an address, and never text that a receiver chose.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::io;
use std::time::Duration;

use crate::domain::attempt::ErrorClass;

/// Why an attempt, or the making of a connection, failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) class: ErrorClass,
    pub(super) detail: Cow<'static, str>,
    /// How long the name took to resolve, where it failed after that.
    pub(super) dns_us: Option<u32>,
    /// How long the connection took, where it failed after that.
    pub(super) connect_us: Option<u32>,
}

impl Failure {
    pub(super) fn new(class: ErrorClass, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { class, detail: detail.into(), dns_us: None, connect_us: None }
    }

    /// The one thing said about an address that may not be dialled, whatever it is.
    pub(super) fn blocked() -> Self {
        Self::new(ErrorClass::BlockedAddress, "target address not allowed")
    }

    /// Finds the cause in what the HTTP client reports.
    pub(super) fn from_client(error: hyper_util::client::legacy::Error) -> Self {
        let mut hyper_says = None;
        let mut next: Option<&(dyn Error + 'static)> = Some(&error);
        while let Some(cause) = next {
            if let Some(failure) = cause.downcast_ref::<Self>() {
                return Self { detail: failure.detail.clone(), ..*failure };
            }
            if let Some(cause) = cause.downcast_ref::<io::Error>() {
                return Self::from_io(cause);
            }
            if let Some(cause) = cause.downcast_ref::<hyper::Error>() {
                hyper_says = Some(Self::from_hyper(cause));
            }
            next = cause.source();
        }
        hyper_says.unwrap_or_else(|| Self::new(ErrorClass::Reset, "the connection was lost"))
    }

    /// For errors on an open connection.
    fn from_io(error: &io::Error) -> Self {
        if let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            return Self::new(ErrorClass::Tls, super::tls::describe(error));
        }
        Self::new(ErrorClass::Reset, "the connection was reset")
    }

    fn from_hyper(error: &hyper::Error) -> Self {
        if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
            return Self::new(ErrorClass::Reset, "the connection was closed before the answer");
        }
        Self::new(ErrorClass::Protocol, "the answer is not HTTP/1.1, or its head is too large")
    }

    /// For errors before there is a connection.
    pub(super) fn from_dial(error: &io::Error) -> Self {
        let detail = match error.kind() {
            io::ErrorKind::ConnectionRefused => "connection refused",
            io::ErrorKind::HostUnreachable => "host unreachable",
            io::ErrorKind::NetworkUnreachable => "network unreachable",
            io::ErrorKind::TimedOut => "no answer to the connection request",
            _ => "connection failed",
        };
        Self::new(ErrorClass::Connect, detail)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl Error for Failure {}

/// A duration as people write it: `15 s`, `0.2 s`.
pub(super) fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs_f32())
}
