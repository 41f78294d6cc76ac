//! Reading what customers give us for TLS: a client certificate with its key, and certificates to trust.
//!
//! Checked when it is set, so that what cannot work is told to whoever set it. Messages say the rule that is
//! broken and nothing of the text.

use rustls::pki_types::pem::{PemObject, SectionKind};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use sha2::{Digest, Sha256};
use x509_parser::oid_registry::{OID_EC_P256, OID_NIST_EC_P384, OID_SIG_ED25519};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;

use crate::domain::clock::Timestamp;
use crate::domain::credentials::ClientCertificate;
use crate::domain::secret::SecretText;

const PEM_MAX: usize = 64 * 1024;
const AUTHORITIES_MAX: usize = 16 * 1024;
const CERTIFICATES_MAX: usize = 10;
const RSA_BITS_MIN: usize = 2048;
/// Of a subject or an issuer, as it is shown.
const NAME_MAX: usize = 512;

/// What is wrong with it, as a sentence without its subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidIdentity {
    Chain(&'static str),
    Key(&'static str),
}

/// Checks a client certificate: it is current, of a kind that is accepted, and the key is its.
pub fn client_certificate(chain: String, key: SecretText) -> Result<ClientCertificate, InvalidIdentity> {
    let certificates = certificates(&chain, PEM_MAX).map_err(InvalidIdentity::Chain)?;
    // There is one at least.
    let leaf = &certificates[0];
    let (_, parsed) = X509Certificate::from_der(leaf)
        .map_err(|_| InvalidIdentity::Chain("must hold X.509 certificates"))?;
    check_leaf(&parsed).map_err(InvalidIdentity::Chain)?;
    let shown = ClientCertificate {
        subject: name(&parsed.subject().to_string()),
        issuer: name(&parsed.issuer().to_string()),
        fingerprint: Sha256::digest(leaf).iter().map(|byte| format!("{byte:02x}")).collect(),
        ends_at: Timestamp::from_millis(parsed.validity().not_after.timestamp().saturating_mul(1000)),
        chain: String::new(),
        key: SecretText::default(),
    };
    let private = private_key(&key).map_err(InvalidIdentity::Key)?;
    certified(certificates, private).map_err(InvalidIdentity::Key)?;
    Ok(ClientCertificate { chain, key, ..shown })
}

/// Checks certificates to trust: authorities, and nothing else.
pub fn authorities(pem: &str) -> Result<(), &'static str> {
    for certificate in certificates(pem, AUTHORITIES_MAX)? {
        let (_, parsed) =
            X509Certificate::from_der(&certificate).map_err(|_| "must hold X.509 certificates")?;
        if !parsed.is_ca() {
            return Err("must hold certificates of authorities (CA:TRUE) only");
        }
        rustls::RootCertStore::empty()
            .add(certificate)
            .map_err(|_| "holds a certificate that cannot be trusted as an authority")?;
    }
    Ok(())
}

/// The certificates of a PEM text, and nothing but certificates.
pub(super) fn certificates(pem: &str, most: usize) -> Result<Vec<CertificateDer<'static>>, &'static str> {
    if pem.len() > most {
        return Err("is too large");
    }
    let mut found = Vec::new();
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(pem.as_bytes()) {
        match section {
            Ok((SectionKind::Certificate, der)) => found.push(CertificateDer::from(der)),
            Ok((
                SectionKind::PrivateKey | SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey,
                secret,
            )) => {
                drop(zeroize::Zeroizing::new(secret));
                return Err("must not hold a private key");
            }
            Ok(_) => return Err("must hold certificates only"),
            Err(_) => return Err("must be PEM"),
        }
    }
    match found.len() {
        0 => Err("must hold a certificate in PEM"),
        1..=CERTIFICATES_MAX => Ok(found),
        _ => Err("must hold at most 10 certificates"),
    }
}

pub(super) fn private_key(pem: &SecretText) -> Result<PrivateKeyDer<'static>, &'static str> {
    if pem.expose().len() > PEM_MAX {
        return Err("is too large");
    }
    if pem.expose().contains("ENCRYPTED") {
        return Err("must not be encrypted; it is sealed when it is stored");
    }
    PrivateKeyDer::from_pem_slice(pem.expose().as_bytes())
        .map_err(|_| "must be a private key in PEM (PKCS #8, PKCS #1 or SEC 1)")
}

/// Fails where the key is not the first certificate's.
pub(super) fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<CertifiedKey, &'static str> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    CertifiedKey::from_der(chain, key, &provider).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => "is not the key of the first certificate",
        _ => "cannot be used: it must be P-256, P-384, RSA of 2,048 bits or more, or Ed25519",
    })
}

fn check_leaf(certificate: &X509Certificate<'_>) -> Result<(), &'static str> {
    let validity = certificate.validity();
    let now = Timestamp::now().as_secs();
    if validity.not_after.timestamp() <= now {
        return Err("has expired");
    }
    if validity.not_before.timestamp() > now {
        return Err("is not valid yet");
    }
    if !is_accepted_key(certificate) {
        return Err("must have a key that is P-256, P-384, RSA of 2,048 bits or more, or Ed25519");
    }
    match certificate.extended_key_usage() {
        Ok(Some(usage)) if !usage.value.client_auth && !usage.value.any => {
            Err("is not for the authentication of clients (extended key usage)")
        }
        Ok(_) => Ok(()),
        Err(_) => Err("must hold X.509 certificates"),
    }
}

fn is_accepted_key(certificate: &X509Certificate<'_>) -> bool {
    let key = certificate.public_key();
    match key.parsed() {
        Ok(PublicKey::RSA(rsa)) => rsa.key_size() >= RSA_BITS_MIN,
        Ok(PublicKey::EC(_)) => {
            let curve = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
            curve.is_some_and(|curve| curve == OID_EC_P256 || curve == OID_NIST_EC_P384)
        }
        _ => key.algorithm.algorithm == OID_SIG_ED25519,
    }
}

/// A name from a certificate, which may hold anything, as it may be shown.
fn name(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_control()).take(NAME_MAX).collect()
}
