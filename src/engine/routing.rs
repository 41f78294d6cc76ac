//! The routing table of this process: each project's routes, as new as its transactions demand.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Mutex;

use crate::domain::id::ProjectId;
use crate::domain::routing::ProjectRoutes;
use crate::domain::url_rules::UrlRules;
use crate::store::{Result, Store};

const LOAD_LONGEST: Duration = Duration::from_secs(10);

/// Routes by project. Reading takes no lock.
pub struct RoutingTable {
    store: Store,
    rules: UrlRules,
    routes: ArcSwap<HashMap<ProjectId, Arc<ProjectRoutes>>>,
    /// One refresh at a time, so that an older one cannot overwrite a newer.
    refreshing: Mutex<()>,
}

impl RoutingTable {
    pub fn new(store: Store, rules: UrlRules) -> Arc<Self> {
        Arc::new(Self { store, rules, routes: ArcSwap::default(), refreshing: Mutex::new(()) })
    }

    /// What is known of a project now.
    pub fn get(&self, project: ProjectId) -> Option<Arc<ProjectRoutes>> {
        self.routes.load().get(&project).cloned()
    }

    /// The version of each project in the table.
    pub fn versions(&self) -> HashMap<ProjectId, i64> {
        self.routes.load().iter().map(|(project, routes)| (*project, routes.version)).collect()
    }

    /// A project's routes at this version or a later one; none where the project is gone.
    pub async fn at_least(&self, project: ProjectId, version: i64) -> Result<Option<Arc<ProjectRoutes>>> {
        match self.get(project) {
            Some(routes) if routes.version >= version => Ok(Some(routes)),
            _ => self.refresh(project, version).await,
        }
    }

    /// Reads a project's routes again. To be awaited after a change was committed and before it is
    /// acknowledged, so that no attempt starts by the old settings after that.
    pub async fn refresh(&self, project: ProjectId, version: i64) -> Result<Option<Arc<ProjectRoutes>>> {
        let _turn = self.refreshing.lock().await;
        if let Some(routes) = self.get(project).filter(|routes| routes.version >= version) {
            return Ok(Some(routes));
        }
        // Everyone waits for this turn, so a connection that hangs must not hold it.
        let loading = self.store.load_routes(project, &self.rules);
        let fresh = self.store.in_time(LOAD_LONGEST, loading).await?.map(Arc::new);
        self.routes.rcu(|old| {
            let mut routes = HashMap::clone(old);
            match &fresh {
                Some(fresh) => routes.insert(project, fresh.clone()),
                None => routes.remove(&project),
            };
            routes
        });
        Ok(fresh)
    }

    /// What is known of a project, read first if nothing is.
    pub async fn known(&self, project: ProjectId) -> Result<Option<Arc<ProjectRoutes>>> {
        self.at_least(project, 0).await
    }
}
