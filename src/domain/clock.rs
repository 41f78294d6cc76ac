//! Wall-clock time as Hawser stores it: Unix milliseconds.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// An instant in Unix milliseconds (UTC). Arithmetic saturates, so no input can overflow it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct Timestamp(i64);

impl Timestamp {
    /// Now, by this machine's clock. A clock set before 1970 reads as 1970.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }

    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// Whole Unix seconds, as signatures carry them.
    pub const fn as_secs(self) -> i64 {
        self.0.div_euclid(1000)
    }

    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }

    pub fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }

    /// The time from `earlier` to here; zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

/// A duration as people say it, in its two largest units: `1 h 5 min`, `12 s`, `40 ms`.
pub fn spoken(duration: Duration) -> String {
    let secs = duration.as_secs();
    let units = [(86_400, "d"), (3600, "h"), (60, "min"), (1, "s")];
    let Some(at) = units.iter().position(|(size, _)| secs >= *size) else {
        return format!("{} ms", duration.as_millis());
    };
    let (size, unit) = units[at];
    let mut text = format!("{} {unit}", secs / size);
    if let Some((smaller, unit)) = units.get(at + 1)
        && secs % size / smaller > 0
    {
        text.push_str(&format!(" {} {unit}", secs % size / smaller));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_said_in_two_units() {
        for (millis, said) in [
            (0, "0 ms"),
            (40, "40 ms"),
            (12_345, "12 s"),
            (3_600_000, "1 h"),
            (3_960_000, "1 h 6 min"),
            (90_061_000, "1 d 1 h"),
        ] {
            assert_eq!(spoken(Duration::from_millis(millis)), said);
        }
    }
}
