//! Alerts as people and programs read them. What customers chose (names, URLs) is text everywhere, never markup.

use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};

use crate::domain::alert::{Alert, AlertDetail, AlertEvent};
use crate::domain::clock::Timestamp;

/// The longest piece of a URL or a name that people are shown.
const SHOWN: usize = 300;

/// One line: what happened to which endpoint.
pub fn subject(alert: &Alert) -> String {
    let what = match alert.event {
        AlertEvent::EndpointCreated => "was created",
        AlertEvent::EndpointUpdated => "was changed",
        AlertEvent::EndpointDeleted => "was deleted",
        AlertEvent::EndpointPaused => "is paused",
        AlertEvent::EndpointDisabled => "is switched off",
        AlertEvent::EndpointActivated => "is active",
        AlertEvent::SecretRotated => "has a new signing secret",
        AlertEvent::CertificateExpiring => "needs a new client certificate",
        AlertEvent::DeliveryFailing => "is failing",
        AlertEvent::DeliveryRecovered => "answers again",
        AlertEvent::DeliveryExhausted => "did not take a delivery",
    };
    format!("Endpoint {} {what}", title(alert))
}

/// What happened, in a sentence or two.
fn story(alert: &Alert) -> String {
    let because = |reason: &str| match reason {
        "" => ".".to_owned(),
        reason => format!(": {}.", line(reason)),
    };
    match (&alert.detail, alert.event) {
        (AlertDetail::Failing { failures, since, error }, _) => format!(
            "{failures} attempts in a row failed since {}; the last: {}. If this goes on, the endpoint is switched \
             off, unless it is set not to be.",
            spelled(*since),
            line(error)
        ),
        (AlertDetail::Exhausted { delivery, event, event_type, attempts, error }, _) => format!(
            "Delivery {delivery} of {event} ({event_type}) has failed for good after {attempts} attempts; the last: \
             {}. Others may follow; this is told once an hour at most.",
            line(error)
        ),
        (AlertDetail::Certificate { subject, ends_at }, _) => format!(
            "Its client certificate ({}) ends at {}. From then on nothing is sent until it has another one.",
            line(subject),
            spelled(*ends_at)
        ),
        (AlertDetail::None, event) => match event {
            AlertEvent::EndpointDisabled => format!(
                "It is switched off{} New events for it are discarded until it is activated, or one of its deliveries \
                 is retried with success.",
                because(&alert.status_reason)
            ),
            AlertEvent::EndpointPaused => {
                format!("It was paused by hand{}", because(&alert.status_reason))
            }
            AlertEvent::EndpointActivated => {
                format!("Events are delivered again{}", because(&alert.status_reason))
            }
            AlertEvent::SecretRotated => {
                "It has a new signing secret. Receivers need it before the grace of the old one ends."
                    .to_owned()
            }
            AlertEvent::DeliveryRecovered => {
                "An attempt succeeded: the failures that were told before are over.".to_owned()
            }
            _ => format!("{}.", subject(alert)),
        },
    }
}

/// What it is about, as pairs.
fn facts(alert: &Alert) -> Vec<(&'static str, String)> {
    let mut facts = vec![
        ("Endpoint", alert.endpoint.to_string()),
        // A query may hold what is not meant for a channel.
        ("URL", cut(alert.url.split('?').next().unwrap_or_default())),
    ];
    facts.extend(alert.uid.iter().map(|uid| ("Uid", line(uid))));
    facts.extend(alert.owner.iter().map(|owner| ("Owner", line(owner))));
    facts.push(("Project", format!("{} ({})", line(&alert.project_name), alert.project)));
    facts.push(("Status", alert.status.as_str().to_owned()));
    facts.push(("Time", spelled(alert.at)));
    facts
}

/// A mail's text.
pub fn mail(alert: &Alert, id: &str) -> String {
    let mut text = format!("{}\n\n", story(alert));
    for (name, value) in facts(alert) {
        text.push_str(&format!("{:<9} {value}\n", format!("{name}:")));
    }
    text.push_str(&format!("\n{} ({id})\n", alert.event));
    text
}

/// What a Slack incoming webhook takes. The blocks are plain text; the line for notifications is escaped, since it would
/// be read as markup.
pub fn slack(alert: &Alert, id: &str) -> String {
    let facts: Vec<String> =
        facts(alert).into_iter().map(|(name, value)| format!("{name}: {value}")).collect();
    let plain = |text: String| json!({ "type": "plain_text", "text": text, "emoji": false });
    json!({
        "text": escaped(&subject(alert)),
        "blocks": [
            { "type": "header", "text": plain(head(&subject(alert), 150)) },
            { "type": "section", "text": plain(head(&story(alert), 3000)) },
            { "type": "section", "text": plain(head(&facts.join("\n"), 3000)) },
            { "type": "context", "elements": [plain(format!("{} ({id})", alert.event))] },
        ],
    })
    .to_string()
}

/// What a Teams workflow takes: an Adaptive Card, of text runs, which are no markup.
pub fn teams(alert: &Alert, id: &str) -> String {
    let run = |text: String, weight: &str, size: &str| {
        json!({
            "type": "RichTextBlock",
            "inlines": [{ "type": "TextRun", "text": text, "weight": weight, "size": size }],
        })
    };
    let mut body = vec![run(subject(alert), "bolder", "large"), run(story(alert), "default", "default")];
    body.extend(facts(alert).into_iter().map(|(name, value)| {
        json!({
            "type": "RichTextBlock",
            "spacing": "small",
            "inlines": [
                { "type": "TextRun", "text": format!("{name}: "), "weight": "bolder" },
                { "type": "TextRun", "text": value },
            ],
        })
    }));
    body.push(run(format!("{} ({id})", alert.event), "lighter", "small"));
    json!({
        "type": "message",
        "attachments": [{
            "contentType": "application/vnd.microsoft.card.adaptive",
            "contentUrl": null,
            "content": {
                "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
                "type": "AdaptiveCard",
                "version": "1.4",
                "body": body,
            },
        }],
    })
    .to_string()
}

/// What an operational webhook takes, by Standard Webhooks.
pub fn operational(alert: &Alert) -> String {
    let mut data = json!({
        "project_id": alert.project.to_string(),
        "endpoint": {
            "id": alert.endpoint.to_string(),
            "uid": alert.uid,
            "name": alert.name,
            "url": alert.url,
            "owner_id": alert.owner,
            "status": alert.status.as_str(),
            "status_reason": alert.status_reason,
        },
    });
    match &alert.detail {
        AlertDetail::None => {}
        AlertDetail::Failing { failures, since, error } => {
            data["failing"] = json!({ "failures": failures, "since": spelled(*since), "last_error": error });
        }
        AlertDetail::Exhausted { delivery, event, event_type, attempts, error } => {
            data["delivery"] = json!({
                "id": delivery.to_string(),
                "event_id": event.to_string(),
                "event_type": event_type,
                "attempts": attempts,
                "last_error": error,
            });
        }
        AlertDetail::Certificate { subject, ends_at } => {
            data["certificate"] = json!({ "subject": subject, "not_after": spelled(*ends_at) });
        }
    }
    json!({ "type": alert.event.as_str(), "timestamp": spelled(alert.at), "data": data }).to_string()
}

/// What people call the endpoint.
fn title(alert: &Alert) -> String {
    match (&alert.name, &alert.uid) {
        (name, _) if !name.is_empty() => cut(&line(name)),
        (_, Some(uid)) => cut(&line(uid)),
        _ => alert.endpoint.to_string(),
    }
}

/// On one line, and nothing in it that is not seen or that turns the rest around.
fn line(text: &str) -> String {
    text.chars().map(|letter| if is_shown(letter) { letter } else { ' ' }).collect()
}

fn is_shown(letter: char) -> bool {
    use GeneralCategory::{Control, Format, LineSeparator, ParagraphSeparator};
    !matches!(letter.general_category(), Control | Format | LineSeparator | ParagraphSeparator)
}

fn cut(text: &str) -> String {
    head(text, SHOWN)
}

/// At most so many characters, the last of which says that there were more.
fn head(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        None => text.to_owned(),
        Some(_) => text.chars().take(most - 1).chain(['…']).collect(),
    }
}

/// As Slack wants control characters of its markup.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn spelled(at: Timestamp) -> String {
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(at.as_millis()) * 1_000_000);
    time.ok().and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::alert::CERTIFICATE_WARNINGS;
    use crate::domain::endpoint::EndpointStatus;
    use crate::domain::id::{DeliveryId, EndpointId, EventId, ProjectId};

    fn alert(event: AlertEvent, detail: AlertDetail) -> Alert {
        Alert {
            event,
            at: Timestamp::from_millis(1_700_000_000_123),
            project: ProjectId::new(),
            project_name: "shop".to_owned(),
            endpoint: EndpointId::new(),
            uid: Some("u\n1".to_owned()),
            name: "a <b>\u{200b}\u{2066}\r\nBcc: *c* & [d](http://e)".to_owned(),
            url: format!("https://example.com/{}?token=canary", "x".repeat(4000)),
            owner: None,
            status: EndpointStatus::Inactive,
            status_reason: "it <failed>\u{2028}\u{202e}\r\n".to_owned(),
            detail,
        }
    }

    /// Every event, with what is told besides.
    fn all() -> Vec<Alert> {
        let since = Timestamp::from_millis(1_700_000_000_000);
        let detail = |event| match event {
            AlertEvent::DeliveryFailing => {
                AlertDetail::Failing { failures: 10, since, error: "answered\u{85}500".to_owned() }
            }
            AlertEvent::DeliveryExhausted => AlertDetail::Exhausted {
                delivery: DeliveryId::new(),
                event: EventId::new(),
                event_type: "invoice.paid".to_owned(),
                attempts: 12,
                error: "answered 500".to_owned(),
            },
            AlertEvent::CertificateExpiring => AlertDetail::Certificate {
                subject: "CN=us\u{feff}\u{2029}".to_owned(),
                ends_at: since.plus(CERTIFICATE_WARNINGS[0]),
            },
            _ => AlertDetail::None,
        };
        AlertEvent::ALL.into_iter().map(|event| alert(event, detail(event))).collect()
    }

    #[test]
    fn what_customers_chose_is_text_of_bounded_length() {
        for alert in all() {
            let subject = subject(&alert);
            assert!(subject.chars().all(is_shown), "{subject:?}");
            assert!(story(&alert).chars().all(is_shown), "{:?}", story(&alert));
            let json: serde_json::Value = serde_json::from_str(&slack(&alert, "alr_1")).expect("JSON");
            assert!(!json["text"].as_str().expect("text").contains('<'), "{json}");
            for block in json["blocks"].as_array().expect("blocks") {
                let text = if block["text"].is_null() { &block["elements"][0] } else { &block["text"] };
                assert_eq!(text["type"], "plain_text");
                assert!(text["text"].as_str().expect("text").chars().count() <= 3000);
            }
            let card = teams(&alert, "alr_1");
            assert!(card.len() < 8 * 1024, "{} bytes", card.len());
            assert!(!card.contains("\"TextBlock\""), "that would read markup");
            for people in [json.to_string(), card, mail(&alert, "alr_1")] {
                assert!(people.contains("alr_1") && !people.contains("canary"), "{people}");
            }
        }
    }

    #[test]
    fn each_event_says_what_it_is_about() {
        let subjects: std::collections::HashSet<String> = all().iter().map(subject).collect();
        assert_eq!(subjects.len(), AlertEvent::ALL.len());
        for alert in all() {
            let json: serde_json::Value = serde_json::from_str(&operational(&alert)).expect("JSON");
            assert_eq!(json["type"], alert.event.as_str());
            assert_eq!(json["timestamp"], "2023-11-14T22:13:20.123Z");
            assert_eq!(json["data"]["endpoint"]["url"], alert.url);
            let besides = json["data"].as_object().expect("an object").len() > 2;
            assert_eq!(besides, alert.detail != AlertDetail::None);
            assert!(story(&alert).ends_with('.'), "{}", story(&alert));
        }
    }
}
