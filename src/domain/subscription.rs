//! Subscriptions: which event types an endpoint wants.

use std::fmt;

use super::clock::Timestamp;
use super::id::{EndpointId, ProjectId, SubscriptionId};

/// The longest event type.
pub const EVENT_TYPE_MAX: usize = 128;

/// Whether a text is an event type: dotted segments of letters, digits, `_` and `-`, 128 bytes at most.
pub fn is_event_type(text: &str) -> bool {
    text.len() <= EVENT_TYPE_MAX
        && text.split('.').all(|segment| {
            !segment.is_empty()
                && segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
        })
}

/// What a subscription matches: one type, every type, or a dotted prefix.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum EventTypePattern {
    /// `*`
    Any,
    /// `invoice.*`, held as `invoice.`
    Prefix(String),
    Exact(String),
}

/// Why a text is not a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be an event type such as invoice.paid, a prefix such as invoice.*, or *")]
pub struct InvalidPattern;

impl EventTypePattern {
    pub fn parse(text: &str) -> Result<Self, InvalidPattern> {
        if text == "*" {
            return Ok(Self::Any);
        }
        match text.strip_suffix(".*") {
            Some(prefix) if is_event_type(prefix) && text.len() <= EVENT_TYPE_MAX => {
                Ok(Self::Prefix(format!("{prefix}.")))
            }
            None if is_event_type(text) => Ok(Self::Exact(text.to_owned())),
            _ => Err(InvalidPattern),
        }
    }

    pub fn matches(&self, event_type: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Prefix(prefix) => event_type.starts_with(prefix.as_str()),
            Self::Exact(wanted) => wanted == event_type,
        }
    }
}

impl fmt::Display for EventTypePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Prefix(prefix) => write!(f, "{prefix}*"),
            Self::Exact(text) => f.write_str(text),
        }
    }
}

impl TryFrom<String> for EventTypePattern {
    type Error = InvalidPattern;

    fn try_from(text: String) -> Result<Self, InvalidPattern> {
        Self::parse(&text)
    }
}

impl From<EventTypePattern> for String {
    fn from(pattern: EventTypePattern) -> Self {
        pattern.to_string()
    }
}

/// An endpoint's wish for event types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    pub id: SubscriptionId,
    pub project: ProjectId,
    pub endpoint: EndpointId,
    pub event_types: Vec<EventTypePattern>,
    pub enabled: bool,
    /// Counts changes; the etag is made of it.
    pub version: i64,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl Subscription {
    /// Opaque to clients (AIP-154).
    pub fn etag(&self) -> String {
        format!("{:x}-{:x}", self.version, self.created_at.as_millis())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_segments() {
        let cases = [
            ("*", "anything.at.all", true),
            ("invoice.*", "invoice.paid", true),
            ("invoice.*", "invoice.paid.late", true),
            ("invoice.*", "invoice", false),
            ("invoice.*", "invoices.paid", false),
            ("invoice.paid", "invoice.paid", true),
            ("invoice.paid", "invoice.paid.late", false),
        ];
        for (pattern, event_type, expected) in cases {
            let pattern = EventTypePattern::parse(pattern).expect("valid");
            assert_eq!(pattern.matches(event_type), expected, "{pattern} {event_type}");
        }
    }

    #[test]
    fn patterns_round_trip_and_refuse_nonsense() {
        for text in ["*", "a.*", "a.b-c.d_e", "A1"] {
            assert_eq!(EventTypePattern::parse(text).expect("valid").to_string(), text);
        }
        for text in ["", "**", "*.paid", "a..b", ".a", "a.", "a.*.b", "a b", "é", &"x".repeat(129)] {
            assert!(EventTypePattern::parse(text).is_err(), "{text:?}");
        }
    }
}
