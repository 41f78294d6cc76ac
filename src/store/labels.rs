//! Labels of endpoints, one row each, so that endpoints are found by them.

use std::collections::BTreeMap;

use sea_orm::sea_query::{Expr, ExprTrait, Query, SelectStatement};
use sea_orm::{Statement, Value};

use super::error::Result;
use super::rows::{Kind, Rows};
use super::tx::Tx;
use crate::domain::endpoint::Endpoint;
use crate::domain::id::{EndpointId, ProjectId};

impl Tx {
    /// Writes the labels of endpoints that have none written.
    pub(super) async fn insert_labels(&self, endpoints: &[&Endpoint]) -> Result<()> {
        let mut rows = Rows::new([
            ("project_id", Kind::Uuid),
            ("name", Kind::Text),
            ("value", Kind::Text),
            ("endpoint_id", Kind::Uuid),
        ]);
        for endpoint in endpoints {
            let (project, id) = (endpoint.project.uuid(), endpoint.id.uuid());
            for (name, value) in &endpoint.settings.labels {
                rows.push([project.into(), name.as_str().into(), value.as_str().into(), id.into()]);
            }
        }
        let sql = "INSERT INTO endpoint_labels (project_id, name, value, endpoint_id) \
                   SELECT project_id, name, value, endpoint_id FROM v";
        rows.execute(self.db(), sql).await?;
        Ok(())
    }

    pub(super) async fn delete_labels(&self, endpoint: EndpointId) -> Result<()> {
        let sql = "DELETE FROM endpoint_labels WHERE endpoint_id = $1";
        let values = [Value::from(endpoint.uuid())];
        self.db().execute_raw(Statement::from_sql_and_values(self.backend(), sql, values)).await?;
        Ok(())
    }
}

/// For each of these labels, the ids of the endpoints that have it.
pub(super) fn having(
    project: ProjectId,
    labels: &BTreeMap<String, String>,
) -> impl Iterator<Item = SelectStatement> {
    labels.iter().map(move |(name, value)| {
        Query::select()
            .column("endpoint_id")
            .from("endpoint_labels")
            .and_where(Expr::col("project_id").eq(project.uuid()))
            .and_where(Expr::col("name").eq(name.as_str()))
            .and_where(Expr::col("value").eq(value.as_str()))
            .to_owned()
    })
}
