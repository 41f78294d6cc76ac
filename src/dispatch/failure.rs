//! Why no usable connection was made, and how errors of the HTTP client are classed.

use std::error::Error;
use std::fmt;

use crate::domain::attempt::ErrorClass;

/// A failure before the request could be sent. Its text may be read by customers, so it names no address.
#[derive(Clone, Debug)]
pub struct ConnectFailure {
    pub class: ErrorClass,
    pub detail: String,
}

impl ConnectFailure {
    pub fn new(class: ErrorClass, detail: impl Into<String>) -> Self {
        Self { class, detail: detail.into() }
    }
}

impl fmt::Display for ConnectFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl Error for ConnectFailure {}

/// Classes an error of the client by what stands in its chain of causes.
pub fn classify(error: &(dyn Error + 'static)) -> (ErrorClass, String) {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(failure) = error.downcast_ref::<ConnectFailure>() {
            return (failure.class, failure.detail.clone());
        }
        if let Some(error) = error.downcast_ref::<hyper::Error>() {
            if error.is_parse_too_large() {
                return (ErrorClass::Protocol, "the answer's head is too large".to_owned());
            }
            if error.is_parse() {
                return (ErrorClass::Protocol, "the answer is not HTTP".to_owned());
            }
            if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
                return (ErrorClass::Reset, "the connection ended before the answer did".to_owned());
            }
        }
        if error.downcast_ref::<std::io::Error>().is_some() {
            return (ErrorClass::Reset, "the connection broke".to_owned());
        }
        cause = error.source();
    }
    (ErrorClass::Protocol, "the exchange failed".to_owned())
}
