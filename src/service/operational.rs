//! The secret of a project's operational webhook: made with the webhook, shown again, rotated.

use std::time::Duration;

use zeroize::Zeroizing;

use super::{Services, found};
use crate::domain::clock::Timestamp;
use crate::domain::error::{Error, ErrorKind, Result};
use crate::domain::id::{ProjectId, SecretId};
use crate::domain::principal::Principal;
use crate::domain::project::Project;
use crate::domain::rotation::{GRACE, LIVE_MAX};
use crate::domain::secret::{LiveSecret, SecretKind, SigningSecret};
use crate::store::{AuditEntry, Lane, Tx};

/// Gives a webhook that has no secret its first one, and takes those of a webhook that is gone. Returns what was made.
pub(super) async fn align_secrets(tx: &Tx, project: &Project) -> Result<Option<SigningSecret>> {
    let has_secrets = tx.has_operational_secrets(project.id).await?;
    match (&project.settings.operational_webhook, has_secrets) {
        (Some(_), false) => {
            let secret = SigningSecret::generate(SecretKind::Hmac);
            tx.set_operational_secrets(project.id, &[current(secret.clone())]).await?;
            Ok(Some(secret))
        }
        (None, true) => {
            tx.set_operational_secrets(project.id, &[]).await?;
            Ok(None)
        }
        _ => Ok(None),
    }
}

impl Services {
    /// The webhook's current secret, once it is written down who saw it.
    pub async fn reveal_operational_secret(
        &self,
        principal: &Principal,
        id: ProjectId,
    ) -> Result<Zeroizing<String>> {
        principal.require_operator()?;
        let tx = self.store.begin(Lane::Service).await?;
        found(tx.project(id).await?, "project", id)?;
        let secrets = tx.operational_secrets(id).await?;
        let newest = secrets.first().ok_or_else(|| no_webhook(id))?;
        let value = newest.secret.reveal();
        audit(&tx, principal, id, "RevealOperationalSecret", newest.id).await?;
        self.commit(tx, async { Ok(value) }).await
    }

    /// A new secret; the one before signs along for the grace.
    pub async fn rotate_operational_secret(
        &self,
        principal: &Principal,
        id: ProjectId,
        grace: Option<Duration>,
    ) -> Result<Zeroizing<String>> {
        principal.require_operator()?;
        let mut tx = self.store.begin(Lane::Service).await?;
        found(tx.project(id).await?, "project", id)?;
        // It waits for other changes of the project, so that what is read after it is the newest.
        let version = tx.bump_routing(id).await?;
        let now = Timestamp::now();
        let mut secrets = tx.operational_secrets(id).await?;
        secrets.retain(|live| live.is_live(now));
        let newest = secrets.first_mut().ok_or_else(|| no_webhook(id))?;
        newest.expires_at = Some(now.plus(grace.unwrap_or(GRACE)));
        secrets.retain(|live| live.is_live(now));
        if secrets.len() >= LIVE_MAX {
            let message = format!("{LIVE_MAX} secrets of its webhook are live already");
            return Err(Error::new(ErrorKind::FailedPrecondition, super::rotation::TOO_MANY, message)
                .about("project", id));
        }
        let secret = SigningSecret::generate(SecretKind::Hmac);
        let value = secret.reveal();
        secrets.insert(0, current(secret));
        tx.set_operational_secrets(id, &secrets).await?;
        audit(&tx, principal, id, "RotateOperationalSecret", secrets[0].id).await?;
        self.commit_routes(tx, id, version).await?;
        Ok(value)
    }
}

fn current(secret: SigningSecret) -> LiveSecret {
    LiveSecret { id: SecretId::new(), secret, expires_at: None }
}

fn no_webhook(id: ProjectId) -> Error {
    let message = "the project has no operational webhook";
    Error::new(ErrorKind::FailedPrecondition, "NO_OPERATIONAL_WEBHOOK", message).about("project", id)
}

async fn audit(
    tx: &Tx,
    principal: &Principal,
    id: ProjectId,
    action: &'static str,
    secret: SecretId,
) -> Result<()> {
    let after = serde_json::json!({ "secret_id": secret.to_string() }).to_string();
    let entry = AuditEntry {
        principal,
        project: Some(id),
        action,
        resource: id.to_string(),
        before: None,
        after: Some(after),
    };
    Ok(tx.audit(entry).await?)
}
