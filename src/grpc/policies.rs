//! Policies of projects and endpoints: from messages, checked, and to messages.

use std::time::Duration;

use super::check::Check;
use super::convert::{count, duration};
use super::pb;
use super::pb::retry_policy::Strategy;
use crate::domain::disable::DisablePolicy;
use crate::domain::endpoint::HTTP_TIMEOUTS;
use crate::domain::rate::RateLimit;
use crate::domain::retry::{RetryPolicy, RetryStrategy};

const WAIT_MIN: Duration = Duration::from_millis(1);
const WAIT_MAX: Duration = Duration::from_secs(24 * 3600);
const WAITS_MAX: usize = 99;
const ATTEMPTS_MAX: u16 = 100;
const FAILURES_MAX: u32 = 1000;
const RATE_MAX: u32 = 10_000;
const RATE_PER_MIN: Duration = Duration::from_secs(1);
const SPAN_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// A retry policy; none where the message is absent. `field` is its path.
pub fn retry(check: &mut Check, field: &str, policy: Option<pb::RetryPolicy>) -> Option<RetryPolicy> {
    let policy = policy?;
    let (strategy, attempts) = match policy.strategy {
        Some(Strategy::Linear(linear)) => (linear_backoff(check, field, linear), None),
        Some(Strategy::Schedule(schedule)) => {
            let waits = schedule_waits(check, field, schedule);
            let attempts = u16::try_from(waits.len() + 1).unwrap_or(ATTEMPTS_MAX);
            (RetryStrategy::Schedule { waits }, Some(attempts))
        }
        Some(Strategy::Exponential(backoff)) => (exponential(check, field, backoff), None),
        None => (RetryPolicy::default().strategy, None),
    };
    let max_attempts = match u16::try_from(policy.max_attempts) {
        Ok(0) => attempts.unwrap_or(RetryPolicy::default().max_attempts),
        Ok(given) if given <= ATTEMPTS_MAX => given,
        _ => {
            check.refuse(format!("{field}.max_attempts"), "must be 1 to 100");
            ATTEMPTS_MAX
        }
    };
    Some(RetryPolicy { strategy, max_attempts })
}

fn exponential(check: &mut Check, field: &str, backoff: pb::ExponentialBackoff) -> RetryStrategy {
    let field = |name: &str| format!("{field}.exponential.{name}");
    let (mut base, mut factor, mut cap) = (Duration::from_secs(10), 3.0, Duration::from_secs(6 * 3600));
    if let Some(wait) = backoff.base {
        base = check.duration(&field("base"), wait, WAIT_MIN..=WAIT_MAX);
    }
    if let Some(wait) = backoff.cap {
        cap = check.duration(&field("cap"), wait, WAIT_MIN..=WAIT_MAX);
    }
    if backoff.factor != 0.0 {
        factor = backoff.factor;
    }
    let jitter = backoff.jitter.unwrap_or(0.2);
    if !(1.0..=100.0).contains(&factor) {
        check.refuse(field("factor"), "must be 1 to 100");
    }
    if !(0.0..=1.0).contains(&jitter) {
        check.refuse(field("jitter"), "must be 0 to 1");
    }
    RetryStrategy::Exponential { base, factor, cap, jitter }
}

fn linear_backoff(check: &mut Check, field: &str, linear: pb::LinearBackoff) -> RetryStrategy {
    let field = format!("{field}.linear.wait");
    let wait = match linear.wait {
        Some(wait) => check.duration(&field, wait, WAIT_MIN..=WAIT_MAX),
        None => {
            check.refuse(field, "is required");
            WAIT_MIN
        }
    };
    RetryStrategy::Linear { wait }
}

fn schedule_waits(check: &mut Check, field: &str, schedule: pb::RetrySchedule) -> Vec<Duration> {
    let field = format!("{field}.schedule.waits");
    if !(1..=WAITS_MAX).contains(&schedule.waits.len()) {
        check.refuse(field, format!("must have 1 to {WAITS_MAX} entries"));
        return Vec::new();
    }
    let waits = schedule.waits.into_iter().enumerate();
    waits.map(|(at, wait)| check.duration(&format!("{field}[{at}]"), wait, WAIT_MIN..=WAIT_MAX)).collect()
}

/// A disable policy; none where the message is absent.
pub fn disable(check: &mut Check, field: &str, policy: Option<pb::DisablePolicy>) -> Option<DisablePolicy> {
    let policy = policy?;
    let default = DisablePolicy::default();
    let failures = match u32::try_from(policy.failures) {
        Ok(0) => default.failures,
        Ok(given) if given <= FAILURES_MAX => given,
        _ => {
            check.refuse(format!("{field}.failures"), "must be 1 to 1,000");
            default.failures
        }
    };
    let span = match policy.span {
        Some(span) => check.duration(&format!("{field}.span"), span, Duration::ZERO..=SPAN_MAX),
        None => default.span,
    };
    Some(DisablePolicy { failures, span, off: policy.off })
}

/// The time for a whole attempt; none where it is absent.
pub fn http_timeout(
    check: &mut Check,
    field: &str,
    timeout: Option<prost_types::Duration>,
) -> Option<Duration> {
    Some(check.duration(field, timeout?, HTTP_TIMEOUTS))
}

/// A rate limit; none where the message is absent.
pub fn rate(check: &mut Check, field: &str, limit: Option<pb::RateLimit>) -> Option<RateLimit> {
    let limit = limit?;
    let mut number = |name: &str, given: i32, least: u32| match u32::try_from(given) {
        Ok(0) if least == 0 => 1,
        Ok(given) if (1..=RATE_MAX).contains(&given) => given,
        _ => {
            check.refuse(format!("{field}.{name}"), "must be 1 to 10,000");
            1
        }
    };
    let (requests, burst) = (number("requests", limit.requests, 1), number("burst", limit.burst, 0));
    let per = match limit.per {
        Some(per) => check.duration(&format!("{field}.per"), per, RATE_PER_MIN..=WAIT_MAX),
        None => RATE_PER_MIN,
    };
    Some(RateLimit { requests, per, burst })
}

pub fn rate_message(limit: RateLimit) -> pb::RateLimit {
    pb::RateLimit {
        requests: count(limit.requests),
        per: Some(duration(limit.per)),
        burst: count(limit.burst),
    }
}

pub fn retry_message(policy: RetryPolicy) -> pb::RetryPolicy {
    let strategy = match policy.strategy {
        RetryStrategy::Exponential { base, factor, cap, jitter } => {
            Strategy::Exponential(pb::ExponentialBackoff {
                base: Some(duration(base)),
                factor,
                cap: Some(duration(cap)),
                jitter: Some(jitter),
            })
        }
        RetryStrategy::Linear { wait } => Strategy::Linear(pb::LinearBackoff { wait: Some(duration(wait)) }),
        RetryStrategy::Schedule { waits } => {
            Strategy::Schedule(pb::RetrySchedule { waits: waits.into_iter().map(duration).collect() })
        }
    };
    pb::RetryPolicy { strategy: Some(strategy), max_attempts: policy.max_attempts.into() }
}

pub fn disable_message(policy: DisablePolicy) -> pb::DisablePolicy {
    pb::DisablePolicy { failures: count(policy.failures), span: Some(duration(policy.span)), off: policy.off }
}
