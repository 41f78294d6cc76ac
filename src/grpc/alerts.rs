//! Whom alerts go to, as messages: taken in with their URLs, given out without.

use super::check::Check;
use super::pb;
use crate::domain::alert::{
    AlertSettings, EMAILS_MAX, OperationalWebhook, PATTERNS_MAX, SecretUrl, is_of_alerts,
};
use crate::domain::subscription::EventTypePattern;
use crate::service::REDACTED;

/// Whom alerts go to; none where the message is absent. `field` is its path.
pub fn settings(check: &mut Check, field: &str, message: Option<pb::Alerts>) -> Option<AlertSettings> {
    let pb::Alerts { emails, slack_webhook_url, teams_webhook_url, on } = message?;
    if emails.len() > EMAILS_MAX {
        check.refuse(format!("{field}.emails"), format!("must have at most {EMAILS_MAX} entries"));
        return None;
    }
    let url = |text: String| (!text.is_empty()).then(|| SecretUrl::new(text));
    Some(AlertSettings {
        emails,
        slack: url(slack_webhook_url),
        teams: url(teams_webhook_url),
        on: patterns(check, &format!("{field}.on"), &on),
    })
}

pub fn webhook(
    check: &mut Check,
    field: &str,
    message: Option<pb::OperationalWebhook>,
) -> Option<OperationalWebhook> {
    let pb::OperationalWebhook { url, on } = message?;
    Some(OperationalWebhook { url, on: patterns(check, &format!("{field}.on"), &on) })
}

fn patterns(check: &mut Check, field: &str, texts: &[String]) -> Vec<EventTypePattern> {
    for (at, text) in texts.iter().enumerate() {
        if EventTypePattern::parse(text).is_ok_and(|pattern| !is_of_alerts(&pattern)) {
            check.refuse(format!("{field}[{at}]"), "is nothing that may be told");
        }
    }
    check.patterns(field, texts, PATTERNS_MAX)
}

pub fn message(settings: AlertSettings) -> pb::Alerts {
    let shown = |url: Option<SecretUrl>| url.map(|_| REDACTED.to_owned()).unwrap_or_default();
    pb::Alerts {
        emails: settings.emails,
        slack_webhook_url: shown(settings.slack),
        teams_webhook_url: shown(settings.teams),
        on: settings.on.iter().map(ToString::to_string).collect(),
    }
}

pub fn webhook_message(webhook: OperationalWebhook) -> pb::OperationalWebhook {
    pb::OperationalWebhook { url: webhook.url, on: webhook.on.iter().map(ToString::to_string).collect() }
}
