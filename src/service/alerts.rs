//! Rules for whom alerts go to, and keeping the URLs that were shown redacted.

use url::Host;

use super::Services;
use super::endpoints::REDACTED;
use crate::domain::alert::{AlertSettings, EMAILS_MAX, OperationalWebhook, SecretUrl};
use crate::domain::error::{Error, Result};
use crate::domain::url_rules::UrlRules;

/// Of RFC 5321: 256 with the brackets around it.
const ADDRESS_MAX: usize = 254;

impl Services {
    /// Checks whom alerts go to; `field` is its path. What is stored already is not checked again: rules may have changed
    /// meanwhile, or the server lost its mail server, and the rest can be changed all the same.
    pub(super) fn check_alerts(
        &self,
        field: &str,
        alerts: &mut Option<AlertSettings>,
        stored: Option<&AlertSettings>,
    ) -> Result<()> {
        let Some(alerts) = alerts else { return Ok(()) };
        let known = stored.map(|stored| stored.emails.as_slice()).unwrap_or_default();
        self.check_emails(&format!("{field}.emails"), &mut alerts.emails, known)?;
        for (name, url, known) in [
            ("slack_webhook_url", &mut alerts.slack, stored.and_then(|stored| stored.slack.as_ref())),
            ("teams_webhook_url", &mut alerts.teams, stored.and_then(|stored| stored.teams.as_ref())),
        ] {
            if url.as_ref() != known {
                check_url(&format!("{field}.{name}"), url.as_mut(), &self.rules)?;
            }
        }
        Ok(())
    }

    fn check_emails(&self, field: &str, emails: &mut [String], known: &[String]) -> Result<()> {
        if !self.has_mail && emails.iter().any(|email| !known.contains(email)) {
            let message = "cannot be told: this server has no mail server (smtp-server)";
            return Err(Error::invalid(field, message));
        }
        if emails.len() > EMAILS_MAX {
            return Err(Error::invalid(field, format!("must have at most {EMAILS_MAX} entries")));
        }
        for at in 0..emails.len() {
            let (before, rest) = emails.split_at_mut(at);
            let email = &mut rest[0];
            let invalid = |message| Error::invalid(format!("{field}[{at}]"), message);
            if !known.contains(email) {
                *email = mailbox(email).map_err(invalid)?;
            }
            if before.iter().any(|other| other.eq_ignore_ascii_case(email)) {
                return Err(invalid("is there twice"));
            }
        }
        Ok(())
    }

    pub(super) fn check_webhook(&self, webhook: &mut Option<OperationalWebhook>) -> Result<()> {
        let Some(webhook) = webhook else { return Ok(()) };
        let url = self.rules.parse(&webhook.url);
        let url =
            url.map_err(|error| Error::invalid("project.operational_webhook.url", error.to_string()))?;
        webhook.url = url.to_string();
        Ok(())
    }
}

/// An address as every mail server takes it: a domain of other letters in its ASCII form (IDNA). What stands before the
/// @ has none, and few servers take other letters there (RFC 6531).
fn mailbox(text: &str) -> Result<String, &'static str> {
    const NONE: &str = "is not an e-mail address";
    let (local, domain) = text.rsplit_once('@').ok_or(NONE)?;
    if !local.is_ascii() {
        return Err("must be of ASCII letters before the @");
    }
    let address = match domain.is_ascii() {
        true => text.to_owned(),
        false => match Host::parse(domain) {
            Ok(Host::Domain(domain)) => format!("{local}@{domain}"),
            _ => return Err(NONE),
        },
    };
    if address.len() > ADDRESS_MAX || address.parse::<lettre::Address>().is_err() {
        return Err(NONE);
    }
    Ok(address)
}

fn check_url(field: &str, url: Option<&mut SecretUrl>, rules: &UrlRules) -> Result<()> {
    let Some(url) = url else { return Ok(()) };
    if url.text.expose() == REDACTED {
        return Err(Error::invalid(field, "is redacted, and there is no stored one to keep; give the URL"));
    }
    // The error says what is wrong, and nothing of the URL.
    let canonical =
        rules.parse(url.text.expose()).map_err(|error| Error::invalid(field, error.to_string()))?;
    *url = SecretUrl::new(canonical.as_str());
    Ok(())
}

/// A URL that was shown redacted and comes back so is the stored one.
pub fn keep_stored(new: Option<&mut AlertSettings>, stored: Option<&AlertSettings>) {
    let (Some(new), Some(stored)) = (new, stored) else { return };
    for (new, stored) in [(&mut new.slack, &stored.slack), (&mut new.teams, &stored.teams)] {
        if let (Some(url), Some(stored)) = (new, stored)
            && url.text.expose() == REDACTED
        {
            url.clone_from(stored);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_ascii_or_made_so() {
        for (text, kept) in [
            ("ops@example.com", "ops@example.com"),
            ("ops+alerts@Example.com", "ops+alerts@Example.com"),
            ("ops@bücher.example", "ops@xn--bcher-kva.example"),
            ("ops@例え.jp", "ops@xn--r8jz45g.jp"),
        ] {
            assert_eq!(mailbox(text).as_deref(), Ok(kept));
        }
        for text in
            ["", "ops", "@example.com", "ops@", "öps@example.com", "ops@bü cher.example", "a@b\r\nX: y@c.d"]
        {
            assert!(mailbox(text).is_err(), "{text:?}");
        }
        let long = format!("ops@{}.example", vec!["bücher"; 19].join("."));
        assert!(mailbox(&long).is_err(), "it is too long in ASCII");
    }
}
