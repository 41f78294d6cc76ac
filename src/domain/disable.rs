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
}
