//! The guarded HTTP client: one for the whole process.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::capture;
use super::connector::{ConnectionFacts, Connector, micros};
use super::failure::classify;
use super::resolver::Resolver;
use super::tls;
use crate::domain::address::AddressPolicy;
use crate::domain::attempt::{AttemptOutcome, ErrorClass, Timings};
use crate::domain::clock::Timestamp;
use crate::domain::url_rules::EndpointUrl;

/// How the client behaves.
#[derive(Clone, Debug, Default)]
pub struct DispatchSettings {
    pub addresses: AddressPolicy,
    /// Instead of the system's, where there are any.
    pub nameservers: Vec<SocketAddr>,
    /// Certificates to trust beside the system's.
    pub ca_pem: Option<String>,
}

/// Why the client cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("outbound HTTP cannot be set up: {0}")]
pub struct SetupError(String);

/// A request to send.
#[derive(Debug)]
pub struct OutboundRequest {
    pub method: Method,
    pub url: EndpointUrl,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// For the whole attempt, the answer's body included.
    pub timeout: Duration,
}

/// Sends requests. Clones share connections.
#[derive(Clone)]
pub struct Dispatcher {
    client: Client<Connector, Full<Bytes>>,
}

/// Enough for the largest in-flight cap of one endpoint.
const IDLE_PER_HOST: usize = 256;
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Heads are bounded by this and by the count of headers.
const HEAD_BUFFER: usize = 64 * 1024;
const HEADERS_MAX: usize = 100;

impl Dispatcher {
    pub fn new(settings: DispatchSettings) -> Result<Self, SetupError> {
        let resolver = Resolver::new(&settings.nameservers, settings.addresses).map_err(SetupError)?;
        let tls = tls::connector(settings.ca_pem.as_deref()).map_err(SetupError)?;
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_PER_HOST)
            .pool_timer(TokioTimer::new())
            .http1_max_buf_size(HEAD_BUFFER)
            .http1_max_headers(HEADERS_MAX)
            // An attempt is one request on the wire: whether to try again is the engine's decision.
            .retry_canceled_requests(false)
            .build(Connector::new(resolver, tls));
        Ok(Self { client })
    }

    /// Makes one attempt and says what it came to.
    pub async fn send(&self, request: OutboundRequest) -> AttemptOutcome {
        let started_at = Timestamp::now();
        let started = Instant::now();
        let timeout = request.timeout;
        let mut outcome = AttemptOutcome {
            started_at,
            status: None,
            error: None,
            response_headers: Vec::new(),
            headers_truncated: false,
            body: Bytes::new(),
            body_truncated: false,
            peer: None,
            timings: Timings::default(),
            retry_after: None,
        };
        let exchange = self.exchange(request, &mut outcome, started);
        if tokio::time::timeout(timeout, exchange).await.is_err() {
            outcome.error = Some((
                ErrorClass::Timeout,
                format!("no complete answer within {} s", timeout.as_secs_f64()),
            ));
        }
        outcome.timings.total_us = micros(started);
        outcome
    }

    async fn exchange(&self, request: OutboundRequest, outcome: &mut AttemptOutcome, started: Instant) {
        let mut http = Request::new(Full::new(request.body));
        *http.method_mut() = request.method;
        *http.uri_mut() = request.url.uri().clone();
        *http.headers_mut() = request.headers;
        match self.client.request(http).await {
            Ok(response) => read(response, outcome, started).await,
            Err(error) => {
                if let Some(connected) = error.connect_info() {
                    let mut extensions = http::Extensions::new();
                    connected.get_extras(&mut extensions);
                    note_connection(&extensions, outcome);
                }
                outcome.error = Some(classify(&error as &(dyn Error + 'static)));
            }
        }
    }
}

async fn read(response: Response<Incoming>, outcome: &mut AttemptOutcome, started: Instant) {
    let (head, body) = response.into_parts();
    outcome.timings.first_byte_us = Some(micros(started));
    note_connection(&head.extensions, outcome);
    (outcome.response_headers, outcome.headers_truncated) = capture::headers(&head.headers);
    let status = head.status;
    outcome.status = Some(status.as_u16());
    if !status.is_success() {
        outcome.error = Some((ErrorClass::HttpStatus, format!("the receiver answered {}", status.as_u16())));
    }
    if matches!(status.as_u16(), 429 | 503) {
        outcome.retry_after = capture::retry_after(&head.headers, Timestamp::now());
    }
    (outcome.body, outcome.body_truncated) = capture::body(body).await;
}

fn note_connection(extensions: &http::Extensions, outcome: &mut AttemptOutcome) {
    let Some(facts) = extensions.get::<Arc<ConnectionFacts>>() else { return };
    outcome.peer = Some(facts.peer);
    outcome.timings.reused = facts.take_reused();
    if !outcome.timings.reused {
        outcome.timings.dns_us = facts.dns_us;
        outcome.timings.connect_us = Some(facts.connect_us);
        outcome.timings.tls_us = facts.tls_us;
    }
}
