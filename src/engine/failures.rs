//! Failing endpoints: by what a batch of attempts is judged, and what this process does once the verdict is
//! committed.

use std::sync::Arc;

use super::Shared;
use super::turn::Outcome;
use super::worker;
use super::writer::chain;
use crate::store::{Aftermath, FailureRules, Hold};

/// How attempts are judged.
pub fn rules(shared: &Shared) -> FailureRules {
    FailureRules {
        breaker: shared.breaker,
        egress_failing: shared.guard.egress_failing(),
        egress_window: shared.guard.window,
    }
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
        if let Err(error) = shared.routing.refresh(project, version).await {
            tracing::warn!(error = chain(&error), "routes could not be read");
        }
    }
    for (project, version, endpoint) in aftermath.disabled {
        tracing::info!(%endpoint, "it became INACTIVE");
        shared.breakers.close(endpoint);
        if let Err(error) = shared.routing.refresh(project, version).await {
            tracing::warn!(error = chain(&error), "routes could not be read");
        }
        let routes = shared.routing.get(project);
        let owner = routes.and_then(|routes| routes.endpoint(endpoint)?.owner.clone());
        worker::empty_lane(shared, endpoint, |job| {
            Outcome::Discarded(Box::new(worker::discard(job, owner.clone())))
        });
        shared.align.tell(endpoint);
    }
}
