//! A token server: grants bearer tokens by shared secrets and by assertions that it verifies.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use rcgen::KeyPair;
use serde_json::{Value, json};

use super::receiver::Seen;
use super::{Receiver, Reply};

/// Its answers; each token is `token-` and the number of its request, from 0.
pub struct TokenServer {
    pub receiver: Receiver,
    failing: Arc<AtomicBool>,
}

impl TokenServer {
    /// Grants tokens of this life to everyone.
    pub async fn granting(expires_in: Value) -> Self {
        Self::judging(expires_in, |_| Ok(())).await
    }

    /// Grants them to whom the judge accepts, and says why not to others.
    pub async fn judging(
        expires_in: Value,
        judge: impl Fn(&Seen) -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        let failing = Arc::new(AtomicBool::new(false));
        let fails = failing.clone();
        let receiver = Receiver::scripted(move |seen, before| {
            if fails.load(Ordering::SeqCst) {
                return Reply::status(503);
            }
            match judge(seen) {
                Ok(()) => {
                    let token = format!("token-{before}");
                    let mut answer = json!({ "access_token": token, "token_type": "bearer" });
                    if !expires_in.is_null() {
                        answer["expires_in"] = expires_in.clone();
                    }
                    reply(200, &answer)
                }
                Err(why) => {
                    let answer = json!({ "error": "invalid_client", "error_description": why });
                    reply(401, &answer)
                }
            }
        })
        .await;
        Self { receiver, failing }
    }

    pub fn url(&self) -> String {
        self.receiver.url("/token")
    }

    /// From now on it answers 503; or grants again.
    pub fn fail(&self, failing: bool) {
        self.failing.store(failing, Ordering::SeqCst);
    }

    pub fn requests(&self) -> usize {
        self.receiver.seen().len()
    }
}

pub fn reply(status: u16, json: &Value) -> Reply {
    Reply { body: json.to_string().into(), delay: Duration::from_millis(20), ..Reply::status(status) }
}

/// The fields of a form.
pub fn form(seen: &Seen) -> HashMap<String, String> {
    url::form_urlencoded::parse(&seen.body).into_owned().collect()
}

/// A client's key: its private JWK, and what verifies it.
pub struct ClientKey {
    pub jwk: Value,
    public: (String, String),
}

impl ClientKey {
    pub fn new(kid: &str) -> Self {
        let pair = KeyPair::generate().expect("a key");
        let point = pair.public_key_raw();
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let (x, y) = (encode(&point[1..33]), encode(&point[33..65]));
        // PKCS #8 holds the SEC 1 key, whose scalar follows version and tag.
        let der = pair.serialize_der();
        let at = der.windows(5).position(|five| five == [2, 1, 1, 4, 32]).expect("a scalar");
        let scalar = &der[at + 5..at + 37];
        let jwk = json!({ "kty": "EC", "crv": "P-256", "kid": kid, "x": x, "y": y, "d": encode(scalar) });
        Self { jwk, public: (x, y) }
    }

    /// The verified claims of an assertion by this key, and its key id.
    pub fn verify(&self, assertion: &str, audience: &str) -> Result<(Value, String), String> {
        let key = DecodingKey::from_ec_components(&self.public.0, &self.public.1);
        let key = key.map_err(|error| error.to_string())?;
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_audience(&[audience]);
        validation.set_required_spec_claims(&["exp", "aud", "iss", "sub"]);
        let decoded = jsonwebtoken::decode::<Value>(assertion, &key, &validation);
        let decoded = decoded.map_err(|error| error.to_string())?;
        if decoded.header.typ.as_deref() != Some("JWT") {
            return Err("no typ".to_owned());
        }
        Ok((decoded.claims, decoded.header.kid.unwrap_or_default()))
    }
}
