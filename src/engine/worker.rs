//! The workers: each takes deliveries from the lanes and attempts them, one at a time, while there are any.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use super::Shared;
use super::lanes::LaneRule;
use super::turn::Outcome;
use crate::dispatch::{Identity, OutboundRequest, Token, TokenError};
use crate::domain::attempt::{AttemptOutcome, ErrorClass};
use crate::domain::clock::Timestamp;
use crate::domain::credentials::{AuthMethod, Authentication};
use crate::domain::delivery::{self, Attempt, Probe, Verdict};
use crate::domain::endpoint::{ContentType, EndpointStatus, suggests_credential};
use crate::domain::event::Message;
use crate::domain::form::{self, NotAForm};
use crate::domain::id::{AttemptId, EndpointId};
use crate::domain::routing::EndpointRoute;
use crate::domain::signature;
use crate::store::{ClaimedDelivery, Discarded, FinishedAttempt, Hold, Next};

/// Starts workers for all deliveries that have a slot.
pub fn pump(shared: &Arc<Shared>) {
    while let Some(job) = shared.lanes.next() {
        let worker = shared.clone();
        shared.attempts.spawn(async move { work(worker, job).await });
    }
}

/// Attempts the delivery that probes a PENDING endpoint: beside the lanes, so that no cap and no limit holds it up.
pub fn probe(shared: &Arc<Shared>, job: ClaimedDelivery) {
    let worker = shared.clone();
    shared.attempts.spawn(async move {
        see_through(&worker, job).await;
    });
}

async fn work(shared: Arc<Shared>, mut job: ClaimedDelivery) {
    loop {
        let endpoint = job.endpoint;
        let result = see_through(&shared, job).await;
        shared.lanes.finish(endpoint, result.as_ref().map(|attempt| &attempt.outcome));
        match shared.lanes.next() {
            Some(next) => job = next,
            None => return,
        }
    }
}

/// Attempts a delivery and hands over what became of it; once more where its connection had gone stale. Returns
/// what the attempt came to, none where nothing was sent.
async fn see_through(shared: &Shared, mut job: ClaimedDelivery) -> Option<Arc<Attempt>> {
    loop {
        let outcome = match attempt(shared, &job).await {
            Made::Outcome(outcome) => outcome,
            Made::NotYet(rule) => {
                let (project, endpoint) = (job.message.project, job.endpoint);
                shared.lanes.put_back(job, rule);
                shared.pacer.tell_soon(project, endpoint);
                return None;
            }
        };
        let (result, once_more) = match &outcome {
            Outcome::Finished(finished) => {
                measure(shared, finished);
                (Some(finished.attempt.clone()), finished.next == Next::Again)
            }
            Outcome::Released(_) | Outcome::Discarded(_) => (None, false),
        };
        // Waits while the writer is behind: unwritten outcomes are bounded.
        if shared.outcomes.send(outcome).await.is_err() {
            tracing::error!("an outcome came after the last write; its attempt will be repeated");
        }
        if !once_more {
            return result;
        }
        job.attempts = job.attempts.saturating_add(1);
        job.budget_start = job.budget_start.saturating_add(1);
        // What comes next is another start, which needs a slot of its own.
        (job.again, job.start_by) = (true, None);
    }
}

fn measure(shared: &Shared, finished: &FinishedAttempt) {
    let (attempt, outcome) = (&finished.attempt, &finished.attempt.outcome);
    let class = match &outcome.error {
        Some((class, _)) => class.as_str(),
        None => "success",
    };
    let took = Duration::from_micros(u64::from(outcome.timings.total_us));
    let waited = (attempt.number == 1).then(|| outcome.started_at.since(finished.created_at));
    shared.metrics.engine.attempted(class, took, waited);
}

/// When work is looked at again whose routes could not be read.
const ROUTES_AGAIN: Duration = Duration::from_secs(5);

/// What became of a delivery that was to be attempted.
enum Made {
    Outcome(Outcome),
    /// Its endpoint has a rate limit, and it has no slot or missed it.
    NotYet(LaneRule),
}

impl Made {
    fn finished(finished: FinishedAttempt) -> Self {
        Self::Outcome(Outcome::Finished(Box::new(finished)))
    }
}

/// Whether the delivery's slot, if it needs one, stands open. The probe of a PENDING endpoint needs none.
fn has_turn(route: &EndpointRoute, job: &ClaimedDelivery) -> bool {
    route.rate_limit.is_none()
        || job.probe == Some(Probe::Endpoint)
        || job.start_by.is_some_and(|end| Instant::now() <= end)
}

/// Sends, if the endpoint may be sent to.
async fn attempt(shared: &Shared, job: &ClaimedDelivery) -> Made {
    let mut held: Option<(i64, Token)> = None;
    loop {
        let route = match permitted(shared, job).await {
            Ok(route) => route,
            Err(outcome) => return Made::Outcome(outcome),
        };
        if !has_turn(&route, job) {
            return Made::NotYet(LaneRule::of(&route));
        }
        if route.unopened.is_some() {
            let detail = "a stored secret of the endpoint cannot be opened";
            let outcome = AttemptOutcome::unsent(Timestamp::now(), ErrorClass::Cancelled, detail);
            return Made::finished(finish(&route, job, Vec::new(), outcome));
        }
        let Some(credentials) = route.credentials.as_ref().filter(|credentials| credentials.need_token())
        else {
            return Made::finished(send(shared, &route, job, None).await);
        };
        if let Some((version, token)) = &held
            && *version == credentials.version
        {
            return Made::finished(send(shared, &route, job, Some(token)).await);
        }
        // It may take a while to come: whether something may be sent is asked again with it.
        held = match shared.dispatcher.token(route.id, credentials).await {
            Ok(token) => Some((credentials.version, token)),
            // A probe has one attempt, now or never.
            Err(TokenError::Resting(until)) if job.probe != Some(Probe::Endpoint) => {
                return Made::Outcome(Outcome::Released(job.postpone(until)));
            }
            Err(error) => {
                return Made::finished(finish(&route, job, Vec::new(), error.outcome()));
            }
        };
    }
}

/// The endpoint's route, if an attempt may start now; or else what becomes of the delivery.
async fn permitted(shared: &Shared, job: &ClaimedDelivery) -> Result<Arc<EndpointRoute>, Outcome> {
    if !shared.may_start(job.claim.lease) {
        return Err(Outcome::Released(job.release(Hold::No)));
    }
    let routes = match shared.routing.known(job.message.project).await {
        Ok(routes) => routes,
        Err(error) => {
            tracing::warn!(error = %error, "routes could not be read; the delivery waits");
            return Err(Outcome::Released(job.postpone(Timestamp::now().plus(ROUTES_AGAIN))));
        }
    };
    let Some(route) = routes.as_ref().and_then(|routes| routes.endpoint(job.endpoint)) else {
        return Err(Outcome::Discarded(Box::new(discard(job, None))));
    };
    match (route.status, job.probe) {
        (EndpointStatus::Active, None) if shared.breakers.is_open(job.endpoint) => {
            Err(Outcome::Released(job.release(Hold::Breaker)))
        }
        (EndpointStatus::Active, _) | (EndpointStatus::Pending, Some(Probe::Endpoint)) => Ok(route.clone()),
        // It ended meanwhile, with its lease; whoever ended it decides, and this claim changes nothing any more.
        (_, Some(Probe::Endpoint)) => Err(Outcome::Released(job.release(Hold::Probe))),
        (EndpointStatus::Paused, _) => Err(Outcome::Released(job.release(Hold::Paused))),
        (EndpointStatus::Inactive | EndpointStatus::Pending, _) => {
            Err(Outcome::Discarded(Box::new(discard(job, route.owner.clone()))))
        }
    }
}

/// Gives back what waits in an endpoint's lane once nothing more is to be sent to it: at once, though attempts that
/// hang may hold all its slots.
pub fn empty_lane(shared: &Arc<Shared>, endpoint: EndpointId, what: impl Fn(&ClaimedDelivery) -> Outcome) {
    let outcomes: Vec<Outcome> = shared.lanes.take(endpoint).iter().map(what).collect();
    if outcomes.is_empty() {
        return;
    }
    let worker = shared.clone();
    // Not in the writer's own time: it is the writer that takes outcomes in.
    shared.attempts.spawn(async move {
        for outcome in outcomes {
            if worker.outcomes.send(outcome).await.is_err() {
                return;
            }
        }
    });
}

pub fn discard(job: &ClaimedDelivery, owner: Option<Arc<str>>) -> Discarded {
    Discarded {
        delivery: job.id,
        claim: job.claim,
        project: job.message.project,
        event: job.message.event,
        endpoint: job.endpoint,
        owner,
        event_type: job.message.event_type.clone(),
        attempts: job.attempts,
        created_at: job.created_at,
    }
}

async fn send(
    shared: &Shared,
    route: &EndpointRoute,
    job: &ClaimedDelivery,
    token: Option<&Token>,
) -> FinishedAttempt {
    let number = job.attempts.saturating_add(1);
    let now = Timestamp::now();
    let body = body(route, &job.message.payload);
    let unsendable = body.is_err();
    // The bytes that are signed are those that are sent.
    let mut headers = headers(route, job, number, now, body.as_ref().map_or(&[], |body| body));
    if let Some(token) = token {
        headers.insert(header::AUTHORIZATION, token.header.clone());
    }
    let request_headers = shown(&headers, route, &job.message);
    let outcome = match (&route.url, body) {
        (Some(url), Ok(body)) => {
            let request = OutboundRequest {
                method: Method::POST,
                url: url.clone(),
                headers,
                body,
                timeout: route.timeout,
                identity: identity(route),
            };
            shared.dispatcher.send(request).await
        }
        // Says nothing of the endpoint, and no other attempt would fare better.
        (_, Err(error)) => AttemptOutcome::unsent(now, ErrorClass::Cancelled, error.to_string()),
        (None, _) => {
            let detail = "the endpoint's URL is not allowed by the server's present rules";
            AttemptOutcome::unsent(now, ErrorClass::BlockedAddress, detail)
        }
    };
    let mut finished = finish(route, job, request_headers, outcome);
    if unsendable {
        finished.next = Next::Failed;
    }
    if let (Some(token), Some(credentials)) = (token, &route.credentials)
        && finished.attempt.outcome.status == Some(UNAUTHORIZED)
        && shared.dispatcher.refused(route.id, credentials, token, job.id)
        && matches!(finished.next, Next::Retry(_))
    {
        finished.next = Next::Retry(finished.ended_at);
    }
    finished
}

const UNAUTHORIZED: u16 = 401;

/// What an outcome makes of the delivery.
fn finish(
    route: &EndpointRoute,
    job: &ClaimedDelivery,
    request_headers: Vec<(String, String)>,
    outcome: AttemptOutcome,
) -> FinishedAttempt {
    let number = job.attempts.saturating_add(1);
    let ended_at = Timestamp::now();
    let made = number.saturating_sub(job.budget_start);
    let next = if outcome.is_stale_connection() && !job.again {
        // The receiver had closed the connection before, most likely: it says nothing about the endpoint.
        Next::Again
    } else {
        match delivery::judge(&outcome, &route.retry, made, rand::random()) {
            Verdict::Success => Next::Success,
            // A probe is one attempt.
            Verdict::Retry(_) if job.probe == Some(Probe::Endpoint) => Next::Failed,
            Verdict::Retry(wait) => Next::Retry(ended_at.plus(wait)),
            Verdict::Failed => Next::Failed,
        }
    };
    let free = u16::from(next == Next::Again);
    FinishedAttempt {
        attempt: Arc::new(Attempt {
            id: AttemptId::new(),
            delivery: job.id,
            project: job.message.project,
            endpoint: job.endpoint,
            event: job.message.event,
            number,
            request_headers,
            outcome,
        }),
        claim: job.claim,
        owner: route.owner.clone(),
        event_type: job.message.event_type.clone(),
        created_at: job.created_at,
        ended_at,
        next,
        budget_start: job.budget_start.saturating_add(free),
        disable: route.disable,
        probe: job.probe,
        limited: route.rate_limit.is_some(),
    }
}

/// What connections to the endpoint are made with.
fn identity(route: &EndpointRoute) -> Identity {
    match &route.credentials {
        Some(credentials) if credentials.has_tls_identity() => Identity::Of(route.id, credentials.clone()),
        _ => Identity::Shared,
    }
}

const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const DELIVERY_ID: HeaderName = HeaderName::from_static("hawser-delivery-id");
const ATTEMPT: HeaderName = HeaderName::from_static("hawser-attempt");
const EVENT_TYPE: HeaderName = HeaderName::from_static("hawser-event-type");
const USER_AGENT: HeaderValue = HeaderValue::from_static(concat!("Hawser/", env!("CARGO_PKG_VERSION")));

/// The payload as the endpoint wants it.
fn body(route: &EndpointRoute, payload: &Bytes) -> Result<Bytes, NotAForm> {
    match route.content_type {
        ContentType::Json => Ok(payload.clone()),
        ContentType::Form => form::encode(payload).map(Bytes::from),
    }
}

/// The headers of a delivery: ours, then the event's, then the endpoint's, which were checked when they were
/// set not to be ours, and last what authenticates it, and the signature.
fn headers(
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
fn shown(headers: &HeaderMap, route: &EndpointRoute, message: &Message) -> Vec<(String, String)> {
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
