//! When an endpoint is switched off for failing too often.

use std::time::Duration;

use super::clock::Timestamp;

/// Failed attempts in a row, over all deliveries of the endpoint, that span at least a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DisablePolicy {
    pub failures: u32,
    pub span: Duration,
    /// Only an answer of 410 switches off.
    pub off: bool,
}

impl Default for DisablePolicy {
    /// 20 failures in a row that span an hour.
    fn default() -> Self {
        Self { failures: 20, span: Duration::from_secs(3600), off: false }
    }
}

impl DisablePolicy {
    /// Whether so many failures in a row, the first and the last at these times, are too many.
    pub fn is_met(&self, failures: u32, first: Timestamp, last: Timestamp) -> bool {
        !self.off && failures >= self.failures && last.since(first) >= self.span
    }

    /// Whether they are half as many, over half the time: when people are warned, also where nothing is switched off.
    pub fn is_half_met(&self, failures: u32, first: Timestamp, last: Timestamp) -> bool {
        failures >= self.failures.div_ceil(2) && last.since(first) >= self.span / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_the_count_and_the_span_must_be_reached() {
        let policy = DisablePolicy::default();
        let at = |secs: i64| Timestamp::from_millis(secs * 1000);
        assert!(policy.is_met(20, at(0), at(3600)));
        assert!(!policy.is_met(19, at(0), at(7200)));
        assert!(!policy.is_met(1000, at(0), at(3599)));
        // A clock that went back spans nothing.
        assert!(!policy.is_met(20, at(3600), at(0)));
        assert!(!DisablePolicy { off: true, ..policy }.is_met(1000, at(0), at(7200)));
    }

    #[test]
    fn half_way_is_half_of_both() {
        let policy = DisablePolicy::default();
        let at = |secs: i64| Timestamp::from_millis(secs * 1000);
        assert!(policy.is_half_met(10, at(0), at(1800)));
        assert!(!policy.is_half_met(9, at(0), at(1800)));
        assert!(!policy.is_half_met(1000, at(0), at(1799)));
        let odd = DisablePolicy { failures: 3, span: Duration::ZERO, off: true };
        assert!(odd.is_half_met(2, at(0), at(0)) && !odd.is_half_met(1, at(0), at(0)));
    }
}
