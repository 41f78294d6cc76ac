//! Places that did not take the last alert that was sent there.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::domain::alert::Channel;
use crate::store::{AlertTarget, ClaimedAlert};

/// Where an alert goes: the mail server, or a URL, of which only a hash is kept.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place(Channel, u64);

impl Place {
    pub fn of(alert: &ClaimedAlert) -> Self {
        let mut hasher = DefaultHasher::new();
        match &alert.content {
            Ok((_, AlertTarget::Given(url))) if alert.channel != Channel::Email => {
                url.expose().hash(&mut hasher);
            }
            Ok((_, AlertTarget::Operational(target))) => target.url.hash(&mut hasher),
            _ => {}
        }
        Self(alert.channel, hasher.finish())
    }
}

/// How long a place is suspect after a failure; longer than the longest wait before the next attempt, which renews it.
const SUSPECT_FOR: Duration = Duration::from_secs(3 * 3600);
/// Places remembered; of more than that, those are forgotten whose failure is longest ago.
const MOST: usize = 1024;

/// The suspect ones.
#[derive(Default)]
pub struct Places(Mutex<HashMap<Place, Instant>>);

impl Places {
    pub fn is_suspect(&self, place: Place) -> bool {
        let suspects = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        suspects.get(&place).is_some_and(|failed| failed.elapsed() < SUSPECT_FOR)
    }

    pub fn note(&self, place: Place, took: bool) {
        let mut suspects = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if took {
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
    fn a_place_is_suspect_until_it_takes_one_and_few_are_remembered() {
        let places = Places::default();
        let (a, b) = (Place(Channel::Slack, 1), Place(Channel::Teams, 1));
        places.note(a, false);
        assert!(places.is_suspect(a) && !places.is_suspect(b));
        places.note(a, true);
        assert!(!places.is_suspect(a));
        for number in 0..2 * MOST as u64 {
            places.note(Place(Channel::Slack, number), false);
        }
        assert_eq!(places.0.lock().expect("unpoisoned").len(), MOST);
        assert!(places.is_suspect(Place(Channel::Slack, 2 * MOST as u64 - 1)));
    }
}
