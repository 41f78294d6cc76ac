//! Failing endpoints: by what a batch of attempts is judged, and what this process does once the verdict is
//! committed.

use std::sync::Arc;

use super::Shared;
use super::breakers::Closing;
use super::turn::Outcome;
use super::worker;
use crate::domain::id::EndpointId;
use crate::store::{Aftermath, FailureRules, Hold};

/// How attempts are judged.
pub fn rules(shared: &Shared) -> FailureRules {
    FailureRules {
        breaker: shared.breaker,
        egress_failing: shared.guard.egress_failing(),
        egress_window: shared.guard.window,
    }
}

/// From now on nothing starts for the endpoints that a transaction, which is about to be committed, switches off. To be
/// kept until [`obey`] is through, or dropped where they are not switched off after all.
pub fn close(shared: &Arc<Shared>, aftermath: &Aftermath) -> Option<Closing> {
    let endpoints: Vec<EndpointId> = aftermath.disabled.iter().map(|(_, _, endpoint)| *endpoint).collect();
    (!endpoints.is_empty()).then(|| Closing::new(shared.clone(), endpoints))
}

/// Nothing more starts for an endpoint that was switched off or whose breaker opened, and what waited for one that
/// closed goes on.
pub async fn obey(shared: &Arc<Shared>, aftermath: Aftermath) {
    for endpoint in aftermath.closed {
        shared.breakers.close(endpoint);
        shared.align.tell(endpoint);
    }
    for endpoint in aftermath.open {
        shared.breakers.open(endpoint);
    }
    for endpoint in aftermath.opened {
        tracing::info!(%endpoint, "its breaker opened: sending rests");
        worker::empty_lane(shared, endpoint, |job| Outcome::Released(job.release(Hold::Breaker)));
        shared.align.tell(endpoint);
    }
    for (project, version, endpoint) in aftermath.recovered {
        tracing::info!(%endpoint, "its probe succeeded: it is ACTIVE again");
        shared.breakers.close(endpoint);
        shared.routing.renew_aside(project, version);
    }
    for (project, version, endpoint) in aftermath.disabled {
        tracing::info!(%endpoint, "it became INACTIVE");
        shared.breakers.close(endpoint);
        // Nothing goes by the old ones from here on.
        let routes = shared.routing.get(project);
        let owner = routes.and_then(|routes| routes.endpoint(endpoint)?.owner.clone());
        shared.routing.renew_aside(project, version);
        worker::empty_lane(shared, endpoint, |job| {
            Outcome::Discarded(Box::new(worker::discard(job, owner.clone())))
        });
        shared.align.tell(endpoint);
    }
}
