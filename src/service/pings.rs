//! Pings: whether an endpoint answers, asked before it is accepted; and whether a token server grants a token.
//!
//! Both tell their caller little of what they met, and may be made only so often, so that they cannot be used to look
//! around in our network.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use tokio::sync::Semaphore;

use super::{Services, found};
use crate::dispatch::{Dispatcher, Identity, OutboundRequest, TOKEN_TIME};
use crate::domain::attempt::{AttemptOutcome, ErrorClass};
use crate::domain::clock::Timestamp;
use crate::domain::credentials::{AuthMethod, Authentication, Credentials};
use crate::domain::endpoint::EndpointSettings;
use crate::domain::error::{Error, ErrorKind, Result};
use crate::domain::id::{EndpointId, KeyId, PingId, ProjectId};
use crate::domain::principal::{Principal, Scope};
use crate::domain::secret::LiveSecret;
use crate::domain::signature;
use crate::domain::url_rules::EndpointUrl;

/// How pings are made.
#[derive(Clone, Debug)]
pub struct PingSettings {
    /// None are made by themselves.
    pub skip: bool,
    /// In this order, until one is answered 2xx.
    pub methods: Vec<Method>,
    /// For each project key and node.
    pub per_minute: usize,
}

impl Default for PingSettings {
    fn default() -> Self {
        Self { skip: false, methods: vec![Method::HEAD, Method::GET, Method::POST], per_minute: 10 }
    }
}

/// All tries of a ping together, the one for a token among them.
const PING_TIME: Duration = Duration::from_secs(10);
const MINUTE: Duration = Duration::from_secs(60);
/// Keys whose pings are counted at once, beyond which those are forgotten that pinged nothing lately.
const KEYS: usize = 1024;
const BODY: &[u8] = b"{\"test\":\"ping\"}";

/// One request of a ping.
#[derive(Clone, Debug)]
pub struct PingTry {
    /// Its method; `TOKEN` for the token that had to be fetched first.
    pub method: String,
    pub status: Option<u16>,
    /// None where the answer was 2xx.
    pub error: Option<ErrorClass>,
    pub took: Duration,
}

/// What a ping came to.
#[derive(Clone, Debug, Default)]
pub struct Ping {
    pub tries: Vec<PingTry>,
}

impl Ping {
    pub fn is_accepted(&self) -> bool {
        self.tries.last().is_some_and(|last| last.error.is_none())
    }
}

/// What a token request came to, as its caller may see it.
pub struct TokenTest {
    pub status: Option<u16>,
    /// None where a token was granted.
    pub error: Option<(ErrorClass, String)>,
    /// How long the token lives, if one was granted; and whether the server said so.
    pub life: Option<(Duration, bool)>,
    pub took: Duration,
}

/// Which token request is tested.
pub enum TokenSubject {
    Endpoint(EndpointId),
    Given(Box<Authentication>),
}

/// Makes pings and token tests.
pub struct Pinger {
    dispatcher: Dispatcher,
    pub(super) settings: PingSettings,
    lately: Mutex<HashMap<KeyId, VecDeque<Instant>>>,
    /// Places for the pings of bulk calls.
    bulk: Semaphore,
}

/// Pings that bulk calls make at once.
pub const BULK_PINGS: usize = 64;

impl Pinger {
    pub fn new(dispatcher: Dispatcher, settings: PingSettings) -> Self {
        Self { dispatcher, settings, lately: Mutex::default(), bulk: Semaphore::new(BULK_PINGS) }
    }

    /// Counts a ping of a project key, or refuses it.
    fn allow(&self, principal: &Principal) -> Result<()> {
        if principal.project.is_none() {
            return Ok(());
        }
        let now = Instant::now();
        let is_old = |at: &Instant| now.duration_since(*at) >= MINUTE;
        let mut lately = self.lately.lock().unwrap_or_else(PoisonError::into_inner);
        if lately.len() >= KEYS {
            lately.retain(|_, times| times.back().is_some_and(|last| !is_old(last)));
        }
        let times = lately.entry(principal.key_id).or_default();
        while times.front().is_some_and(is_old) {
            times.pop_front();
        }
        match times.front() {
            Some(first) if times.len() >= self.settings.per_minute => {
                let most = self.settings.per_minute;
                let message = format!("a key may ping {most} times a minute");
                let mut error = Error::quota("PINGS_PER_MINUTE", principal.key_id, message);
                error.retry_after = Some(MINUTE.saturating_sub(now.duration_since(*first)));
                Err(error)
            }
            _ => {
                times.push_back(now);
                Ok(())
            }
        }
    }

    /// Tries one method after the other. Nothing more is tried where the method makes no difference: without a
    /// connection, or a token.
    async fn ping(
        &self,
        url: &EndpointUrl,
        settings: &EndpointSettings,
        credentials: Credentials,
        secrets: &[LiveSecret],
    ) -> Ping {
        let deadline = Instant::now() + PING_TIME;
        let credentials = Arc::new(credentials);
        let mut ping = Ping::default();
        let authentication = match self.authentication(&credentials, PING_TIME).await {
            Ok(header) => header,
            Err(failed) => return Ping { tries: vec![failed] },
        };
        let methods = &self.settings.methods;
        for (number, method) in methods.iter().enumerate() {
            // An even share of what is left, so that one that hangs leaves time for the others.
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() && !ping.tries.is_empty() {
                break;
            }
            let share = u32::try_from(methods.len() - number).map_or(left, |tries| left / tries);
            let (mut headers, body) = request(method, settings, secrets);
            if let Some((name, value)) = &authentication {
                headers.insert(name.clone(), value.clone());
            }
            let identity = if credentials.has_tls_identity() {
                Identity::Once(credentials.clone())
            } else {
                Identity::Shared
            };
            let request = OutboundRequest {
                method: method.clone(),
                url: url.clone(),
                headers,
                body,
                timeout: settings.http_timeout.map_or(share, |timeout| share.min(timeout)),
                identity,
            };
            let outcome = self.dispatcher.send(request).await;
            let error = error_of(&outcome);
            ping.tries.push(PingTry {
                method: method.to_string(),
                status: outcome.status,
                error,
                took: Duration::from_micros(outcome.timings.total_us.into()),
            });
            let more = match error {
                None => false,
                Some(class) => !matches!(
                    class,
                    ErrorClass::Dns | ErrorClass::Connect | ErrorClass::Tls | ErrorClass::Certificate
                ),
            };
            if !more {
                break;
            }
        }
        ping
    }

    /// The header that authenticates it. A token is fetched for this ping alone.
    async fn authentication(
        &self,
        credentials: &Credentials,
        within: Duration,
    ) -> std::result::Result<Option<(HeaderName, HeaderValue)>, PingTry> {
        if !credentials.need_token() {
            return Ok(credentials.authentication.as_ref().and_then(Authentication::header));
        }
        let exchange = self.dispatcher.exchange(credentials, within).await;
        match exchange.result {
            Ok(grant) => Ok(Some((header::AUTHORIZATION, grant.header))),
            Err(_) => Err(PingTry {
                method: "TOKEN".to_owned(),
                status: exchange.status,
                error: Some(ErrorClass::Auth),
                took: exchange.took,
            }),
        }
    }
}

/// The endpoint's own headers go along with each; a POST is signed as a delivery is.
fn request(method: &Method, settings: &EndpointSettings, secrets: &[LiveSecret]) -> (HeaderMap, Bytes) {
    let mut headers = HeaderMap::new();
    let mut body = Bytes::new();
    let mut insert = |name: &str, value: &str| {
        // What was checked when it was set; ids and signatures are ASCII.
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            headers.insert(name, value);
        }
    };
    if method == Method::POST {
        body = Bytes::from_static(BODY);
        let (id, now) = (PingId::new().to_string(), Timestamp::now());
        insert("content-type", "application/json");
        insert("webhook-id", &id);
        insert("webhook-timestamp", &now.as_secs().to_string());
        let signature = signature::sign(&settings.signature, secrets, &id, now, BODY);
        insert(settings.signature.header_name(), &signature);
    }
    for own in &settings.headers {
        insert(&own.name, &own.value);
    }
    (headers, body)
}

/// A name that cannot be resolved and an address that is not allowed look alike.
fn error_of(outcome: &AttemptOutcome) -> Option<ErrorClass> {
    match outcome.error.as_ref()?.0 {
        ErrorClass::BlockedAddress => Some(ErrorClass::Dns),
        class => Some(class),
    }
}

impl Services {
    /// Asks before a change whether the endpoint will answer, unless that is not wanted. Holds no transaction.
    pub(super) async fn ping_before(
        &self,
        principal: &Principal,
        settings: &EndpointSettings,
        secrets: &[LiveSecret],
    ) -> Result<()> {
        self.pinger.allow(principal)?;
        let ping = self.ping(settings, secrets).await?;
        if ping.is_accepted() {
            Ok(())
        } else {
            Err(ping_failed(settings, &ping, "; skip_ping accepts it all the same"))
        }
    }

    /// A ping of a bulk call, which has its own bound.
    pub(super) async fn ping_in_bulk(
        &self,
        settings: &EndpointSettings,
        secrets: &[LiveSecret],
    ) -> Result<Ping> {
        let _place = self.pinger.bulk.acquire().await.map_err(Error::internal)?;
        self.ping(settings, secrets).await
    }

    async fn ping(&self, settings: &EndpointSettings, secrets: &[LiveSecret]) -> Result<Ping> {
        let url = self
            .rules
            .parse(&settings.url)
            .map_err(|error| Error::invalid("endpoint.url", error.to_string()))?;
        let credentials = Credentials {
            version: 0,
            authentication: settings.authentication.clone(),
            client_certificate: settings.client_certificate.clone(),
            authorities: settings.authorities.clone(),
            token_url: self.token_url(settings.authentication.as_ref()),
        };
        Ok(self.pinger.ping(&url, settings, credentials, secrets).await)
    }

    fn token_url(&self, authentication: Option<&Authentication>) -> Option<EndpointUrl> {
        match &authentication?.method {
            AuthMethod::OAuth2(oauth2) => self.rules.parse(&oauth2.token_url).ok(),
            AuthMethod::ApiKey { .. } | AuthMethod::BasicAuth { .. } => None,
        }
    }

    /// Pings an endpoint as it is; changes nothing.
    pub async fn ping_endpoint(
        &self,
        principal: &Principal,
        project: Option<ProjectId>,
        id: EndpointId,
    ) -> Result<Ping> {
        let project = self.project_of(principal, project, Scope::EndpointsWrite).await?;
        let endpoint = found(self.store.endpoint(project, id).await?, "endpoint", id)?;
        endpoint.check_readable()?;
        self.pinger.allow(principal)?;
        let secrets = self.store.live_secrets_of(project, id).await?;
        self.ping(&endpoint.settings, &secrets).await
    }

    /// Asks a token server for a token, which is thrown away.
    pub async fn test_oauth2(
        &self,
        principal: &Principal,
        project: Option<ProjectId>,
        subject: TokenSubject,
    ) -> Result<TokenTest> {
        let project = self.project_of(principal, project, Scope::EndpointsWrite).await?;
        let authentication = match subject {
            TokenSubject::Given(mut given) => {
                super::credentials::check_method("", &mut given, &self.rules)?;
                *given
            }
            TokenSubject::Endpoint(id) => {
                let endpoint = found(self.store.endpoint(project, id).await?, "endpoint", id)?;
                endpoint.check_readable()?;
                let is_oauth2 = |one: &Authentication| matches!(one.method, AuthMethod::OAuth2(_));
                endpoint.settings.authentication.filter(is_oauth2).ok_or_else(|| {
                    let message = "the endpoint's authentication is not OAuth2";
                    Error::new(ErrorKind::FailedPrecondition, "NO_OAUTH2", message).about("endpoint", id)
                })?
            }
        };
        self.pinger.allow(principal)?;
        let token_url = self.token_url(Some(&authentication));
        let credentials = Credentials {
            version: 0,
            authentication: Some(authentication),
            client_certificate: None,
            authorities: None,
            token_url,
        };
        let exchange = self.pinger.dispatcher.exchange(&credentials, TOKEN_TIME).await;
        let (error, life) = match exchange.result {
            Ok(grant) => (None, Some((grant.life, grant.life_was_said))),
            Err((ErrorClass::Dns | ErrorClass::BlockedAddress, _)) => {
                let detail = "the token URL's host cannot be resolved, or is not allowed";
                (Some((ErrorClass::Dns, detail.to_owned())), None)
            }
            Err(error) => (Some(error), None),
        };
        Ok(TokenTest { status: exchange.status, error, life, took: exchange.took })
    }
}

/// Says what was tried, and what else can be done.
pub(super) fn ping_failed(settings: &EndpointSettings, ping: &Ping, hint: &str) -> Error {
    let tries: Vec<String> = ping.tries.iter().map(describe).collect();
    let message = format!("the endpoint did not accept a ping: {}{hint}", tries.join("; "));
    Error::new(ErrorKind::FailedPrecondition, "PING_FAILED", message).about("endpoint", &settings.url)
}

/// Method, status or class, and time: nothing else that the endpoint said.
fn describe(one: &PingTry) -> String {
    let what = match (one.status, one.error) {
        (Some(status), _) => format!("answered {status}"),
        (None, Some(ErrorClass::Dns)) => "host cannot be resolved, or is not allowed".to_owned(),
        (None, Some(class)) => format!("failed ({})", class.as_str()),
        (None, None) => "was not answered".to_owned(),
    };
    format!("{} {what} after {} ms", one.method, one.took.as_millis())
}
