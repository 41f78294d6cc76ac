//! The circuit breaker: after some failures in a row sending rests, then one attempt probes.

use std::time::Duration;

/// When it opens and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerPolicy {
    /// Failed attempts in a row that open it.
    pub failures: u32,
    /// The first rest; each failed probe doubles it.
    pub pause: Duration,
}

/// A rest is at most so many times the first one: 10 min for 30 s.
const LONGEST: u32 = 20;

impl Default for BreakerPolicy {
    /// Five failures, 30 s.
    fn default() -> Self {
        Self { failures: 5, pause: Duration::from_secs(30) }
    }
}

impl BreakerPolicy {
    /// How long sending rests when the breaker opens for the nth time in a row (1 or more).
    pub fn rest(&self, opens: u16) -> Duration {
        let doubled = 1u32.checked_shl(u32::from(opens.saturating_sub(1))).unwrap_or(LONGEST);
        self.pause.saturating_mul(doubled.min(LONGEST))
    }

    /// How often in a row it has opened after a failed attempt, given how often before. Only the probe moves an
    /// open one on: what was in flight when it opened says nothing new.
    pub fn opens(&self, before: u16, failures: u32, probe_failed: bool) -> u16 {
        match before {
            0 => u16::from(failures >= self.failures),
            _ if probe_failed => before.saturating_add(1),
            _ => before,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rests_double_up_to_ten_minutes() {
        let rests: Vec<u64> = (1..8).map(|opens| BreakerPolicy::default().rest(opens).as_secs()).collect();
        assert_eq!(rests, [30, 60, 120, 240, 480, 600, 600]);
        assert_eq!(BreakerPolicy::default().rest(u16::MAX).as_secs(), 600);
    }

    #[test]
    fn only_the_probe_moves_an_open_breaker_on() {
        let policy = BreakerPolicy::default();
        assert_eq!(policy.opens(0, 4, false), 0);
        assert_eq!(policy.opens(0, 5, false), 1);
        assert_eq!(policy.opens(1, 21, false), 1);
        assert_eq!(policy.opens(1, 22, true), 2);
        assert_eq!(policy.opens(i16::MAX as u16, 22, true), i16::MAX as u16 + 1);
    }
}
