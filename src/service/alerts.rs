//! Rules for whom alerts go to, and keeping the URLs that were shown redacted.

use super::Services;
use super::endpoints::REDACTED;
use crate::domain::alert::{AlertSettings, EMAILS_MAX, OperationalWebhook, SecretUrl};
use crate::domain::error::{Error, Result};
use crate::domain::url_rules::UrlRules;

/// Of RFC 5321: 256 with the brackets around it.
const ADDRESS_MAX: usize = 254;

impl Services {
    /// Checks whom alerts go to; `field` is its path. What is stored already is not checked again: the server may have
    /// lost its mail server meanwhile, and other settings can be changed all the same.
    pub(super) fn check_alerts(
        &self,
        field: &str,
        alerts: &mut Option<AlertSettings>,
        stored: Option<&AlertSettings>,
    ) -> Result<()> {
        let Some(alerts) = alerts else { return Ok(()) };
        if stored == Some(&*alerts) {
            return Ok(());
        }
        self.check_emails(&format!("{field}.emails"), &mut alerts.emails)?;
        check_url(&format!("{field}.slack_webhook_url"), alerts.slack.as_mut(), &self.rules)?;
        check_url(&format!("{field}.teams_webhook_url"), alerts.teams.as_mut(), &self.rules)
    }

    fn check_emails(&self, field: &str, emails: &mut [String]) -> Result<()> {
        if emails.is_empty() {
            return Ok(());
        }
        if !self.has_mail {
            let message = "cannot be told: this server has no mail server (smtp-server)";
            return Err(Error::invalid(field, message));
        }
        if emails.len() > EMAILS_MAX {
            return Err(Error::invalid(field, format!("must have at most {EMAILS_MAX} entries")));
        }
        for at in 0..emails.len() {
            let (before, rest) = emails.split_at(at);
            let email = &rest[0];
            if email.len() > ADDRESS_MAX || email.parse::<lettre::Address>().is_err() {
                return Err(Error::invalid(format!("{field}[{at}]"), "is not an e-mail address"));
            }
            if before.iter().any(|other| other.eq_ignore_ascii_case(email)) {
                return Err(Error::invalid(format!("{field}[{at}]"), "is there twice"));
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
