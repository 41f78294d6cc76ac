//! Names what went wrong: from the client's chain of errors to an error class and a sentence.
//!
//! The sentences are read by customers. They never hold an address, and never text that a receiver chose.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::io;
use std::time::Duration;

use rustix::io::Errno;

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

    /// Nothing was sent because this machine is short of something. It is told to the operator by what it is.
    pub(super) fn lack(error: &io::Error) -> Self {
        tracing::debug!(%error, "an attempt could not be made for lack of what this machine has");
        Self::new(ErrorClass::Cancelled, "not sent: the sending server is short of resources")
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
        if is_lack(error) {
            return Self::lack(error);
        }
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

/// Whether it says that this machine is short of something, and so nothing of the receiver: open files, memory, ports,
/// or an address to connect from.
pub(super) fn is_lack(error: &io::Error) -> bool {
    const LACKS: [Errno; 5] = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS, Errno::ADDRNOTAVAIL];
    error.raw_os_error().is_some_and(|code| LACKS.contains(&Errno::from_raw_os_error(code)))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::attempt::AttemptOutcome;
    use crate::domain::clock::Timestamp;

    #[test]
    fn what_this_machine_lacks_says_nothing_of_the_receiver() {
        let class =
            |errno: Errno| Failure::from_dial(&io::Error::from_raw_os_error(errno.raw_os_error())).class;
        for lack in [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS, Errno::ADDRNOTAVAIL] {
            assert_eq!(class(lack), ErrorClass::Cancelled, "{lack:?}");
            assert!(!AttemptOutcome::unsent(Timestamp::now(), class(lack), "").counts());
        }
        for theirs in
            [Errno::CONNREFUSED, Errno::HOSTUNREACH, Errno::NETUNREACH, Errno::TIMEDOUT, Errno::ACCESS]
        {
            assert_eq!(class(theirs), ErrorClass::Connect, "{theirs:?}");
        }
    }
}
