//! Deliveries: reading them and their attempts, and retrying by hand.

use super::{Services, found};
use crate::domain::clock::Timestamp;
use crate::domain::delivery::{Attempt, Delivery, DeliveryFilter, DeliveryStatus};
use crate::domain::endpoint::EndpointStatus;
use crate::domain::error::{Error, ErrorKind, Result};
use crate::domain::id::{DeliveryId, ProjectId};
use crate::domain::page::{Page, PageRequest};
use crate::domain::principal::{Principal, Scope};
use crate::store::{AuditEntry, Lane};

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
        let delivery = found(tx.delivery(project, id).await?, "delivery", id)?;
        if !matches!(delivery.status, DeliveryStatus::Failed | DeliveryStatus::Discarded) {
            return Err(not_retryable(&delivery));
        }
        let endpoint = tx.endpoint(project, delivery.endpoint).await?;
        let endpoint = match endpoint {
            Some(endpoint) if endpoint.status == EndpointStatus::Active => endpoint,
            Some(endpoint) if endpoint.status == EndpointStatus::Inactive => {
                return Err(precondition(
                    id,
                    "ENDPOINT_INACTIVE",
                    "its endpoint is INACTIVE; activate it first",
                ));
            }
            Some(_) => {
                return Err(precondition(id, "ENDPOINT_PAUSED", "its endpoint is paused; resume it first"));
            }
            None => return Err(precondition(id, "ENDPOINT_DELETED", "its endpoint was deleted")),
        };
        if !tx.reopen(&delivery, endpoint.settings.owner_id, Timestamp::now()).await? {
            return Err(not_retryable(&delivery));
        }
        tx.audit(AuditEntry {
            principal,
            project: Some(project),
            action: "RetryDelivery",
            resource: id.to_string(),
            before: None,
            after: None,
        })
        .await?;
        let wake = self.wake.clone();
        self.commit(tx, async move {
            wake.due();
            Ok(())
        })
        .await?;
        found(self.store.delivery(project, id).await?, "delivery", id)
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
