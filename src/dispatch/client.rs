//! The guarded client: one request on the wire for each call, and always an outcome.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, header};
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{CaptureConnection, capture_connection};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::CertificateDer;

use super::capture;
use super::connector::{ConnInfo, Connector, micros};
use super::failure::{Failure, seconds};
use super::identities::Identities;
use super::own::OwnPlaces;
use super::proxy::EgressProxy;
use super::resolver::Resolver;
use super::tls::Tls;
use super::tokens::Tokens;
use crate::domain::address::AddressPolicy;
use crate::domain::attempt::{AttemptOutcome, ErrorClass};
use crate::domain::clock::Timestamp;
use crate::domain::credentials::Credentials;
use crate::domain::id::EndpointId;
use crate::domain::url_rules::EndpointUrl;

const USER_AGENT: HeaderValue = HeaderValue::from_static(concat!("Hawser/", env!("CARGO_PKG_VERSION")));
/// What is sent back is kept as it comes; nothing is ever decompressed.
const ACCEPT_ENCODING: HeaderValue = HeaderValue::from_static("identity");
/// Bounds the head of an answer.
const READ_BUFFER_MAX: usize = 64 * 1024;
/// So many headers are read, of which the first are kept. With more the answer is none.
const HEADERS_READ: usize = 1024;

/// How outbound requests are made.
#[derive(Clone, Debug)]
pub struct DispatchSettings {
    /// Which addresses may be dialled.
    pub addresses: AddressPolicy,
    /// What is not dialled even so.
    pub own: OwnPlaces,
    /// The name servers to ask; none means the system's, and its hosts file.
    pub name_servers: Vec<SocketAddr>,
    /// Whether to trust the system's root certificates.
    pub system_roots: bool,
    /// Root certificates to trust beside the system's.
    pub extra_roots: Vec<CertificateDer<'static>>,
    /// Whether receivers must be whom they say they are; only development may do without.
    pub verify_tls: bool,
    /// What connections go through, if not straight to the receiver.
    pub egress_proxy: Option<EgressProxy>,
    /// How long resolving a name may take.
    pub dns_timeout: Duration,
    /// How long dialling and the TLS handshake may take together.
    pub connect_timeout: Duration,
    /// How long an unused connection is kept.
    pub idle_timeout: Duration,
    /// How many unused connections are kept to one host. As many as one endpoint may have requests in
    /// flight, or a busy endpoint would close and reopen connections between bursts.
    pub idle_per_host: usize,
    /// How many connections to all hosts may be open, in use or not, before one that is made is for one use.
    pub kept_max: usize,
}

impl Default for DispatchSettings {
    fn default() -> Self {
        Self {
            addresses: AddressPolicy::default(),
            own: OwnPlaces::default(),
            name_servers: Vec::new(),
            system_roots: true,
            extra_roots: Vec::new(),
            verify_tls: true,
            egress_proxy: None,
            dns_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(30),
            idle_per_host: 256,
            kept_max: 4096,
        }
    }
}

/// Why there is no dispatcher.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The resolver cannot be made.
    #[error("cannot set up name resolution")]
    Resolver(#[source] hickory_resolver::net::NetError),
    /// The cryptographic provider cannot be used.
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
    /// One of the extra roots cannot be read.
    #[error("cannot use an extra root certificate")]
    ExtraRoot(#[source] rustls::Error),
}

/// One request to make.
pub struct OutboundRequest {
    /// POST for deliveries.
    pub method: Method,
    /// Where to, already checked.
    pub url: EndpointUrl,
    /// What to send beside `host`, `accept-encoding` and `content-length`, which are the dispatcher's.
    pub headers: HeaderMap,
    /// Sent as it is.
    pub body: Bytes,
    /// Bounds the whole attempt: resolving, connecting, sending, and reading the answer to its end.
    pub timeout: Duration,
    /// By whom the connection is made, and whom it trusts.
    pub identity: Identity,
}

/// A TLS identity.
#[derive(Clone, Default)]
pub enum Identity {
    /// The server's: no client certificate, the system's and the configured roots.
    #[default]
    Shared,
    /// An endpoint's. Its connections are kept for it alone, for as long as its credentials stay the same.
    Of(EndpointId, Arc<Credentials>),
    /// Of credentials that are being tried: its connections are for one use.
    Once(Arc<Credentials>),
}

/// A client over its own pool of connections.
pub(super) type HttpClient = Client<Connector, Full<Bytes>>;

/// Makes outbound requests. Clones share connections.
#[derive(Clone)]
pub struct Dispatcher {
    client: HttpClient,
    connector: Connector,
    identities: Arc<Identities>,
    pub(super) tokens: Tokens,
}

impl Dispatcher {
    /// Reads the system's roots and name servers where the settings want them.
    pub fn new(settings: DispatchSettings) -> Result<Self, SetupError> {
        let resolver =
            Resolver::new(&settings.name_servers, settings.dns_timeout).map_err(SetupError::Resolver)?;
        let tls = Tls::new(settings.system_roots, &settings.extra_roots, settings.verify_tls)?;
        let shared = tls.shared().map_err(SetupError::Tls)?;
        let connector = Connector::new(
            settings.addresses,
            settings.own,
            resolver,
            settings.egress_proxy,
            shared.into(),
            settings.connect_timeout,
            settings.kept_max,
        );
        let (idle_timeout, idle_per_host) = (settings.idle_timeout, settings.idle_per_host);
        let make = move |connector| client(connector, idle_timeout, idle_per_host);
        let client = make(connector.clone());
        let identities = Arc::new(Identities::new(tls, connector.clone(), make));
        Ok(Self { client, connector, identities, tokens: Tokens::default() })
    }

    /// Makes one attempt. Redirects are not followed, proxies and cookies do not exist.
    pub async fn send(&self, request: OutboundRequest) -> AttemptOutcome {
        let began = Instant::now();
        let OutboundRequest { method, url, headers, body, timeout, identity } = request;
        // Every path below replaces the class.
        let mut outcome = AttemptOutcome::unsent(Timestamp::now(), ErrorClass::Cancelled, "");
        // The connector checks this too, but a pooled connection would not pass it again.
        if url.address().is_some_and(|address| !self.connector.permits(address)) {
            outcome.fail(Failure::blocked());
            return outcome;
        }
        let client = match self.client_of(&identity) {
            Ok(client) => client,
            Err(failure) => {
                outcome.fail(failure);
                return outcome;
            }
        };

        let mut http = Request::new(Full::new(body));
        *http.method_mut() = method;
        *http.uri_mut() = url.uri().clone();
        *http.headers_mut() = headers;
        let headers = http.headers_mut();
        headers.insert(header::HOST, url.host_header().clone());
        headers.insert(header::ACCEPT_ENCODING, ACCEPT_ENCODING);
        headers.entry(header::USER_AGENT).or_insert(USER_AGENT);

        let connection = capture_connection(&mut http);
        let mut kept = Vec::new();
        let exchange = exchange(&client, http, began, &mut outcome, &mut kept);
        let ended = tokio::time::timeout(timeout, exchange).await;
        if !kept.is_empty() {
            outcome.body = kept.into();
        }
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(failure)) => {
                outcome.note_connection(connection, began);
                outcome.fail(failure);
            }
            Err(_) => {
                outcome.note_connection(connection, began);
                outcome.time_out(timeout);
            }
        }
        outcome.timings.total_us = micros(began.elapsed());
        outcome
    }

    /// Posts JSON to a URL that no endpoint stands for: an alert. Under the same rules as deliveries.
    pub async fn post_json(
        &self,
        url: EndpointUrl,
        mut headers: HeaderMap,
        json: Bytes,
        timeout: Duration,
    ) -> AttemptOutcome {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let (method, identity) = (Method::POST, Identity::Shared);
        self.send(OutboundRequest { method, url, headers, body: json, timeout, identity }).await
    }

    fn client_of(&self, identity: &Identity) -> Result<HttpClient, Failure> {
        match identity {
            Identity::Shared => Ok(self.client.clone()),
            Identity::Of(endpoint, credentials) => self.identities.client(*endpoint, credentials),
            Identity::Once(credentials) => self.identities.once(credentials),
        }
    }
}

fn client(connector: Connector, idle_timeout: Duration, idle_per_host: usize) -> HttpClient {
    Client::builder(TokioExecutor::new())
        // One call is one request on the wire: whether to repeat it is the engine's to decide.
        .retry_canceled_requests(false)
        .set_host(false)
        .http1_max_buf_size(READ_BUFFER_MAX)
        .http1_max_headers(HEADERS_READ)
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(idle_timeout)
        .pool_max_idle_per_host(idle_per_host)
        .build(connector)
}

/// Fills in the outcome as far as it gets, so that a timeout keeps what was seen before it.
async fn exchange(
    client: &HttpClient,
    request: Request<Full<Bytes>>,
    began: Instant,
    outcome: &mut AttemptOutcome,
    kept: &mut Vec<u8>,
) -> Result<(), Failure> {
    let answer = client.request(request).await.map_err(Failure::from_client)?;
    outcome.timings.first_byte_us = Some(micros(began.elapsed()));
    let (head, body) = answer.into_parts();
    if let Some(info) = head.extensions.get::<Arc<ConnInfo>>() {
        outcome.note(info, began);
    }
    outcome.status = Some(head.status.as_u16());
    (outcome.response_headers, outcome.headers_truncated) = capture::headers(&head.headers);
    outcome.retry_after = capture::retry_after(head.status, &head.headers, Timestamp::now());
    outcome.error = match head.status.is_success() {
        true => None,
        false => Some((ErrorClass::HttpStatus, format!("answered {}", head.status.as_u16()))),
    };
    outcome.body_truncated = capture::body(body, kept).await;
    Ok(())
}

impl AttemptOutcome {
    /// Takes over what is known of the connection that the attempt used.
    fn note(&mut self, info: &ConnInfo, began: Instant) {
        self.peer = Some(info.peer);
        self.timings.reused = !info.made_for(began);
        if !self.timings.reused {
            self.timings.dns_us = info.dns_us;
            self.timings.connect_us = Some(info.connect_us);
            self.timings.tls_us = info.tls_us;
        }
    }

    /// The same where no answer brought it along.
    fn note_connection(&mut self, connection: CaptureConnection, began: Instant) {
        if self.peer.is_some() {
            return;
        }
        let mut extras = http::Extensions::new();
        if let Some(connected) = connection.connection_metadata().as_ref() {
            connected.get_extras(&mut extras);
        }
        if let Some(info) = extras.get::<Arc<ConnInfo>>() {
            self.note(info, began);
            let heard = info.heard_at().and_then(|heard| heard.checked_duration_since(began));
            self.timings.first_byte_us = self.timings.first_byte_us.or(heard.map(micros));
        }
    }

    fn fail(&mut self, failure: Failure) {
        self.timings.dns_us = self.timings.dns_us.or(failure.dns_us);
        self.timings.connect_us = self.timings.connect_us.or(failure.connect_us);
        self.error = Some((failure.class, failure.detail.into_owned()));
    }

    /// A success that did not end in time is none; a failure keeps its status as its reason.
    fn time_out(&mut self, limit: Duration) {
        self.body_truncated = self.status.is_some();
        if matches!(self.error, Some((ErrorClass::HttpStatus, _))) {
            return;
        }
        let what = match (self.status, self.peer) {
            (Some(_), _) => "the answer did not end",
            (None, Some(_)) => "no answer",
            (None, None) => "no connection",
        };
        self.error = Some((ErrorClass::Timeout, format!("{what} within {}", seconds(limit))));
    }
}
