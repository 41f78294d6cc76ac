//! What a project's operational webhook is signed with: its current secret and those that retire, sealed together.

use sea_orm::{Statement, Value};
use zeroize::Zeroizing;

use super::credentials::read;
use super::error::{Result, StoreError};
use super::routes::policy_of;
use super::tx::Tx;
use super::vault::Place;
use crate::domain::alert::OperationalWebhook;
use crate::domain::clock::Timestamp;
use crate::domain::id::{ProjectId, SecretId};
use crate::domain::secret::{LiveSecret, SigningSecret};

/// Where operational alerts go, and what signs them: newest first, as signing wants them.
pub struct OperationalTarget {
    pub url: String,
    pub secrets: Vec<LiveSecret>,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct StoredSecret {
    id: SecretId,
    /// Its text.
    value: Zeroizing<String>,
    expires_at: Option<Timestamp>,
}

impl Tx {
    /// The secrets of the project's webhook, newest first, as of this transaction.
    pub async fn operational_secrets(&self, project: ProjectId) -> Result<Vec<LiveSecret>> {
        let sql = "SELECT operational_secrets_sealed FROM projects WHERE id = $1";
        let statement = Statement::from_sql_and_values(self.backend(), sql, [project.uuid().into()]);
        let row = self.db().query_one_raw(statement).await?;
        let sealed: Option<Vec<u8>> = row.map(|row| row.try_get_by_index(0)).transpose()?.flatten();
        self.open_operational(project, sealed)
    }

    /// Whether the project's webhook has secrets, also where they do not open.
    pub async fn has_operational_secrets(&self, project: ProjectId) -> Result<bool> {
        let sql = "SELECT 1 FROM projects WHERE id = $1 AND operational_secrets_sealed IS NOT NULL";
        let statement = Statement::from_sql_and_values(self.backend(), sql, [project.uuid().into()]);
        Ok(self.db().query_one_raw(statement).await?.is_some())
    }

    /// Keeps these secrets in place of those before; none where there are none.
    pub async fn set_operational_secrets(&self, project: ProjectId, secrets: &[LiveSecret]) -> Result<()> {
        let stored: Vec<StoredSecret> = secrets
            .iter()
            .map(|live| StoredSecret {
                id: live.id,
                value: live.secret.reveal(),
                expires_at: live.expires_at,
            })
            .collect();
        let sealed = match stored.is_empty() {
            true => None,
            false => Some(self.store().seal_json(&place(project), &stored)?),
        };
        let sql = "UPDATE projects SET operational_secrets_sealed = $2 WHERE id = $1";
        let values = [Value::from(project.uuid()), sealed.into()];
        self.db().execute_raw(Statement::from_sql_and_values(self.backend(), sql, values)).await?;
        Ok(())
    }

    /// Where the project's operational alerts go now; or why nowhere.
    pub(super) async fn operational_target(
        &self,
        project: ProjectId,
    ) -> Result<Result<OperationalTarget, &'static str>> {
        let sql = "SELECT operational_webhook, operational_secrets_sealed FROM projects WHERE id = $1";
        let statement = Statement::from_sql_and_values(self.backend(), sql, [project.uuid().into()]);
        let gone = "the project has no operational webhook any more";
        let Some(row) = self.db().query_one_raw(statement).await? else { return Ok(Err(gone)) };
        let webhook: Option<OperationalWebhook> = match policy_of(row.try_get_by_index(0)?) {
            // The alerts of other projects go on.
            Err(error) if error.is_unreadable() => return Ok(Err("the operational webhook does not read")),
            webhook => webhook?,
        };
        let Some(webhook) = webhook else { return Ok(Err(gone)) };
        Ok(match self.open_operational(project, row.try_get_by_index(1)?) {
            Ok(secrets) => Ok(OperationalTarget { url: webhook.url, secrets }),
            Err(_) => Err("the webhook's secrets do not open: they were sealed with another key"),
        })
    }

    fn open_operational(&self, project: ProjectId, sealed: Option<Vec<u8>>) -> Result<Vec<LiveSecret>> {
        let Some(sealed) = sealed else { return Ok(Vec::new()) };
        let json = self.store().vault().open(&place(project), &sealed)?;
        let stored: Vec<StoredSecret> = read("operational secrets", json.expose())?;
        stored
            .into_iter()
            .map(|one| {
                let secret = SigningSecret::parse(&one.value)
                    .map_err(|_| StoreError::Corrupt(format!("an operational secret of {project}")))?;
                Ok(LiveSecret { id: one.id, secret, expires_at: one.expires_at })
            })
            .collect()
    }
}

fn place(project: ProjectId) -> Place {
    let (table, column) = ("projects", "operational_secrets_sealed");
    Place { table, column, row: project.uuid(), project: Some(project) }
}
