//! Assertions: how a client proves itself to a token server by a signature (RFC 7523), in place of a shared secret.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use zeroize::Zeroizing;

use crate::domain::clock::Timestamp;
use crate::domain::secret::SecretText;

const JWK_MAX: usize = 8 * 1024;
const KEY_ID_MAX: usize = 128;
const COORDINATE_LEN: usize = 32;
/// How long an assertion may be used.
const LIFE_SECS: i64 = 300;

/// A private key that signs assertions by ES256.
pub struct SigningKey {
    key: EncodingKey,
    pub id: String,
}

/// What a private JWK must have. Members that point elsewhere are refused, not followed.
#[derive(serde::Deserialize)]
struct Jwk<'a> {
    kty: String,
    crv: String,
    kid: String,
    alg: Option<String>,
    x: &'a str,
    y: &'a str,
    d: &'a str,
    jku: Option<serde::de::IgnoredAny>,
    x5u: Option<serde::de::IgnoredAny>,
}

/// What an assertion says.
#[derive(serde::Serialize)]
pub(super) struct Claims<'a> {
    pub(super) iss: &'a str,
    pub(super) sub: &'a str,
    pub(super) aud: &'a str,
    iat: i64,
    exp: i64,
    jti: String,
}

impl<'a> Claims<'a> {
    pub(super) fn new(iss: &'a str, sub: &'a str, aud: &'a str) -> Self {
        let iat = Timestamp::now().as_secs();
        let jti = URL_SAFE_NO_PAD.encode(rand::random::<[u8; 16]>());
        Self { iss, sub, aud, iat, exp: iat + LIFE_SECS, jti }
    }
}

impl SigningKey {
    /// Reads a private JWK: EC, P-256, with its own public half. Says the rule that is broken, nothing of the text.
    pub fn parse(jwk: &SecretText) -> Result<Self, &'static str> {
        if jwk.expose().len() > JWK_MAX {
            return Err("must be at most 8 KiB");
        }
        let jwk: Jwk<'_> = serde_json::from_str(jwk.expose())
            .map_err(|_| "must be a JWK in JSON with kty, crv, kid, x, y and d, each once")?;
        if jwk.kty != "EC" || jwk.crv != "P-256" || jwk.alg.is_some_and(|alg| alg != "ES256") {
            return Err("must be a key for ES256: kty EC, crv P-256");
        }
        if jwk.jku.is_some() || jwk.x5u.is_some() {
            return Err("must not point to keys elsewhere (jku, x5u)");
        }
        if jwk.kid.is_empty() || jwk.kid.len() > KEY_ID_MAX || jwk.kid.chars().any(char::is_control) {
            return Err("must have a kid of 1 to 128 bytes");
        }
        let (x, y, d) = (coordinate(jwk.x)?, coordinate(jwk.y)?, coordinate(jwk.d)?);
        let public = [&[4][..], &x, &y].concat();
        let pair =
            EcdsaKeyPair::from_private_key_and_public_key(&ECDSA_P256_SHA256_FIXED_SIGNING, &d, &public)
                .map_err(|_| "must have an x and y on the curve that belong to its d")?;
        let pkcs8 = pair.to_pkcs8v1().map_err(|_| "cannot be used")?;
        Ok(Self { key: EncodingKey::from_ec_der(pkcs8.as_ref()), id: jwk.kid })
    }

    pub(super) fn sign(&self, claims: &Claims<'_>) -> Result<SecretText, &'static str> {
        let header = Header { kid: Some(self.id.clone()), ..Header::new(Algorithm::ES256) };
        jsonwebtoken::encode(&header, claims, &self.key)
            .map(SecretText::new)
            .map_err(|_| "the assertion cannot be signed")
    }
}

fn coordinate(text: &str) -> Result<Zeroizing<Vec<u8>>, &'static str> {
    let bytes = URL_SAFE_NO_PAD.decode(text).map(Zeroizing::new);
    bytes
        .ok()
        .filter(|bytes| bytes.len() == COORDINATE_LEN)
        .ok_or("must have x, y and d of 32 bytes in base64url")
}
