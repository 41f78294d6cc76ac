//! Secret values: wrapped so that they cannot be printed, and wiped when dropped.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::clock::Timestamp;
use super::id::SecretId;

/// Bytes that must not be seen. `Debug` shows nothing of them, and there is no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretBytes(Zeroizing<Vec<u8>>);

impl SecretBytes {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes themselves, for the one place that needs them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// Text that must not be seen: `Debug` shows nothing of it, and there is no `Display` and no serialisation.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct SecretText(Zeroizing<String>);

impl SecretText {
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The text itself, for the few places that need it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

const PREFIX: &str = "whsec_";
const MIN_LEN: usize = 24;
const MAX_LEN: usize = 64;
const DEFAULT_LEN: usize = 32;

/// A Standard Webhooks HMAC secret: 24 to 64 bytes, read as `whsec_<base64>`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SigningSecret(SecretBytes);

/// Why a text is not a signing secret. Says nothing of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be whsec_ and the base64 of 24 to 64 bytes")]
pub struct InvalidSecret;

impl SigningSecret {
    /// 32 fresh bytes from the operating system.
    pub fn generate() -> Self {
        let bytes: [u8; DEFAULT_LEN] = rand::random();
        Self(SecretBytes::new(bytes.to_vec()))
    }

    /// Reads `whsec_<base64>`.
    pub fn parse(text: &str) -> Result<Self, InvalidSecret> {
        let encoded = text.strip_prefix(PREFIX).ok_or(InvalidSecret)?;
        Self::from_key(STANDARD.decode(encoded).map_err(|_| InvalidSecret)?)
    }

    pub fn from_key(key: Vec<u8>) -> Result<Self, InvalidSecret> {
        if (MIN_LEN..=MAX_LEN).contains(&key.len()) {
            Ok(Self(SecretBytes::new(key)))
        } else {
            Err(InvalidSecret)
        }
    }

    /// The HMAC key.
    pub fn key(&self) -> &[u8] {
        self.0.expose()
    }

    /// The text form, for the reply that made it.
    pub fn reveal(&self) -> String {
        format!("{PREFIX}{}", STANDARD.encode(self.key()))
    }
}

/// A secret of an endpoint with the time it ends, as signing needs it.
#[derive(Clone, Debug)]
pub struct LiveSecret {
    pub id: SecretId,
    pub secret: SigningSecret,
    /// Retiring secrets sign until then; the current one has none.
    pub expires_at: Option<Timestamp>,
}

impl LiveSecret {
    /// Whether it still signs. Asked at every signing, so expiry needs no job.
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.expires_at.is_none_or(|end| now < end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips_and_bounds_hold() {
        let secret = SigningSecret::generate();
        assert_eq!(secret.key().len(), 32);
        assert_eq!(SigningSecret::parse(&secret.reveal()), Ok(secret));
        for len in [0, 23, 65] {
            assert_eq!(SigningSecret::from_key(vec![7; len]), Err(InvalidSecret));
        }
        for text in ["", "whsec_", "whsec_!!!", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"] {
            assert_eq!(SigningSecret::parse(text), Err(InvalidSecret), "{text:?}");
        }
    }

    #[test]
    fn debug_shows_nothing() {
        let secret = SigningSecret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").expect("valid");
        assert_eq!(format!("{secret:?}"), "SigningSecret([secret])");
    }
}
