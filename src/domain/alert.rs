//! Alerts: what may be told of endpoints, who is told it, and by which channel.

use std::fmt;
use std::time::Duration;

use super::clock::Timestamp;
use super::endpoint::{Endpoint, EndpointStatus};
use super::id::{DeliveryId, EndpointId, EventId, ProjectId};
use super::secret::SecretText;
use super::subscription::EventTypePattern;

/// Something that may be told. Its name is stored and sent; never change one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "&'static str")]
pub enum AlertEvent {
    EndpointCreated,
    EndpointUpdated,
    EndpointDeleted,
    EndpointPaused,
    EndpointDisabled,
    EndpointActivated,
    SecretRotated,
    CertificateExpiring,
    /// Half way to the disable policy.
    DeliveryFailing,
    /// The all-clear after it.
    DeliveryRecovered,
    /// A delivery used its last attempt.
    DeliveryExhausted,
}

const DAY: u64 = 24 * 3600;
/// How long before its end a certificate is warned of.
pub const CERTIFICATE_WARNINGS: [Duration; 3] =
    [Duration::from_secs(30 * DAY), Duration::from_secs(7 * DAY), Duration::from_secs(DAY)];
/// E-mail addresses that one endpoint, or project, may name.
pub const EMAILS_MAX: usize = 10;
/// Names and patterns of what is to be told.
pub const PATTERNS_MAX: usize = 20;

impl AlertEvent {
    pub const ALL: [Self; 11] = [
        Self::EndpointCreated,
        Self::EndpointUpdated,
        Self::EndpointDeleted,
        Self::EndpointPaused,
        Self::EndpointDisabled,
        Self::EndpointActivated,
        Self::SecretRotated,
        Self::CertificateExpiring,
        Self::DeliveryFailing,
        Self::DeliveryRecovered,
        Self::DeliveryExhausted,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::EndpointCreated => "endpoint.created",
            Self::EndpointUpdated => "endpoint.updated",
            Self::EndpointDeleted => "endpoint.deleted",
            Self::EndpointPaused => "endpoint.paused",
            Self::EndpointDisabled => "endpoint.disabled",
            Self::EndpointActivated => "endpoint.activated",
            Self::SecretRotated => "endpoint.secret_rotated",
            Self::CertificateExpiring => "endpoint.certificate_expiring",
            Self::DeliveryFailing => "delivery.failing",
            Self::DeliveryRecovered => "delivery.recovered",
            Self::DeliveryExhausted => "delivery.exhausted",
        }
    }

    /// Whether people are told of it who did not say of what they want to be told: not of what someone just did.
    const fn is_news(self) -> bool {
        !matches!(self, Self::EndpointCreated | Self::EndpointUpdated | Self::EndpointDeleted)
    }
}

impl From<AlertEvent> for &'static str {
    fn from(event: AlertEvent) -> Self {
        event.as_str()
    }
}

impl TryFrom<String> for AlertEvent {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        Self::ALL.into_iter().find(|event| event.as_str() == name).ok_or(name)
    }
}

impl fmt::Display for AlertEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A way to tell someone. Stored numbers; never reuse one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Channel {
    Email = 1,
    Slack = 2,
    Teams = 3,
    /// The project's own webhook.
    Operational = 4,
}

impl Channel {
    pub const ALL: [Self; 4] = [Self::Email, Self::Slack, Self::Teams, Self::Operational];

    pub const fn code(self) -> i16 {
        self as i16
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Email => "email",
            Self::Slack => "slack",
            Self::Teams => "teams",
            Self::Operational => "operational",
        }
    }
}

/// Where alerts go, as a hash: the mail server, a URL in Slack or Teams, a project's webhook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AlertPlace(pub i64);

/// A URL that lets everyone who has it post. Serialised, it only shows that it is there.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SecretUrl {
    #[serde(skip)]
    pub text: SecretText,
}

impl SecretUrl {
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: SecretText::new(text) }
    }
}

/// Who is told what happens to an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct AlertSettings {
    pub emails: Vec<String>,
    pub slack: Option<SecretUrl>,
    pub teams: Option<SecretUrl>,
    /// Of what; empty: of all that is news.
    pub on: Vec<EventTypePattern>,
}

impl AlertSettings {
    pub fn wants(&self, event: AlertEvent) -> bool {
        if self.on.is_empty() { event.is_news() } else { matches(&self.on, event) }
    }

    /// Where each of them is told.
    pub fn targets(&self) -> impl Iterator<Item = (Channel, &str)> {
        let emails = self.emails.iter().map(|address| (Channel::Email, address.as_str()));
        let slack = self.slack.iter().map(|url| (Channel::Slack, url.text.expose()));
        let teams = self.teams.iter().map(|url| (Channel::Teams, url.text.expose()));
        emails.chain(slack).chain(teams)
    }
}

/// The webhook that tells a project's owner what happens to its endpoints.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct OperationalWebhook {
    /// Canonical text.
    pub url: String,
    /// Of what; empty: of everything.
    pub on: Vec<EventTypePattern>,
}

impl OperationalWebhook {
    pub fn wants(&self, event: AlertEvent) -> bool {
        self.on.is_empty() || matches(&self.on, event)
    }
}

fn matches(patterns: &[EventTypePattern], event: AlertEvent) -> bool {
    patterns.iter().any(|pattern| pattern.matches(event.as_str()))
}

/// Whether a pattern matches anything that may be told.
pub fn is_of_alerts(pattern: &EventTypePattern) -> bool {
    AlertEvent::ALL.into_iter().any(|event| pattern.matches(event.as_str()))
}

/// What is told: the endpoint as it was right after the event. Holds no secret.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Alert {
    pub event: AlertEvent,
    pub at: Timestamp,
    pub project: ProjectId,
    pub project_name: String,
    pub endpoint: EndpointId,
    pub uid: Option<String>,
    pub name: String,
    pub url: String,
    pub owner: Option<String>,
    pub status: EndpointStatus,
    pub status_reason: String,
    pub detail: AlertDetail,
}

/// What is told besides.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum AlertDetail {
    #[default]
    None,
    /// Failures in a row, since when, and the last one's reason.
    Failing { failures: u32, since: Timestamp, error: String },
    /// A delivery that used its last attempt.
    Exhausted { delivery: DeliveryId, event: EventId, event_type: String, attempts: u16, error: String },
    /// The client certificate that ends.
    Certificate { subject: String, ends_at: Timestamp },
}

impl Alert {
    pub fn new(event: AlertEvent, project_name: &str, endpoint: &Endpoint, detail: AlertDetail) -> Self {
        let settings = &endpoint.settings;
        Self {
            event,
            at: Timestamp::now(),
            project: endpoint.project,
            project_name: project_name.to_owned(),
            endpoint: endpoint.id,
            uid: settings.uid.clone(),
            name: settings.name.clone(),
            url: settings.url.clone(),
            owner: settings.owner_id.clone(),
            status: endpoint.status,
            status_reason: endpoint.status_reason.clone(),
            detail,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(texts: &[&str]) -> Vec<EventTypePattern> {
        texts.iter().map(|text| EventTypePattern::parse(text).expect("a pattern")).collect()
    }

    #[test]
    fn names_are_stable_and_read_back() {
        let names = AlertEvent::ALL.map(AlertEvent::as_str);
        #[rustfmt::skip]
        let known = [
            "endpoint.created", "endpoint.updated", "endpoint.deleted", "endpoint.paused", "endpoint.disabled",
            "endpoint.activated", "endpoint.secret_rotated", "endpoint.certificate_expiring", "delivery.failing",
            "delivery.recovered", "delivery.exhausted",
        ];
        assert_eq!(names, known);
        for event in AlertEvent::ALL {
            let json = serde_json::to_string(&event).expect("JSON");
            assert_eq!(json, format!("\"{event}\""));
            assert_eq!(serde_json::from_str::<AlertEvent>(&json).expect("reads"), event);
        }
        assert_eq!(Channel::ALL.map(Channel::code), [1, 2, 3, 4]);
    }

    #[test]
    fn who_says_nothing_is_told_what_is_news() {
        let told = |on: &[&str]| {
            let settings = AlertSettings { on: patterns(on), ..AlertSettings::default() };
            AlertEvent::ALL.into_iter().filter(|event| settings.wants(*event)).count()
        };
        assert_eq!(
            [told(&[]), told(&["*"]), told(&["delivery.*"]), told(&["endpoint.deleted"])],
            [8, 11, 3, 1]
        );
        let webhook = OperationalWebhook { url: String::new(), on: Vec::new() };
        assert!(AlertEvent::ALL.into_iter().all(|event| webhook.wants(event)));
        for (pattern, known) in [("endpoint.*", true), ("delivery.failing", true), ("invoice.*", false)] {
            assert_eq!(is_of_alerts(&patterns(&[pattern])[0]), known, "{pattern}");
        }
    }

    #[test]
    fn a_url_is_shown_only_as_being_there() {
        let settings = AlertSettings {
            slack: Some(SecretUrl::new("https://hooks.slack.com/services/canary")),
            ..AlertSettings::default()
        };
        let json = serde_json::to_string(&settings).expect("JSON");
        assert!(!format!("{settings:?}{json}").contains("canary"));
        let read: AlertSettings = serde_json::from_str(&json).expect("reads");
        assert!(read.slack.is_some() && read.teams.is_none());
    }
}
