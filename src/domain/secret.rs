//! Secret values: wrapped so that they cannot be printed, and wiped when dropped.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
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

const HMAC_PREFIX: &str = "whsec_";
const PRIVATE_PREFIX: &str = "whsk_";
const PUBLIC_PREFIX: &str = "whpk_";
const HMAC_LEN: std::ops::RangeInclusive<usize> = 24..=64;
const DEFAULT_LEN: usize = 32;
const SEED_LEN: usize = 32;
const PAIR_LEN: usize = 64;
const TEXT_LEN: std::ops::RangeInclusive<usize> = 8..=256;

/// What a signing secret is. Stored numbers; never reuse one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum SecretKind {
    /// 24 to 64 bytes, which both sides hold: `whsec_…`.
    Hmac = 1,
    /// A key pair, of which the receiver needs the public half only: `whsk_…` and `whpk_…`.
    Ed25519 = 2,
    /// Any text, as other systems used it; not for Standard Webhooks.
    Text = 3,
}

impl SecretKind {
    pub const fn code(self) -> i16 {
        self as i16
    }

    pub const fn from_code(code: i16) -> Option<Self> {
        match code {
            1 => Some(Self::Hmac),
            2 => Some(Self::Ed25519),
            3 => Some(Self::Text),
            _ => None,
        }
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hmac => "HMAC",
            Self::Ed25519 => "ED25519",
            Self::Text => "TEXT",
        }
    }
}

/// What deliveries are signed with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SigningSecret {
    Hmac(SecretBytes),
    Ed25519(KeyPair),
    Text(SecretBytes),
}

/// Why a text is not a signing secret. Says nothing of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be whsec_ and the base64 of 24 to 64 bytes, whsk_ and the base64 of an ed25519 key (its 32 bytes, or 64 with \
     the public key), or, for ADVANCED and SIMPLE, 8 to 256 visible ASCII characters"
)]
pub struct InvalidSecret;

impl SigningSecret {
    /// A fresh one, from the operating system's random numbers.
    pub fn generate(kind: SecretKind) -> Self {
        let bytes: Zeroizing<[u8; DEFAULT_LEN]> = Zeroizing::new(rand::random());
        match kind {
            SecretKind::Hmac => Self::Hmac(SecretBytes::new(bytes.to_vec())),
            SecretKind::Ed25519 => Self::Ed25519(KeyPair(Box::new(SigningKey::from_bytes(&bytes)))),
            SecretKind::Text => Self::Text(SecretBytes::new(URL_SAFE_NO_PAD.encode(&bytes[..]).into_bytes())),
        }
    }

    /// Reads `whsec_<base64>`, `whsk_<base64>`, or any other text of sane length.
    pub fn parse(text: &str) -> Result<Self, InvalidSecret> {
        let decode = |encoded| STANDARD.decode(encoded).map(Zeroizing::new).map_err(|_| InvalidSecret);
        if let Some(encoded) = text.strip_prefix(HMAC_PREFIX) {
            return Self::from_stored(SecretKind::Hmac, &decode(encoded)?);
        }
        if let Some(encoded) = text.strip_prefix(PRIVATE_PREFIX) {
            return Ok(Self::Ed25519(KeyPair::read(&decode(encoded)?).ok_or(InvalidSecret)?));
        }
        if text.starts_with(PUBLIC_PREFIX) {
            return Err(InvalidSecret);
        }
        Self::from_stored(SecretKind::Text, text.as_bytes())
    }

    /// The reverse of [`SigningSecret::kind`] and [`SigningSecret::stored`].
    pub fn from_stored(kind: SecretKind, bytes: &[u8]) -> Result<Self, InvalidSecret> {
        match kind {
            SecretKind::Hmac if HMAC_LEN.contains(&bytes.len()) => {
                Ok(Self::Hmac(SecretBytes::new(bytes.to_vec())))
            }
            SecretKind::Ed25519 => Ok(Self::Ed25519(KeyPair::read(bytes).ok_or(InvalidSecret)?)),
            SecretKind::Text if TEXT_LEN.contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic) => {
                Ok(Self::Text(SecretBytes::new(bytes.to_vec())))
            }
            _ => Err(InvalidSecret),
        }
    }

    pub const fn kind(&self) -> SecretKind {
        match self {
            Self::Hmac(_) => SecretKind::Hmac,
            Self::Ed25519(_) => SecretKind::Ed25519,
            Self::Text(_) => SecretKind::Text,
        }
    }

    /// What is kept of it, sealed.
    pub fn stored(&self) -> &[u8] {
        match self {
            Self::Hmac(bytes) | Self::Text(bytes) => bytes.expose(),
            Self::Ed25519(pair) => pair.0.as_bytes(),
        }
    }

    /// The text form: for the reply that made it, for who may have it revealed, and as the key of those schemes that
    /// take the text's bytes.
    pub fn reveal(&self) -> Zeroizing<String> {
        Zeroizing::new(match self {
            Self::Hmac(bytes) => format!("{HMAC_PREFIX}{}", STANDARD.encode(bytes.expose())),
            Self::Ed25519(pair) => {
                let bytes = Zeroizing::new(pair.0.to_keypair_bytes());
                format!("{PRIVATE_PREFIX}{}", STANDARD.encode(&bytes[..]))
            }
            // Visible ASCII, as it was checked.
            Self::Text(bytes) => String::from_utf8_lossy(bytes.expose()).into_owned(),
        })
    }

    /// What receivers verify with, where that is no secret.
    pub fn public_key(&self) -> Option<PublicKey> {
        match self {
            Self::Ed25519(pair) => Some(PublicKey(pair.0.verifying_key())),
            Self::Hmac(_) | Self::Text(_) => None,
        }
    }
}

/// An ed25519 key pair. `Debug` shows nothing of it; it is wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyPair(Box<SigningKey>);

impl KeyPair {
    /// Reads the private key, or the pair, whose halves must fit.
    fn read(bytes: &[u8]) -> Option<Self> {
        match bytes.len() {
            SEED_LEN => Some(Self(Box::new(SigningKey::from_bytes(bytes.try_into().ok()?)))),
            PAIR_LEN => Some(Self(Box::new(SigningKey::from_keypair_bytes(bytes.try_into().ok()?).ok()?))),
            _ => None,
        }
    }

    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// The public half of an ed25519 key pair. Its text form is Standard Webhooks': `whpk_<base64>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    /// The member `x` of a JWK (RFC 8037).
    pub fn jwk_x(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0.as_bytes())
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PUBLIC_PREFIX}{}", STANDARD.encode(self.0.as_bytes()))
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
    fn text_forms_round_trip_and_bounds_hold() {
        for kind in [SecretKind::Hmac, SecretKind::Ed25519, SecretKind::Text] {
            let secret = SigningSecret::generate(kind);
            assert_eq!(SigningSecret::parse(&secret.reveal()), Ok(secret.clone()));
            assert_eq!(SigningSecret::from_stored(kind, secret.stored()), Ok(secret.clone()));
            assert_eq!((secret.kind(), SecretKind::from_code(kind.code())), (kind, Some(kind)));
            assert_eq!(secret.public_key().is_some(), kind == SecretKind::Ed25519);
        }
        for len in [0, 23, 65] {
            assert_eq!(SigningSecret::from_stored(SecretKind::Hmac, &vec![7; len]), Err(InvalidSecret));
        }
        let long = "x".repeat(257);
        for text in [
            "",
            "whsec_",
            "whsec_!!!",
            "whsk_AAAA",
            "whpk_AAAAAAAA",
            "seven77",
            "with space",
            "ünïcödé",
            &long,
        ] {
            assert_eq!(SigningSecret::parse(text), Err(InvalidSecret), "{text:?}");
        }
    }

    #[test]
    fn an_ed25519_key_reads_with_and_without_its_public_half() {
        // RFC 8032, 7.1, test 1.
        let seed = b"\x9d\x61\xb1\x9d\xef\xfd\x5a\x60\xba\x84\x4a\xf4\x92\xec\x2c\xc4\
                     \x44\x49\xc5\x69\x7b\x32\x69\x19\x70\x3b\xac\x03\x1c\xae\x7f\x60";
        let public = b"\xd7\x5a\x98\x01\x82\xb1\x0a\xb7\xd5\x4b\xfe\xd3\xc9\x64\x07\x3a\
                       \x0e\xe1\x72\xf3\xda\xa6\x23\x25\xaf\x02\x1a\x68\xf7\x07\x51\x1a";
        let text = |bytes: &[u8]| format!("whsk_{}", STANDARD.encode(bytes));
        let short = SigningSecret::parse(&text(seed)).expect("a private key");
        let pair = [seed.as_slice(), public].concat();
        assert_eq!(SigningSecret::parse(&text(&pair)).as_ref(), Ok(&short));
        assert_eq!(*short.reveal(), text(&pair));
        let shown = short.public_key().expect("a public key");
        assert_eq!(shown.to_string(), format!("whpk_{}", STANDARD.encode(public)));
        assert_eq!(shown.jwk_x(), "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo");
        let SigningSecret::Ed25519(key) = short else { panic!("an ed25519 key") };
        assert_eq!(key.sign(b"")[..4], [0xe5, 0x56, 0x43, 0x00]);

        let other = [seed.as_slice(), &[9; 32]].concat();
        assert_eq!(SigningSecret::parse(&text(&other)), Err(InvalidSecret), "halves that do not fit");
    }

    #[test]
    fn debug_shows_nothing() {
        for text in ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "plain text?".replace(' ', "-").as_str()] {
            let shown = format!("{:?}", SigningSecret::parse(text).expect("valid"));
            assert!(shown.ends_with("([secret])"), "{shown}");
        }
        let pair = SigningSecret::generate(SecretKind::Ed25519);
        assert_eq!(format!("{pair:?}"), "Ed25519([secret])");
    }
}
