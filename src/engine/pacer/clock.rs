//! The database's clock, by this process's own.

use std::time::{Duration, Instant};

/// The database's clock as this process's: an answer that came quickly says it best.
pub struct Clock {
    epoch: Instant,
    /// The database's time at the epoch, never too late.
    offset: i64,
    since: Option<Instant>,
}

/// In microseconds: no answer takes so long, so the clock was set back.
const SET_BACK: i64 = 1_000_000;
/// After so long drift may have made it wrong.
const CLOCK_LIFE: Duration = Duration::from_secs(30);

impl Clock {
    pub fn new() -> Self {
        Self { epoch: Instant::now(), offset: i64::MIN, since: None }
    }

    pub fn heard(&mut self, now: i64, at: Instant) {
        let offset = now - micros(at - self.epoch);
        let is_old = self.since.is_none_or(|since| at - since > CLOCK_LIFE);
        if is_old || offset > self.offset || self.offset - offset > SET_BACK {
            (self.offset, self.since) = (offset, Some(at));
        }
    }

    pub fn instant(&self, time: i64) -> Instant {
        self.epoch + Duration::from_micros(u64::try_from(time - self.offset).unwrap_or_default())
    }
}

pub fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quickest_answer_sets_the_clock() {
        let mut clock = Clock::new();
        let start = clock.epoch;
        let at = |millis: u64| start + Duration::from_millis(millis);
        clock.heard(1_000_000, at(20));
        clock.heard(1_100_000, at(105));
        assert_eq!(clock.instant(1_100_000), at(105));
        clock.heard(1_200_000, at(230));
        assert_eq!(clock.instant(1_200_000), at(205), "that answer took its time");
        // Set back by a minute.
        clock.heard(-58_700_000, at(305));
        assert_eq!(clock.instant(-58_700_000), at(305));
    }
}
