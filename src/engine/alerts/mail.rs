//! Mail, by the operator's own server: the one place that is dialled without the rules for addresses.

use std::time::Duration;

use anyhow::Context;
use lettre::message::Mailbox;
use lettre::message::header::{ContentType, HeaderName, HeaderValue};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, Tls, TlsParameters};
use lettre::transport::smtp::extension::ClientId;
use lettre::{Address, AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};
use rustls::pki_types::CertificateDer;

use super::answer::Answer;
use super::render;
use crate::domain::alert::Alert;
use crate::domain::secret::SecretText;

/// The mail server, and who mail is from.
#[derive(Clone, Debug)]
pub struct MailSettings {
    /// A name or an address.
    pub host: String,
    pub port: u16,
    pub tls: MailTls,
    pub login: Option<(String, SecretText)>,
    pub from: Mailbox,
    /// Root certificates to trust beside the system's.
    pub roots: Vec<CertificateDer<'static>>,
}

/// How the connection to the mail server is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MailTls {
    /// From the STARTTLS command on, before anything else is said.
    Starttls,
    /// From the first byte on.
    Tls,
    /// Not at all.
    None,
}

impl MailTls {
    pub const fn port(self) -> u16 {
        match self {
            Self::Starttls => 587,
            Self::Tls => 465,
            Self::None => 25,
        }
    }
}

/// Sends mail; a connection for each.
pub struct Mailer {
    transport: AsyncSmtpTransport<Tokio1Executor>,
    from: Mailbox,
}

impl Mailer {
    /// Reads the system's root certificates where TLS needs them.
    pub fn new(settings: MailSettings) -> anyhow::Result<Self> {
        let MailSettings { host, port, tls, login, from, roots } = settings;
        let parameters = || -> anyhow::Result<TlsParameters> {
            let mut builder = TlsParameters::builder(host.clone());
            for root in &roots {
                builder = builder.add_root_certificate(Certificate::from_der(root.to_vec())?);
            }
            builder.build_rustls().context("TLS to the mail server cannot be set up")
        };
        let tls = match tls {
            MailTls::Starttls => Tls::Required(parameters()?),
            MailTls::Tls => Tls::Wrapper(parameters()?),
            MailTls::None => Tls::None,
        };
        // The machine's own name may mean nothing outside.
        let hello = ClientId::Domain(from.email.domain().to_owned());
        let mut builder = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(&host)
            .port(port)
            .tls(tls)
            .hello_name(hello)
            .timeout(None);
        if let Some((user, password)) = login {
            builder = builder.credentials(Credentials::new(user, password.expose().to_owned()));
        }
        Ok(Self { transport: builder.build(), from })
    }

    /// Sends an alert to one address, under its id.
    pub async fn send(&self, address: &SecretText, id: &str, alert: &Alert, timeout: Duration) -> Answer {
        let mail = match self.mail(address.expose(), id, alert) {
            Ok(mail) => mail,
            Err(error) => return Answer::refused(error),
        };
        match tokio::time::timeout(timeout, self.transport.send(mail)).await {
            Ok(Ok(_)) => Answer::Taken,
            Ok(Err(error)) => describe(&error),
            Err(_) => {
                let error = format!("the mail server did not take it within {} s", timeout.as_secs());
                Answer::None { error }
            }
        }
    }

    fn mail(&self, address: &str, id: &str, alert: &Alert) -> Result<Message, &'static str> {
        let to: Address = address.parse().map_err(|_| "the address is not one")?;
        let mut mail = Message::builder()
            .from(self.from.clone())
            .to(Mailbox::new(None, to))
            .subject(render::subject(alert))
            .message_id(Some(format!("<{id}@{}>", self.from.email.domain())))
            .header(ContentType::TEXT_PLAIN)
            .body(render::mail(alert, id))
            .map_err(|_| "the mail cannot be put together")?;
        // So that nobody's absence is told in reply (RFC 3834).
        let name = HeaderName::new_from_ascii_str("Auto-Submitted");
        mail.headers_mut().insert_raw(HeaderValue::new(name, "auto-generated".to_owned()));
        Ok(mail)
    }
}

/// What went wrong, without the server's words.
fn describe(error: &lettre::transport::smtp::Error) -> Answer {
    if let Some(code) = error.status() {
        return Answer::refused(format!("the mail server answered {code}"));
    }
    // Our side does not even try, with this mail or this server: no other mail need wait for that.
    if error.is_client() {
        let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
        return Answer::refused(format!("the mail cannot be sent by this mail server: {cause}"));
    }
    let error = match error.is_tls() {
        true => "TLS to the mail server failed",
        false => "the mail server cannot be reached, or does not speak SMTP as it is configured",
    };
    Answer::None { error: error.to_owned() }
}
