//! The routing table of this process: each project's routes, as new as its transactions demand.
//!
//! A project's routes are read by one task at a time, aside from whoever needs them, and how long those wait hangs on who
//! else waits for them: one project that is long to read keeps its own callers waiting, and others hardly.

mod table;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use self::table::Table;
use super::writer::chain;
use crate::domain::error::Error;
use crate::domain::id::{EndpointId, ProjectId};
use crate::domain::routing::ProjectRoutes;
use crate::domain::url_rules::UrlRules;
use crate::store::{Result, Store, StoreError};

const LOAD_LONGEST: Duration = Duration::from_secs(10);
/// Projects that are read at once, quick ones and such as take long: with them busy there are still connections of the
/// store's own for others.
const QUICK: usize = 2;
const LONG: usize = 2;
/// What takes longer takes long.
const QUICK_LONGEST: Duration = Duration::from_millis(300);
/// How much longer it may keep a quick one's place until there is another.
const QUICK_OVER: Duration = Duration::from_secs(1);
/// Before another reading after one that failed and would again, and after one that may not.
const REST: Duration = Duration::from_secs(1);
const SHORT_REST: Duration = Duration::from_millis(50);
/// Before another look where a newer version was heard of meanwhile.
const BETWEEN: Duration = Duration::from_millis(10);
/// How long they wait for whom everyone else does: most readings take no longer.
pub const AT_ONCE: Duration = Duration::from_millis(300);
/// How long they wait for whom some do, since a project's routes were first asked for: long enough for a hundred
/// thousand endpoints. After that they are told at once that there is nothing yet.
const SOON: Duration = Duration::from_secs(3);
/// How long they wait for another reading after one that failed.
const AGAIN: Duration = Duration::from_millis(300);
/// Callers that wait for a project's routes as long as reading them may take. Each keeps a place among the calls in progress,
/// which all projects share.
const PATIENT: usize = 256;

/// Routes by project.
pub struct RoutingTable {
    store: Store,
    rules: UrlRules,
    table: Table,
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
    done: watch::Receiver<Option<Ended>>,
    patient: Arc<Semaphore>,
}

/// How a reading ended.
#[derive(Clone)]
struct Ended {
    read: Read,
    at: Instant,
    /// How long it stands, where it failed.
    rest: Duration,
}

impl Reading {
    /// How much longer it may keep those waiting who would wait so long from when it was first asked for.
    fn patience(&self, longest: Duration) -> Duration {
        let first = longest.saturating_sub(self.since.elapsed());
        first.max(AGAIN.min(longest).saturating_sub(self.began.elapsed()))
    }

    /// Whether its task is still at it, or failed a moment ago.
    fn stands(&self) -> bool {
        match &*self.done.borrow() {
            None => self.done.has_changed().is_ok(),
            Some(ended) => ended.at.elapsed() < ended.rest,
        }
    }

    /// What failed long ago says nothing about today.
    fn is_recent(&self) -> bool {
        let at = self.done.borrow().as_ref().map_or(self.began, |ended| ended.at);
        at.elapsed() < LOAD_LONGEST + SOON
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RoutingTable {
    pub fn new(store: Store, rules: UrlRules) -> Arc<Self> {
        let (quick, long) = (Semaphore::new(QUICK), Semaphore::new(LONG));
        let (table, readings, unopened) = Default::default();
        Arc::new(Self { store, rules, table, readings, quick, long, unopened })
    }

    /// What is known of a project now.
    pub fn get(&self, project: ProjectId) -> Option<Arc<ProjectRoutes>> {
        self.table.get(project)
    }

    /// The version of each project in the table.
    pub fn versions(&self) -> HashMap<ProjectId, i64> {
        self.table.versions()
    }

    /// Ends a round of housekeeping: what nobody needed in the last ones is forgotten.
    pub fn forget_idle(&self) {
        self.table.forget_idle();
        lock(&self.readings).retain(|_, reading| reading.is_recent() || reading.stands());
    }

    /// Sets routes older than this version aside, which exists: nothing goes by them any more, and whoever needs the
    /// project's routes next reads them.
    pub fn outdate(&self, project: ProjectId, version: i64) {
        self.table.outdate(project, version);
    }

    /// A project's routes at this version or a later one, for those for whom everyone else waits; none where the project is
    /// gone. What takes longer goes on without them.
    pub async fn at_once(self: &Arc<Self>, project: ProjectId, version: i64) -> Read {
        self.within(AT_ONCE, project, version).await
    }

    /// The same for those for whom some wait, or nobody but who asked.
    pub async fn soon(self: &Arc<Self>, project: ProjectId, version: i64) -> Read {
        self.within(SOON, project, version).await
    }

    /// The same for callers, who wait as long as reading may take; the project's others beside them not as long.
    pub async fn patiently(self: &Arc<Self>, project: ProjectId) -> Read {
        if let Some(routes) = self.get(project) {
            return Ok(Some(routes));
        }
        let patient = self.read(project).patient;
        let place = patient.try_acquire();
        let longest = if place.is_ok() { LOAD_LONGEST } else { SOON };
        self.within(longest, project, 0).await
    }

    /// The same for those who can wait so long.
    pub async fn within(self: &Arc<Self>, longest: Duration, project: ProjectId, version: i64) -> Read {
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
                    Ok(done) => done.as_ref().map_or(Err(Unread), |ended| ended.read.clone())?,
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
        if let Some(reading) = earlier.filter(|reading| reading.stands()) {
            return reading.clone();
        }
        let began = Instant::now();
        let recent = earlier.filter(|failed| failed.is_recent());
        let since = recent.map_or(began, |failed| failed.since);
        let (tell, done) = watch::channel(None);
        let reading = Reading { since, began, done, patient: Arc::new(Semaphore::new(PATIENT)) };
        readings.insert(project, reading.clone());
        let table = self.clone();
        tokio::spawn(async move {
            let read = table.load(project).await;
            if read.is_ok() {
                lock(&table.readings).remove(&project);
            }
            let rest = match &read {
                Ok(_) => Duration::ZERO,
                Err(error) if error.is_transient() => SHORT_REST,
                Err(_) => REST,
            };
            let read = read.map_err(|error| {
                tracing::warn!(%project, error = chain(&error), "routes could not be read");
                Unread
            });
            tell.send_replace(Some(Ended { read, at: Instant::now(), rest }));
        });
        reading
    }

    async fn load(&self, project: ProjectId) -> Result<Option<Arc<ProjectRoutes>>> {
        let stopping = |_| StoreError::Setup("no routes are read any more".to_owned());
        {
            let quick = self.quick.acquire().await.map_err(stopping)?;
            let mut loading = std::pin::pin!(self.load_in_time(project));
            if let Ok(read) = tokio::time::timeout(QUICK_LONGEST, &mut loading).await {
                return read;
            }
            let long = tokio::select! {
                biased;
                read = &mut loading => return read,
                long = tokio::time::timeout(QUICK_OVER, self.long.acquire()) => long,
            };
            // It makes room for those that are quick.
            drop(quick);
            if let Ok(long) = long {
                let _long = long.map_err(stopping)?;
                return loading.await;
            }
            // Anew, when there is a place. As a question that got no answer, it leaves a connection that is looked at.
            match self.store.in_time(Duration::ZERO, loading).await {
                Err(StoreError::TimedOut) => {}
                read => return read,
            }
        }
        let _long = self.long.acquire().await.map_err(stopping)?;
        self.load_in_time(project).await
    }

    async fn load_in_time(&self, project: ProjectId) -> Result<Option<Arc<ProjectRoutes>>> {
        self.store.in_time(LOAD_LONGEST, self.load_newest(project)).await
    }

    async fn load_newest(&self, project: ProjectId) -> Result<Option<Arc<ProjectRoutes>>> {
        loop {
            let earlier = self.table.newest_read(project);
            let fresh = self.store.load_routes(project, &self.rules, earlier.as_deref()).await?.map(Arc::new);
            if self.table.keep(project, fresh.clone()) {
                let mut told = lock(&self.unopened);
                fresh.iter().for_each(|routes| tell_unopened(routes, &mut told));
                return Ok(fresh);
            }
            // Read before a newer version was heard of.
            tokio::time::sleep(BETWEEN).await;
        }
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
