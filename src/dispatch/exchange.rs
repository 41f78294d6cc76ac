//! OAuth2 client credentials (RFC 6749, section 4.4): one request to a token server, and what came back.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};
use serde_json::Value;
use url::form_urlencoded::{Serializer, byte_serialize};
use zeroize::Zeroizing;

use super::assertion::{Claims, SigningKey};
use super::{Dispatcher, Identity, OutboundRequest};
use crate::domain::attempt::{AttemptOutcome, ErrorClass};
use crate::domain::clock::Timestamp;
use crate::domain::credentials::{AuthMethod, Authentication, ClientProof, Credentials, OAuth2, TokenFields};
use crate::domain::secret::SecretText;

/// A token request has its own time, whatever the endpoint's is.
pub const TOKEN_TIME: Duration = Duration::from_secs(10);
/// Where the server does not say how long a token lives; and the bounds of what it says.
const LIFE_UNSAID: Duration = Duration::from_secs(300);
const LIFE_MIN: Duration = Duration::from_secs(5);
const LIFE_MAX: Duration = Duration::from_secs(24 * 3600);
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
/// What a token server may say of a failure (RFC 6749, section 5.2); nothing else of its answer is repeated.
const KNOWN_ERRORS: [&str; 6] = [
    "invalid_request",
    "invalid_client",
    "invalid_grant",
    "unauthorized_client",
    "unsupported_grant_type",
    "invalid_scope",
];

/// What a token request came to.
pub struct Exchange {
    pub started_at: Timestamp,
    pub took: Duration,
    pub status: Option<u16>,
    pub result: Result<Grant, (ErrorClass, String)>,
}

/// A token that was granted.
pub struct Grant {
    /// `Bearer` and the token. Marked as sensitive.
    pub header: HeaderValue,
    pub life: Duration,
    /// Whether the server said how long it lives.
    pub life_was_said: bool,
}

impl Dispatcher {
    /// Asks the token server of these credentials for a token, once, and waits for it so long at most.
    pub async fn exchange(&self, credentials: &Credentials, within: Duration) -> Exchange {
        let (started_at, began) = (Timestamp::now(), Instant::now());
        let unsent = |class, detail: &str| Exchange {
            started_at,
            took: Duration::ZERO,
            status: None,
            result: Err((class, detail.to_owned())),
        };
        let Some(Authentication { method: AuthMethod::OAuth2(oauth2), secret }) = &credentials.authentication
        else {
            return unsent(ErrorClass::Auth, "the endpoint has no OAuth2");
        };
        let Some(url) = &credentials.token_url else {
            return unsent(
                ErrorClass::BlockedAddress,
                "the token URL is not allowed by the server's present rules",
            );
        };
        let (headers, body) = match request(oauth2, secret, url.as_str()) {
            Ok(request) => request,
            Err(detail) => return unsent(ErrorClass::Auth, detail),
        };
        let ask = |timeout| {
            self.send(OutboundRequest {
                method: Method::POST,
                url: url.clone(),
                headers: headers.clone(),
                body: body.clone(),
                timeout,
                identity: Identity::Shared,
            })
        };
        let mut outcome = ask(within).await;
        if outcome.is_stale_connection() {
            // The server had closed the connection before, most likely.
            outcome = ask(within.saturating_sub(began.elapsed())).await;
        }
        Exchange {
            started_at,
            took: began.elapsed(),
            status: outcome.status,
            result: grant(&outcome, &oauth2.fields),
        }
    }
}

fn request(
    oauth2: &OAuth2,
    secret: &SecretText,
    token_url: &str,
) -> Result<(HeaderMap, Bytes), &'static str> {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
    headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
    let mut form = Serializer::new(String::new());
    form.append_pair("grant_type", "client_credentials");
    for (name, value) in [("scope", &oauth2.scope), ("audience", &oauth2.audience)] {
        if !value.is_empty() {
            form.append_pair(name, value);
        }
    }
    match &oauth2.client {
        ClientProof::SharedSecret { in_header: false } => {
            form.append_pair("client_id", &oauth2.client_id);
            form.append_pair("client_secret", secret.expose());
        }
        ClientProof::SharedSecret { in_header: true } => {
            // RFC 6749, section 2.3.1: both are form-encoded first.
            let encoded = |text: &str| byte_serialize(text.as_bytes()).collect::<String>();
            let pair = Zeroizing::new(format!("{}:{}", encoded(&oauth2.client_id), encoded(secret.expose())));
            let value = Zeroizing::new(format!("Basic {}", STANDARD.encode(pair.as_bytes())));
            let mut value =
                HeaderValue::from_str(&value).map_err(|_| "the client's secret cannot be sent")?;
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
        ClientProof::Assertion { issuer, subject, audience, .. } => {
            let own =
                |text: &'_ str| if text.is_empty() { oauth2.client_id.clone() } else { text.to_owned() };
            let audience = if audience.is_empty() { token_url } else { audience };
            let assertion =
                SigningKey::parse(secret)?.sign(&Claims::new(&own(issuer), &own(subject), audience))?;
            form.append_pair("client_id", &oauth2.client_id);
            form.append_pair("client_assertion_type", ASSERTION_TYPE);
            form.append_pair("client_assertion", assertion.expose());
        }
    }
    Ok((headers, form.finish().into()))
}

/// Reads the answer. What is said of one that is no good holds nothing of it but its status.
fn grant(outcome: &AttemptOutcome, fields: &TokenFields) -> Result<Grant, (ErrorClass, String)> {
    let answer = || {
        if outcome.body_truncated { None } else { serde_json::from_slice::<Value>(&outcome.body).ok() }
    };
    if let Some((class, detail)) = &outcome.error {
        let detail = match (outcome.status, answer()) {
            (Some(status), Some(answer)) => match known_error(&answer) {
                Some(error) => format!("answered {status} ({error})"),
                None => detail.clone(),
            },
            _ => detail.clone(),
        };
        return Err((*class, detail));
    }
    let bad = |what: &'static str| (ErrorClass::Auth, what.to_owned());
    if outcome.body_truncated {
        return Err(bad("the answer is larger than 16 KiB, or did not end"));
    }
    let answer = answer().filter(Value::is_object).ok_or_else(|| bad("the answer is not a JSON object"))?;
    match answer.get(field(&fields.token_type, "token_type")) {
        None | Some(Value::Null) => {}
        Some(Value::String(kind)) if kind.eq_ignore_ascii_case("bearer") => {}
        Some(_) => return Err(bad("the answer's token type is not Bearer")),
    }
    let token = answer
        .get(field(&fields.access_token, "access_token"))
        .and_then(Value::as_str)
        .filter(|token| !token.is_empty())
        .ok_or_else(|| bad("the answer holds no access token"))?;
    let said = match answer.get(field(&fields.expires_in, "expires_in")) {
        None | Some(Value::Null) => None,
        Some(value) => {
            let number = match value {
                Value::String(text) => text.trim().parse::<f64>().ok(),
                value => value.as_f64(),
            };
            let number = number
                .filter(|number| number.is_finite())
                .ok_or_else(|| bad("the answer's time of expiry is not a number"))?;
            Some(life(number * fields.unit.seconds()))
        }
    };
    let mut header = HeaderValue::from_str(&Zeroizing::new(format!("Bearer {token}")))
        .map_err(|_| bad("the answer's access token cannot be sent in a header"))?;
    header.set_sensitive(true);
    Ok(Grant { header, life: said.unwrap_or(LIFE_UNSAID), life_was_said: said.is_some() })
}

/// A life that is negative, or nothing, or for ever, is bounded, so that no answer makes us ask without end.
fn life(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.clamp(LIFE_MIN.as_secs_f64(), LIFE_MAX.as_secs_f64()))
}

fn field<'a>(mapped: &'a str, usual: &'a str) -> &'a str {
    if mapped.is_empty() { usual } else { mapped }
}

fn known_error(answer: &Value) -> Option<Cow<'static, str>> {
    let error = answer.get("error")?.as_str()?;
    KNOWN_ERRORS.into_iter().find(|known| *known == error).map(Cow::Borrowed)
}
