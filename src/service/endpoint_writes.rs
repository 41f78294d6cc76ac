//! What creating and changing an endpoint comes to: decided first, then written in the caller's transaction. A call
//! about one endpoint does both once, a bulk call for each of its rows.

use super::endpoints::{CreatedEndpoint, EndpointField, audit, audit_entry, uid_taken};
use super::secrets::{NewSecret, check_fit, check_fits_all};
use super::{Services, subscriptions};
use crate::domain::change::EndpointChangeKind;
use crate::domain::clock::Timestamp;
use crate::domain::endpoint::{Circuit, Endpoint, EndpointSettings, EndpointStatus};
use crate::domain::error::Result;
use crate::domain::id::{EndpointId, ProjectId, SecretId, SubscriptionId};
use crate::domain::principal::Principal;
use crate::domain::secret::{SecretKind, SigningSecret};
use crate::domain::subscription::{EventTypePattern, Subscription};
use crate::store::Tx;

impl Services {
    /// A new endpoint with what comes with it, if it may be so. Writes nothing.
    pub(super) fn new_endpoint(
        &self,
        project: ProjectId,
        settings: EndpointSettings,
        event_types: Vec<EventTypePattern>,
        secret: NewSecret,
    ) -> Result<CreatedEndpoint> {
        let now = Timestamp::now();
        let settings = self.check_settings(settings, None)?;
        let endpoint = Endpoint {
            id: EndpointId::new(),
            project,
            credential_version: i64::from(settings.has_credentials()),
            settings,
            unreadable: Vec::new(),
            status: EndpointStatus::Active,
            status_reason: String::new(),
            status_changed_at: now,
            version: 1,
            revision: 1,
            created_at: now,
            updated_at: now,
            consecutive_failures: 0,
            circuit: Circuit::Closed,
            last_response: None,
        };
        let event_types = if event_types.is_empty() { vec![EventTypePattern::Any] } else { event_types };
        let subscription = first_subscription(&endpoint, event_types);
        let secret = secret.or_make(SecretKind::Hmac);
        check_fit(&endpoint.settings.signature, &secret)?;
        Ok(CreatedEndpoint { endpoint, subscription, secret })
    }

    /// Writes new endpoints of one project, in a transaction that bumped its routing version.
    pub(super) async fn write_new_endpoints(
        &self,
        tx: &mut Tx,
        principal: &Principal,
        new: &[&CreatedEndpoint],
    ) -> Result<()> {
        let Some(first) = new.first() else { return Ok(()) };
        let project = first.endpoint.project;
        let endpoints: Vec<&Endpoint> = new.iter().map(|one| &one.endpoint).collect();
        let inserted = tx.insert_endpoints(project, &endpoints, self.limits.endpoints_max).await;
        inserted.map_err(|error| uid_taken(error, &first.endpoint))?;
        let secrets = new.iter().map(|one| (SecretId::new(), one.endpoint.id, &one.secret));
        let secrets: Vec<(SecretId, EndpointId, &SigningSecret)> = secrets.collect();
        tx.write_secrets(project, Timestamp::now(), &secrets).await?;
        for endpoint in &endpoints {
            if let Some(period) = endpoint.settings.rotation.period {
                tx.set_rotation_due(endpoint.id, Some(Timestamp::now().plus(period))).await?;
            }
        }
        let subscriptions: Vec<&Subscription> = new.iter().map(|one| &one.subscription).collect();
        tx.insert_subscriptions(&subscriptions).await?;
        let entry = |endpoint: &&Endpoint| audit_entry(principal, "CreateEndpoint", None, Some(endpoint));
        Ok(tx.audit_all(endpoints.iter().map(entry).collect()).await?)
    }

    /// The endpoint with these fields changed; where they already are so, as it was. Writes nothing.
    pub(super) fn changed_endpoint(
        &self,
        before: &Endpoint,
        changes: EndpointSettings,
        fields: &[EndpointField],
    ) -> Result<Endpoint> {
        let mut endpoint = self.merged(before, changes, fields)?;
        if endpoint != *before {
            endpoint.version += 1;
            let is_healed = endpoint.unreadable != before.unreadable;
            if !endpoint.settings.has_credentials_of(&before.settings) || is_healed {
                endpoint.credential_version = endpoint.version;
            }
            endpoint.updated_at = Timestamp::now();
        }
        Ok(endpoint)
    }

    /// Writes the change, in a transaction that bumped the project's routing version and then read `before`.
    pub(super) async fn write_changed_endpoint(
        &self,
        tx: &mut Tx,
        principal: &Principal,
        before: &Endpoint,
        after: &Endpoint,
    ) -> Result<()> {
        if after.settings.signature != before.settings.signature {
            let live = tx.secret_kinds(after.id, Timestamp::now()).await?;
            check_fits_all(after.id, &after.settings.signature, &live)?;
        }
        if after.settings.owner_id != before.settings.owner_id {
            tx.leave_owner(before).await?;
        }
        tx.update_endpoint(EndpointChangeKind::Updated, after)
            .await
            .map_err(|error| uid_taken(error, after))?;
        if after.settings.rotation.period != before.settings.rotation.period {
            self.plan_rotation(tx, after).await?;
        }
        audit(tx, principal, "UpdateEndpoint", Some(before), Some(after)).await
    }

    /// What follows the commit of a change.
    pub(super) fn endpoint_changed(&self, before: &Endpoint, after: &Endpoint) {
        self.rotations.notify_one();
        if after.settings.rate_limit.is_some() != before.settings.rate_limit.is_some() {
            self.wake.align(after.id);
        }
    }

    /// Writes what an endpoint is subscribed to: a change of `before`, or a new subscription where that is none.
    pub(super) async fn write_subscription(
        &self,
        tx: &mut Tx,
        principal: &Principal,
        before: Option<&Subscription>,
        after: &Subscription,
    ) -> Result<()> {
        let action = match before {
            Some(_) => {
                tx.update_subscription(after).await?;
                "UpdateSubscription"
            }
            None => {
                tx.insert_subscriptions(&[after]).await?;
                "CreateSubscription"
            }
        };
        subscriptions::audit(tx, principal, action, before, Some(after)).await
    }
}

/// An endpoint's subscription that nobody asked for apart.
pub(super) fn first_subscription(endpoint: &Endpoint, event_types: Vec<EventTypePattern>) -> Subscription {
    let now = Timestamp::now();
    Subscription {
        id: SubscriptionId::new(),
        project: endpoint.project,
        endpoint: endpoint.id,
        event_types,
        enabled: true,
        version: 1,
        created_at: now,
        updated_at: now,
    }
}
