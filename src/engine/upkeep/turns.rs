//! Whose turn it is: endpoints in the order in which they were added, each once.

use std::collections::{HashSet, VecDeque};

use crate::domain::id::EndpointId;

/// From as many on no more are heard of; they wait where they are told, and the slow round takes those beyond.
const MOST: usize = 1024;

#[derive(Default)]
pub struct Turns {
    order: VecDeque<EndpointId>,
    waiting: HashSet<EndpointId>,
}

impl Turns {
    /// Puts an endpoint last, unless it waits already.
    pub fn add(&mut self, endpoint: EndpointId) {
        if self.waiting.insert(endpoint) {
            self.order.push_back(endpoint);
        }
    }

    pub fn next(&mut self) -> Option<EndpointId> {
        let next = self.order.pop_front()?;
        self.waiting.remove(&next);
        Some(next)
    }

    pub fn len(&self) -> usize {
        self.order.len()
    }

    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    pub fn have_room(&self) -> bool {
        self.len() < MOST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_endpoint_waits_once_and_goes_last_again() {
        let (first, second, third) = (EndpointId::new(), EndpointId::new(), EndpointId::new());
        let mut turns = Turns::default();
        [first, second, first].into_iter().for_each(|endpoint| turns.add(endpoint));
        assert_eq!(turns.next(), Some(first));
        turns.add(third);
        turns.add(first);
        let rest: Vec<_> = std::iter::from_fn(|| turns.next()).collect();
        assert_eq!(rest, [second, third, first]);
        assert!(turns.is_empty());
    }

    #[test]
    fn there_is_an_end_to_what_is_taken_in() {
        let mut turns = Turns::default();
        while turns.have_room() {
            turns.add(EndpointId::new());
        }
        assert_eq!(turns.len(), MOST);
        turns.next();
        assert!(turns.have_room());
    }
}
