//! Client certificates of endpoints that end soon: each end is warned of a few times, and each time once, however many
//! nodes look.

use sea_orm::Statement;

use super::Store;
use super::error::Result;
use super::tx::Tx;
use crate::domain::alert::{AlertDetail, AlertEvent, CERTIFICATE_WARNINGS};
use crate::domain::clock::Timestamp;
use crate::domain::id::{EndpointId, ProjectId};

impl Store {
    /// Endpoints whose certificate's end is to be warned of; those that end first, first.
    pub async fn ending_certificates(
        &self,
        now: Timestamp,
        limit: u32,
    ) -> Result<Vec<(ProjectId, EndpointId)>> {
        let sql = format!(
            "SELECT project_id, id FROM endpoints WHERE {} ORDER BY certificate_ends_at LIMIT {limit}",
            due_sql(now)
        );
        let rows = self.own_reader().query_all_raw(Statement::from_string(self.backend(), sql)).await?;
        rows.iter()
            .map(|row| {
                Ok((
                    ProjectId::from_uuid(row.try_get_by_index(0)?),
                    EndpointId::from_uuid(row.try_get_by_index(1)?),
                ))
            })
            .collect()
    }
}

impl Tx {
    /// Warns of the end of an endpoint's certificate, unless another node did meanwhile.
    pub async fn warn_of_certificate(
        &mut self,
        project: ProjectId,
        id: EndpointId,
        now: Timestamp,
    ) -> Result<()> {
        let sql = format!(
            "UPDATE endpoints SET certificate_warned_at = $2, certificate_warned_of = certificate_ends_at \
             WHERE id = $1 AND {}",
            due_sql(now)
        );
        let values = [id.uuid().into(), now.as_millis().into()];
        let statement = Statement::from_sql_and_values(self.backend(), sql, values);
        if self.db().execute_raw(statement).await? == 0 {
            return Ok(());
        }
        let endpoint = match self.endpoint(project, id).await {
            // Noted all the same: or it would be looked at for ever, before those that end later.
            Err(error) if error.is_unreadable() => {
                tracing::error!(endpoint = %id, error = %error, "the end of its certificate is not told");
                return Ok(());
            }
            endpoint => endpoint?,
        };
        let Some(endpoint) = endpoint else { return Ok(()) };
        let Some(own) = &endpoint.settings.client_certificate else {
            tracing::error!(endpoint = %id, "its certificate cannot be read: that it ends soon is not told");
            return Ok(());
        };
        let detail = AlertDetail::Certificate { subject: own.subject.clone(), ends_at: own.ends_at };
        self.raise(AlertEvent::CertificateExpiring, &endpoint, detail).await
    }
}

/// A condition on an endpoint: a time to warn has come since its certificate was last warned of, if ever.
fn due_sql(now: Timestamp) -> String {
    let stages = CERTIFICATE_WARNINGS.map(|before| {
        let (soon, before) = (now.plus(before).as_millis(), before.as_millis());
        format!(
            "(certificate_ends_at <= {soon} AND (certificate_warned_of IS NULL \
             OR certificate_warned_of <> certificate_ends_at \
             OR certificate_warned_at < certificate_ends_at - {before}))"
        )
    });
    // Said apart, so that an index leads past the certificates that are far from their end.
    let first = CERTIFICATE_WARNINGS.into_iter().max().unwrap_or_default();
    let soonest = now.plus(first).as_millis();
    format!("certificate_ends_at <= {soonest} AND ({})", stages.join(" OR "))
}
