//! Signing secrets: which fit an endpoint, listing, revealing and expiring them.

use super::{Services, found};
use crate::domain::clock::Timestamp;
use crate::domain::error::{Error, ErrorKind, Result};
use crate::domain::id::{EndpointId, ProjectId, SecretId};
use crate::domain::page::{Page, PageRequest};
use crate::domain::principal::{Principal, Scope};
use crate::domain::rotation::{SecretInfo, SecretState};
use crate::domain::secret::{PublicKey, SecretKind, SigningSecret};
use crate::domain::signature::SignatureSettings;
use crate::store::{AuditEntry, Lane, Tx};

/// A secret that a caller gives, or has made.
#[derive(Clone)]
pub enum NewSecret {
    Given(SigningSecret),
    /// Of the usual kind where none is named.
    Make(Option<SecretKind>),
}

impl NewSecret {
    pub(super) fn or_make(self, usual: SecretKind) -> SigningSecret {
        match self {
            Self::Given(secret) => secret,
            Self::Make(kind) => SigningSecret::generate(kind.unwrap_or(usual)),
        }
    }
}

impl Services {
    /// An endpoint's secrets, newest first, and when the next rotation by itself is due.
    pub async fn list_secrets(
        &self,
        principal: &Principal,
        project: Option<ProjectId>,
        endpoint: EndpointId,
        page: PageRequest,
    ) -> Result<(Page<SecretInfo>, Option<Timestamp>)> {
        let project = self.project_of(principal, project, Scope::EndpointsRead).await?;
        found(self.store.endpoint(project, endpoint).await?, "endpoint", endpoint)?;
        let secrets = self.store.secrets_of(project, endpoint, page).await?;
        Ok((secrets, self.store.rotation_due(endpoint).await?))
    }

    /// The public keys that an endpoint signs by now. Nobody need be anyone to see them.
    pub async fn public_keys(&self, endpoint: EndpointId) -> Result<Vec<(SecretId, PublicKey)>> {
        Ok(self.store.public_keys(endpoint, Timestamp::now()).await?)
    }

    /// The value of a live secret, once it is written down who saw it.
    pub async fn reveal_secret(
        &self,
        principal: &Principal,
        project: Option<ProjectId>,
        id: SecretId,
    ) -> Result<(SecretInfo, SigningSecret)> {
        let project = self.project_of(principal, project, Scope::SecretsReveal).await?;
        let tx = self.store.begin(Lane::Service).await?;
        let (secret, value) = found(tx.secret(project, id).await?, "secret", id)?;
        if !secret.is_live(Timestamp::now()) {
            let message = "it has expired, and is not shown any more";
            return Err(precondition(id, "SECRET_EXPIRED", message));
        }
        audit(&tx, principal, project, "RevealSecret", None, &secret, None).await?;
        self.commit(tx, async { Ok((secret, value)) }).await
    }

    /// Ends a retiring secret now.
    pub async fn expire_secret(
        &self,
        principal: &Principal,
        project: Option<ProjectId>,
        id: SecretId,
    ) -> Result<SecretInfo> {
        let project = self.project_of(principal, project, Scope::EndpointsWrite).await?;
        let mut tx = self.store.begin(Lane::Service).await?;
        let version = tx.bump_routing(project).await?;
        let now = Timestamp::now();
        let before = found(tx.secret_info(project, id).await?, "secret", id)?;
        match before.state(now) {
            SecretState::Expired => {
                tx.rollback().await?;
                return Ok(before);
            }
            SecretState::Current => {
                let message = "it is the current one, and the endpoint needs one; rotate first";
                return Err(precondition(id, "SECRET_CURRENT", message));
            }
            SecretState::Retiring => {}
        }
        tx.retire_secret(before.endpoint, id, now).await?;
        let after = SecretInfo { expires_at: Some(now), ..before.clone() };
        audit(&tx, principal, project, "ExpireSecret", Some(&before), &after, None).await?;
        self.commit_routes(tx, project, version).await?;
        Ok(after)
    }
}

/// Whether a new secret can sign by these settings.
pub(super) fn check_fit(settings: &SignatureSettings, secret: &SigningSecret) -> Result<()> {
    settings.takes(secret.kind()).map_err(|why| Error::invalid("secret", why))
}

/// Whether all live secrets of an endpoint could sign by new settings.
pub(super) fn check_fits_all(
    endpoint: EndpointId,
    settings: &SignatureSettings,
    live: &[SecretKind],
) -> Result<()> {
    for kind in live {
        settings.takes(*kind).map_err(|why| {
            let message = format!("{why}; rotate to one that fits both, and expire the others first");
            Error::new(ErrorKind::FailedPrecondition, "SECRET_UNFIT", message).about("endpoint", endpoint)
        })?;
    }
    Ok(())
}

fn precondition(id: SecretId, reason: &'static str, message: &str) -> Error {
    Error::new(ErrorKind::FailedPrecondition, reason, message).about("secret", id)
}

/// Writes down what was done with a secret, without its value. Rotations are of the endpoint, all else of the secret.
pub(super) async fn audit(
    tx: &Tx,
    principal: &Principal,
    project: ProjectId,
    action: &'static str,
    before: Option<&SecretInfo>,
    after: &SecretInfo,
    note: Option<&str>,
) -> Result<()> {
    let summary = |secret: &SecretInfo| {
        serde_json::json!({
            "secret_id": secret.id.to_string(),
            "endpoint_id": secret.endpoint.to_string(),
            "type": secret.kind.as_str(),
            "public_key": secret.public_key,
            "expires_at_ms": secret.expires_at.map(Timestamp::as_millis),
            "note": note,
        })
        .to_string()
    };
    let is_of_endpoint = action.ends_with("RotateSecret");
    let resource = if is_of_endpoint { after.endpoint.to_string() } else { after.id.to_string() };
    let (before, after) = (before.map(summary), Some(summary(after)));
    let entry = AuditEntry { principal, project: Some(project), action, resource, before, after };
    Ok(tx.audit(entry).await?)
}
