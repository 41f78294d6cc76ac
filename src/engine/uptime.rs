//! Time since the machine started, counting the time that it was suspended. `Instant` does not count that on Linux, so
//! a lease that ended during a sleep would seem to stand.

use std::time::Duration;

/// A moment by that clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Uptime(Duration);

impl Uptime {
    #[cfg(target_os = "linux")]
    pub fn now() -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let (secs, nanos) = (u64::try_from(now.tv_sec), u32::try_from(now.tv_nsec));
        Self(Duration::new(secs.unwrap_or_default(), nanos.unwrap_or_default()))
    }

    /// Elsewhere `Instant` is the best there is; on macOS it does not stop either.
    #[cfg(not(target_os = "linux"))]
    pub fn now() -> Self {
        static START: std::sync::LazyLock<std::time::Instant> =
            std::sync::LazyLock::new(std::time::Instant::now);
        Self(START.elapsed())
    }

    pub fn plus(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time))
    }

    /// The time from `earlier` to here; zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}
