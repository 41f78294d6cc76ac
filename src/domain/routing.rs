//! The routing table: who gets an event, decided in memory.
//!
//! A project's routes are a snapshot of its endpoints and subscriptions with the `routing_version` they were
//! read at. Whoever decides with them first confirms the version inside its transaction.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use super::credentials::Credentials;
use super::disable::DisablePolicy;
use super::endpoint::{ContentType, CustomHeader, EndpointStatus};
use super::error::{Error, Result};
use super::event::Target;
use super::id::{EndpointId, ProjectId};
use super::project::PausedPolicy;
use super::rate::RateLimit;
use super::retry::RetryPolicy;
use super::secret::LiveSecret;
use super::signature::SignatureSettings;
use super::subscription::EventTypePattern;
use super::url_rules::EndpointUrl;

/// What sending to an endpoint needs.
#[derive(Clone, Debug)]
pub struct EndpointRoute {
    pub id: EndpointId,
    pub owner: Option<Arc<str>>,
    pub status: EndpointStatus,
    /// None where the stored URL breaks today's rules: its attempts fail as BLOCKED_ADDRESS.
    pub url: Option<EndpointUrl>,
    pub timeout: Duration,
    pub headers: Vec<CustomHeader>,
    /// None where it has none.
    pub credentials: Option<Arc<Credentials>>,
    pub signature: SignatureSettings,
    /// Newest first.
    pub secrets: Vec<LiveSecret>,
    pub retry: RetryPolicy,
    pub disable: DisablePolicy,
    /// Attempts in flight at once on one node; 0: the cap follows the endpoint.
    pub max_in_flight: u16,
    pub content_type: ContentType,
    pub rate_limit: Option<RateLimit>,
    /// Why a sealed value of its does not open, so that nothing can be sent to it: its attempts fail as
    /// CANCELLED, since it is no fault of the endpoint's.
    pub unopened: Option<String>,
    /// Of all its enabled subscriptions.
    pub patterns: Vec<EventTypePattern>,
}

impl EndpointRoute {
    pub fn wants(&self, event_type: &str) -> bool {
        self.patterns.iter().any(|pattern| pattern.matches(event_type))
    }
}

/// A project's endpoints as of one version.
#[derive(Clone, Debug)]
pub struct ProjectRoutes {
    pub project: ProjectId,
    pub version: i64,
    pub paused_policy: PausedPolicy,
    /// Of what is published on one node; none: no limit.
    pub publishes_per_second: Option<NonZeroU32>,
    endpoints: HashMap<EndpointId, Arc<EndpointRoute>>,
    owners: HashMap<Arc<str>, Vec<EndpointId>>,
}

impl ProjectRoutes {
    /// Without endpoints.
    pub fn new(
        project: ProjectId,
        version: i64,
        paused_policy: PausedPolicy,
        publishes_per_second: Option<NonZeroU32>,
    ) -> Self {
        let (endpoints, owners) = (HashMap::new(), HashMap::new());
        Self { project, version, paused_policy, publishes_per_second, endpoints, owners }
    }

    /// Takes the endpoints of an earlier version as they were then.
    pub fn begin_with(&mut self, earlier: &Self) {
        self.endpoints.clone_from(&earlier.endpoints);
        self.owners.clone_from(&earlier.owners);
    }

    /// Adds an endpoint, in place of an earlier version of it.
    pub fn insert(&mut self, route: EndpointRoute) {
        self.remove(route.id);
        if let Some(owner) = &route.owner {
            self.owners.entry(owner.clone()).or_default().push(route.id);
        }
        self.endpoints.insert(route.id, Arc::new(route));
    }

    fn remove(&mut self, id: EndpointId) {
        let Some(owner) = self.endpoints.remove(&id).and_then(|route| route.owner.clone()) else { return };
        if let Some(owned) = self.owners.get_mut(&owner) {
            owned.retain(|one| *one != id);
            if owned.is_empty() {
                self.owners.remove(&owner);
            }
        }
    }

    /// Drops the endpoints that are not among these.
    pub fn retain(&mut self, ids: &HashSet<EndpointId>) {
        let gone: Vec<EndpointId> = self.endpoints.keys().filter(|id| !ids.contains(id)).copied().collect();
        gone.into_iter().for_each(|id| self.remove(id));
    }

    pub fn endpoint_count(&self) -> usize {
        self.endpoints.len()
    }

    pub fn endpoint(&self, id: EndpointId) -> Option<&Arc<EndpointRoute>> {
        self.endpoints.get(&id)
    }

    pub fn endpoints(&self) -> impl Iterator<Item = &Arc<EndpointRoute>> {
        self.endpoints.values()
    }

    /// The targeted endpoints that want this event type, in no particular order.
    ///
    /// An endpoint that does not exist is an error; an owner without endpoints is not, because owners are
    /// the customer's own words.
    pub fn resolve(&self, target: &Target, event_type: &str) -> Result<Vec<Arc<EndpointRoute>>> {
        let targeted: Vec<&Arc<EndpointRoute>> = match target {
            Target::Endpoint(id) => {
                vec![self.endpoint(*id).ok_or_else(|| Error::not_found("endpoint", id))?]
            }
            Target::Owner(owner) => match self.owners.get(owner.as_str()) {
                Some(ids) => ids.iter().filter_map(|id| self.endpoint(*id)).collect(),
                None => Vec::new(),
            },
            Target::Broadcast => self.endpoints.values().collect(),
        };
        Ok(targeted.into_iter().filter(|route| route.wants(event_type)).cloned().collect())
    }
}
