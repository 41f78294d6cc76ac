//! Projects (tenants) and API keys.

use std::num::NonZeroU32;
use std::time::Duration;

use super::alert::{AlertSettings, OperationalWebhook};
use super::clock::Timestamp;
use super::disable::DisablePolicy;
use super::error::{Error, ErrorKind, Result};
use super::id::{KeyId, ProjectId};
use super::principal::Scopes;
use super::retry::RetryPolicy;

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

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Discard => "DISCARD",
            Self::Hold => "HOLD",
        }
    }
}

/// A tenant.
#[derive(Clone, Debug, PartialEq)]
pub struct Project {
    pub id: ProjectId,
    pub settings: ProjectSettings,
    /// Its alerts are stored and do not open: `settings` lacks them, and writing the project keeps them as they are stored.
    pub alerts_unreadable: bool,
    /// Counts changes of `settings`; the etag is made of it.
    pub version: i64,
    pub created_at: Timestamp,
}

/// What clients may set of a project.
#[derive(Clone, Debug, PartialEq)]
pub struct ProjectSettings {
    pub name: String,
    pub paused_policy: PausedPolicy,
    /// For endpoints without their own; none: the default.
    pub retry_policy: Option<RetryPolicy>,
    /// For endpoints without their own; none: the default.
    pub disable_policy: Option<DisablePolicy>,
    /// Events that may be published in a second, and at once, on each node; none: as many as can be.
    pub publishes_per_second: Option<NonZeroU32>,
    /// For endpoints without their own; none: the default.
    pub http_timeout: Option<Duration>,
    /// For endpoints without their own; none: nobody is told.
    pub alerts: Option<AlertSettings>,
    /// Told what happens to all endpoints.
    pub operational_webhook: Option<OperationalWebhook>,
}

impl Project {
    /// Opaque to clients (AIP-154).
    pub fn etag(&self) -> String {
        format!("{:x}-{:x}", self.version, self.created_at.as_millis())
    }

    /// Refuses a change that was based on another version. An empty etag asks for no check.
    pub fn check_etag(&self, etag: &str) -> Result<()> {
        if etag.is_empty() || etag == self.etag() {
            return Ok(());
        }
        let message = "the project was changed since that etag was read; read it again";
        Err(Error::new(ErrorKind::Aborted, "ETAG_MISMATCH", message).about("project", self.id))
    }
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
