//! The routing table of this process: each project's routes, as new as its transactions demand.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::writer::chain;
use crate::domain::id::{EndpointId, ProjectId};
use crate::domain::routing::ProjectRoutes;
use crate::domain::url_rules::UrlRules;
use crate::store::{Result, Store};

const LOAD_LONGEST: Duration = Duration::from_secs(10);
/// How long a turn of events waits for a project's routes, with everyone whose events are in it: long enough for a hundred
/// thousand endpoints.
const SOON: Duration = Duration::from_secs(3);
const LOCKS: usize = 64;

/// What is known of a project: its routes, or only that there are newer ones than were known.
#[derive(Clone)]
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

/// Routes by project. Reading takes no lock.
pub struct RoutingTable {
    store: Store,
    rules: UrlRules,
    known: ArcSwap<HashMap<ProjectId, Known>>,
    /// One refresh of a project at a time, so that an older one cannot overwrite a newer; projects that share a lock wait
    /// for each other.
    refreshing: [Mutex<()>; LOCKS],
    /// Projects whose routes are being read for callers who do not wait for long, and since when.
    reading: std::sync::Mutex<HashMap<ProjectId, Instant>>,
    /// Endpoints whose sealed values do not open, since that is told once.
    unopened: std::sync::Mutex<HashSet<EndpointId>>,
}

/// The routes of a project cannot be had now.
#[derive(Debug)]
pub struct Unread;

/// Takes a project off those that are being read, whatever comes of it.
struct Reading(Arc<RoutingTable>, ProjectId);

impl Drop for Reading {
    fn drop(&mut self) {
        lock(&self.0.reading).remove(&self.1);
    }
}

fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RoutingTable {
    pub fn new(store: Store, rules: UrlRules) -> Arc<Self> {
        let refreshing = std::array::from_fn(|_| Mutex::default());
        let (reading, unopened) = Default::default();
        Arc::new(Self { store, rules, known: ArcSwap::default(), refreshing, reading, unopened })
    }

    /// What is known of a project now.
    pub fn get(&self, project: ProjectId) -> Option<Arc<ProjectRoutes>> {
        match self.known.load().get(&project) {
            Some(Known::Routes(routes)) => Some(routes.clone()),
            Some(Known::NewerThan(..)) | None => None,
        }
    }

    /// The version of each project in the table.
    pub fn versions(&self) -> HashMap<ProjectId, i64> {
        self.known.load().iter().map(|(project, known)| (*project, known.version())).collect()
    }

    /// Sets routes older than this version aside, which exists: nothing goes by them any more, and whoever needs the
    /// project's routes next reads them.
    pub fn outdate(&self, project: ProjectId, version: i64) {
        self.known.rcu(|old| {
            let mut known = HashMap::clone(old);
            if known.get(&project).is_none_or(|known| known.version() < version) {
                let earlier = known.get(&project).and_then(Known::newest_read);
                known.insert(project, Known::NewerThan(version, earlier));
            }
            known
        });
    }

    /// A project's routes at this version or a later one; none where the project is gone.
    pub async fn at_least(&self, project: ProjectId, version: i64) -> Result<Option<Arc<ProjectRoutes>>> {
        match self.get(project) {
            Some(routes) if routes.version >= version => Ok(Some(routes)),
            _ => self.refresh(project, version).await,
        }
    }

    /// The same for those whom others wait for. What takes long goes on without them, and whoever asks then is told at once
    /// that there is nothing yet.
    pub async fn at_least_soon(
        self: &Arc<Self>,
        project: ProjectId,
        version: i64,
    ) -> Result<Option<Arc<ProjectRoutes>>, Unread> {
        if let Some(routes) = self.get(project).filter(|routes| routes.version >= version) {
            return Ok(Some(routes));
        }
        let since = *lock(&self.reading).entry(project).or_insert_with(Instant::now);
        let patience = SOON.saturating_sub(since.elapsed());
        if patience.is_zero() {
            return Err(Unread);
        }
        let (table, reading) = (self.clone(), Reading(self.clone(), project));
        let read = tokio::spawn(async move {
            let read = table.refresh(project, version).await;
            drop(reading);
            read.map_err(|error| tracing::warn!(%project, error = chain(&error), "routes could not be read"))
        });
        match tokio::time::timeout(patience, read).await {
            Ok(Ok(read)) => read.map_err(|()| Unread),
            Ok(Err(_)) | Err(_) => Err(Unread),
        }
    }

    /// Sets older routes aside and reads the new ones. To be awaited after a change was committed and before it is
    /// acknowledged: no attempt starts by the old settings after that, also where they cannot be read.
    pub async fn renew(&self, project: ProjectId, version: i64) -> Result<()> {
        self.outdate(project, version);
        self.refresh(project, version).await?;
        Ok(())
    }

    /// Reads a project's routes, unless they are known at this version or a later one.
    pub async fn refresh(&self, project: ProjectId, version: i64) -> Result<Option<Arc<ProjectRoutes>>> {
        let _turn = self.refreshing[project.uuid().as_u128() as usize % LOCKS].lock().await;
        if let Some(routes) = self.get(project).filter(|routes| routes.version >= version) {
            return Ok(Some(routes));
        }
        loop {
            // Everyone waits for this turn, so a connection that hangs must not hold it.
            let earlier = self.known.load().get(&project).and_then(Known::newest_read);
            let loading = self.store.load_routes(project, &self.rules, earlier.as_deref());
            let fresh = self.store.in_time(LOAD_LONGEST, loading).await?.map(Arc::new);
            if self.keep(project, fresh.clone()) {
                let mut told = lock(&self.unopened);
                fresh.iter().for_each(|routes| tell_unopened(routes, &mut told));
                drop(told);
                return Ok(fresh);
            }
            // Read before a newer version was heard of.
        }
    }

    /// Takes routes into the table, unless it knows of newer ones.
    fn keep(&self, project: ProjectId, fresh: Option<Arc<ProjectRoutes>>) -> bool {
        let mut kept = true;
        self.known.rcu(|old| {
            let mut known = HashMap::clone(old);
            let newest = known.get(&project).map_or(0, Known::version);
            kept = fresh.as_ref().is_none_or(|fresh| fresh.version >= newest);
            match &fresh {
                Some(fresh) if kept => known.insert(project, Known::Routes(fresh.clone())),
                Some(_) => None,
                None => known.remove(&project),
            };
            known
        });
        kept
    }

    /// What is known of a project, read first if nothing is.
    pub async fn known(&self, project: ProjectId) -> Result<Option<Arc<ProjectRoutes>>> {
        self.at_least(project, 0).await
    }
}

fn tell_unopened(routes: &ProjectRoutes, told: &mut HashSet<EndpointId>) {
    for route in routes.endpoints() {
        match &route.unopened {
            None => _ = told.remove(&route.id),
            Some(cause) => {
                if told.insert(route.id) {
                    tracing::error!(
                        endpoint = %route.id,
                        cause,
                        "a sealed value of an endpoint does not open; its attempts fail"
                    );
                }
            }
        }
    }
}
