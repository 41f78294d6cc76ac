//! An endpoint's state, changed by hand: pause, resume, activate.

use std::time::Duration;

use super::endpoints::audit;
use super::{Services, found};
use crate::domain::change::EndpointChangeKind;
use crate::domain::clock::Timestamp;
use crate::domain::endpoint::{Circuit, Endpoint, EndpointStatus};
use crate::domain::error::{Error, ErrorKind, Result};
use crate::domain::id::{EndpointId, ProjectId};
use crate::domain::principal::{Principal, Scope};
use crate::store::Lane;

/// What Activate ends by itself before it asks the caller to come again: 20,000 deliveries.
const DISCARD_STEP: u32 = 500;
const DISCARD_STEPS: u32 = 40;

impl Services {
    pub async fn pause_endpoint(
        &self,
        principal: &Principal,
        project: Option<ProjectId>,
        id: EndpointId,
        reason: String,
    ) -> Result<Endpoint> {
        let project = self.project_of(principal, project, Scope::EndpointsWrite).await?;
        let step = |status: EndpointStatus| status.pause();
        self.change_status(principal, project, id, step, reason, "PauseEndpoint", EndpointChangeKind::Paused)
            .await
    }

    pub async fn resume_endpoint(
        &self,
        principal: &Principal,
        project: Option<ProjectId>,
        id: EndpointId,
    ) -> Result<Endpoint> {
        let project = self.project_of(principal, project, Scope::EndpointsWrite).await?;
        let step = |status: EndpointStatus| status.resume();
        let kind = EndpointChangeKind::Resumed;
        let endpoint =
            self.change_status(principal, project, id, step, String::new(), "ResumeEndpoint", kind).await?;
        self.wake.align(id);
        Ok(endpoint)
    }

    /// Switches on whatever was switched off. Nothing that ended meanwhile is sent by itself.
    pub async fn activate_endpoint(
        &self,
        principal: &Principal,
        project: Option<ProjectId>,
        id: EndpointId,
    ) -> Result<Endpoint> {
        let project = self.project_of(principal, project, Scope::EndpointsWrite).await?;
        self.finish_discarding(project, id).await?;
        let step = |status: EndpointStatus| status.activate();
        let kind = EndpointChangeKind::Activated;
        let endpoint =
            self.change_status(principal, project, id, step, String::new(), "ActivateEndpoint", kind).await?;
        self.wake.align(id);
        Ok(endpoint)
    }

    /// Ends what is still queued for an INACTIVE endpoint, as upkeep does; a bounded part of it.
    pub(super) async fn finish_discarding(&self, project: ProjectId, id: EndpointId) -> Result<()> {
        for _ in 0..DISCARD_STEPS {
            let endpoint = found(self.store.endpoint(project, id).await?, "endpoint", id)?;
            if endpoint.status != EndpointStatus::Inactive {
                return Ok(());
            }
            let mut tx = self.store.begin(Lane::Service).await?;
            let aligned = tx.align(id, DISCARD_STEP).await?;
            tx.commit().await?;
            if aligned.rows < u64::from(DISCARD_STEP) {
                return Ok(());
            }
        }
        Ok(())
    }

    /// One transition, in one transaction with its audit entry and its change.
    #[allow(clippy::too_many_arguments)] // three callers, each naming all of them
    async fn change_status(
        &self,
        principal: &Principal,
        project: ProjectId,
        id: EndpointId,
        step: impl Fn(EndpointStatus) -> Result<Option<EndpointStatus>>,
        reason: String,
        action: &'static str,
        kind: EndpointChangeKind,
    ) -> Result<Endpoint> {
        let mut tx = self.store.begin(Lane::Service).await?;
        let version = tx.bump_routing(project).await?;
        let before = found(tx.endpoint(project, id).await?, "endpoint", id)?;
        match step(before.status)? {
            None => tx.rollback().await?,
            Some(status) => {
                let mut endpoint = before.clone();
                endpoint.status = status;
                endpoint.status_reason = reason;
                endpoint.status_changed_at = Timestamp::now();
                endpoint.updated_at = endpoint.status_changed_at;
                // What was queued when it became INACTIVE must have ended, or it would be sent now after all.
                if before.status == EndpointStatus::Inactive && tx.has_queued(id).await? {
                    return Err(still_discarding(id));
                }
                if status == EndpointStatus::Active {
                    tx.reset_health(id).await?;
                    (endpoint.consecutive_failures, endpoint.circuit) = (0, Circuit::Closed);
                }
                tx.update_endpoint(kind, &endpoint).await?;
                audit(&tx, principal, action, Some(&before), Some(&endpoint)).await?;
                self.commit_routes(tx, project, version).await?;
            }
        }
        found(self.store.endpoint(project, id).await?, "endpoint", id)
    }
}

pub(super) fn still_discarding(id: EndpointId) -> Error {
    let message = "what was queued for it is still being discarded, or an attempt is in flight; try again";
    Error {
        retry_after: Some(Duration::from_secs(1)),
        ..Error::new(ErrorKind::Unavailable, "ENDPOINT_DISCARDING", message).about("endpoint", id)
    }
}
