//! Alerts: the mail server, and how hard is tried.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use lettre::message::Mailbox;
use rustls::pki_types::CertificateDer;
use url::{Host, Url};

use super::{Options, SmtpTls, defaults};
use crate::domain::secret::SecretText;
use crate::engine::{MailSettings, MailTls, SenderSettings};

impl Options {
    pub(super) fn alerts(&self, roots: &[CertificateDer<'static>]) -> anyhow::Result<SenderSettings> {
        let attempts = self.alert_attempts.unwrap_or(defaults::ALERT_ATTEMPTS);
        let backoff = self.alert_backoff.unwrap_or(defaults::ALERT_BACKOFF);
        if !(1..=100).contains(&attempts) || !(1..=3600).contains(&backoff) {
            bail!("alert-attempts must be 1 to 100, and alert-backoff 1 to 3,600 s");
        }
        let retention = self.alerts_retention.unwrap_or(defaults::ALERTS_RETENTION).max(1);
        Ok(SenderSettings {
            mail: self.mail(roots)?,
            retry: SenderSettings::retry(Duration::from_secs(backoff), attempts),
            retention: Duration::from_secs(retention),
        })
    }

    fn mail(&self, roots: &[CertificateDer<'static>]) -> anyhow::Result<Option<MailSettings>> {
        let Some(server) = &self.smtp_server else {
            if self.smtp_from.is_some() || self.smtp_user.is_some() || self.smtp_password.is_some() {
                bail!("smtp-from, smtp-user and smtp-password are of no use without smtp-server");
            }
            return Ok(None);
        };
        let tls = match self.smtp_tls.unwrap_or_default() {
            SmtpTls::Starttls => MailTls::Starttls,
            SmtpTls::Tls => MailTls::Tls,
            SmtpTls::None => MailTls::None,
        };
        let (host, port) = place(server)
            .with_context(|| format!("smtp-server must be HOST or HOST:PORT, and is {server:?}"))?;
        let Some(from) = &self.smtp_from else { bail!("smtp-server needs smtp-from: whom mail is from") };
        let login = match (&self.smtp_user, &self.smtp_password) {
            (Some(user), Some(password)) => Some((user.clone(), SecretText::new(password.clone()))),
            (None, None) => None,
            _ => bail!("smtp-user and smtp-password go together"),
        };
        if tls == MailTls::None && login.is_some() && !is_loopback(&host) {
            bail!(
                "smtp-tls none would send smtp-password to {host} for everyone between to read: \
                 use starttls or tls, or a mail server on this machine"
            );
        }
        let from: Mailbox = from.parse().with_context(|| format!("smtp-from: {from:?} is not a mailbox"))?;
        if !from.email.to_string().is_ascii() {
            bail!(
                "smtp-from: the address must be of ASCII letters, its domain as xn--…; its name may have any"
            );
        }
        Ok(Some(MailSettings {
            host,
            port: port.unwrap_or(tls.port()),
            tls,
            login,
            from,
            roots: roots.to_vec(),
        }))
    }
}

fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

/// Host and port; nothing else may be there.
fn place(server: &str) -> Option<(String, Option<u16>)> {
    let url = Url::parse(&format!("smtp://{server}")).ok()?;
    let plain = ["", "/"].contains(&url.path())
        && url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none();
    let host = match url.host()? {
        Host::Domain(name) => name.to_owned(),
        Host::Ipv4(address) => address.to_string(),
        Host::Ipv6(address) => address.to_string(),
    };
    (plain && !host.is_empty()).then(|| (host, url.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mail_server_is_a_host_and_a_port() {
        for (text, host, port) in [
            ("mail.example.com", "mail.example.com", None),
            ("10.0.0.1:25", "10.0.0.1", Some(25)),
            ("[::1]:2525", "::1", Some(2525)),
        ] {
            assert_eq!(place(text), Some((host.to_owned(), port)), "{text}");
        }
        for text in ["", ":25", "user@mail", "mail:x", "mail:25/path", "smtp://mail", "mail?x"] {
            assert_eq!(place(text), None, "{text:?}");
        }
    }

    #[test]
    fn settings_that_make_no_sense_alone_are_refused() {
        let with = |change: &dyn Fn(&mut Options)| {
            let mut options = Options {
                smtp_server: Some("mail.example.com".to_owned()),
                smtp_from: Some("Hawser <hawser@example.com>".to_owned()),
                ..Options::default()
            };
            change(&mut options);
            options.alerts(&[])
        };
        let mail = with(&|_| {}).expect("good").mail.expect("mail");
        assert_eq!((mail.port, mail.tls, mail.login), (587, MailTls::Starttls, None));
        assert_eq!(
            with(&|options| options.smtp_tls = Some(SmtpTls::Tls)).expect("good").mail.expect("mail").port,
            465
        );
        let login = |options: &mut Options, server: &str, tls| {
            options.smtp_server = Some(server.to_owned());
            options.smtp_tls = Some(tls);
            (options.smtp_user, options.smtp_password) = (Some("me".to_owned()), Some("canary".to_owned()));
        };
        let login = &login;
        for (server, tls) in [
            ("mail.example.com", SmtpTls::Starttls),
            ("mail.example.com", SmtpTls::Tls),
            ("localhost", SmtpTls::None),
            ("127.0.0.1:2525", SmtpTls::None),
            ("[::1]", SmtpTls::None),
        ] {
            assert!(with(&|options| login(options, server, tls)).is_ok(), "{server}");
        }
        let changes: [&dyn Fn(&mut Options); 9] = [
            &|options| options.smtp_server = None,
            &|options| options.smtp_from = None,
            &|options| options.smtp_from = Some("nobody".to_owned()),
            &|options| options.smtp_from = Some("hawser@bücher.example".to_owned()),
            &|options| options.smtp_user = Some("me".to_owned()),
            &|options| options.smtp_password = Some("canary".to_owned()),
            &|options| login(options, "mail.example.com", SmtpTls::None),
            &|options| login(options, "10.0.0.1", SmtpTls::None),
            &|options| options.alert_attempts = Some(0),
        ];
        for change in changes {
            let error = format!("{:#}", with(change).expect_err("refused"));
            assert!(!error.contains("canary"), "{error}");
        }
    }
}
