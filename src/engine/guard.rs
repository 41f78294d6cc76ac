//! The systemic guard: when most endpoints fail without an answer, the fault is most likely ours.
//!
//! Each process judges by its own attempts: per endpoint the latest one of the last five minutes. While more than
//! half of at least ten endpoints on at least three hosts fail without an HTTP answer, failures count towards no
//! disable policy, and what was counted before starts anew, so that the outage's time does not switch endpoints
//! off once it is over. An answer of 410 still acts.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::id::EndpointId;

const WINDOW: Duration = Duration::from_secs(300);
const ENDPOINTS_MIN: usize = 10;
const HOSTS_MIN: usize = 3;
/// Endpoints remembered; beyond, new ones are not taken in until old ones leave the window.
const ENDPOINTS_MAX: usize = 65_536;
const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// What an attempt showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sign {
    pub endpoint: EndpointId,
    pub host: HostKey,
    /// It failed without an HTTP answer.
    pub unanswered: bool,
}

/// Stands for a host's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HostKey(u64);

impl HostKey {
    pub fn of(host: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        host.hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// The guard of this process.
#[derive(Default)]
pub struct Guard(Mutex<State>);

#[derive(Default)]
struct State {
    latest: HashMap<EndpointId, (Instant, Sign)>,
    hosts: HashMap<HostKey, usize>,
    unanswered: usize,
    swept_at: Option<Instant>,
    failing: bool,
}

impl Guard {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what attempts showed; says whether the fault is ours.
    pub fn note(&self, signs: impl IntoIterator<Item = Sign>, now: Instant) -> bool {
        let mut state = self.lock();
        for sign in signs {
            state.take(sign, now);
        }
        state.judge(now)
    }

    /// Whether most endpoints fail without an answer, as of the last attempts.
    pub fn egress_failing(&self) -> bool {
        self.lock().judge(Instant::now())
    }
}

impl State {
    fn take(&mut self, sign: Sign, now: Instant) {
        if self.latest.len() >= ENDPOINTS_MAX && !self.latest.contains_key(&sign.endpoint) {
            return;
        }
        if let Some((_, old)) = self.latest.insert(sign.endpoint, (now, sign)) {
            self.forget(old);
        }
        *self.hosts.entry(sign.host).or_default() += 1;
        self.unanswered += usize::from(sign.unanswered);
    }

    fn forget(&mut self, old: Sign) {
        self.unanswered -= usize::from(old.unanswered);
        if let Some(count) = self.hosts.get_mut(&old.host) {
            *count -= 1;
            if *count == 0 {
                self.hosts.remove(&old.host);
            }
        }
    }

    fn judge(&mut self, now: Instant) -> bool {
        // Leaving the window matters only where something fails, or memory grows.
        if self.swept_at.is_none_or(|at| now.duration_since(at) >= SWEEP_EVERY) {
            self.swept_at = Some(now);
            let gone: Vec<Sign> = self
                .latest
                .extract_if(|_, (at, _)| now.duration_since(*at) >= WINDOW)
                .map(|(_, (_, sign))| sign)
                .collect();
            for sign in gone {
                self.forget(sign);
            }
        }
        let attempted = self.latest.len();
        let failing =
            attempted >= ENDPOINTS_MIN && self.hosts.len() >= HOSTS_MIN && 2 * self.unanswered > attempted;
        if failing != self.failing {
            self.failing = failing;
            let (unanswered, hosts) = (self.unanswered, self.hosts.len());
            if failing {
                tracing::error!(
                    alert = "system.egress_failing",
                    attempted,
                    unanswered,
                    hosts,
                    "most endpoints fail without an answer: no endpoint is switched off for failing"
                );
            } else {
                tracing::warn!(
                    alert = "system.egress_failing",
                    attempted,
                    unanswered,
                    hosts,
                    "endpoints answer again: what fails too often is switched off as before"
                );
            }
        }
        failing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signs(count: usize, hosts: usize, unanswered: usize) -> Vec<Sign> {
        (0..count)
            .map(|at| Sign {
                endpoint: EndpointId::new(),
                host: HostKey::of(&format!("host-{}", at % hosts)),
                unanswered: at < unanswered,
            })
            .collect()
    }

    #[test]
    fn it_takes_more_than_half_of_ten_endpoints_on_three_hosts() {
        for (count, hosts, unanswered, failing) in
            [(10, 3, 6, true), (10, 3, 5, false), (9, 3, 9, false), (10, 2, 10, false), (100, 50, 51, true)]
        {
            let guard = Guard::default();
            assert_eq!(
                guard.note(signs(count, hosts, unanswered), Instant::now()),
                failing,
                "{count} {hosts} {unanswered}"
            );
        }
    }

    #[test]
    fn an_endpoint_counts_by_its_latest_attempt_and_only_within_the_window() {
        let guard = Guard::default();
        let start = Instant::now();
        let mut signs = signs(12, 4, 12);
        assert!(guard.note(signs.clone(), start));
        for sign in &mut signs[..6] {
            sign.unanswered = false;
        }
        assert!(!guard.note(signs[..6].to_vec(), start + Duration::from_secs(1)), "half of them answer");
        for sign in &mut signs {
            sign.unanswered = true;
        }
        assert!(guard.note(signs.clone(), start + Duration::from_secs(2)));
        assert!(!guard.note(Vec::new(), start + WINDOW + Duration::from_secs(3)), "all of it is old");
        let state = guard.lock();
        assert!(state.latest.is_empty() && state.hosts.is_empty() && state.unanswered == 0);
    }
}
