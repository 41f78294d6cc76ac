//! What an attempt sends: the body as its endpoint wants it, and the headers with the signature; and what of them may be
//! shown.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::domain::clock::Timestamp;
use crate::domain::credentials::{AuthMethod, Authentication};
use crate::domain::endpoint::{ContentType, suggests_credential};
use crate::domain::event::Message;
use crate::domain::form::{self, NotAForm};
use crate::domain::routing::EndpointRoute;
use crate::domain::signature;
use crate::store::ClaimedDelivery;

const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const DELIVERY_ID: HeaderName = HeaderName::from_static("hawser-delivery-id");
const ATTEMPT: HeaderName = HeaderName::from_static("hawser-attempt");
const EVENT_TYPE: HeaderName = HeaderName::from_static("hawser-event-type");
const USER_AGENT: HeaderValue = HeaderValue::from_static(concat!("Hawser/", env!("CARGO_PKG_VERSION")));

/// The payload as the endpoint wants it.
pub fn body(route: &EndpointRoute, payload: &Bytes) -> Result<Bytes, NotAForm> {
    match route.content_type {
        ContentType::Json => Ok(payload.clone()),
        ContentType::Form => form::encode(payload).map(Bytes::from),
    }
}

/// The headers of a delivery: ours, then the event's, then the endpoint's, which were checked when they were
/// set not to be ours, and last what authenticates it, and the signature.
pub fn headers(
    route: &EndpointRoute,
    job: &ClaimedDelivery,
    number: u16,
    now: Timestamp,
    body: &[u8],
) -> HeaderMap {
    let event = job.message.event.to_string();
    let signature = signature::sign(&route.signature, &route.secrets, &event, now, body);
    let mut headers = HeaderMap::with_capacity(12 + job.message.headers.len() + route.headers.len());
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(route.content_type.as_str()));
    headers.insert(header::USER_AGENT, USER_AGENT);
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers.insert(WEBHOOK_TIMESTAMP, now.as_secs().into());
    headers.insert(ATTEMPT, number.into());
    let ours = [
        (WEBHOOK_ID, event),
        (DELIVERY_ID, job.id.to_string()),
        (EVENT_TYPE, job.message.event_type.to_string()),
    ];
    for (name, value) in ours {
        // Ids, base64 and event types are ASCII.
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    }
    let theirs = job.message.headers.iter().map(|(name, value)| (name, value));
    for (name, value) in theirs.chain(route.headers.iter().map(|header| (&header.name, &header.value))) {
        match (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            (Ok(name), Ok(value)) => {
                headers.insert(name, value);
            }
            _ => tracing::warn!(endpoint = %route.id, "a stored header is not one that HTTP can carry"),
        }
    }
    if let Some(authentication) = authentication(route) {
        match authentication.header() {
            Some((name, value)) => {
                headers.insert(name, value);
            }
            // Put in by whoever has it.
            None if matches!(authentication.method, AuthMethod::OAuth2(_)) => {}
            None => {
                tracing::warn!(endpoint = %route.id, "a stored credential is not one that HTTP can carry")
            }
        }
    }
    // Last, so that no header of an event's takes its place.
    match (HeaderName::try_from(route.signature.header_name()), HeaderValue::try_from(signature)) {
        (Ok(name), Ok(value)) => {
            headers.insert(name, value);
        }
        _ => tracing::error!(endpoint = %route.id, "a signature could not be put in its header"),
    }
    headers
}

fn authentication(route: &EndpointRoute) -> Option<&Authentication> {
    route.credentials.as_ref()?.authentication.as_ref()
}

/// What was sent, as it may be shown: without signatures and credentials, those too that the event or the endpoint
/// brings in headers of its own.
pub fn shown(headers: &HeaderMap, route: &EndpointRoute, message: &Message) -> Vec<(String, String)> {
    let credential = authentication(route).map(Authentication::header_name);
    // No name of ours suggests one, so there is nothing to look for where nobody added a header.
    let has_added = !message.headers.is_empty() || !route.headers.is_empty();
    let secret = |name: &HeaderName| {
        name == route.signature.header_name()
            || credential == Some(name.as_str())
            || (has_added && suggests_credential(name.as_str()))
    };
    headers
        .iter()
        .map(|(name, value)| {
            let value = if secret(name) {
                "[redacted]".to_owned()
            } else {
                String::from_utf8_lossy(value.as_bytes()).into_owned()
            };
            (name.as_str().to_owned(), value)
        })
        .collect()
}
