//! The one error of the product's rules and use cases. It has two faces: a public message (with the field,
//! the resource and a stable reason), and a cause that is logged and never sent.

use std::fmt;
use std::time::Duration;

/// What kind of failure this is; `grpc::status` maps each to one status code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    InvalidArgument,
    Unauthenticated,
    PermissionDenied,
    NotFound,
    AlreadyExists,
    FailedPrecondition,
    Aborted,
    OutOfRange,
    ResourceExhausted,
    DeadlineExceeded,
    Unavailable,
    Internal,
}

/// One field that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The field's path in the request, in proto names (`endpoint.url`, `event_types[2]`).
    pub field: String,
    /// What is wrong with it, as a sentence without the field's name.
    pub description: String,
}

/// The reason of [`Error::overloaded`].
pub const OVERLOADED: &str = "OVERLOADED";
/// The name of the value with which a Watch goes on.
pub const RESUME_TOKEN: &str = "resume_token";

/// A failure that a caller will see.
#[derive(Debug)]
pub struct Error {
    pub kind: ErrorKind,
    /// Stable upper-case name for programs, `google.rpc.ErrorInfo.reason`.
    pub reason: &'static str,
    /// For people; holds no secret and no internal detail.
    pub message: String,
    pub violations: Vec<Violation>,
    /// Kind and id of the resource it is about.
    pub resource: Option<(&'static str, String)>,
    /// What of, and how much there is, where a limit of the caller's is reached.
    pub quota: Option<(String, String)>,
    /// Names and values for programs, such as a token to go on with.
    pub metadata: Vec<(&'static str, String)>,
    /// When trying again may help.
    pub retry_after: Option<Duration>,
    /// For the log only.
    pub cause: Option<anyhow::Error>,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn new(kind: ErrorKind, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            kind,
            reason,
            message: message.into(),
            violations: Vec::new(),
            resource: None,
            quota: None,
            metadata: Vec::new(),
            retry_after: None,
            cause: None,
        }
    }

    /// Input that breaks the rule of one field.
    pub fn invalid(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self::violations(vec![Violation { field: field.into(), description: description.into() }])
    }

    /// Input that breaks the rules of several fields; the list must not be empty.
    pub fn violations(violations: Vec<Violation>) -> Self {
        let message = match violations.as_slice() {
            [one] => format!("{}: {}", one.field, one.description),
            many => format!("{} fields are not valid; the first is {}", many.len(), many[0].field),
        };
        Self { violations, ..Self::new(ErrorKind::InvalidArgument, "INVALID_FIELD", message) }
    }

    /// No such resource in the caller's project; also said of another project's.
    pub fn not_found(resource: &'static str, id: impl fmt::Display) -> Self {
        Self {
            resource: Some((resource, id.to_string())),
            ..Self::new(ErrorKind::NotFound, "NOT_FOUND", format!("there is no {resource} {id}"))
        }
    }

    /// The store or the engine cannot take the call now; the caller may try again.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self {
            retry_after: Some(Duration::from_secs(1)),
            ..Self::new(ErrorKind::Unavailable, "UNAVAILABLE", message)
        }
    }

    /// A limit is reached; `subject` is what it is a limit of.
    pub fn quota(reason: &'static str, subject: impl fmt::Display, description: impl Into<String>) -> Self {
        let description = description.into();
        Self {
            quota: Some((subject.to_string(), description.clone())),
            retry_after: Some(Duration::from_secs(1)),
            ..Self::new(ErrorKind::ResourceExhausted, reason, description)
        }
    }

    /// More came at once than this process takes; nothing was done.
    pub fn overloaded(message: impl Into<String>) -> Self {
        Self {
            retry_after: Some(Duration::from_secs(1)),
            ..Self::new(ErrorKind::ResourceExhausted, OVERLOADED, message)
        }
    }

    /// Our own fault; the caller learns nothing but that.
    pub fn internal(cause: impl Into<anyhow::Error>) -> Self {
        Self::new(ErrorKind::Internal, "INTERNAL", "an internal error occurred; the server's log has it")
            .caused_by(cause)
    }

    pub fn about(mut self, resource: &'static str, id: impl fmt::Display) -> Self {
        self.resource = Some((resource, id.to_string()));
        self
    }

    /// Adds a value for programs.
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.metadata.push((name, value.into()));
        self
    }

    pub fn caused_by(mut self, cause: impl Into<anyhow::Error>) -> Self {
        self.cause = Some(cause.into());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_ref().map(|cause| {
            let cause: &(dyn std::error::Error + 'static) = cause.as_ref();
            cause
        })
    }
}
