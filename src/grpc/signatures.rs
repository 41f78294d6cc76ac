//! Signature settings and kinds of secrets: from messages, checked, and to messages.

use std::time::Duration;

use super::check::Check;
use super::pb;
use crate::domain::rotation::{GRACE, GRACE_MAX, PERIOD_MAX, RotationSettings};
use crate::domain::secret::{SecretKind, SigningSecret};
use crate::domain::signature::{DEFAULT_HEADER, Encoding, HashFunction, HeaderSettings, SignatureSettings};
use crate::service::NewSecret;

/// Signature settings; Standard Webhooks where the message is absent. `field` is its path.
pub fn settings(
    check: &mut Check,
    field: &str,
    settings: Option<pb::SignatureSettings>,
) -> SignatureSettings {
    let Some(settings) = settings else { return SignatureSettings::default() };
    let header = header(check, field, &settings);
    match pb::SignatureScheme::try_from(settings.scheme) {
        Ok(pb::SignatureScheme::Advanced) => SignatureSettings::Advanced(header),
        Ok(pb::SignatureScheme::Simple) => SignatureSettings::Simple(header),
        Ok(pb::SignatureScheme::Standard | pb::SignatureScheme::Unspecified) => {
            let others = [
                ("header", !settings.header.is_empty()),
                ("hash", settings.hash != 0),
                ("encoding", settings.encoding != 0),
            ];
            for (name, _) in others.into_iter().filter(|(_, is_set)| *is_set) {
                check
                    .refuse(format!("{field}.{name}"), "is for ADVANCED and SIMPLE; STANDARD says it itself");
            }
            SignatureSettings::Standard
        }
        Err(_) => {
            check.refuse(format!("{field}.scheme"), "is not a known scheme");
            SignatureSettings::Standard
        }
    }
}

fn header(check: &mut Check, field: &str, settings: &pb::SignatureSettings) -> HeaderSettings {
    let hash = match pb::SignatureHash::try_from(settings.hash) {
        Ok(pb::SignatureHash::Sha512) => HashFunction::Sha512,
        Ok(_) => HashFunction::Sha256,
        Err(_) => {
            check.refuse(format!("{field}.hash"), "is not a known hash function");
            HashFunction::Sha256
        }
    };
    let encoding = match pb::SignatureEncoding::try_from(settings.encoding) {
        Ok(pb::SignatureEncoding::Base64) => Encoding::Base64,
        Ok(_) => Encoding::Hex,
        Err(_) => {
            check.refuse(format!("{field}.encoding"), "is not a known encoding");
            Encoding::Hex
        }
    };
    let name = if settings.header.is_empty() { DEFAULT_HEADER } else { &settings.header };
    HeaderSettings { name: name.to_owned(), hash, encoding }
}

pub fn message(settings: SignatureSettings) -> pb::SignatureSettings {
    let (scheme, header) = match settings {
        SignatureSettings::Standard => {
            let scheme = pb::SignatureScheme::Standard.into();
            return pb::SignatureSettings { scheme, ..Default::default() };
        }
        SignatureSettings::Advanced(header) => (pb::SignatureScheme::Advanced, header),
        SignatureSettings::Simple(header) => (pb::SignatureScheme::Simple, header),
    };
    let hash = match header.hash {
        HashFunction::Sha256 => pb::SignatureHash::Sha256,
        HashFunction::Sha512 => pb::SignatureHash::Sha512,
    };
    let encoding = match header.encoding {
        Encoding::Hex => pb::SignatureEncoding::Hex,
        Encoding::Base64 => pb::SignatureEncoding::Base64,
    };
    pb::SignatureSettings {
        scheme: scheme.into(),
        header: header.name,
        hash: hash.into(),
        encoding: encoding.into(),
    }
}

/// When secrets rotate by themselves; no period, or one of 0 s, is never.
pub fn rotation(
    check: &mut Check,
    period: Option<prost_types::Duration>,
    grace: Option<prost_types::Duration>,
) -> RotationSettings {
    // How short it may be is the server's setting.
    let period =
        period.map(|period| check.duration("endpoint.rotation_period", period, Duration::ZERO..=PERIOD_MAX));
    RotationSettings {
        period: period.filter(|period| !period.is_zero()),
        grace: match grace {
            Some(grace) => check.duration("endpoint.rotation_grace", grace, Duration::ZERO..=GRACE_MAX),
            None => GRACE,
        },
    }
}

/// The secret that a request gives, or the kind that it asks for.
pub fn new_secret(check: &mut Check, text: &str, kind: i32) -> NewSecret {
    let kind = match pb::SecretType::try_from(kind) {
        Ok(pb::SecretType::Unspecified) => None,
        Ok(pb::SecretType::Hmac) => Some(SecretKind::Hmac),
        Ok(pb::SecretType::Ed25519) => Some(SecretKind::Ed25519),
        Ok(pb::SecretType::Text) | Err(_) => {
            check.refuse("secret_type", "must be HMAC or ED25519");
            None
        }
    };
    if text.is_empty() {
        return NewSecret::Make(kind);
    }
    match SigningSecret::parse(text) {
        Ok(secret) => {
            if kind.is_some_and(|kind| kind != secret.kind()) {
                check.refuse("secret_type", "is not what the given secret is");
            }
            NewSecret::Given(secret)
        }
        Err(error) => {
            check.refuse("secret", error.to_string());
            NewSecret::Make(kind)
        }
    }
}
