//! Credentials of an endpoint: how Hawser proves who it is, and by whom the endpoint must be vouched for.
//!
//! What may be shown and what may not are apart: the secret of each is a [`SecretText`] that is left out whenever
//! its owner is serialised. Only the store writes it, sealed.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderName, HeaderValue};
use zeroize::Zeroizing;

use super::clock::Timestamp;
use super::secret::SecretText;

/// A header or a token that goes along with each request.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Authentication {
    pub method: AuthMethod,
    /// The header's value, or the password.
    #[serde(skip)]
    pub secret: SecretText,
}

/// What is shown of it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum AuthMethod {
    /// One header of this name, in lower case.
    ApiKey { header_name: String },
    /// RFC 7617.
    BasicAuth { username: String },
}

impl Authentication {
    /// The header that carries it.
    pub fn header_name(&self) -> &str {
        match &self.method {
            AuthMethod::ApiKey { header_name } => header_name,
            AuthMethod::BasicAuth { .. } => "authorization",
        }
    }

    /// That header; none where HTTP cannot carry it. Marked as sensitive.
    pub fn header(&self) -> Option<(HeaderName, HeaderValue)> {
        let value = match &self.method {
            AuthMethod::ApiKey { .. } => HeaderValue::from_str(self.secret.expose()),
            AuthMethod::BasicAuth { username } => {
                let pair = Zeroizing::new(format!("{username}:{}", self.secret.expose()));
                let value = Zeroizing::new(format!("Basic {}", STANDARD.encode(pair.as_bytes())));
                HeaderValue::from_str(&value)
            }
        };
        let mut value = value.ok()?;
        value.set_sensitive(true);
        Some((HeaderName::try_from(self.header_name()).ok()?, value))
    }

    /// Takes over the stored secret, where it is one of the same method.
    pub fn keep_secret_of(&mut self, stored: &Self) {
        if std::mem::discriminant(&stored.method) == std::mem::discriminant(&self.method) {
            self.secret.clone_from(&stored.secret);
        }
    }
}

/// A certificate that Hawser shows to the endpoint (mTLS).
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ClientCertificate {
    pub subject: String,
    pub issuer: String,
    /// SHA-256 over the certificate, as hexadecimal.
    pub fingerprint: String,
    pub ends_at: Timestamp,
    /// PEM, the endpoint's certificate first. Not secret, but large.
    #[serde(skip)]
    pub chain: String,
    /// PEM.
    #[serde(skip)]
    pub key: SecretText,
}

/// All that requests to one endpoint are made with, as of one version.
#[derive(Clone, Debug)]
pub struct Credentials {
    pub version: i64,
    pub authentication: Option<Authentication>,
    pub client_certificate: Option<ClientCertificate>,
    /// Certificates, in PEM, that are trusted instead of the server's.
    pub authorities: Option<String>,
}

impl Credentials {
    /// Whether connections made with them can be used for nothing else.
    pub const fn has_tls_identity(&self) -> bool {
        self.client_certificate.is_some() || self.authorities.is_some()
    }
}
