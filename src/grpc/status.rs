//! The one table from errors to `google.rpc.Status`. No other place makes a status.

use std::time::Duration;

use prost::Message;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::domain::error::{Error, ErrorKind, RESUME_TOKEN};

/// `google.rpc.ErrorInfo.domain` of all our errors.
const DOMAIN: &str = "hawser";

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let code = match error.kind {
            ErrorKind::InvalidArgument => Code::InvalidArgument,
            ErrorKind::Unauthenticated => Code::Unauthenticated,
            ErrorKind::PermissionDenied => Code::PermissionDenied,
            ErrorKind::NotFound => Code::NotFound,
            ErrorKind::AlreadyExists => Code::AlreadyExists,
            ErrorKind::FailedPrecondition => Code::FailedPrecondition,
            ErrorKind::Aborted => Code::Aborted,
            ErrorKind::OutOfRange => Code::OutOfRange,
            ErrorKind::ResourceExhausted => Code::ResourceExhausted,
            ErrorKind::DeadlineExceeded => Code::DeadlineExceeded,
            ErrorKind::Unavailable => Code::Unavailable,
            ErrorKind::Internal => Code::Internal,
        };
        if let Some(cause) = &error.cause {
            let cause = format!("{cause:#}");
            match error.kind {
                ErrorKind::Internal => tracing::error!(cause, "a call failed by our own fault"),
                _ => tracing::debug!(cause, reason = error.reason, "a call failed"),
            }
        }
        Self::with_error_details(code, error.message.clone(), details(&error))
    }
}

fn details(error: &Error) -> ErrorDetails {
    let mut details = ErrorDetails::new();
    let metadata = error.metadata.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
    details.set_error_info(error.reason, DOMAIN, metadata.collect::<std::collections::HashMap<_, _>>());
    for violation in &error.violations {
        details.add_bad_request_violation(&violation.field, &violation.description);
    }
    if let Some((kind, id)) = &error.resource {
        details.set_resource_info(*kind, id, "", &error.message);
    }
    if let Some((subject, description)) = &error.quota {
        details.add_quota_failure_violation(subject, description);
    }
    if error.kind == ErrorKind::FailedPrecondition {
        let subject = error.resource.as_ref().map(|(_, id)| id.as_str()).unwrap_or_default();
        details.add_precondition_failure_violation(error.reason, subject, &error.message);
    }
    let retry = match error.kind {
        ErrorKind::Unavailable | ErrorKind::ResourceExhausted => error.retry_after,
        _ => None,
    };
    if let Some(retry) = retry {
        details.set_retry_info(Some(retry.min(Duration::from_secs(3600))));
    }
    details
}

/// The same inside a message: the result of one of many.
pub fn embedded(error: Error) -> tonic_types::pb::Status {
    let status = Status::from(error);
    // What tonic calls details is the encoded `google.rpc.Status`, with code and message.
    tonic_types::pb::Status::decode(status.details()).unwrap_or_else(|_| tonic_types::pb::Status {
        code: status.code().into(),
        message: status.message().to_owned(),
        details: Vec::new(),
    })
}

/// No usable credential came with the call.
pub fn unauthenticated(message: &str) -> Status {
    Error::new(ErrorKind::Unauthenticated, "MISSING_KEY", message).into()
}

/// The connection is as old as connections get: another one, perhaps to another node, takes over.
pub fn connection_aged() -> Status {
    Error::unavailable("the connection has reached its age; call again, with the last token").into()
}

/// The server is going away.
pub fn draining() -> Status {
    Error::unavailable("the server is stopping; call another, or again later").into()
}

/// The server is going away; a Watch goes on elsewhere or later at the place that the token names.
pub fn watch_drained(token: String) -> Status {
    Error::unavailable("the server is stopping; resume with the last token").with(RESUME_TOKEN, token).into()
}

/// The call, or its client's patience, took longer than it may.
pub fn deadline_exceeded(limit: Duration) -> Status {
    let message = format!("the call did not end within {} ms", limit.as_millis());
    Error::new(ErrorKind::DeadlineExceeded, "DEADLINE_EXCEEDED", message).into()
}

/// Whether tonic's decoder refused a request message because of its size, as it came or once it was decompressed.
pub fn says_too_large(status: &Status) -> bool {
    match status.code() {
        Code::OutOfRange => status.message().contains("message length too large"),
        Code::ResourceExhausted => status.message().contains("exceeded while decompressing"),
        _ => false,
    }
}

/// A request message above the limit; `found` says which, and what came.
pub fn message_too_large(found: &str) -> Status {
    let found = found.trim_start_matches("Error, ");
    let message = format!("{found} (the server's setting message-max)");
    Error::new(ErrorKind::OutOfRange, "MESSAGE_TOO_LARGE", message).into()
}
