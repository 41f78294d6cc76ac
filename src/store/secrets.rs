//! Signing secrets of endpoints, sealed.

use std::collections::HashMap;

use sea_orm::Statement;
use uuid::Uuid;

use super::Store;
use super::db::{Db, Row};
use super::error::{Result, StoreError};
use super::rows::{Kind, Rows};
use super::tx::Tx;
use super::vault::Place;
use crate::domain::clock::Timestamp;
use crate::domain::id::{EndpointId, ProjectId, SecretId};
use crate::domain::page::{Page, PageRequest};
use crate::domain::rotation::SecretInfo;
use crate::domain::secret::{LiveSecret, PublicKey, SecretKind, SigningSecret};

/// What endpoints sign with.
#[derive(Default)]
pub(super) struct LiveSecrets {
    pub secrets: HashMap<EndpointId, Vec<LiveSecret>>,
    /// Endpoints with one that does not open, and why.
    pub unopened: HashMap<EndpointId, StoreError>,
}

const COLUMNS: &str = "id, endpoint_id, kind, sealed, created_at, expires_at";

impl Tx {
    /// Keeps a new secret, which is the endpoint's current one.
    pub async fn insert_secret(
        &mut self,
        project: ProjectId,
        endpoint: EndpointId,
        secret: &SigningSecret,
        now: Timestamp,
    ) -> Result<SecretId> {
        self.reroute(endpoint);
        let id = SecretId::new();
        self.write_secrets(project, now, &[(id, endpoint, secret)]).await?;
        Ok(id)
    }

    /// Keeps secrets, each of which is its endpoint's current one.
    pub async fn write_secrets(
        &self,
        project: ProjectId,
        now: Timestamp,
        secrets: &[(SecretId, EndpointId, &SigningSecret)],
    ) -> Result<()> {
        let mut rows = Rows::new([
            ("id", Kind::Uuid),
            ("project_id", Kind::Uuid),
            ("endpoint_id", Kind::Uuid),
            ("kind", Kind::SmallInt),
            ("sealed", Kind::Bytes),
            ("created_at", Kind::BigInt),
        ]);
        for (id, endpoint, secret) in secrets {
            rows.push([
                id.uuid().into(),
                project.uuid().into(),
                endpoint.uuid().into(),
                secret.kind().code().into(),
                self.store().vault().seal(&place(project, *id), secret.stored())?.into(),
                now.as_millis().into(),
            ]);
        }
        let sql = "INSERT INTO secrets (id, project_id, endpoint_id, kind, sealed, created_at) \
                   SELECT id, project_id, endpoint_id, kind, sealed, created_at FROM v";
        rows.execute(self.db(), sql).await?;
        Ok(())
    }

    /// A secret with its value, as of this transaction.
    pub async fn secret(
        &self,
        project: ProjectId,
        id: SecretId,
    ) -> Result<Option<(SecretInfo, SigningSecret)>> {
        let sql = format!("SELECT {COLUMNS} FROM secrets WHERE project_id = $1 AND id = $2");
        let values = [project.uuid().into(), id.uuid().into()];
        let statement = Statement::from_sql_and_values(self.backend(), sql, values);
        let row = self.db().query_one_raw(statement).await?;
        row.map(|row| {
            let info = self.store().secret_of(project, &row)?;
            let sealed: Vec<u8> = row.try_get_by_index(3)?;
            Ok((info, self.store().open_secret(project, id, row.try_get_by_index(2)?, &sealed)?))
        })
        .transpose()
    }

    /// The same without the value, which need not open.
    pub async fn secret_info(&self, project: ProjectId, id: SecretId) -> Result<Option<SecretInfo>> {
        let sql = format!("SELECT {COLUMNS} FROM secrets WHERE project_id = $1 AND id = $2");
        let values = [project.uuid().into(), id.uuid().into()];
        let statement = Statement::from_sql_and_values(self.backend(), sql, values);
        let row = self.db().query_one_raw(statement).await?;
        row.map(|row| self.store().secret_of(project, &row)).transpose()
    }

    /// All secrets of an endpoint, in no particular order, as of this transaction.
    pub async fn secrets_of(&self, project: ProjectId, endpoint: EndpointId) -> Result<Vec<SecretInfo>> {
        let sql = format!("SELECT {COLUMNS} FROM secrets WHERE project_id = $1 AND endpoint_id = $2");
        let values = [project.uuid().into(), endpoint.uuid().into()];
        let statement = Statement::from_sql_and_values(self.backend(), sql, values);
        let rows = self.db().query_all_raw(statement).await?;
        rows.iter().map(|row| self.store().secret_of(project, row)).collect()
    }

    /// Says when a secret of an endpoint ends.
    pub async fn retire_secret(
        &mut self,
        endpoint: EndpointId,
        id: SecretId,
        expires_at: Timestamp,
    ) -> Result<()> {
        self.reroute(endpoint);
        let sql = "UPDATE secrets SET expires_at = $2 WHERE id = $1";
        let values = [id.uuid().into(), expires_at.as_millis().into()];
        self.db().execute_raw(Statement::from_sql_and_values(self.backend(), sql, values)).await?;
        Ok(())
    }

    /// Removes an endpoint's expired secrets but the newest so many.
    pub async fn forget_expired_secrets(
        &self,
        endpoint: EndpointId,
        now: Timestamp,
        kept: u32,
    ) -> Result<()> {
        let sql = "DELETE FROM secrets WHERE endpoint_id = $1 AND expires_at <= $2 AND id NOT IN \
                   (SELECT id FROM secrets WHERE endpoint_id = $1 AND expires_at <= $2 ORDER BY id DESC LIMIT $3)";
        let values = [endpoint.uuid().into(), now.as_millis().into(), i64::from(kept).into()];
        self.db().execute_raw(Statement::from_sql_and_values(self.backend(), sql, values)).await?;
        Ok(())
    }

    /// Of which kinds an endpoint's live secrets are, newest first.
    pub async fn secret_kinds(&self, endpoint: EndpointId, now: Timestamp) -> Result<Vec<SecretKind>> {
        let sql = "SELECT kind FROM secrets WHERE endpoint_id = $1 AND (expires_at IS NULL OR expires_at > $2) \
                   ORDER BY id DESC";
        let values = [endpoint.uuid().into(), now.as_millis().into()];
        let statement = Statement::from_sql_and_values(self.backend(), sql, values);
        let rows = self.db().query_all_raw(statement).await?;
        rows.iter().map(|row| kind_of(row.try_get_by_index(0)?)).collect()
    }
}

impl Store {
    /// An endpoint's secrets without their values, newest first.
    pub async fn secrets_of(
        &self,
        project: ProjectId,
        endpoint: EndpointId,
        page: PageRequest,
    ) -> Result<Page<SecretInfo>> {
        let sql = format!(
            "SELECT {COLUMNS} FROM secrets WHERE project_id = $1 AND endpoint_id = $2 AND id < $3 \
             ORDER BY id DESC LIMIT $4"
        );
        let values = [
            project.uuid().into(),
            endpoint.uuid().into(),
            page.after.unwrap_or(Uuid::max()).into(),
            i64::from(page.size + 1).into(),
        ];
        let statement = Statement::from_sql_and_values(self.backend(), sql, values);
        let rows = self.reader().query_all_raw(statement).await?;
        let secrets = rows.iter().map(|row| self.secret_of(project, row)).collect::<Result<Vec<_>>>()?;
        Ok(Page::from_rows(secrets, page.size, |secret| secret.id.uuid()))
    }

    /// A row of [`COLUMNS`] without its value.
    fn secret_of(&self, project: ProjectId, row: &Row) -> Result<SecretInfo> {
        let id = SecretId::from_uuid(row.try_get_by_index(0)?);
        let kind = kind_of(row.try_get_by_index(2)?)?;
        let public_key = match kind {
            SecretKind::Ed25519 => {
                let sealed: Vec<u8> = row.try_get_by_index(3)?;
                match self.open_secret(project, id, kind.code(), &sealed) {
                    Ok(secret) => secret.public_key().map(|key| key.to_string()),
                    // It can be listed, retired and replaced all the same.
                    Err(error) if error.is_unreadable() => None,
                    Err(error) => return Err(error),
                }
            }
            SecretKind::Hmac | SecretKind::Text => None,
        };
        Ok(SecretInfo {
            id,
            endpoint: EndpointId::from_uuid(row.try_get_by_index(1)?),
            kind,
            public_key,
            created_at: Timestamp::from_millis(row.try_get_by_index(4)?),
            expires_at: row.try_get_by_index::<Option<i64>>(5)?.map(Timestamp::from_millis),
        })
    }

    /// Newest first, as signing wants them, the current one in front whatever the clocks of the nodes were. Expired ones
    /// are left out; what expires later is seen at signing. Those of the endpoints that changed since a routing version.
    pub(super) async fn live_secrets(
        &self,
        txn: Db<'_>,
        project: ProjectId,
        since: i64,
        now: Timestamp,
    ) -> Result<LiveSecrets> {
        let sql = "SELECT s.id, s.endpoint_id, s.kind, s.sealed, s.expires_at \
                   FROM endpoints e JOIN secrets s ON s.endpoint_id = e.id \
                   WHERE e.project_id = $1 AND e.routing_version > $2 AND (s.expires_at IS NULL OR s.expires_at > $3) \
                   ORDER BY CASE WHEN s.expires_at IS NULL THEN 0 ELSE 1 END, s.id DESC";
        let values = [project.uuid().into(), since.into(), now.as_millis().into()];
        let statement = Statement::from_sql_and_values(self.backend(), sql, values);
        self.live(project, txn.query_all_raw(statement).await?)
    }

    /// The same of one endpoint.
    pub async fn live_secrets_of(&self, project: ProjectId, endpoint: EndpointId) -> Result<Vec<LiveSecret>> {
        let sql = "SELECT id, endpoint_id, kind, sealed, expires_at FROM secrets \
                   WHERE project_id = $1 AND endpoint_id = $2 AND (expires_at IS NULL OR expires_at > $3) \
                   ORDER BY CASE WHEN expires_at IS NULL THEN 0 ELSE 1 END, id DESC";
        let now = Timestamp::now().as_millis();
        let values = [project.uuid().into(), endpoint.uuid().into(), now.into()];
        let statement = Statement::from_sql_and_values(self.backend(), sql, values);
        let mut live = self.live(project, self.reader().query_all_raw(statement).await?)?;
        match live.unopened.remove(&endpoint) {
            Some(error) => Err(error),
            None => Ok(live.secrets.remove(&endpoint).unwrap_or_default()),
        }
    }

    fn live(&self, project: ProjectId, rows: Vec<Row>) -> Result<LiveSecrets> {
        let mut live = LiveSecrets::default();
        for row in rows {
            let id = SecretId::from_uuid(row.try_get_by_index(0)?);
            let endpoint = EndpointId::from_uuid(row.try_get_by_index(1)?);
            let sealed: Vec<u8> = row.try_get_by_index(3)?;
            let expires_at = row.try_get_by_index::<Option<i64>>(4)?.map(Timestamp::from_millis);
            match self.open_secret(project, id, row.try_get_by_index(2)?, &sealed) {
                Ok(secret) => {
                    live.secrets.entry(endpoint).or_default().push(LiveSecret { id, secret, expires_at });
                }
                Err(error) if error.is_unreadable() => {
                    live.unopened.entry(endpoint).or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(live)
    }

    /// The public keys that an endpoint signs by now, newest first; whosever it is, because they are public.
    pub async fn public_keys(
        &self,
        endpoint: EndpointId,
        now: Timestamp,
    ) -> Result<Vec<(SecretId, PublicKey)>> {
        let sql = "SELECT id, project_id, sealed FROM secrets WHERE endpoint_id = $1 AND kind = $2 \
                   AND (expires_at IS NULL OR expires_at > $3) ORDER BY id DESC";
        let kind = SecretKind::Ed25519.code();
        let values = [endpoint.uuid().into(), kind.into(), now.as_millis().into()];
        let statement = Statement::from_sql_and_values(self.backend(), sql, values);
        let mut keys = Vec::new();
        for row in self.reader().query_all_raw(statement).await? {
            let id = SecretId::from_uuid(row.try_get_by_index(0)?);
            let project = ProjectId::from_uuid(row.try_get_by_index(1)?);
            let sealed: Vec<u8> = row.try_get_by_index(2)?;
            let secret = self.open_secret(project, id, kind, &sealed)?;
            keys.extend(secret.public_key().map(|key| (id, key)));
        }
        Ok(keys)
    }

    fn open_secret(
        &self,
        project: ProjectId,
        id: SecretId,
        kind: i16,
        sealed: &[u8],
    ) -> Result<SigningSecret> {
        let bytes = self.vault().open(&place(project, id), sealed)?;
        SigningSecret::from_stored(kind_of(kind)?, bytes.expose())
            .map_err(|_| StoreError::Corrupt(format!("the value of {id}")))
    }
}

/// The live secrets of these endpoints, in no particular order.
pub(super) async fn live_among(
    store: &Store,
    db: Db<'_>,
    project: ProjectId,
    endpoints: &[EndpointId],
) -> Result<HashMap<EndpointId, Vec<LiveSecret>>> {
    let mut rows = Rows::new([("id", Kind::Uuid), ("now", Kind::BigInt)]);
    for endpoint in endpoints {
        rows.push([endpoint.uuid().into(), Timestamp::now().as_millis().into()]);
    }
    let sql = "SELECT s.id, s.endpoint_id, s.kind, s.sealed, s.expires_at FROM v JOIN secrets s \
               ON s.endpoint_id = v.id WHERE s.expires_at IS NULL OR s.expires_at > v.now";
    // One that does not open is nobody's.
    Ok(store.live(project, rows.query(db, sql).await?)?.secrets)
}

fn kind_of(code: i16) -> Result<SecretKind> {
    SecretKind::from_code(code).ok_or_else(|| StoreError::Corrupt("the kind of a signing secret".to_owned()))
}

/// Where a sealed signing secret lives.
fn place(project: ProjectId, secret: SecretId) -> Place {
    Place { table: "secrets", column: "sealed", row: secret.uuid(), project: Some(project) }
}
