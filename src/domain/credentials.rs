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
use super::url_rules::EndpointUrl;

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
    /// A bearer token, by client credentials.
    OAuth2(Box<OAuth2>),
}

/// Where tokens come from, and how they are asked for.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct OAuth2 {
    /// Canonical text.
    pub token_url: String,
    pub client_id: String,
    /// Empty: not asked for.
    pub scope: String,
    /// Empty: not asked for.
    pub audience: String,
    pub client: ClientProof,
    pub fields: TokenFields,
}

/// How the client proves itself to the token server. The secret beside it is the shared one, or a private JWK.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum ClientProof {
    /// In the body, or by HTTP Basic.
    SharedSecret { in_header: bool },
    /// A JWT by ES256. Empty: the client's id, and the token URL as the audience.
    Assertion { key_id: String, issuer: String, subject: String, audience: String },
}

/// What a token server calls the parts of its answer; empty where it does as the RFC says.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TokenFields {
    pub access_token: String,
    pub token_type: String,
    pub expires_in: String,
    pub unit: LifeUnit,
}

/// What a token's life is counted in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum LifeUnit {
    Milliseconds,
    #[default]
    Seconds,
    Minutes,
    Hours,
}

impl LifeUnit {
    pub const fn seconds(self) -> f64 {
        match self {
            Self::Milliseconds => 0.001,
            Self::Seconds => 1.0,
            Self::Minutes => 60.0,
            Self::Hours => 3600.0,
        }
    }
}

impl Authentication {
    /// The header that carries it.
    pub fn header_name(&self) -> &str {
        match &self.method {
            AuthMethod::ApiKey { header_name } => header_name,
            AuthMethod::BasicAuth { .. } | AuthMethod::OAuth2(_) => "authorization",
        }
    }

    /// That header; none where HTTP cannot carry it, or a token must be fetched first. Marked as sensitive.
    pub fn header(&self) -> Option<(HeaderName, HeaderValue)> {
        let value = match &self.method {
            AuthMethod::ApiKey { .. } => HeaderValue::from_str(self.secret.expose()),
            AuthMethod::BasicAuth { username } => {
                let pair = Zeroizing::new(format!("{username}:{}", self.secret.expose()));
                let value = Zeroizing::new(format!("Basic {}", STANDARD.encode(pair.as_bytes())));
                HeaderValue::from_str(&value)
            }
            AuthMethod::OAuth2(_) => return None,
        };
        let mut value = value.ok()?;
        value.set_sensitive(true);
        Some((HeaderName::try_from(self.header_name()).ok()?, value))
    }

    /// Takes over the stored secret, where it is one of the same method; one of a token server's only for the same
    /// server, or whoever may change an endpoint could have it sent to themselves.
    pub fn keep_secret_of(&mut self, stored: &Self) {
        let same = match (&self.method, &stored.method) {
            (AuthMethod::ApiKey { .. }, AuthMethod::ApiKey { .. })
            | (AuthMethod::BasicAuth { .. }, AuthMethod::BasicAuth { .. }) => true,
            (AuthMethod::OAuth2(new), AuthMethod::OAuth2(old)) => {
                new.token_url == old.token_url
                    && std::mem::discriminant(&new.client) == std::mem::discriminant(&old.client)
            }
            _ => false,
        };
        if same {
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
    /// Where tokens come from; none where there are none, or today's rules forbid it.
    pub token_url: Option<EndpointUrl>,
}

impl Credentials {
    /// Whether requests need a token, which must be fetched.
    pub fn need_token(&self) -> bool {
        matches!(&self.authentication, Some(Authentication { method: AuthMethod::OAuth2(_), .. }))
    }

    /// Whether connections made with them can be used for nothing else.
    pub const fn has_tls_identity(&self) -> bool {
        self.client_certificate.is_some() || self.authorities.is_some()
    }
}
