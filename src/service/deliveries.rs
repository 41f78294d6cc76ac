//! Deliveries: reading them and their attempts, and retrying by hand.

use super::endpoint_states::still_discarding;
use super::{Services, found};
use crate::domain::clock::Timestamp;
use crate::domain::delivery::{Attempt, Delivery, DeliveryFilter, DeliveryStatus};
use crate::domain::endpoint::{Endpoint, EndpointStatus};
use crate::domain::error::{Error, ErrorKind, Result};
use crate::domain::id::{DeliveryId, ProjectId};
use crate::domain::page::{Page, PageRequest};
use crate::domain::principal::{Principal, Scope};
use crate::store::{AuditEntry, Hold, Lane, Tx};

impl Services {
    pub async fn get_delivery(
        &self,
        principal: &Principal,
        project: Option<ProjectId>,
        id: DeliveryId,
    ) -> Result<Delivery> {
        let project = self.project_of(principal, project, Scope::DeliveriesRead).await?;
        found(self.store.delivery(project, id).await?, "delivery", id)
    }

    pub async fn list_deliveries(
        &self,
        principal: &Principal,
        project: Option<ProjectId>,
        filter: DeliveryFilter,
        page: PageRequest,
    ) -> Result<Page<Delivery>> {
        let project = self.project_of(principal, project, Scope::DeliveriesRead).await?;
        Ok(self.store.deliveries(project, &filter, page).await?)
    }

    pub async fn list_attempts(
        &self,
        principal: &Principal,
        project: Option<ProjectId>,
        delivery: DeliveryId,
        page: PageRequest,
    ) -> Result<Page<Attempt>> {
        let project = self.project_of(principal, project, Scope::DeliveriesRead).await?;
        found(self.store.delivery(project, delivery).await?, "delivery", delivery)?;
        Ok(self.store.attempts(delivery, page).await?)
    }

    pub async fn retry_delivery(
        &self,
        principal: &Principal,
        project: Option<ProjectId>,
        id: DeliveryId,
    ) -> Result<Delivery> {
        let project = self.project_of(principal, project, Scope::DeliveriesWrite).await?;
        let mut tx = self.store.begin(Lane::Service).await?;
        let (mut delivery, mut endpoint) = retried(&tx, project, id).await?;
        // A probe changes the endpoint, whose state must then stand still: the project is locked before all else.
        let mut version = None;
        if endpoint.status == EndpointStatus::Inactive {
            tx.rollback().await?;
            self.finish_discarding(project, endpoint.id).await?;
            tx = self.store.begin(Lane::Service).await?;
            version = Some(tx.bump_routing(project).await?);
            (delivery, endpoint) = retried(&tx, project, id).await?;
        }
        let probes = endpoint.status.retry().map_err(|error| error.about("delivery", id))?.is_some();
        if probes && tx.has_queued(endpoint.id).await? {
            return Err(still_discarding(endpoint.id));
        }
        let limited = endpoint.settings.rate_limit.is_some();
        let hold = match (probes, limited) {
            (true, _) => Hold::Probe,
            (false, true) => Hold::Rate,
            (false, false) => Hold::No,
        };
        let to = endpoint.id;
        let owner = endpoint.settings.owner_id.clone();
        if !tx.reopen(&delivery, owner, hold, Timestamp::now()).await? {
            return Err(not_retryable(&delivery));
        }
        let after = probes.then(|| serde_json::json!({ "probes": endpoint.id.to_string() }).to_string());
        let (action, resource) = ("RetryDelivery", id.to_string());
        let before = Some(serde_json::json!({ "status": delivery.status.as_str() }).to_string());
        let entry = AuditEntry { principal, project: Some(project), action, resource, before, after };
        tx.audit(entry).await?;
        if probes {
            tx.begin_probe(endpoint, id).await?;
        }
        let wake = self.wake.clone();
        self.commit(tx, async move {
            if let Some(version) = version {
                wake.routes_changed(project, version).await;
            }
            if probes {
                wake.probe();
            } else if limited {
                wake.paced(project, to);
            } else {
                wake.due();
            }
            Ok(())
        })
        .await?;
        found(self.store.delivery(project, id).await?, "delivery", id)
    }
}

/// A delivery that may be retried, and its endpoint.
async fn retried(tx: &Tx, project: ProjectId, id: DeliveryId) -> Result<(Delivery, Endpoint)> {
    let delivery = found(tx.delivery(project, id).await?, "delivery", id)?;
    if !matches!(delivery.status, DeliveryStatus::Failed | DeliveryStatus::Discarded) {
        return Err(not_retryable(&delivery));
    }
    match tx.endpoint(project, delivery.endpoint).await? {
        Some(endpoint) => Ok((delivery, endpoint)),
        None => Err(precondition(id, "ENDPOINT_DELETED", "its endpoint was deleted")),
    }
}

fn not_retryable(delivery: &Delivery) -> Error {
    let message =
        format!("it is {}; only FAILED and DISCARDED deliveries can be retried", delivery.status.as_str());
    precondition(delivery.id, "DELIVERY_NOT_ENDED", message)
}

fn precondition(id: DeliveryId, reason: &'static str, message: impl Into<String>) -> Error {
    Error::new(ErrorKind::FailedPrecondition, reason, message).about("delivery", id)
}
