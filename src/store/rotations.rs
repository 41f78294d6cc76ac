//! Rotations: when an endpoint's next is due, and the replies kept for who repeats a request.

use std::time::Duration;

use sea_orm::{Statement, Value};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::Store;
use super::db::Row;
use super::error::{Result, StoreError};
use super::tx::Tx;
use super::vault::Place;
use crate::domain::clock::Timestamp;
use crate::domain::id::{EndpointId, ProjectId};
use crate::domain::rotation::SecretInfo;

/// What a rotation answered, as it is kept, sealed.
#[derive(serde::Serialize, serde::Deserialize)]
pub struct KeptReply {
    pub secret: SecretInfo,
    pub previous: SecretInfo,
    /// The new secret's text.
    pub value: Zeroizing<String>,
}

/// A request that was made before.
pub struct EarlierRequest {
    pub content_hash: Vec<u8>,
    pub reply: KeptReply,
}

impl Tx {
    /// Says when the endpoint's secret rotates by itself; none: never.
    pub async fn set_rotation_due(&self, endpoint: EndpointId, due: Option<Timestamp>) -> Result<()> {
        let sql = "UPDATE endpoints SET rotation_due_at = $2 WHERE id = $1";
        let values = [Value::from(endpoint.uuid()), due.map(Timestamp::as_millis).into()];
        self.db().execute_raw(Statement::from_sql_and_values(self.backend(), sql, values)).await?;
        Ok(())
    }

    /// When the endpoint's secret rotates by itself, as of this transaction.
    pub async fn rotation_due(&self, endpoint: EndpointId) -> Result<Option<Timestamp>> {
        let statement = rotation_due(self.backend(), endpoint);
        due_of(self.db().query_one_raw(statement).await?)
    }

    /// A request with this id that is not forgotten yet.
    pub async fn rotation_request(
        &self,
        project: ProjectId,
        request: Uuid,
        now: Timestamp,
    ) -> Result<Option<EarlierRequest>> {
        let sql = "SELECT content_hash, reply_sealed FROM rotation_requests \
                   WHERE project_id = $1 AND request_id = $2 AND expires_at > $3";
        let values = [project.uuid().into(), request.into(), now.as_millis().into()];
        let statement = Statement::from_sql_and_values(self.backend(), sql, values);
        let Some(row) = self.db().query_one_raw(statement).await? else { return Ok(None) };
        let sealed: Vec<u8> = row.try_get_by_index(1)?;
        let json = self.store().vault().open(&place(project, request), &sealed)?;
        let reply = serde_json::from_slice(json.expose())
            .map_err(|_| StoreError::Corrupt("the reply of a rotation".to_owned()))?;
        Ok(Some(EarlierRequest { content_hash: row.try_get_by_index(0)?, reply }))
    }

    /// How many requests of an endpoint are remembered.
    pub async fn rotation_requests(&self, endpoint: EndpointId, now: Timestamp) -> Result<i64> {
        let sql = "SELECT COUNT(*) FROM rotation_requests WHERE endpoint_id = $1 AND expires_at > $2";
        let values = [endpoint.uuid().into(), now.as_millis().into()];
        let statement = Statement::from_sql_and_values(self.backend(), sql, values);
        let row = self.db().query_one_raw(statement).await?;
        Ok(row.map(|row| row.try_get_by_index(0)).transpose()?.unwrap_or_default())
    }

    /// Remembers a request with its reply for so long. One with the same id whose time is up goes.
    pub async fn keep_rotation_request(
        &self,
        project: ProjectId,
        request: Uuid,
        content_hash: [u8; 32],
        reply: &KeptReply,
        now: Timestamp,
        kept: Duration,
    ) -> Result<()> {
        let sql = "DELETE FROM rotation_requests WHERE project_id = $1 AND request_id = $2";
        let values = [Value::from(project.uuid()), request.into()];
        self.db().execute_raw(Statement::from_sql_and_values(self.backend(), sql, values)).await?;
        let json = serde_json::to_vec(reply).map(Zeroizing::new);
        let json = json.map_err(|_| StoreError::Corrupt("the reply of a rotation".to_owned()))?;
        let sealed = self.store().vault().seal(&place(project, request), &json)?;
        let sql = "INSERT INTO rotation_requests \
                   (project_id, request_id, endpoint_id, content_hash, reply_sealed, expires_at) \
                   VALUES ($1, $2, $3, $4, $5, $6)";
        let values = [
            Value::from(project.uuid()),
            request.into(),
            reply.secret.endpoint.uuid().into(),
            content_hash.to_vec().into(),
            sealed.into(),
            now.plus(kept).as_millis().into(),
        ];
        self.db().execute_raw(Statement::from_sql_and_values(self.backend(), sql, values)).await?;
        Ok(())
    }
}

impl Store {
    /// When the endpoint's secret rotates by itself.
    pub async fn rotation_due(&self, endpoint: EndpointId) -> Result<Option<Timestamp>> {
        let statement = rotation_due(self.backend(), endpoint);
        due_of(self.reader().query_one_raw(statement).await?)
    }

    /// The endpoints whose secrets rotate next, and when; the first of them first.
    pub async fn next_rotations(&self, limit: u32) -> Result<Vec<(Timestamp, ProjectId, EndpointId)>> {
        let sql = "SELECT rotation_due_at, project_id, id FROM endpoints WHERE rotation_due_at IS NOT NULL \
                   ORDER BY rotation_due_at LIMIT $1";
        let values = [i64::from(limit).into()];
        let statement = Statement::from_sql_and_values(self.backend(), sql, values);
        let rows = self.own_reader().query_all_raw(statement).await?;
        rows.iter()
            .map(|row| {
                Ok((
                    Timestamp::from_millis(row.try_get_by_index(0)?),
                    ProjectId::from_uuid(row.try_get_by_index(1)?),
                    EndpointId::from_uuid(row.try_get_by_index(2)?),
                ))
            })
            .collect()
    }
}

fn rotation_due(backend: sea_orm::DbBackend, endpoint: EndpointId) -> Statement {
    let sql = "SELECT rotation_due_at FROM endpoints WHERE id = $1";
    Statement::from_sql_and_values(backend, sql, [endpoint.uuid().into()])
}

fn due_of(row: Option<Row>) -> Result<Option<Timestamp>> {
    let due: Option<i64> = row.map(|row| row.try_get_by_index(0)).transpose()?.flatten();
    Ok(due.map(Timestamp::from_millis))
}

/// Where a sealed reply lives.
fn place(project: ProjectId, request: Uuid) -> Place {
    Place { table: "rotation_requests", column: "reply_sealed", row: request, project: Some(project) }
}
