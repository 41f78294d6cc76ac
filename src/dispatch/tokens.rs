//! Access tokens in memory: one for each endpoint and version of its credentials, fetched by one request at a time.
//!
//! A token is refreshed a little before it ends, while the one before is still sent. When a fetch fails, whoever made
//! it has a failed attempt; everyone else waits, without one, until the next fetch may be made.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::HeaderValue;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use super::Dispatcher;
use super::exchange::TOKEN_TIME;
use super::kept::Kept;
use crate::domain::attempt::{AttemptOutcome, ErrorClass};
use crate::domain::clock::Timestamp;
use crate::domain::credentials::Credentials;
use crate::domain::id::{DeliveryId, EndpointId};

const KEPT: usize = 16_384;
/// As long as a token may live.
const UNUSED: Duration = Duration::from_secs(24 * 3600);
/// A token is refreshed so long before its end, or for the last tenth of its life where that is shorter.
const REFRESH_BEFORE: Duration = Duration::from_secs(60);
/// After a fetch that failed; doubled by each further one.
const REST_FIRST: Duration = Duration::from_secs(1);
const REST_LONGEST: Duration = Duration::from_secs(60);
/// A refused token is dropped, and makes a retry due at once, only so often: what refuses one after the other would
/// otherwise have each of them asked for anew.
const REFUSED_EVERY: Duration = Duration::from_secs(60);
/// Deliveries that are remembered to have had their retry at once: there is at most one a minute.
const RETRIED: usize = 1024;

/// A bearer token.
#[derive(Clone)]
pub struct Token {
    /// The value of `authorization`. Marked as sensitive.
    pub header: HeaderValue,
    /// Tells it apart from those before and after it.
    serial: u64,
    refresh_at: Instant,
    ends_at: Instant,
}

/// Why there is no token.
pub enum TokenError {
    /// The fetch failed that was made for this call: an attempt that failed.
    Failed(Box<AttemptOutcome>),
    /// Fetches failed, and the next may be made then. Nothing was asked for this call.
    Resting(Timestamp),
}

impl TokenError {
    /// The attempt that fails for it.
    pub fn outcome(self) -> AttemptOutcome {
        match self {
            Self::Failed(outcome) => *outcome,
            Self::Resting(_) => AttemptOutcome::unsent(
                Timestamp::now(),
                ErrorClass::Auth,
                "no token: the token server failed a moment ago",
            ),
        }
    }
}

#[derive(Clone)]
pub(super) struct Tokens(Arc<Mutex<Kept<Arc<Entry>>>>);

#[derive(Default)]
struct Entry {
    state: Mutex<State>,
    /// Held by whoever fetches.
    flight: Arc<AsyncMutex<()>>,
}

#[derive(Default)]
struct State {
    token: Option<Token>,
    /// In a row.
    failures: u32,
    rests_until: Option<Instant>,
    refused_at: Option<Instant>,
    retried: VecDeque<DeliveryId>,
}

/// What there is now.
enum Look {
    Fresh(Token),
    /// Still good, and due to be refreshed.
    Ageing(Token),
    Resting(Duration),
    Missing,
}

impl Default for Tokens {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Kept::new(KEPT, UNUSED))))
    }
}

impl Tokens {
    fn entry(&self, endpoint: EndpointId, version: i64) -> Arc<Entry> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let made = kept.get(endpoint, version, || Ok::<_, std::convert::Infallible>(Arc::default()));
        match made {
            Ok(entry) => entry,
        }
    }

    fn known(&self, endpoint: EndpointId, version: i64) -> Option<Arc<Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).known(endpoint, version)
    }
}

impl Dispatcher {
    /// The token that requests to this endpoint are sent with.
    pub async fn token(
        &self,
        endpoint: EndpointId,
        credentials: &Arc<Credentials>,
    ) -> Result<Token, TokenError> {
        let entry = self.tokens.entry(endpoint, credentials.version);
        match entry.look() {
            Look::Fresh(token) => return Ok(token),
            Look::Ageing(token) => {
                if let Ok(turn) = entry.flight.clone().try_lock_owned() {
                    tokio::spawn(fetch(self.clone(), entry, credentials.clone(), turn));
                }
                return Ok(token);
            }
            Look::Resting(left) => return Err(TokenError::Resting(Timestamp::now().plus(left))),
            Look::Missing => {}
        }
        let turn = entry.flight.clone().lock_owned().await;
        // Someone else may have fetched meanwhile.
        match entry.look() {
            Look::Fresh(token) | Look::Ageing(token) => Ok(token),
            Look::Resting(left) => Err(TokenError::Resting(Timestamp::now().plus(left))),
            // A task of its own: others wait for it, whatever becomes of this call.
            Look::Missing => {
                match tokio::spawn(fetch(self.clone(), entry, credentials.clone(), turn)).await {
                    Ok(fetched) => fetched,
                    Err(_) => Err(TokenError::Failed(Box::new(AttemptOutcome::unsent(
                        Timestamp::now(),
                        ErrorClass::Cancelled,
                        "the token request was cut off",
                    )))),
                }
            }
        }
    }

    /// The endpoint refused this token (401): it is not sent again, unless one was refused a moment ago. Says whether
    /// the delivery that met this may be retried at once.
    pub fn refused(
        &self,
        endpoint: EndpointId,
        credentials: &Credentials,
        token: &Token,
        delivery: DeliveryId,
    ) -> bool {
        let Some(entry) = self.tokens.known(endpoint, credentials.version) else { return false };
        entry.lock().refuse(token.serial, delivery, Instant::now())
    }
}

async fn fetch(
    dispatcher: Dispatcher,
    entry: Arc<Entry>,
    credentials: Arc<Credentials>,
    turn: OwnedMutexGuard<()>,
) -> Result<Token, TokenError> {
    static SERIAL: AtomicU64 = AtomicU64::new(1);
    let exchange = dispatcher.exchange(&credentials, TOKEN_TIME).await;
    let mut state = entry.lock();
    let result = match exchange.result {
        Ok(grant) => {
            let now = Instant::now();
            let early = REFRESH_BEFORE.min(grant.life / 10);
            let token = Token {
                header: grant.header,
                serial: SERIAL.fetch_add(1, Ordering::Relaxed),
                refresh_at: now + grant.life - early,
                ends_at: now + grant.life,
            };
            (state.failures, state.rests_until) = (0, None);
            state.token = Some(token.clone());
            Ok(token)
        }
        Err((_, detail)) => {
            state.rest(Instant::now());
            let detail = format!("no token: {detail}");
            let mut outcome = AttemptOutcome::unsent(exchange.started_at, ErrorClass::Auth, detail);
            outcome.timings.total_us = u32::try_from(exchange.took.as_micros()).unwrap_or(u32::MAX);
            Err(TokenError::Failed(Box::new(outcome)))
        }
    };
    // Whoever waits for its turn looks at what was found.
    drop(state);
    drop(turn);
    result
}

impl Entry {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self) -> Look {
        self.lock().look(Instant::now())
    }
}

impl State {
    fn look(&self, now: Instant) -> Look {
        let rest = self.rests_until.and_then(|until| until.checked_duration_since(now));
        let rest = rest.filter(|rest| !rest.is_zero());
        match (&self.token, rest) {
            (Some(token), None) if token.refresh_at <= now && now < token.ends_at => {
                Look::Ageing(token.clone())
            }
            (Some(token), _) if now < token.ends_at => Look::Fresh(token.clone()),
            (_, Some(left)) => Look::Resting(left),
            _ => Look::Missing,
        }
    }

    fn rest(&mut self, now: Instant) {
        let rest = REST_FIRST.saturating_mul(1 << self.failures.min(6)).min(REST_LONGEST);
        self.failures = self.failures.saturating_add(1);
        self.rests_until = Some(now + rest);
    }

    fn refuse(&mut self, serial: u64, delivery: DeliveryId, now: Instant) -> bool {
        if self.refused_at.is_some_and(|at| now.duration_since(at) < REFUSED_EVERY) {
            return false;
        }
        self.refused_at = Some(now);
        if self.token.as_ref().is_some_and(|token| token.serial == serial) {
            self.token = None;
        }
        if self.retried.contains(&delivery) {
            return false;
        }
        self.retried.push_back(delivery);
        if self.retried.len() > RETRIED {
            self.retried.pop_front();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(serial: u64, now: Instant) -> Token {
        let (refresh_at, ends_at) = (now + Duration::from_secs(90), now + Duration::from_secs(100));
        Token { header: HeaderValue::from_static("Bearer x"), serial, refresh_at, ends_at }
    }

    #[test]
    fn a_token_ages_before_it_ends() {
        let now = Instant::now();
        let mut state = State { token: Some(token(1, now)), ..State::default() };
        let after = |secs| now + Duration::from_secs(secs);
        assert!(matches!(state.look(after(89)), Look::Fresh(_)));
        assert!(matches!(state.look(after(90)), Look::Ageing(_)));
        assert!(matches!(state.look(after(100)), Look::Missing));
        // While fetches rest, the old one is used to its end.
        state.rest(after(99));
        assert!(matches!(state.look(after(99)), Look::Fresh(_)));
        assert!(matches!(state.look(now + Duration::from_millis(99_999)), Look::Fresh(_)));
    }

    #[test]
    fn rests_double_up_to_a_minute() {
        let now = Instant::now();
        let mut state = State::default();
        let mut rests = Vec::new();
        for _ in 0..8 {
            state.rest(now);
            let Look::Resting(left) = state.look(now) else { panic!("it rests") };
            rests.push(left.as_secs());
        }
        assert_eq!(rests, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert!(matches!(state.look(now + Duration::from_secs(60)), Look::Missing));
    }

    #[test]
    fn one_refused_token_a_minute_goes_and_one_retry_is_due_at_once() {
        let now = Instant::now();
        let mut state = State { token: Some(token(1, now)), ..State::default() };
        let (one, two) = (DeliveryId::new(), DeliveryId::new());
        assert!(state.refuse(1, one, now) && state.token.is_none());
        state.token = Some(token(2, now));
        // One that was sent with the old token says nothing about the new one, and within the minute even its own
        // refusal keeps it.
        for serial in [1, 2] {
            assert!(!state.refuse(serial, two, now + REFUSED_EVERY / 2) && state.token.is_some());
        }
        let later = now + REFUSED_EVERY;
        assert!(!state.refuse(2, one, later) && state.token.is_none(), "one retry for each delivery");
        state.token = Some(token(3, later));
        assert!(!state.refuse(3, two, later) && state.token.is_some());
        assert!(state.refuse(3, two, later + REFUSED_EVERY) && state.token.is_none());
    }
}
