//! The audit log: who did what, when, and from where.

use super::clock::Timestamp;
use super::id::{AuditId, KeyId, ProjectId};

/// An entry. It holds no secret.
#[derive(Clone, Debug)]
pub struct AuditEvent {
    pub id: AuditId,
    pub project: Option<ProjectId>,
    /// None: the server itself.
    pub key: Option<KeyId>,
    pub key_name: Option<String>,
    /// The call.
    pub action: String,
    /// The id of what it was done to.
    pub resource: String,
    pub origin: Option<String>,
    /// As JSON.
    pub before: Option<String>,
    pub after: Option<String>,
    pub at: Timestamp,
}

/// Which entries a list shows.
#[derive(Clone, Debug, Default)]
pub struct AuditFilter {
    pub resource: Option<String>,
    pub action: Option<String>,
    pub start: Option<Timestamp>,
    pub end: Option<Timestamp>,
}
