//! When which endpoint wants the pacer's attention.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use crate::domain::id::{EndpointId, ProjectId};

/// Moments at which endpoints want attention, each once.
#[derive(Default)]
pub struct Agenda {
    of: HashMap<EndpointId, (ProjectId, Instant)>,
    order: BTreeSet<(Instant, EndpointId)>,
}

impl Agenda {
    /// The earlier of two moments stands.
    pub fn put(&mut self, project: ProjectId, endpoint: EndpointId, at: Instant) {
        if let Some((_, other)) = self.of.get(&endpoint) {
            if *other <= at {
                return;
            }
            self.order.remove(&(*other, endpoint));
        }
        self.of.insert(endpoint, (project, at));
        self.order.insert((at, endpoint));
    }

    pub fn next(&self) -> Option<Instant> {
        self.order.first().map(|(at, _)| *at)
    }

    pub fn take_due(&mut self, now: Instant, most: usize) -> Vec<(ProjectId, EndpointId)> {
        let mut due = Vec::new();
        while due.len() < most
            && let Some((at, endpoint)) = self.order.first().copied()
            && at <= now
        {
            self.order.pop_first();
            if let Some((project, _)) = self.of.remove(&endpoint) {
                due.push((project, endpoint));
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_earlier_moment_stands() {
        let mut agenda = Agenda::default();
        let (project, endpoint, now) = (ProjectId::new(), EndpointId::new(), Instant::now());
        agenda.put(project, endpoint, now + Duration::from_secs(1));
        agenda.put(project, endpoint, now + Duration::from_millis(5));
        agenda.put(project, endpoint, now + Duration::from_millis(50));
        assert_eq!(agenda.next(), Some(now + Duration::from_millis(5)));
        assert!(agenda.take_due(now, 9).is_empty());
        assert_eq!(agenda.take_due(now + Duration::from_millis(50), 9), [(project, endpoint)]);
        assert_eq!(agenda.next(), None);
    }
}
