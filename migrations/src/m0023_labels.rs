//! Endpoints are found by their labels, and follow their project's timeout where they have none of their own.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::{ConnectionTrait, DbBackend};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // What `endpoints.labels` says, to be searched.
        let mut key = Index::create().name("endpoint_labels_pkey").to_owned();
        key.col("project_id").col("name").col("value").col("endpoint_id");
        let mut labels = Table::create()
            .table("endpoint_labels")
            .col(ColumnDef::new("project_id").uuid().not_null())
            .col(ColumnDef::new("name").text().not_null())
            .col(ColumnDef::new("value").text().not_null())
            .col(ColumnDef::new("endpoint_id").uuid().not_null())
            .primary_key(&mut key)
            .to_owned();
        let members = match manager.get_database_backend() {
            DbBackend::Postgres => "json_each_text(e.labels::json)",
            _ => {
                labels.extra("WITHOUT ROWID");
                "json_each(e.labels)"
            }
        };
        manager.create_table(labels).await?;
        let by_endpoint = Index::create()
            .name("endpoint_labels_endpoint")
            .table("endpoint_labels")
            .col("endpoint_id")
            .to_owned();
        manager.create_index(by_endpoint).await?;
        let db = manager.get_connection();
        let fill = format!(
            "INSERT INTO endpoint_labels (project_id, name, value, endpoint_id) \
             SELECT e.project_id, j.key, j.value, e.id FROM endpoints e, {members} j"
        );
        db.execute_unprepared(&fill).await?;

        // None: 15 s.
        let timeout = ColumnDef::new("http_timeout_ms").integer().to_owned();
        manager.alter_table(Table::alter().table("projects").add_column(timeout).to_owned()).await?;
        // 0 from now on: as the project says. Until now nobody could say that, and 15 s stood for it.
        db.execute_unprepared("UPDATE endpoints SET http_timeout_ms = 0 WHERE http_timeout_ms = 15000")
            .await?;
        Ok(())
    }
}
