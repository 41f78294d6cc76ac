//! The systemic guard: when most endpoints fail without an answer, the fault is most likely ours.

use std::time::Duration;

use super::attempt::ErrorClass;

/// Failures that show nothing, neither way: no receiver was asked, for reasons that are not the network's.
pub const SHOWS_NOTHING: [ErrorClass; 4] =
    [ErrorClass::Cancelled, ErrorClass::Certificate, ErrorClass::Auth, ErrorClass::BlockedAddress];

/// Attempts of the last five minutes count.
pub const WINDOW: Duration = Duration::from_secs(300);
/// A verdict stands for so long without being come to again, unless endpoints answer: those that still have work may be
/// too few to judge by, while others have given up.
const OUTLIVES: Duration = Duration::from_secs(3600);
const ENDPOINTS_MIN: u64 = 10;
const HOSTS_MIN: usize = 3;

/// What the endpoints show that were attempted lately, each by its latest attempt. One to which sending rests is among
/// them for as long as it rests: what keeps it from being attempted is its failing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sight {
    pub attempted: u64,
    /// Those that failed without an HTTP answer.
    pub unanswered: u64,
    /// On which the attempted ones are.
    pub hosts: usize,
}

impl Sight {
    /// Whether it would be our fault, were they on enough hosts.
    pub fn is_suspicious(&self) -> bool {
        self.attempted >= ENDPOINTS_MIN && self.most_are_unanswered()
    }

    /// Whether they show by themselves that the fault is ours.
    pub fn shows_it(&self) -> bool {
        self.is_suspicious() && self.hosts >= HOSTS_MIN
    }

    /// Whether the fault is ours, given how long ago they showed it, if they did. It is over once half of them answer,
    /// however few they are; that nothing was attempted shows nothing, for an hour.
    pub fn is_failing(&self, shown: Option<Duration>) -> bool {
        let stands = shown.is_some_and(|ago| ago < OUTLIVES);
        self.shows_it() || (stands && (self.attempted == 0 || self.most_are_unanswered()))
    }

    fn most_are_unanswered(&self) -> bool {
        2 * self.unanswered > self.attempted
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::breaker::BreakerPolicy;

    #[test]
    fn it_takes_more_than_half_of_ten_endpoints_on_three_hosts() {
        for (attempted, hosts, unanswered, failing) in
            [(10, 3, 6, true), (10, 3, 5, false), (9, 3, 9, false), (10, 2, 10, false), (100, 50, 51, true)]
        {
            let sight = Sight { attempted, unanswered, hosts };
            assert_eq!(sight.is_failing(None), failing, "{sight:?}");
        }
    }

    #[test]
    fn it_ends_by_answers_and_not_by_silence() {
        let sight = |attempted, unanswered| Sight { attempted, unanswered, hosts: 1 };
        let lately = Some(Duration::from_secs(60));
        assert!(sight(0, 0).is_failing(lately) && !sight(0, 0).is_failing(None));
        assert!(sight(1, 1).is_failing(lately), "few of them still fail");
        assert!(sight(12, 7).is_failing(lately));
        assert!(!sight(12, 6).is_failing(lately));
        assert!(!sight(1, 0).is_failing(lately));
        assert!(!sight(1, 1).is_failing(Some(OUTLIVES)), "its own fault, most likely");
    }

    /// An endpoint in a model of an outage, in seconds.
    #[derive(Clone, Copy)]
    struct Modelled {
        attempted_at: u64,
        rests_until: u64,
        opens: u16,
        failures: u32,
        unanswered: bool,
    }

    impl Modelled {
        /// As store/egress.rs has it.
        fn is_recent(&self, now: u64) -> bool {
            let since = now.saturating_sub(WINDOW.as_secs());
            self.attempted_at >= since || (self.opens > 0 && self.rests_until >= since)
        }

        fn attempt(&mut self, now: u64, answers: bool) {
            self.attempted_at = now;
            self.unanswered = !answers;
            if answers {
                (self.failures, self.opens, self.rests_until) = (0, 0, now + 60);
                return;
            }
            self.failures += 1;
            let policy = BreakerPolicy::default();
            self.opens = policy.opens(self.opens, self.failures, self.opens > 0);
            let wait = if self.opens > 0 { policy.rest(self.opens).as_secs() } else { 10 };
            self.rests_until = now + wait;
        }
    }

    fn sight(endpoints: &[Modelled], now: u64) -> Sight {
        let recent = || endpoints.iter().filter(|endpoint| endpoint.is_recent(now));
        Sight {
            attempted: recent().count() as u64,
            unanswered: recent().filter(|endpoint| endpoint.unanswered).count() as u64,
            hosts: HOSTS_MIN,
        }
    }

    proptest! {
        /// However the endpoints' attempts lie, an outage is known before any of them could be switched off (20
        /// failures, an hour), for as long as it lasts, and over within a rest and a round after its end.
        #[test]
        fn an_outage_of_hours_is_one_outage(
            starts in prop::collection::vec(0u64..3000, 10..40),
            hours in 2u64..6,
        ) {
            let begin = |start: &u64| Modelled {
                attempted_at: *start, rests_until: *start, opens: 0, failures: 0, unanswered: false,
            };
            let mut endpoints: Vec<Modelled> = starts.iter().map(begin).collect();
            let ends = 3600 * hours;
            let (mut failing, mut began_at, mut over_at) = (false, None, None);
            let mut shown_at = 0;
            // A round every five seconds. Each endpoint has work waiting all the time, from its start on.
            for now in (0..ends + 1500).step_by(5) {
                let mut there = Vec::new();
                let begun = endpoints.iter_mut().zip(&starts).filter(|(_, start)| **start <= now);
                for (endpoint, _) in begun {
                    if now >= endpoint.rests_until {
                        endpoint.attempt(now, now >= ends);
                    }
                    there.push(*endpoint);
                }
                let before = failing;
                let sight = sight(&there, now);
                failing = sight.is_failing(before.then(|| Duration::from_secs(now - shown_at)));
                if sight.shows_it() {
                    shown_at = now;
                }
                match (before, failing) {
                    (false, true) => prop_assert!(began_at.replace(now).is_none(), "it began twice"),
                    (true, false) => prop_assert!(over_at.replace(now).is_none(), "it ended twice"),
                    _ => {}
                }
            }
            prop_assert!(began_at.is_some_and(|at| at < 3600), "{began_at:?}");
            prop_assert!(over_at.is_some_and(|at| at >= ends && at < ends + 610), "{over_at:?} of {ends}");
        }
    }
}
