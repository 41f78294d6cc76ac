//! The workers: each takes deliveries from the lanes and attempts them, one at a time, while there are any.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use http::{Method, header};

use super::Shared;
use super::lanes::LaneRule;
use super::request;
use super::turn::Outcome;
use crate::dispatch::{Identity, OutboundRequest, Token, TokenError};
use crate::domain::attempt::{AttemptOutcome, ErrorClass};
use crate::domain::clock::Timestamp;
use crate::domain::delivery::{self, Attempt, Probe, Verdict};
use crate::domain::endpoint::EndpointStatus;
use crate::domain::id::{AttemptId, EndpointId};
use crate::domain::routing::EndpointRoute;
use crate::store::{ClaimedDelivery, Discarded, FinishedAttempt, Hold, Lost, Next};

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
        let outcome = match caught(attempt(shared, &job)).await {
            Some(Made::Outcome(outcome)) => outcome,
            None => {
                tracing::error!(delivery = %job.id, endpoint = %job.endpoint, "an attempt panicked; the delivery waits");
                Outcome::Released(job.postpone(Timestamp::now().plus(PANICKED_AGAIN)))
            }
            Some(Made::NotYet(rule)) => {
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

/// What a future comes to; none where it panics, so that its slot and its claim are given back all the same.
async fn caught<T>(what: impl Future<Output = T>) -> Option<T> {
    AssertUnwindSafe(what).catch_unwind().await.ok()
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
/// When a delivery is attempted again whose attempt panicked: by a fault of ours, which may well be there again.
const PANICKED_AGAIN: Duration = Duration::from_secs(60);

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
        if let Some(lost) = job.lost {
            return Made::finished(without_event(&route, job, lost));
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

/// An attempt of which nothing can be sent. What does not read may be mended; what is gone does not come back.
fn without_event(route: &EndpointRoute, job: &ClaimedDelivery, lost: Lost) -> FinishedAttempt {
    let detail = match lost {
        Lost::Gone => "the event is gone from the store",
        Lost::Unreadable => "the stored event cannot be read",
    };
    let outcome = AttemptOutcome::unsent(Timestamp::now(), ErrorClass::Cancelled, detail);
    let mut finished = finish(route, job, Vec::new(), outcome);
    if lost == Lost::Gone {
        end(&mut finished);
    }
    finished
}

/// Ends a delivery that can never be sent. As a probe it was none: the next one may be made at once.
fn end(finished: &mut FinishedAttempt) {
    finished.next = Next::Failed;
    if finished.probe == Some(Probe::Breaker) {
        finished.probe = None;
    }
}

/// The endpoint's route, if an attempt may start now; or else what becomes of the delivery.
async fn permitted(shared: &Shared, job: &ClaimedDelivery) -> Result<Arc<EndpointRoute>, Outcome> {
    if !shared.may_start(job.claim.lease) {
        return Err(Outcome::Released(job.release(Hold::No)));
    }
    let Ok(routes) = shared.routing.soon(job.message.project, 0).await else {
        return Err(Outcome::Released(job.postpone(Timestamp::now().plus(ROUTES_AGAIN))));
    };
    // It may have waited for them.
    if !shared.may_start(job.claim.lease) {
        return Err(Outcome::Released(job.release(Hold::No)));
    }
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
    hand_over(shared, shared.lanes.take(endpoint).iter().map(what).collect());
}

/// Has outcomes written that come of no attempt.
pub fn hand_over(shared: &Arc<Shared>, outcomes: Vec<Outcome>) {
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
    let body = request::body(route, &job.message.payload);
    let unsendable = body.is_err();
    // The bytes that are signed are those that are sent.
    let mut headers = request::headers(route, job, number, now, body.as_ref().map_or(&[], |body| body));
    if let Some(token) = token {
        headers.insert(header::AUTHORIZATION, token.header.clone());
    }
    let request_headers = request::shown(&headers, route, &job.message);
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
        end(&mut finished);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_ends_nothing_but_the_attempt() {
        assert_eq!(caught(async { 1 }).await, Some(1));
        let panics = async {
            tokio::task::yield_now().await;
            panic!("meant by the test");
        };
        assert_eq!(caught::<()>(panics).await, None);
    }
}
