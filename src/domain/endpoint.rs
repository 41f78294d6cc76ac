//! Endpoints: what customers registered, and the states they can be in.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::alert::AlertSettings;
use super::attempt::ErrorClass;
use super::clock::Timestamp;
use super::credentials::{Authentication, ClientCertificate};
use super::disable::DisablePolicy;
use super::error::{Error, ErrorKind, Result};
use super::id::{EndpointId, ProjectId};
use super::rate::RateLimit;
use super::retry::RetryPolicy;
use super::rotation::RotationSettings;
use super::signature::SignatureSettings;

/// The time for a whole attempt where neither endpoint nor project says.
pub const HTTP_TIMEOUT: Duration = Duration::from_secs(15);
/// What either may say.
pub const HTTP_TIMEOUTS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(60);

/// An endpoint's state. Stored numbers; never reuse one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum EndpointStatus {
    /// Answers normally; events are delivered.
    Active = 1,
    /// Switched off by hand; queued work is held.
    Paused = 2,
    /// Switched off because it failed too often; queued work becomes DISCARDED.
    Inactive = 3,
    /// Was INACTIVE, and one delivery is being retried as a probe; nothing else is sent.
    Pending = 4,
}

impl EndpointStatus {
    pub const fn code(self) -> i16 {
        self as i16
    }

    pub const fn from_code(code: i16) -> Option<Self> {
        match code {
            1 => Some(Self::Active),
            2 => Some(Self::Paused),
            3 => Some(Self::Inactive),
            4 => Some(Self::Pending),
            _ => None,
        }
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "ACTIVE",
            Self::Paused => "PAUSED",
            Self::Inactive => "INACTIVE",
            Self::Pending => "PENDING",
        }
    }

    /// Switch off by hand: the state to change to, or none where it already is so.
    pub fn pause(self) -> Result<Option<Self>> {
        match self {
            Self::Active => Ok(Some(Self::Paused)),
            Self::Paused => Ok(None),
            Self::Inactive => Err(inactive("it is INACTIVE: nothing is sent to it anyway")),
            Self::Pending => Err(pending()),
        }
    }

    /// Switch on again what was switched off by hand.
    pub fn resume(self) -> Result<Option<Self>> {
        match self {
            Self::Paused => Ok(Some(Self::Active)),
            Self::Active => Ok(None),
            Self::Inactive => Err(inactive("it is INACTIVE, not paused; activate it")),
            Self::Pending => Err(pending()),
        }
    }

    /// Switch on by hand, whatever switched it off.
    pub fn activate(self) -> Result<Option<Self>> {
        match self {
            Self::Paused | Self::Inactive => Ok(Some(Self::Active)),
            Self::Active => Ok(None),
            Self::Pending => Err(pending()),
        }
    }

    /// What retrying one of its deliveries by hand changes its state to: none where it is sent like any other.
    pub fn retry(self) -> Result<Option<Self>> {
        match self {
            Self::Active => Ok(None),
            Self::Inactive => Ok(Some(Self::Pending)),
            Self::Paused => {
                let message = "its endpoint is paused; resume it first";
                Err(Error::new(ErrorKind::FailedPrecondition, "ENDPOINT_PAUSED", message))
            }
            Self::Pending => Err(pending()),
        }
    }

    /// What the end of the probe changes it to.
    pub const fn probed(success: bool) -> Self {
        if success { Self::Active } else { Self::Inactive }
    }

    /// Whether what is queued for it ends as DISCARDED, the probe apart.
    pub const fn discards(self) -> bool {
        matches!(self, Self::Inactive | Self::Pending)
    }
}

fn pending() -> Error {
    let message = "the endpoint is PENDING: one delivery is being retried as a probe; wait for its outcome";
    Error::new(ErrorKind::FailedPrecondition, "ENDPOINT_PENDING", message)
}

fn inactive(message: &str) -> Error {
    Error::new(ErrorKind::FailedPrecondition, "ENDPOINT_INACTIVE", message)
}

/// What payloads are sent as. Stored numbers; never reuse one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum ContentType {
    /// `application/json`: the bytes that were published.
    #[default]
    Json = 1,
    /// `application/x-www-form-urlencoded`, made of a JSON object.
    Form = 2,
}

impl ContentType {
    pub const fn code(self) -> i16 {
        self as i16
    }

    pub const fn from_code(code: i16) -> Option<Self> {
        match code {
            1 => Some(Self::Json),
            2 => Some(Self::Form),
            _ => None,
        }
    }

    /// As `content-type` says it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Form => "application/x-www-form-urlencoded",
        }
    }
}

/// A header that the customer wants on every delivery.
#[derive(Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CustomHeader {
    pub name: String,
    /// May hold a credential: sealed at rest, and shown only where `is_sensitive` is false.
    pub value: String,
}

impl CustomHeader {
    /// Whether the value is likely a credential.
    pub fn is_sensitive(&self) -> bool {
        suggests_credential(&self.name)
    }
}

/// Whether a header of this name likely holds a credential.
pub fn suggests_credential(header: &str) -> bool {
    let name = header.to_ascii_lowercase();
    ["authorization", "cookie", "token", "secret", "key", "password", "signature", "credential"]
        .iter()
        .any(|mark| name.contains(mark))
}

impl std::fmt::Debug for CustomHeader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: [redacted]", self.name)
    }
}

/// The newest answer of a receiver.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LastResponse {
    pub at: Timestamp,
    pub status: Option<u16>,
    pub error: Option<ErrorClass>,
}

/// The circuit breaker as people see it. It is no state of the endpoint, which stays ACTIVE.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Circuit {
    /// Attempts are made.
    #[default]
    Closed,
    /// Sending rests; from that time on one attempt probes.
    Open(Timestamp),
    /// One attempt is probing.
    HalfOpen,
}

/// What clients may set of an endpoint. The etag is over these and nothing else.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct EndpointSettings {
    /// The customer's own id for it, unique in the project.
    pub uid: Option<String>,
    pub name: String,
    /// Canonical text.
    pub url: String,
    pub description: String,
    pub owner_id: Option<String>,
    pub labels: BTreeMap<String, String>,
    /// For a whole attempt. None: the project's.
    pub http_timeout: Option<Duration>,
    /// None: the project's policy.
    pub retry_policy: Option<RetryPolicy>,
    /// None: the project's policy.
    pub disable_policy: Option<DisablePolicy>,
    pub headers: Vec<CustomHeader>,
    /// Attempts in flight at once on one node; 0: the cap follows the endpoint.
    #[serde(default)]
    pub max_in_flight: u16,
    #[serde(default)]
    pub content_type: ContentType,
    /// None: attempts start as soon as they can.
    #[serde(default)]
    pub rate_limit: Option<RateLimit>,
    #[serde(default)]
    pub authentication: Option<Authentication>,
    #[serde(default)]
    pub client_certificate: Option<ClientCertificate>,
    /// Certificates, in PEM, that are trusted for this endpoint instead of the server's.
    #[serde(default)]
    pub authorities: Option<String>,
    #[serde(default)]
    pub signature: SignatureSettings,
    #[serde(default)]
    pub rotation: RotationSettings,
    /// None: the project's.
    #[serde(default)]
    pub alerts: Option<AlertSettings>,
}

impl EndpointSettings {
    /// Whether both are reached in the same way: nothing that a ping would tell differs.
    pub fn reaches_as(&self, other: &Self) -> bool {
        self.url == other.url && self.has_credentials_of(other)
    }

    pub const fn has_credentials(&self) -> bool {
        self.authentication.is_some() || self.client_certificate.is_some() || self.authorities.is_some()
    }

    pub fn has_credentials_of(&self, other: &Self) -> bool {
        self.authentication == other.authentication
            && self.client_certificate == other.client_certificate
            && self.authorities == other.authorities
    }
}

/// A setting that is stored sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum SealedSetting {
    Headers,
    Authentication,
    ClientCertificate,
    Alerts,
}

impl SealedSetting {
    /// Its name in the contract.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Headers => "headers",
            Self::Authentication => "authentication",
            Self::ClientCertificate => "mtls_client_cert",
            Self::Alerts => "alerts",
        }
    }
}

/// A registered endpoint.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Endpoint {
    pub id: EndpointId,
    pub project: ProjectId,
    pub settings: EndpointSettings,
    /// What is stored and does not open: `settings` lacks it, and writing the endpoint keeps it as it is stored.
    #[serde(default)]
    pub unreadable: Vec<SealedSetting>,
    pub status: EndpointStatus,
    pub status_reason: String,
    pub status_changed_at: Timestamp,
    /// Counts changes of `settings`; the etag is made of it.
    pub version: i64,
    /// The version that the credentials last changed with; 0 where there never were any.
    #[serde(default)]
    pub credential_version: i64,
    /// Counts all changes, of settings and state, so that of two changes the newer one is known.
    #[serde(default)]
    pub revision: i64,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub consecutive_failures: u32,
    #[serde(default)]
    pub circuit: Circuit,
    pub last_response: Option<LastResponse>,
}

impl Endpoint {
    /// Opaque to clients (AIP-154).
    pub fn etag(&self) -> String {
        format!("{:x}-{:x}", self.version, self.created_at.as_millis())
    }

    /// Refuses a change that was based on another version. An empty etag asks for no check.
    pub fn check_etag(&self, etag: &str) -> Result<()> {
        if etag.is_empty() || etag == self.etag() {
            return Ok(());
        }
        let message = "the endpoint was changed since that etag was read; read it again";
        Err(Error::new(ErrorKind::Aborted, "ETAG_MISMATCH", message).about("endpoint", self.id))
    }

    /// Refuses what would be sent without those settings that cannot be read.
    pub fn check_readable(&self) -> Result<()> {
        let sent = self.unreadable.iter().filter(|setting| **setting != SealedSetting::Alerts);
        let names: Vec<&str> = sent.map(|setting| setting.as_str()).collect();
        if names.is_empty() {
            return Ok(());
        }
        let message = format!("what is stored of it cannot be read: {}; set it again", names.join(", "));
        Err(Error::new(ErrorKind::FailedPrecondition, "ENDPOINT_UNREADABLE", message)
            .about("endpoint", self.id))
    }
}

/// Which endpoints a list shows.
#[derive(Clone, Debug, Default)]
pub struct EndpointFilter {
    /// Empty: all.
    pub ids: Vec<EndpointId>,
    pub owner: Option<String>,
    pub status: Option<EndpointStatus>,
    pub uid: Option<String>,
    /// It has all of these.
    pub labels: BTreeMap<String, String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use EndpointStatus::{Active, Inactive, Paused, Pending};

    #[test]
    fn only_the_listed_transitions_exist() {
        let reason = |step: Result<Option<EndpointStatus>>| step.map_err(|error| error.reason);
        let (inactive, pending) = (Err("ENDPOINT_INACTIVE"), Err("ENDPOINT_PENDING"));
        for (from, pause, resume, activate, retry) in [
            (Active, Ok(Some(Paused)), Ok(None), Ok(None), Ok(None)),
            (Paused, Ok(None), Ok(Some(Active)), Ok(Some(Active)), Err("ENDPOINT_PAUSED")),
            (Inactive, inactive, inactive, Ok(Some(Active)), Ok(Some(Pending))),
            (Pending, pending, pending, pending, pending),
        ] {
            assert_eq!(reason(from.pause()), pause, "pause of {from:?}");
            assert_eq!(reason(from.resume()), resume, "resume of {from:?}");
            assert_eq!(reason(from.activate()), activate, "activate of {from:?}");
            assert_eq!(reason(from.retry()), retry, "retry on {from:?}");
            assert_eq!(EndpointStatus::from_code(from.code()), Some(from));
        }
    }
}
