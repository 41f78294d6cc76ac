//! What is known of each project's routes, and that it is forgotten where nobody asks for them any more.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::domain::id::ProjectId;
use crate::domain::routing::ProjectRoutes;

/// What is known of a project: its routes, or only that there are newer ones than were known.
enum Known {
    Routes(Arc<ProjectRoutes>),
    /// And which were known before, so that only the difference has to be read.
    NewerThan(i64, Option<Arc<ProjectRoutes>>),
}

impl Known {
    /// The newest version that is known to exist.
    fn version(&self) -> i64 {
        match self {
            Self::Routes(routes) => routes.version,
            Self::NewerThan(version, _) => *version,
        }
    }

    fn newest_read(&self) -> Option<Arc<ProjectRoutes>> {
        match self {
            Self::Routes(routes) => Some(routes.clone()),
            Self::NewerThan(_, earlier) => earlier.clone(),
        }
    }
}

struct Project {
    known: Known,
    /// Rounds since someone asked for its routes, or heard of newer ones.
    idle: AtomicU8,
}

impl From<Known> for Project {
    fn from(known: Known) -> Self {
        Self { known, idle: AtomicU8::new(0) }
    }
}

/// Rounds after which an idle project is forgotten. They must last longer than a reading may: routes that were read before
/// a newer version was heard of are known as old only by what is remembered here.
const IDLE: u8 = 10;

/// Routes by project.
#[derive(Default)]
pub struct Table {
    projects: RwLock<HashMap<ProjectId, Project>>,
}

impl Table {
    fn read(&self) -> RwLockReadGuard<'_, HashMap<ProjectId, Project>> {
        self.projects.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<ProjectId, Project>> {
        self.projects.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// A project's routes, unless there are newer ones.
    pub fn get(&self, project: ProjectId) -> Option<Arc<ProjectRoutes>> {
        let projects = self.read();
        let project = projects.get(&project)?;
        project.idle.store(0, Ordering::Relaxed);
        match &project.known {
            Known::Routes(routes) => Some(routes.clone()),
            Known::NewerThan(..) => None,
        }
    }

    /// A project's routes as they were last read, however old.
    pub fn newest_read(&self, project: ProjectId) -> Option<Arc<ProjectRoutes>> {
        self.read().get(&project)?.known.newest_read()
    }

    /// The newest version that is known to exist of each project.
    pub fn versions(&self) -> HashMap<ProjectId, i64> {
        self.read().iter().map(|(id, project)| (*id, project.known.version())).collect()
    }

    /// Sets routes older than this version aside, which exists.
    pub fn outdate(&self, project: ProjectId, version: i64) {
        match self.write().entry(project) {
            Entry::Vacant(place) => _ = place.insert(Known::NewerThan(version, None).into()),
            Entry::Occupied(mut place) if place.get().known.version() < version => {
                let earlier = place.get().known.newest_read();
                place.insert(Known::NewerThan(version, earlier).into());
            }
            Entry::Occupied(_) => {}
        }
    }

    /// Takes what was read of a project, which is none where it is gone. Says whether it is the newest that is known of.
    pub fn keep(&self, project: ProjectId, fresh: Option<Arc<ProjectRoutes>>) -> bool {
        let mut projects = self.write();
        let Some(fresh) = fresh else {
            let gone = projects.remove(&project);
            drop(projects);
            drop(gone);
            return true;
        };
        let newest = projects.get(&project).map_or(0, |project| project.known.version());
        let is_newest = fresh.version >= newest;
        // Of older ones only the difference is left to be read.
        let known = if is_newest { Known::Routes(fresh) } else { Known::NewerThan(newest, Some(fresh)) };
        // Many routes take long to free: not under the lock, which everyone needs.
        let former = projects.insert(project, known.into());
        drop(projects);
        drop(former);
        is_newest
    }

    /// Ends a round: forgets projects that nobody asked for in as many as are to be waited.
    pub fn forget_idle(&self) {
        let is_idle = |_: &ProjectId, project: &mut Project| {
            let idle = project.idle.get_mut();
            *idle += 1;
            *idle >= IDLE
        };
        let forgotten: Vec<_> = self.write().extract_if(is_idle).collect();
        // Freed here, when the lock is free again.
        drop(forgotten);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::project::PausedPolicy;

    fn routes(project: ProjectId, version: i64) -> Option<Arc<ProjectRoutes>> {
        Some(Arc::new(ProjectRoutes::new(project, version, PausedPolicy::Hold, None)))
    }

    fn version(table: &Table, project: ProjectId) -> Option<i64> {
        table.get(project).map(|routes| routes.version)
    }

    #[test]
    fn what_is_older_than_what_is_known_of_is_not_given() {
        let (table, project) = (Table::default(), ProjectId::new());
        assert_eq!(version(&table, project), None);
        assert!(table.keep(project, routes(project, 1)));
        assert_eq!(version(&table, project), Some(1));
        table.outdate(project, 1);
        assert_eq!(version(&table, project), Some(1), "it has that version");
        table.outdate(project, 3);
        assert_eq!(version(&table, project), None);
        assert_eq!(table.newest_read(project).map(|routes| routes.version), Some(1));
        assert!(!table.keep(project, routes(project, 2)), "read before the third was heard of");
        assert_eq!(version(&table, project), None);
        assert_eq!(table.newest_read(project).map(|routes| routes.version), Some(2));
        assert_eq!(table.versions(), HashMap::from([(project, 3)]));
        table.outdate(project, 2);
        assert!(table.keep(project, routes(project, 3)));
        assert_eq!(version(&table, project), Some(3));
        assert!(table.keep(project, None), "it is gone");
        assert!(table.versions().is_empty());
    }

    #[test]
    fn what_is_asked_for_is_kept_and_the_rest_forgotten() {
        let (table, used, outdated, idle) =
            (Table::default(), ProjectId::new(), ProjectId::new(), ProjectId::new());
        for project in [used, outdated, idle] {
            table.keep(project, routes(project, 1));
        }
        for round in 1..IDLE {
            table.forget_idle();
            assert_eq!(table.versions().len(), 3);
            assert!(table.get(used).is_some());
            if round == 5 {
                table.outdate(outdated, 2);
            }
        }
        table.forget_idle();
        assert!(!table.versions().contains_key(&idle));
        assert_eq!(version(&table, used), Some(1));
        assert!(!table.keep(outdated, routes(outdated, 1)), "that there is a newer one is still known");
    }
}
