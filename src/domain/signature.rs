//! Signing what is sent: Standard Webhooks (standardwebhooks.com, version 1.0.0), and two schemes that receivers
//! know from Convoy.
//!
//! Each live secret adds a signature, newest first, so that receivers that hold any one of them accept the delivery.
//! Only SIMPLE has room for one.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Sha256, Sha512};

use super::clock::Timestamp;
use super::secret::{LiveSecret, SecretKind, SigningSecret};

/// How an endpoint's deliveries are signed.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum SignatureSettings {
    /// `id.timestamp.body`, in `webhook-signature`: `v1,…` by HMAC-SHA256, `v1a,…` by ed25519.
    #[default]
    Standard,
    /// `t=<unix>,v1=<signature>,v1=…` over `<unix>,<body>`.
    Advanced(HeaderSettings),
    /// One bare signature of the body by the newest secret.
    Simple(HeaderSettings),
}

/// The header of a signature that is not Standard Webhooks', and how what is in it is made.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct HeaderSettings {
    /// In lower case.
    pub name: String,
    pub hash: HashFunction,
    pub encoding: Encoding,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum HashFunction {
    Sha256,
    Sha512,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Encoding {
    /// Lower-case.
    Hex,
    /// With padding.
    Base64,
}

/// Where Standard Webhooks puts signatures.
pub const STANDARD_HEADER: &str = "webhook-signature";
/// Where the others put theirs, unless told otherwise.
pub const DEFAULT_HEADER: &str = "x-hawser-signature";

impl SignatureSettings {
    /// The header that carries the signature.
    pub fn header_name(&self) -> &str {
        match self {
            Self::Standard => STANDARD_HEADER,
            Self::Advanced(header) | Self::Simple(header) => &header.name,
        }
    }

    /// Whether a secret of this kind can sign so; if not, why.
    pub const fn takes(&self, kind: SecretKind) -> Result<(), &'static str> {
        match (self, kind) {
            (Self::Standard, SecretKind::Text) => {
                Err("STANDARD takes only secrets that begin with whsec_ or whsk_")
            }
            (Self::Advanced(_) | Self::Simple(_), SecretKind::Ed25519) => Err(
                "an ed25519 key signs by STANDARD only: here the receiver would have to hold the private key",
            ),
            _ => Ok(()),
        }
    }
}

/// The value of the signature header. `secrets` are newest first; expired ones are passed over.
pub fn sign(
    settings: &SignatureSettings,
    secrets: &[LiveSecret],
    id: &str,
    at: Timestamp,
    body: &[u8],
) -> String {
    let live = secrets.iter().filter(|live| live.is_live(at)).map(|live| &live.secret);
    match settings {
        SignatureSettings::Standard => standard(live, id, at, body),
        SignatureSettings::Advanced(header) => advanced(header, live, at, body),
        SignatureSettings::Simple(header) => {
            let mut newest = live.take(1);
            newest.next().map(|secret| header.signature(secret, &[body])).unwrap_or_default()
        }
    }
}

fn standard<'a>(
    secrets: impl Iterator<Item = &'a SigningSecret>,
    id: &str,
    at: Timestamp,
    body: &[u8],
) -> String {
    let prefix = format!("{id}.{}.", at.as_secs());
    let mut value = String::with_capacity(48);
    for secret in secrets {
        let separator = if value.is_empty() { "" } else { " " };
        match secret {
            SigningSecret::Hmac(key) => {
                let signature = mac::<Hmac<Sha256>>(key.expose(), &[prefix.as_bytes(), body]);
                value.push_str(separator);
                value.push_str("v1,");
                STANDARD.encode_string(signature, &mut value);
            }
            SigningSecret::Ed25519(pair) => {
                value.push_str(separator);
                value.push_str("v1a,");
                STANDARD.encode_string(pair.sign(&[prefix.as_bytes(), body].concat()), &mut value);
            }
            // Settings and secrets are checked to fit when either is set.
            SigningSecret::Text(_) => {}
        }
    }
    value
}

fn advanced<'a>(
    header: &HeaderSettings,
    secrets: impl Iterator<Item = &'a SigningSecret>,
    at: Timestamp,
    body: &[u8],
) -> String {
    let prefix = format!("{},", at.as_secs());
    let mut value = format!("t={}", at.as_secs());
    for secret in secrets {
        value.push_str(",v1=");
        value.push_str(&header.signature(secret, &[prefix.as_bytes(), body]));
    }
    value
}

impl HeaderSettings {
    /// The key is the bytes of the secret's text.
    fn signature(&self, secret: &SigningSecret, parts: &[&[u8]]) -> String {
        let text = secret.reveal();
        let signature = match self.hash {
            HashFunction::Sha256 => mac::<Hmac<Sha256>>(text.as_bytes(), parts),
            HashFunction::Sha512 => mac::<Hmac<Sha512>>(text.as_bytes(), parts),
        };
        match self.encoding {
            Encoding::Base64 => STANDARD.encode(signature),
            Encoding::Hex => {
                let mut hex = String::with_capacity(2 * signature.len());
                for byte in signature {
                    // Writing to a String does not fail.
                    let _ = write!(hex, "{byte:02x}");
                }
                hex
            }
        }
    }
}

fn mac<M: Mac + KeyInit>(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    // HMAC takes keys of every length (RFC 2104), so this cannot fail.
    let Ok(mut mac) = <M as KeyInit>::new_from_slice(key) else { return Vec::new() };
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().to_vec()
}

#[cfg(test)]
mod tests;
