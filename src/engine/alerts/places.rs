//! Places that did not take the last alert that was sent there, or took their time.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::domain::alert::AlertPlace;

/// How long a place is suspect after a failure; longer than the longest wait before the next attempt, which renews it.
const SUSPECT_FOR: Duration = Duration::from_secs(3 * 3600);
/// Places remembered; of more than that, those are forgotten whose failure is longest ago.
const MOST: usize = 1024;

/// The suspect ones.
#[derive(Default)]
pub struct Places(Mutex<HashMap<AlertPlace, Instant>>);

impl Places {
    pub fn is_suspect(&self, place: AlertPlace) -> bool {
        let suspects = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        suspects.get(&place).is_some_and(|failed| failed.elapsed() < SUSPECT_FOR)
    }

    /// All that are.
    pub fn suspects(&self) -> Vec<AlertPlace> {
        let suspects = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = suspects.iter().filter(|(_, failed)| failed.elapsed() < SUSPECT_FOR);
        now.map(|(place, _)| *place).collect()
    }

    /// Notes whether it answered, and soon.
    pub fn note(&self, place: AlertPlace, answered: bool) {
        let mut suspects = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if answered {
            suspects.remove(&place);
            return;
        }
        if suspects.len() >= MOST {
            suspects.retain(|_, failed| failed.elapsed() < SUSPECT_FOR);
        }
        if suspects.len() >= MOST
            && let Some(oldest) = suspects.iter().min_by_key(|(_, failed)| **failed).map(|(place, _)| *place)
        {
            suspects.remove(&oldest);
        }
        suspects.insert(place, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_suspect_until_it_answers_and_few_are_remembered() {
        let places = Places::default();
        let (a, b) = (AlertPlace(1), AlertPlace(2));
        places.note(a, false);
        assert!(places.is_suspect(a) && !places.is_suspect(b));
        places.note(a, true);
        assert!(!places.is_suspect(a));
        for number in 0..2 * MOST as i64 {
            places.note(AlertPlace(number), false);
        }
        assert_eq!(places.0.lock().expect("unpoisoned").len(), MOST);
        assert!(places.is_suspect(AlertPlace(2 * MOST as i64 - 1)));
    }
}
