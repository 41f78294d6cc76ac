//! Subscriptions.

use super::{Services, found};
use crate::domain::clock::Timestamp;
use crate::domain::error::{Error, ErrorKind, Result};
use crate::domain::id::{EndpointId, ProjectId, SubscriptionId};
use crate::domain::page::{Page, PageRequest};
use crate::domain::principal::{Principal, Scope};
use crate::domain::subscription::{EventTypePattern, Subscription};
use crate::store::{AuditEntry, Lane, Tx};

/// A field that an update may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubscriptionField {
    EventTypes,
    Enabled,
}

impl Services {
    pub async fn create_subscription(
        &self,
        principal: &Principal,
        project: Option<ProjectId>,
        endpoint: EndpointId,
        event_types: Vec<EventTypePattern>,
        enabled: bool,
    ) -> Result<Subscription> {
        let project = self.project_of(principal, project, Scope::EndpointsWrite).await?;
        let now = Timestamp::now();
        let subscription = Subscription {
            id: SubscriptionId::new(),
            project,
            endpoint,
            event_types,
            enabled,
            version: 1,
            created_at: now,
            updated_at: now,
        };
        let mut tx = self.store.begin(Lane::Service).await?;
        let version = tx.bump_routing(project).await?;
        found(tx.endpoint(project, endpoint).await?, "endpoint", endpoint)?;
        self.write_subscription(&mut tx, principal, None, &subscription).await?;
        self.commit_routes(tx, project, version).await?;
        Ok(subscription)
    }

    pub async fn get_subscription(
        &self,
        principal: &Principal,
        project: Option<ProjectId>,
        id: SubscriptionId,
    ) -> Result<Subscription> {
        let project = self.project_of(principal, project, Scope::EndpointsRead).await?;
        found(self.store.subscription(project, id).await?, "subscription", id)
    }

    pub async fn list_subscriptions(
        &self,
        principal: &Principal,
        project: Option<ProjectId>,
        endpoint: Option<EndpointId>,
        page: PageRequest,
    ) -> Result<Page<Subscription>> {
        let project = self.project_of(principal, project, Scope::EndpointsRead).await?;
        Ok(self.store.subscriptions(project, endpoint, page).await?)
    }

    #[allow(clippy::too_many_arguments)] // one per part of the request
    pub async fn update_subscription(
        &self,
        principal: &Principal,
        project: Option<ProjectId>,
        id: SubscriptionId,
        event_types: Vec<EventTypePattern>,
        enabled: bool,
        fields: &[SubscriptionField],
        etag: &str,
    ) -> Result<Subscription> {
        let project = self.project_of(principal, project, Scope::EndpointsWrite).await?;
        let mut tx = self.store.begin(Lane::Service).await?;
        let version = tx.bump_routing(project).await?;
        let before = found(tx.subscription(project, id).await?, "subscription", id)?;
        check_etag(&before, etag)?;
        let mut subscription = before.clone();
        for field in fields {
            match field {
                SubscriptionField::EventTypes => subscription.event_types.clone_from(&event_types),
                SubscriptionField::Enabled => subscription.enabled = enabled,
            }
        }
        if subscription == before {
            tx.rollback().await?;
            return Ok(before);
        }
        subscription.version += 1;
        subscription.updated_at = Timestamp::now();
        self.write_subscription(&mut tx, principal, Some(&before), &subscription).await?;
        self.commit_routes(tx, project, version).await?;
        Ok(subscription)
    }

    pub async fn delete_subscription(
        &self,
        principal: &Principal,
        project: Option<ProjectId>,
        id: SubscriptionId,
        etag: &str,
    ) -> Result<()> {
        let project = self.project_of(principal, project, Scope::EndpointsWrite).await?;
        let mut tx = self.store.begin(Lane::Service).await?;
        let version = tx.bump_routing(project).await?;
        let subscription = found(tx.subscription(project, id).await?, "subscription", id)?;
        check_etag(&subscription, etag)?;
        tx.delete_subscription(&subscription).await?;
        audit(&tx, principal, "DeleteSubscription", Some(&subscription), None).await?;
        self.commit_routes(tx, project, version).await
    }
}

fn check_etag(subscription: &Subscription, etag: &str) -> Result<()> {
    if etag.is_empty() || etag == subscription.etag() {
        return Ok(());
    }
    let message = "the subscription was changed since that etag was read; read it again";
    Err(Error::new(ErrorKind::Aborted, "ETAG_MISMATCH", message).about("subscription", subscription.id))
}

pub(super) async fn audit(
    tx: &Tx,
    principal: &Principal,
    action: &'static str,
    before: Option<&Subscription>,
    after: Option<&Subscription>,
) -> Result<()> {
    let summary = |subscription: &Subscription| {
        serde_json::json!({
            "endpoint_id": subscription.endpoint.to_string(),
            "event_types": subscription.event_types,
            "enabled": subscription.enabled,
        })
        .to_string()
    };
    let entry = AuditEntry {
        principal,
        project: after.or(before).map(|subscription| subscription.project),
        action,
        resource: after.or(before).map(|subscription| subscription.id.to_string()).unwrap_or_default(),
        before: before.map(summary),
        after: after.map(summary),
    };
    Ok(tx.audit(entry).await?)
}
