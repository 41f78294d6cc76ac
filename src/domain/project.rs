//! Projects (tenants) and API keys.

use super::clock::Timestamp;
use super::id::{KeyId, ProjectId};
use super::principal::Scopes;

/// What becomes of events for an endpoint while it is paused. Stored numbers; never reuse one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PausedPolicy {
    /// Deliveries are recorded as DISCARDED.
    #[default]
    Discard = 1,
    /// Deliveries are kept and sent after resume.
    Hold = 2,
}

impl PausedPolicy {
    pub const fn code(self) -> i16 {
        self as i16
    }

    pub const fn from_code(code: i16) -> Option<Self> {
        match code {
            1 => Some(Self::Discard),
            2 => Some(Self::Hold),
            _ => None,
        }
    }
}

/// A tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Project {
    pub id: ProjectId,
    pub name: String,
    pub paused_policy: PausedPolicy,
    pub created_at: Timestamp,
}

/// An API key without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKey {
    pub id: KeyId,
    /// None for operator keys.
    pub project: Option<ProjectId>,
    pub name: String,
    pub scopes: Scopes,
    pub created_at: Timestamp,
    pub expires_at: Option<Timestamp>,
    pub last_used_at: Option<Timestamp>,
    pub revoked_at: Option<Timestamp>,
}

impl ApiKey {
    pub fn is_valid(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|end| now < end)
    }
}
