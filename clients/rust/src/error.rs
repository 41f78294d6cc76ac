//! Reading the details of an error (`google.rpc.Status`).

use prost::Message;
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// A field that breaks a rule, as the server named it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldViolation {
    /// The field's path in the request.
    pub field: String,
    /// What is wrong with it.
    pub description: String,
}

/// The fields that the server refused; empty where the error is about something else.
pub fn field_violations(status: &Status) -> Vec<FieldViolation> {
    let details = status.get_error_details();
    let violations = details.bad_request().map(|bad| bad.field_violations.as_slice()).unwrap_or_default();
    violations
        .iter()
        .map(|one| FieldViolation { field: one.field.clone(), description: one.description.clone() })
        .collect()
}

/// The stable name of what went wrong (`google.rpc.ErrorInfo.reason`), such as `ETAG_MISMATCH`.
pub fn reason(status: &Status) -> Option<String> {
    status.get_error_details().error_info().map(|info| info.reason.clone())
}

/// An error inside a message, such as a result of BatchPublishEvents, as the status that a call of its own would
/// have ended with.
#[expect(
    clippy::disallowed_methods,
    reason = "the server's table is for what the server says; this reads it"
)]
pub fn error_of(error: &tonic_types::pb::Status) -> Status {
    Status::with_details(Code::from(error.code), error.message.clone(), error.encode_to_vec().into())
}
