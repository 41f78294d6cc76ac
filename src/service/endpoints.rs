//! Endpoints: create, read, change, delete.

use super::secrets::NewSecret;
use super::{Services, alerts, credentials, found, headers};
use crate::domain::endpoint::{CustomHeader, Endpoint, EndpointFilter, EndpointSettings, SealedSetting};
use crate::domain::error::{Error, ErrorKind, Result};
use crate::domain::id::{EndpointId, ProjectId, SecretId};
use crate::domain::page::{Page, PageRequest};
use crate::domain::principal::{Principal, Scope};
use crate::domain::secret::{LiveSecret, SigningSecret};
use crate::domain::signature::SignatureSettings;
use crate::domain::subscription::{EventTypePattern, Subscription};
use crate::store::{AuditEntry, Lane, StoreError, Tx};

/// A new endpoint with what came with it.
pub struct CreatedEndpoint {
    pub endpoint: Endpoint,
    pub subscription: Subscription,
    pub secret: SigningSecret,
}

impl CreatedEndpoint {
    /// Its secret as signing takes it.
    pub(super) fn live_secret(&self) -> LiveSecret {
        LiveSecret { id: SecretId::new(), secret: self.secret.clone(), expires_at: None }
    }
}

/// A field that an update may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointField {
    Uid,
    Name,
    Url,
    Description,
    OwnerId,
    Labels,
    HttpTimeout,
    RetryPolicy,
    DisablePolicy,
    Headers,
    MaxInFlight,
    ContentType,
    RateLimit,
    Authentication,
    ClientCertificate,
    Authorities,
    Signature,
    RotationPeriod,
    RotationGrace,
    Alerts,
}

impl EndpointField {
    pub const ALL: [Self; 20] = [
        Self::Uid,
        Self::Name,
        Self::Url,
        Self::Description,
        Self::OwnerId,
        Self::Labels,
        Self::HttpTimeout,
        Self::RetryPolicy,
        Self::DisablePolicy,
        Self::Headers,
        Self::MaxInFlight,
        Self::ContentType,
        Self::RateLimit,
        Self::Authentication,
        Self::ClientCertificate,
        Self::Authorities,
        Self::Signature,
        Self::RotationPeriod,
        Self::RotationGrace,
        Self::Alerts,
    ];
}

/// What an update asks for.
pub struct EndpointUpdate {
    /// The new values, of which only these fields count.
    pub settings: EndpointSettings,
    pub fields: Vec<EndpointField>,
    /// The version that it is based on; empty: any.
    pub etag: String,
    pub ping: PingFirst,
}

/// Whether an endpoint is to be pinged before a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PingFirst {
    Yes,
    No,
}

/// Stands for a value that was not shown; sent back, it keeps what is stored.
pub const REDACTED: &str = "[redacted]";

impl Services {
    pub async fn create_endpoint(
        &self,
        principal: &Principal,
        project: Option<ProjectId>,
        settings: EndpointSettings,
        event_types: Vec<EventTypePattern>,
        secret: NewSecret,
        ping: PingFirst,
    ) -> Result<CreatedEndpoint> {
        let project = self.project_of(principal, project, Scope::EndpointsWrite).await?;
        let created = self.new_endpoint(project, settings, event_types, secret)?;
        if self.wants_ping(ping) {
            self.ping_before(principal, &created.endpoint.settings, &[created.live_secret()]).await?;
        }
        let mut tx = self.store.begin(Lane::Service).await?;
        let version = tx.bump_routing(project).await?;
        self.write_new_endpoints(&mut tx, principal, &[&created]).await?;
        self.commit_routes(tx, project, version).await?;
        self.rotations.notify_one();
        Ok(created)
    }

    pub async fn get_endpoint(
        &self,
        principal: &Principal,
        project: Option<ProjectId>,
        id: EndpointId,
    ) -> Result<Endpoint> {
        let project = self.project_of(principal, project, Scope::EndpointsRead).await?;
        found(self.store.endpoint(project, id).await?, "endpoint", id)
    }

    pub async fn list_endpoints(
        &self,
        principal: &Principal,
        project: Option<ProjectId>,
        filter: EndpointFilter,
        page: PageRequest,
    ) -> Result<Page<Endpoint>> {
        let project = self.project_of(principal, project, Scope::EndpointsRead).await?;
        Ok(self.store.endpoints(project, &filter, page).await?)
    }

    pub async fn update_endpoint(
        &self,
        principal: &Principal,
        project: Option<ProjectId>,
        id: EndpointId,
        update: EndpointUpdate,
    ) -> Result<Endpoint> {
        let project = self.project_of(principal, project, Scope::EndpointsWrite).await?;
        let pinged = match self.wants_ping(update.ping) {
            false => None,
            true => Some(self.ping_change(principal, project, id, &update).await?),
        };
        let EndpointUpdate { settings, fields, etag, .. } = update;
        let mut tx = self.store.begin(Lane::Service).await?;
        let version = tx.bump_routing(project).await?;
        let before = found(tx.endpoint(project, id).await?, "endpoint", id)?;
        before.check_etag(&etag)?;
        let endpoint = self.changed_endpoint(&before, settings, &fields)?;
        if let Some(pinged) = pinged
            && !pinged.reaches_as(&endpoint.settings)
        {
            let message = "the endpoint was changed while it was pinged; try again";
            return Err(Error::new(ErrorKind::Aborted, "ENDPOINT_CHANGED", message).about("endpoint", id));
        }
        if endpoint != before {
            self.write_changed_endpoint(&mut tx, principal, &before, &endpoint).await?;
            self.commit_routes(tx, project, version).await?;
            self.endpoint_changed(&before, &endpoint);
        } else {
            tx.rollback().await?;
        }
        found(self.store.endpoint(project, id).await?, "endpoint", id)
    }

    /// The stored endpoint with the changes. What is set again can be read again.
    pub(super) fn merged(
        &self,
        endpoint: &Endpoint,
        mut changes: EndpointSettings,
        fields: &[EndpointField],
    ) -> Result<Endpoint> {
        let stored = &endpoint.settings;
        if fields.contains(&EndpointField::Headers) {
            keep_redacted(&mut changes.headers, stored)?;
        }
        credentials::keep_stored(&mut changes, stored, fields)?;
        alerts::keep_stored(changes.alerts.as_mut(), stored.alerts.as_ref());
        let mut settings = stored.clone();
        for field in fields {
            copy(*field, &mut changes, &mut settings);
        }
        let settings = self.check_settings(settings, Some(stored))?;
        let mut merged = Endpoint { settings, ..endpoint.clone() };
        merged.unreadable.retain(|setting| !fields.contains(&field_of(*setting)));
        Ok(merged)
    }

    pub(super) fn wants_ping(&self, ping: PingFirst) -> bool {
        ping == PingFirst::Yes && !self.pinger.settings.skip
    }

    /// Pings what the endpoint would be, where it would be reached differently. Returns what it would be.
    async fn ping_change(
        &self,
        principal: &Principal,
        project: ProjectId,
        id: EndpointId,
        update: &EndpointUpdate,
    ) -> Result<EndpointSettings> {
        let before = found(self.store.endpoint(project, id).await?, "endpoint", id)?;
        before.check_etag(&update.etag)?;
        let endpoint = self.merged(&before, update.settings.clone(), &update.fields)?;
        if !endpoint.settings.reaches_as(&before.settings) {
            endpoint.check_readable()?;
            let secrets = self.store.live_secrets_of(project, id).await?;
            self.ping_before(principal, &endpoint.settings, &secrets).await?;
        }
        Ok(endpoint.settings)
    }

    pub async fn delete_endpoint(
        &self,
        principal: &Principal,
        project: Option<ProjectId>,
        id: EndpointId,
        etag: &str,
    ) -> Result<()> {
        let project = self.project_of(principal, project, Scope::EndpointsWrite).await?;
        let mut tx = self.store.begin(Lane::Service).await?;
        let version = tx.bump_routing(project).await?;
        let endpoint = found(tx.endpoint(project, id).await?, "endpoint", id)?;
        endpoint.check_etag(etag)?;
        tx.delete_endpoint(&endpoint).await?;
        audit(&tx, principal, "DeleteEndpoint", Some(&endpoint), None).await?;
        self.commit_routes(tx, project, version).await?;
        // What is queued for it ends as DISCARDED.
        self.wake.align(id);
        Ok(())
    }

    pub(super) fn check_settings(
        &self,
        mut settings: EndpointSettings,
        stored: Option<&EndpointSettings>,
    ) -> Result<EndpointSettings> {
        // What is stored already may break rules that came later; nothing is sent to it, and all else can be changed.
        if stored.is_none_or(|stored| stored.url != settings.url) {
            let url = self.rules.parse(&settings.url);
            settings.url =
                url.map_err(|error| Error::invalid("endpoint.url", error.to_string()))?.to_string();
        }
        let pairs = settings.headers.into_iter().map(|header| (header.name, header.value)).collect();
        settings.headers = headers::check("endpoint.headers", pairs)?
            .into_iter()
            .map(|(name, value)| CustomHeader { name, value })
            .collect();
        credentials::check(&mut settings, stored, &self.rules)?;
        check_signature(&mut settings)?;
        let known = stored.and_then(|stored| stored.alerts.as_ref());
        self.check_alerts("endpoint.alerts", &mut settings.alerts, known)?;
        settings.rotation.check(&settings.signature, self.limits.rotation_period_min)?;
        Ok(settings)
    }
}

/// The signature's header is one that nothing else sets.
fn check_signature(settings: &mut EndpointSettings) -> Result<()> {
    const FIELD: &str = "endpoint.signature.header";
    let header = match &mut settings.signature {
        SignatureSettings::Standard => return Ok(()),
        SignatureSettings::Advanced(header) | SignatureSettings::Simple(header) => header,
    };
    header.name = headers::check_name(FIELD, &header.name)?;
    let authentication = settings.authentication.as_ref().map(|authentication| authentication.header_name());
    if header.name == "authorization"
        || authentication == Some(header.name.as_str())
        || settings.headers.iter().any(|other| other.name == header.name)
    {
        return Err(Error::invalid(FIELD, "is a header that the endpoint has for something else"));
    }
    Ok(())
}

fn copy(field: EndpointField, from: &mut EndpointSettings, to: &mut EndpointSettings) {
    match field {
        EndpointField::Uid => to.uid = from.uid.take(),
        EndpointField::Name => to.name = std::mem::take(&mut from.name),
        EndpointField::Url => to.url = std::mem::take(&mut from.url),
        EndpointField::Description => to.description = std::mem::take(&mut from.description),
        EndpointField::OwnerId => to.owner_id = from.owner_id.take(),
        EndpointField::Labels => to.labels = std::mem::take(&mut from.labels),
        EndpointField::HttpTimeout => to.http_timeout = from.http_timeout,
        EndpointField::RetryPolicy => to.retry_policy = from.retry_policy.take(),
        EndpointField::DisablePolicy => to.disable_policy = from.disable_policy,
        EndpointField::Headers => to.headers = std::mem::take(&mut from.headers),
        EndpointField::MaxInFlight => to.max_in_flight = from.max_in_flight,
        EndpointField::ContentType => to.content_type = from.content_type,
        EndpointField::RateLimit => to.rate_limit = from.rate_limit,
        EndpointField::Authentication => to.authentication = from.authentication.take(),
        EndpointField::ClientCertificate => to.client_certificate = from.client_certificate.take(),
        EndpointField::Authorities => to.authorities = from.authorities.take(),
        EndpointField::Signature => to.signature = std::mem::take(&mut from.signature),
        EndpointField::RotationPeriod => to.rotation.period = from.rotation.period,
        EndpointField::RotationGrace => to.rotation.grace = from.rotation.grace,
        EndpointField::Alerts => to.alerts = from.alerts.take(),
    }
}

const fn field_of(setting: SealedSetting) -> EndpointField {
    match setting {
        SealedSetting::Headers => EndpointField::Headers,
        SealedSetting::Authentication => EndpointField::Authentication,
        SealedSetting::ClientCertificate => EndpointField::ClientCertificate,
        SealedSetting::Alerts => EndpointField::Alerts,
    }
}

/// A value that was shown redacted and comes back so is the stored one.
fn keep_redacted(new: &mut [CustomHeader], stored: &EndpointSettings) -> Result<()> {
    for header in new.iter_mut().filter(|header| header.value == REDACTED) {
        let old = stored.headers.iter().find(|old| old.name.eq_ignore_ascii_case(&header.name));
        let old = old.ok_or_else(|| {
            let field = format!("endpoint.headers[{:?}]", header.name);
            Error::invalid(field, "is redacted, and there is no stored one to keep; give the value")
        })?;
        header.value.clone_from(&old.value);
    }
    Ok(())
}

pub(super) fn uid_taken(error: StoreError, endpoint: &Endpoint) -> Error {
    match error.unique_violation() {
        Some(_) => {
            Error::new(ErrorKind::AlreadyExists, "UID_TAKEN", "another endpoint of the project has this uid")
                .about("endpoint", endpoint.settings.uid.as_deref().unwrap_or_default())
        }
        None => error.into(),
    }
}

pub(super) async fn audit(
    tx: &Tx,
    principal: &Principal,
    action: &'static str,
    before: Option<&Endpoint>,
    after: Option<&Endpoint>,
) -> Result<()> {
    Ok(tx.audit(audit_entry(principal, action, before, after)).await?)
}

pub(super) fn audit_entry<'a>(
    principal: &'a Principal,
    action: &'static str,
    before: Option<&Endpoint>,
    after: Option<&Endpoint>,
) -> AuditEntry<'a> {
    let resource = after.or(before).map(|endpoint| endpoint.id.to_string()).unwrap_or_default();
    let project = after.or(before).map(|endpoint| endpoint.project);
    let (before, after) = (before.map(summary), after.map(summary));
    AuditEntry { principal, project, action, resource, before, after }
}

/// An endpoint for the audit log: header names without values, credentials without their secrets.
fn summary(endpoint: &Endpoint) -> String {
    let settings = &endpoint.settings;
    let names: Vec<&str> = settings.headers.iter().map(|header| header.name.as_str()).collect();
    serde_json::json!({
        "uid": settings.uid,
        "name": settings.name,
        "url": settings.url,
        "description": settings.description,
        "owner_id": settings.owner_id,
        "labels": settings.labels,
        "http_timeout_ms": settings.http_timeout.map(|timeout| timeout.as_millis()),
        "retry_policy": settings.retry_policy,
        "disable_policy": settings.disable_policy,
        "headers": names,
        "max_in_flight": settings.max_in_flight,
        "content_type": settings.content_type.as_str(),
        "rate_limit": settings.rate_limit,
        "authentication": settings.authentication,
        "mtls_client_cert": settings.client_certificate,
        "ca_certificate": settings.authorities,
        "signature": settings.signature,
        "rotation": settings.rotation,
        "alerts": settings.alerts,
        "status": endpoint.status.as_str(),
        "status_reason": endpoint.status_reason,
    })
    .to_string()
}
