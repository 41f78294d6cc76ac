//! Which of a channel's alerts are taken up: the oldest first, but few of each place, and suspect places have slots of
//! their own, so that neither a dead place nor one with a backlog holds up the others.

use std::collections::{HashMap, HashSet};

use super::places::Places;
use crate::domain::alert::AlertPlace;

/// Alerts of a channel that are held at once: to places that answer, which wait for their turn, and to suspect ones. What
/// turns out to be suspect while it is sent comes on top: it had the turn, so that is one place a second at most, each for
/// the time of one attempt.
const HEALTHY: usize = 4;
const SUSPECT: usize = 4;
/// Of each place.
const OF_PLACE: usize = 2;

/// The slots of a channel that are free.
pub struct Room<'a> {
    places: &'a Places,
    healthy: usize,
    suspect: usize,
    held: HashMap<AlertPlace, usize>,
    full: HashSet<AlertPlace>,
}

impl<'a> Room<'a> {
    /// What is left beside those that are held.
    pub fn beside(held: impl Iterator<Item = AlertPlace>, places: &'a Places) -> Self {
        let mut room =
            Self { places, healthy: HEALTHY, suspect: SUSPECT, held: HashMap::new(), full: HashSet::new() };
        for place in held {
            room.add(place);
        }
        room
    }

    /// Whether one more to that place is taken up; then it is counted.
    pub fn takes(&mut self, place: AlertPlace) -> bool {
        let left = if self.places.is_suspect(place) { self.suspect } else { self.healthy };
        if left == 0 {
            self.full.insert(place);
        }
        let takes = !self.full.contains(&place);
        if takes {
            self.add(place);
        }
        takes
    }

    fn add(&mut self, place: AlertPlace) {
        let left = if self.places.is_suspect(place) { &mut self.suspect } else { &mut self.healthy };
        *left = left.saturating_sub(1);
        let held = self.held.entry(place).or_default();
        *held += 1;
        if *held >= OF_PLACE {
            self.full.insert(place);
        }
    }

    /// Whether there is no use in looking for more. Suspect places can wait.
    pub const fn is_full(&self) -> bool {
        self.healthy == 0
    }

    /// Whether there are slots for such places.
    pub fn has_slot(&self, place: AlertPlace) -> bool {
        let left = if self.places.is_suspect(place) { self.suspect } else { self.healthy };
        left > 0
    }

    /// Places of which none is taken up now: those met so far, and every suspect one where their slots are taken, so
    /// that however many there are, they hide no others.
    pub fn left_out(&self) -> HashSet<AlertPlace> {
        let mut places = self.full.clone();
        if self.suspect == 0 {
            places.extend(self.places.suspects());
        }
        places
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(room: &mut Room<'_>, places: impl IntoIterator<Item = i64>) -> Vec<i64> {
        places.into_iter().filter(|place| room.takes(AlertPlace(*place))).collect()
    }

    #[test]
    fn a_backlog_takes_two_slots_and_suspect_places_only_their_own() {
        let places = Places::default();
        let mut room = Room::beside(std::iter::empty(), &places);
        assert_eq!(taken(&mut room, [1, 1, 1, 1, 2, 3, 4]), [1, 1, 2, 3]);
        assert!(room.is_full());
        assert_eq!(room.left_out(), HashSet::from([1, 4].map(AlertPlace)));

        for dead in 10..20 {
            places.note(AlertPlace(dead), false);
        }
        let mut room = Room::beside([10, 10, 1].into_iter().map(AlertPlace), &places);
        assert_eq!(taken(&mut room, [10, 11, 12, 13, 1, 1, 2, 3]), [11, 12, 1, 2, 3]);
        assert!(
            (10..20).all(|dead| room.left_out().contains(&AlertPlace(dead))),
            "those that were not met too"
        );
        // What turned suspect while it was sent takes no slot of those that answer.
        let mut room = Room::beside((10..18).map(AlertPlace), &places);
        assert_eq!(taken(&mut room, [18, 1, 2, 3, 4, 5]), [1, 2, 3, 4]);
    }
}
