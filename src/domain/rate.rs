//! Rate limits: how often attempts may start, by slots on one clock (GCRA).
//!
//! A slot is a moment from which on an attempt may start, and it may start only a little later: what is later than
//! that waits for another slot. Slots lie so far apart that even so no window of length `per` has more than
//! `requests` + `burst` starts.

use std::time::Duration;

/// Attempts that may start within a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RateLimit {
    pub requests: u32,
    pub per: Duration,
    /// Attempts that may start at once after a pause; 1 or more.
    pub burst: u32,
}

/// Slots that were reserved together, in microseconds by the clock that all nodes share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots {
    pub first: i64,
    pub interval: i64,
    pub count: u32,
}

impl Slots {
    pub fn times(self) -> impl Iterator<Item = i64> {
        (0..i64::from(self.count)).map(move |at| self.first + at * self.interval)
    }

    /// The first moment that is not taken.
    pub fn next(self) -> i64 {
        self.first + i64::from(self.count) * self.interval
    }
}

const LATE_MAX: Duration = Duration::from_secs(1);

impl RateLimit {
    /// How much later than its slot an attempt may start: 31 ms for a second.
    fn slack(&self) -> Duration {
        (self.per / 32).min(LATE_MAX)
    }

    /// Up to when after its slot an attempt may begin; what remains of the slack is for what comes before its
    /// recorded start.
    pub fn late(&self) -> Duration {
        self.slack() / 2
    }

    /// Between two slots, in microseconds. Where the slack is longer than an interval would be, intervals are
    /// longer, by at most 1/32.
    pub fn interval(&self) -> i64 {
        let micros = |time: Duration| i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
        let requests = i64::from(self.requests.max(1));
        let plain = (micros(self.per) + requests - 1) / requests;
        let spread = micros(self.per + self.slack()) / (requests + 1) + 1;
        plain.max(spread)
    }

    /// The first free moment, if `next` is kept as such and slots are never reserved for later than `horizon`: what lies
    /// more than an interval beyond was left by a slower limit, which is not in force any more.
    pub fn within(&self, next: i64, horizon: i64) -> i64 {
        next.min(horizon + self.interval())
    }

    /// The slots that are free until `until`, at most `want`, if the next one is at `next` and none before `now` is
    /// of use.
    pub fn slots(&self, next: i64, now: i64, until: i64, want: u32) -> Slots {
        let interval = self.interval();
        let credit = interval.saturating_mul(i64::from(self.burst.max(1)) - 1);
        let first = next.max(now - credit);
        let free = if first > until { 0 } else { (until - first) / interval + 1 };
        Slots { first, interval, count: u32::try_from(free).unwrap_or(u32::MAX).min(want) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limit(requests: u32, per: u64, burst: u32) -> RateLimit {
        RateLimit { requests, per: Duration::from_millis(per), burst }
    }

    #[test]
    fn intervals_follow_the_limit() {
        assert_eq!(limit(1, 1000, 1).interval(), 1_000_000);
        assert_eq!(limit(20, 1000, 1).interval(), 50_000);
        let fast = limit(500, 1000, 1).interval();
        assert!((2_000..2_065).contains(&fast), "{fast} µs");
        assert_eq!(limit(1000, 86_400_000, 1).interval(), 86_400_000);
        assert_eq!(limit(20, 1000, 1).late(), Duration::from_micros(15_625));
    }

    #[test]
    fn a_pause_gives_a_burst_and_no_more() {
        let limit = limit(10, 1000, 3);
        let slots = limit.slots(0, 10_000_000, 10_000_000, 100);
        assert_eq!((slots.count, slots.next()), (3, 10_100_000));
        assert_eq!(limit.slots(slots.next(), 10_000_000, 10_000_000, 100).count, 0);
        assert_eq!(limit.slots(slots.next(), 10_000_000, 10_500_000, 100).count, 5);
        assert_eq!(limit.slots(slots.next(), 10_000_000, 10_500_000, 2).count, 2);
    }

    #[test]
    fn what_a_slower_limit_left_is_waited_for_no_longer_than_the_present_one_asks() {
        let (slow, fast) = (limit(1, 86_400_000, 1), limit(10, 1000, 1));
        let (now, ahead) = (1_000_000_000, 1_500_000);
        let next = slow.slots(0, now, now, 1).next();
        assert_eq!(slow.within(next, now + ahead), next, "its own stands");
        assert_eq!(fast.within(next, now + ahead), now + ahead + fast.interval());
        // And the other way about: what the fast one left is nearer than that.
        let next = fast.slots(0, now, now + ahead, 100).next();
        assert_eq!(slow.within(next, now + ahead), next);
    }

    proptest! {
        /// However slots are reserved, by whomever, and however late attempts start within the slack.
        #[test]
        fn no_window_has_more_than_the_limit(
            requests in 1u32..600,
            per in 1000u64..5000,
            burst in 1u32..20,
            left in 0i64..4_000_000_000,
            turns in prop::collection::vec((0i64..400_000, 0i64..1_000_000, 1u32..60, any::<u32>()), 1..60),
        ) {
            let limit = limit(requests, per, burst);
            let slack = i64::try_from(limit.slack().as_micros()).expect("small");
            // What is there may come from another limit.
            let (mut now, mut next, mut starts) = (1_000_000_000, left, Vec::new());
            for (pause, horizon, want, luck) in turns {
                now += pause;
                next = limit.within(next, now + 1_000_000);
                let slots = limit.slots(next, now, now + horizon, want);
                if slots.count > 0 {
                    next = slots.next();
                }
                for (at, slot) in slots.times().enumerate() {
                    let late = i64::from(luck.rotate_left(u32::try_from(at % 32).expect("small"))) % (slack + 1);
                    starts.push(slot.max(now) + late);
                }
            }
            starts.sort_unstable();
            let most = (requests + burst) as usize;
            for window in starts.windows(most + 1) {
                prop_assert!(window[most] - window[0] >= limit.per.as_micros() as i64, "{window:?}");
            }
        }
    }
}
