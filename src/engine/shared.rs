//! What workers and writers share, and how claimed work comes to its lanes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::{Notify, mpsc};
use tokio_util::task::TaskTracker;

use super::Align;
use super::aside::Aside;
use super::breakers::Breakers;
use super::doorbell::Doorbell;
use super::guard::Guard;
use super::keeper::Keeper;
use super::lanes::{LaneRule, Lanes};
use super::pacer::Pacer;
use super::pending::Pending;
use super::routing::{AT_ONCE, RoutingTable, Unread};
use super::turn::Outcome;
use super::versions::Versions;
use crate::dispatch::Dispatcher;
use crate::domain::breaker::BreakerPolicy;
use crate::domain::event::FanOut;
use crate::domain::id::{EndpointId, LeaseId, ProjectId};
use crate::domain::routing::ProjectRoutes;
use crate::metrics::Metrics;
use crate::store::Claimed;

/// What workers and writers share.
pub struct Shared {
    pub lanes: Arc<Lanes>,
    pub routing: Arc<RoutingTable>,
    pub keeper: Arc<Keeper>,
    pub versions: Arc<Versions>,
    pub dispatcher: Dispatcher,
    pub attempts: TaskTracker,
    pub outcomes: mpsc::Sender<Outcome>,
    pub claims: Arc<Doorbell>,
    pub pacer: Arc<Pacer>,
    pub metrics: Arc<Metrics>,
    pub breakers: Breakers,
    pub breaker: BreakerPolicy,
    pub guard: Guard,
    pub align: Align,
    pub fan_out: FanOut,
    pub pending: Pending,
    pub aside: Aside,
    /// Rings when an event was accepted whose deliveries are to be made.
    pub expansions: Notify,
}

impl Shared {
    /// No attempt goes by older routes than the claim saw: where they cannot be read now, they are read when the
    /// attempt starts.
    pub async fn confirm(
        &self,
        claimed: &Claimed,
        patience: Duration,
    ) -> HashMap<ProjectId, Arc<ProjectRoutes>> {
        let reading = claimed.versions.iter().map(async |(project, version)| {
            (*project, *version, self.routing.within(patience, *project, *version).await)
        });
        let mut confirmed = HashMap::with_capacity(claimed.versions.len());
        for (project, version, read) in join_all(reading).await {
            match read {
                Ok(routes) => confirmed.extend(routes.map(|routes| (project, routes))),
                Err(Unread) => self.routing.outdate(project, version),
            }
        }
        confirmed
    }

    /// Puts claimed deliveries in their lanes, under the rules that their endpoints have. Those that need slots
    /// begin to wait for them.
    pub async fn take_in(&self, claimed: Claimed) {
        for (project, endpoint) in self.push(claimed, AT_ONCE).await {
            self.pacer.tell(project, endpoint);
        }
    }

    /// The same, with so much time for routes that must be read; says whose deliveries need slots.
    pub async fn push(&self, claimed: Claimed, patience: Duration) -> Vec<(ProjectId, EndpointId)> {
        let confirmed = self.confirm(&claimed, patience).await;
        let mut paced = Vec::new();
        self.lanes.push(claimed.deliveries, |job| {
            let routes = confirmed.get(&job.message.project);
            let route = routes.and_then(|routes| routes.endpoint(job.endpoint));
            let rule = routes.map(|_| route.map(|route| LaneRule::of(route)).unwrap_or_default());
            // Where it cannot be told, the pacer finds out.
            if rule.is_none_or(|rule| rule.late.is_some()) {
                paced.push((job.message.project, job.endpoint));
            }
            rule
        });
        paced
    }

    /// Whether an attempt under this lease may start now: the lease is in force, and the routes are current.
    pub fn may_start(&self, lease: LeaseId) -> bool {
        self.keeper.may_send(lease) && self.versions.are_confirmed()
    }
}
