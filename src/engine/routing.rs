//! The routing table of this process: each project's routes, as new as its transactions demand.
//!
//! A project's routes are read by one task at a time, aside from whoever needs them: one project that is long to read keeps
//! nobody waiting but its own callers, and those not for long.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::writer::chain;
use crate::domain::error::Error;
use crate::domain::id::{EndpointId, ProjectId};
use crate::domain::routing::ProjectRoutes;
use crate::domain::url_rules::UrlRules;
use crate::store::{Result, Store, StoreError};

const LOAD_LONGEST: Duration = Duration::from_secs(10);
/// Projects that are read at once, and those among them that may take long: some of the store's own connections are left for
/// others, and some places for projects that are read in no time.
const QUICK: usize = 2;
const LONG: usize = 3;
/// What takes longer takes long.
const QUICK_LONGEST: Duration = Duration::from_millis(300);
/// Before another reading after one that failed, and before another look where a newer version was heard of meanwhile.
const REST: Duration = Duration::from_secs(1);
const BETWEEN: Duration = Duration::from_millis(10);
/// How long those wait for whom others wait, since a project's routes were first asked for: long enough for a hundred
/// thousand endpoints. After that they are told at once that there is nothing yet.
const SOON: Duration = Duration::from_secs(3);
/// How long they wait for another reading after one that failed: most take no longer.
const AGAIN: Duration = Duration::from_millis(300);

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
    /// Projects whose routes are being read, or could not be.
    readings: Mutex<HashMap<ProjectId, Reading>>,
    quick: Semaphore,
    long: Semaphore,
    /// Endpoints whose sealed values do not open, since that is told once.
    unopened: Mutex<HashSet<EndpointId>>,
}

/// A project's routes cannot be had now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unread;

impl From<Unread> for Error {
    fn from(_: Unread) -> Self {
        Self::unavailable("the project's endpoints cannot be read now; try again")
    }
}

/// What a reading came to: none where the project is gone.
type Read = Result<Option<Arc<ProjectRoutes>>, Unread>;

/// A project's routes on their way.
#[derive(Clone)]
struct Reading {
    /// Since when nobody could be given them.
    since: Instant,
    began: Instant,
    done: watch::Receiver<Option<Read>>,
}

impl Reading {
    /// How much longer it may keep those waiting who would wait so long from when it was first asked for.
    fn patience(&self, longest: Duration) -> Duration {
        let first = longest.saturating_sub(self.since.elapsed());
        first.max(AGAIN.saturating_sub(self.began.elapsed()))
    }

    /// Whether its task is still at it.
    fn goes_on(&self) -> bool {
        self.done.has_changed().is_ok() && self.done.borrow().is_none()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RoutingTable {
    pub fn new(store: Store, rules: UrlRules) -> Arc<Self> {
        let (quick, long) = (Semaphore::new(QUICK), Semaphore::new(LONG));
        let (known, readings, unopened) = Default::default();
        Arc::new(Self { store, rules, known, readings, quick, long, unopened })
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

    /// A project's routes at this version or a later one, for those for whom others wait; none where the project is gone.
    /// What takes long goes on without them.
    pub async fn soon(self: &Arc<Self>, project: ProjectId, version: i64) -> Read {
        self.within(SOON, project, version).await
    }

    /// A project's routes, for those for whom nobody else waits.
    pub async fn patiently(self: &Arc<Self>, project: ProjectId) -> Read {
        self.within(LOAD_LONGEST, project, 0).await
    }

    async fn within(self: &Arc<Self>, longest: Duration, project: ProjectId, version: i64) -> Read {
        if let Some(routes) = self.at_least(project, version) {
            return Ok(Some(routes));
        }
        let reading = self.read(project);
        let patience = reading.patience(longest);
        if patience.is_zero() {
            return Err(Unread);
        }
        self.wait(project, version, reading, patience).await
    }

    /// Sets older routes aside and reads the new ones. To be awaited after a change was committed and before it is
    /// acknowledged: no attempt starts by the old settings after that, also where the new ones cannot be read yet.
    pub async fn renew(self: &Arc<Self>, project: ProjectId, version: i64) {
        self.outdate(project, version);
        // What it comes to is for those who need them.
        let _read = self.soon(project, version).await;
    }

    /// The same without waiting.
    pub fn renew_aside(self: &Arc<Self>, project: ProjectId, version: i64) {
        self.outdate(project, version);
        self.read(project);
    }

    fn at_least(&self, project: ProjectId, version: i64) -> Option<Arc<ProjectRoutes>> {
        self.get(project).filter(|routes| routes.version >= version)
    }

    async fn wait(
        self: &Arc<Self>,
        project: ProjectId,
        version: i64,
        mut reading: Reading,
        patience: Duration,
    ) -> Read {
        let waiting = async {
            loop {
                let read = match reading.done.wait_for(Option::is_some).await {
                    Ok(done) => done.clone().unwrap_or(Err(Unread))?,
                    Err(_) => return Err(Unread),
                };
                let Some(routes) = read else { return Ok(None) };
                // What the table has by now may be newer. Whoever asked for no version goes by nothing older.
                if let Some(routes) = self.at_least(project, version) {
                    return Ok(Some(routes));
                }
                if version > 0 && routes.version >= version {
                    return Ok(Some(routes));
                }
                // It had begun before a newer version was heard of.
                reading = self.read(project);
            }
        };
        tokio::time::timeout(patience, waiting).await.unwrap_or(Err(Unread))
    }

    /// Has a project's routes read, unless they are being read or that failed a moment ago. What failed is read again by
    /// this, and keeps nobody waiting for as long again.
    fn read(self: &Arc<Self>, project: ProjectId) -> Reading {
        let mut readings = lock(&self.readings);
        let earlier = readings.get(&project);
        if let Some(reading) = earlier.filter(|reading| reading.goes_on() || reading.began.elapsed() < REST) {
            return reading.clone();
        }
        let began = Instant::now();
        // What failed long ago says nothing about today.
        let recent = earlier.filter(|failed| failed.began.elapsed() < LOAD_LONGEST + SOON);
        let since = recent.map_or(began, |failed| failed.since);
        let (tell, done) = watch::channel(None);
        let reading = Reading { since, began, done };
        readings.insert(project, reading.clone());
        let table = self.clone();
        tokio::spawn(async move {
            let read = table.load(project).await;
            if read.is_ok() {
                lock(&table.readings).remove(&project);
            }
            let read = read.map_err(|error| {
                tracing::warn!(%project, error = chain(&error), "routes could not be read");
                Unread
            });
            tell.send_replace(Some(read));
        });
        reading
    }

    async fn load(&self, project: ProjectId) -> Result<Option<Arc<ProjectRoutes>>> {
        let stopping = |_| StoreError::Setup("no routes are read any more".to_owned());
        let quick = self.quick.acquire().await.map_err(stopping)?;
        let mut loading = std::pin::pin!(self.store.in_time(LOAD_LONGEST, self.load_newest(project)));
        if let Ok(read) = tokio::time::timeout(QUICK_LONGEST, &mut loading).await {
            return read;
        }
        // It makes room for those that are quick, if it may.
        let _place = match self.long.try_acquire() {
            Ok(long) => {
                drop(quick);
                long
            }
            Err(_) => quick,
        };
        loading.await
    }

    async fn load_newest(&self, project: ProjectId) -> Result<Option<Arc<ProjectRoutes>>> {
        loop {
            let earlier = self.known.load().get(&project).and_then(Known::newest_read);
            let fresh = self.store.load_routes(project, &self.rules, earlier.as_deref()).await?.map(Arc::new);
            if self.keep(project, fresh.clone()) {
                let mut told = lock(&self.unopened);
                fresh.iter().for_each(|routes| tell_unopened(routes, &mut told));
                return Ok(fresh);
            }
            // Read before a newer version was heard of.
            tokio::time::sleep(BETWEEN).await;
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
                // Only the difference is left to be read.
                Some(fresh) => known.insert(project, Known::NewerThan(newest, Some(fresh.clone()))),
                None => known.remove(&project),
            };
            known
        });
        kept
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
