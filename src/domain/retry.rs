//! When a failed delivery is tried again: a pure function of the policy and the attempts made.

use std::time::Duration;

/// How a delivery is retried.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct RetryPolicy {
    pub strategy: RetryStrategy,
    /// Attempts in one budget, the first included.
    pub max_attempts: u16,
}

/// How the waits between attempts grow.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum RetryStrategy {
    /// `base × factorⁿ` after attempt n+1, at most `cap`, then moved by up to `jitter` either way.
    Exponential { base: Duration, factor: f64, cap: Duration, jitter: f64 },
    /// The same wait every time.
    Linear { wait: Duration },
    /// These waits, one after the other; the attempt after the last is the last.
    Schedule { waits: Vec<Duration> },
}

impl Default for RetryPolicy {
    /// 10 s × 3ⁿ, at most 6 h, ±20 %, 12 attempts: about 27 hours.
    fn default() -> Self {
        Self {
            strategy: RetryStrategy::Exponential {
                base: Duration::from_secs(10),
                factor: 3.0,
                cap: Duration::from_secs(6 * 3600),
                jitter: 0.2,
            },
            max_attempts: 12,
        }
    }
}

/// What the receiver may ask for by Retry-After, at most.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(2 * 3600);

impl RetryPolicy {
    /// The wait after `made` attempts of this budget (1 or more), or none when the budget is spent.
    ///
    /// `random` is uniform in [0, 1) and places the wait within the jitter. A `retry_after` of the
    /// receiver never shortens the planned wait, and counts for at most two hours.
    pub fn wait_after(&self, made: u16, random: f64, retry_after: Option<Duration>) -> Option<Duration> {
        if made >= self.max_attempts {
            return None;
        }
        let planned = match &self.strategy {
            RetryStrategy::Exponential { base, factor, cap, jitter } => {
                let grown = base.as_secs_f64() * factor.powi(i32::from(made.saturating_sub(1)));
                let wait = grown.min(cap.as_secs_f64());
                let moved = wait * (1.0 + jitter * (2.0 * random - 1.0));
                Duration::try_from_secs_f64(moved).unwrap_or(*cap)
            }
            RetryStrategy::Linear { wait } => *wait,
            RetryStrategy::Schedule { waits } => *waits.get(usize::from(made.saturating_sub(1)))?,
        };
        Some(planned.max(retry_after.unwrap_or_default().min(RETRY_AFTER_MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn planned(made: u16) -> Option<u64> {
        RetryPolicy::default().wait_after(made, 0.5, None).map(|wait| wait.as_secs())
    }

    #[test]
    fn default_schedule_lasts_about_27_hours() {
        let waits: Vec<u64> = (1..12).map_while(planned).collect();
        assert_eq!(waits, [10, 30, 90, 270, 810, 2430, 7290, 21600, 21600, 21600, 21600]);
        assert_eq!(planned(12), None);
        let hours = waits.iter().sum::<u64>() / 3600;
        assert_eq!(hours, 27);
    }

    #[test]
    fn retry_after_lengthens_up_to_two_hours_and_never_shortens() {
        let wait = |secs| RetryPolicy::default().wait_after(1, 0.5, Some(Duration::from_secs(secs)));
        assert_eq!(wait(3), Some(Duration::from_secs(10)));
        assert_eq!(wait(60), Some(Duration::from_secs(60)));
        assert_eq!(wait(999_999_999), Some(RETRY_AFTER_MAX));
    }

    fn policy(strategy: RetryStrategy, max_attempts: u16) -> RetryPolicy {
        RetryPolicy { strategy, max_attempts }
    }

    #[test]
    fn a_schedule_ends_with_its_last_wait_or_before() {
        let waits = [1, 5, 2].map(Duration::from_secs).to_vec();
        let all = policy(RetryStrategy::Schedule { waits: waits.clone() }, 100);
        let told: Vec<_> = (1..100).map_while(|made| all.wait_after(made, 0.5, None)).collect();
        assert_eq!(told, waits, "three waits are four attempts");
        let cut = policy(RetryStrategy::Schedule { waits }, 2);
        assert_eq!(
            (cut.wait_after(1, 0.5, None), cut.wait_after(2, 0.5, None)),
            (Some(Duration::from_secs(1)), None)
        );
        let asked = all.wait_after(3, 0.5, Some(Duration::from_secs(9)));
        assert_eq!(asked, Some(Duration::from_secs(9)), "Retry-After lengthens here too");
        assert_eq!(all.wait_after(4, 0.5, Some(Duration::from_secs(9))), None, "and adds no attempt");
    }

    proptest! {
        #[test]
        fn linear_waits_are_the_same_and_as_many_as_allowed(
            millis in 1u64..86_400_000, most in 1u16..=100, random in 0.0f64..1.0,
        ) {
            let wait = Duration::from_millis(millis);
            let linear = policy(RetryStrategy::Linear { wait }, most);
            let waits: Vec<_> = (1..200).map_while(|made| linear.wait_after(made, random, None)).collect();
            prop_assert_eq!(waits, vec![wait; usize::from(most) - 1]);
        }

        #[test]
        fn schedules_are_followed_and_cut(
            millis in proptest::collection::vec(1u64..86_400_000, 1..99), most in 1u16..=100, random in 0.0f64..1.0,
        ) {
            let waits: Vec<_> = millis.into_iter().map(Duration::from_millis).collect();
            let schedule = policy(RetryStrategy::Schedule { waits: waits.clone() }, most);
            let told: Vec<_> = (1..200).map_while(|made| schedule.wait_after(made, random, None)).collect();
            let allowed = waits.len().min(usize::from(most) - 1);
            prop_assert_eq!(&told[..], &waits[..allowed]);
        }

        #[test]
        fn waits_stay_within_jitter_of_the_cap(made in 1u16..12, random in 0.0f64..1.0) {
            let wait = RetryPolicy::default().wait_after(made, random, None).expect("budget left");
            let middle = (10.0 * 3f64.powi(i32::from(made) - 1)).min(21_600.0);
            prop_assert!(wait.as_secs_f64() >= middle * 0.8 - 1e-6);
            prop_assert!(wait.as_secs_f64() <= middle * 1.2 + 1e-6);
        }

        #[test]
        fn no_policy_panics(base in 0u64..u64::MAX, factor in 0.0f64..1e300, cap in 0u64..u64::MAX, made in 0u16..u16::MAX) {
            let policy = RetryPolicy {
                strategy: RetryStrategy::Exponential {
                    base: Duration::from_secs(base), factor, cap: Duration::from_secs(cap), jitter: 1.0,
                },
                max_attempts: u16::MAX,
            };
            prop_assert!(policy.wait_after(made, 0.99, None).is_some());
        }
    }
}
