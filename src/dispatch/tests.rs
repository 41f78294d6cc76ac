//! Attempts against real receivers on loopback, well behaved and not.

mod dns;
mod exchange;
mod http;
mod sink;
mod tls;

use std::time::Duration;

use bytes::Bytes;

use super::{DispatchSettings, Dispatcher, Identity, OutboundRequest};
use crate::domain::address::AddressPolicy;
use crate::domain::attempt::{AttemptOutcome, ErrorClass};
use crate::domain::url_rules::{EndpointUrl, UrlRules};

fn policy(allow: &[&str]) -> AddressPolicy {
    AddressPolicy {
        allow: allow.iter().map(|block| block.parse().expect(block)).collect(),
        block: Vec::new(),
    }
}

/// Settings that allow loopback and trust nobody.
fn settings() -> DispatchSettings {
    DispatchSettings {
        addresses: policy(&["127.0.0.0/8", "::1"]),
        system_roots: false,
        dns_timeout: Duration::from_secs(2),
        ..DispatchSettings::default()
    }
}

fn dispatcher() -> Dispatcher {
    Dispatcher::new(settings()).expect("dispatcher")
}

fn url(text: &str) -> EndpointUrl {
    let rules = UrlRules {
        allow_http: true,
        allowed_hosts: vec!["localhost".to_owned()],
        addresses: policy(&["0.0.0.0/0", "::/0", "169.254.169.254"]),
    };
    rules.parse(text).expect(text)
}

fn request(text: &str, timeout: Duration) -> OutboundRequest {
    OutboundRequest {
        method: ::http::Method::POST,
        url: url(text),
        headers: ::http::HeaderMap::new(),
        body: Bytes::from_static(b"{\"odd\" :  1e400 }"),
        timeout,
        identity: Identity::Shared,
    }
}

/// One attempt, with more time than any test needs.
async fn post(dispatcher: &Dispatcher, text: &str) -> AttemptOutcome {
    dispatcher.send(request(text, Duration::from_secs(20))).await
}

fn class(outcome: &AttemptOutcome) -> Option<ErrorClass> {
    outcome.error.as_ref().map(|(class, _)| *class)
}

fn detail(outcome: &AttemptOutcome) -> &str {
    outcome.error.as_ref().map_or("", |(_, detail)| detail)
}
