//! Who calls, and what they may do.

use super::error::{Error, ErrorKind, Result};
use super::id::{KeyId, ProjectId};

/// One thing that a project key may be allowed to do. Numbers are stored as bits; never reuse one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Scope {
    EventsPublish = 0,
    EventsRead = 1,
    EndpointsRead = 2,
    EndpointsWrite = 3,
    DeliveriesRead = 4,
    DeliveriesWrite = 5,
    Watch = 6,
    SecretsReveal = 7,
    AuditRead = 8,
}

impl Scope {
    pub const ALL: [Self; 9] = [
        Self::EventsPublish,
        Self::EventsRead,
        Self::EndpointsRead,
        Self::EndpointsWrite,
        Self::DeliveriesRead,
        Self::DeliveriesWrite,
        Self::Watch,
        Self::SecretsReveal,
        Self::AuditRead,
    ];

    /// The name in text: configuration, the command line, error messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::EventsPublish => "events.publish",
            Self::EventsRead => "events.read",
            Self::EndpointsRead => "endpoints.read",
            Self::EndpointsWrite => "endpoints.write",
            Self::DeliveriesRead => "deliveries.read",
            Self::DeliveriesWrite => "deliveries.write",
            Self::Watch => "watch",
            Self::SecretsReveal => "secrets.reveal",
            Self::AuditRead => "audit.read",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == name)
    }
}

/// A set of scopes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scopes(u64);

impl Scopes {
    pub fn all() -> Self {
        Scope::ALL.into_iter().collect()
    }

    pub const fn contains(self, scope: Scope) -> bool {
        self.0 & (1 << scope as u8) != 0
    }

    pub fn iter(self) -> impl Iterator<Item = Scope> {
        Scope::ALL.into_iter().filter(move |scope| self.contains(*scope))
    }

    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// For storage.
    pub const fn bits(self) -> i64 {
        self.0.cast_signed()
    }

    pub const fn from_bits(bits: i64) -> Self {
        Self(bits.cast_unsigned())
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        Self(scopes.into_iter().fold(0, |bits, scope| bits | 1 << scope as u8))
    }
}

/// The caller, as authentication found it.
#[derive(Clone, Debug)]
pub struct Principal {
    pub key_id: KeyId,
    /// None for an operator key, which may act on every project.
    pub project: Option<ProjectId>,
    pub scopes: Scopes,
    /// The peer's address, for the audit log.
    pub origin: Option<String>,
}

impl Principal {
    /// The server itself, where nobody called. It may do nothing: it only stands in the audit log, as no key.
    pub fn server() -> Self {
        let key_id = KeyId::from_uuid(uuid::Uuid::nil());
        Self { key_id, project: None, scopes: Scopes::default(), origin: None }
    }

    pub const fn is_server(&self) -> bool {
        self.key_id.uuid().is_nil()
    }

    pub const fn is_operator(&self) -> bool {
        self.project.is_none()
    }

    /// Refuses all but operator keys.
    pub fn require_operator(&self) -> Result<()> {
        if self.is_operator() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::PermissionDenied, "OPERATOR_REQUIRED", "this call needs an operator key"))
    }

    /// The project a call is about, once the scope is held.
    ///
    /// A project key implies its project; naming another one is answered as if that did not exist. An
    /// operator key must name one.
    pub fn project_for(&self, requested: Option<ProjectId>, scope: Scope) -> Result<ProjectId> {
        let project = match (self.project, requested) {
            (Some(own), Some(asked)) if own != asked => return Err(Error::not_found("project", asked)),
            (Some(own), _) => own,
            (None, Some(asked)) => return Ok(asked),
            (None, None) => {
                return Err(Error::invalid("project_id", "is required with an operator key"));
            }
        };
        if self.scopes.contains(scope) {
            return Ok(project);
        }
        let message = format!("this key lacks the scope {}", scope.as_str());
        Err(Error::new(ErrorKind::PermissionDenied, "SCOPE_REQUIRED", message))
    }
}
