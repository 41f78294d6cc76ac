//! Projects, API keys, the audit log, and facts about the store itself.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // The database's incarnation, the vault's canary, and the like.
        let meta = Table::create()
            .table("store_meta")
            .col(ColumnDef::new("name").text().not_null().primary_key())
            .col(ColumnDef::new("value").binary().not_null())
            .to_owned();
        manager.create_table(meta).await?;

        let projects = Table::create()
            .table("projects")
            .col(ColumnDef::new("id").uuid().not_null().primary_key())
            .col(ColumnDef::new("name").text().not_null())
            .col(ColumnDef::new("paused_policy").small_integer().not_null())
            // Bumped by every change of the project's endpoints or subscriptions, in that transaction.
            .col(ColumnDef::new("routing_version").big_integer().not_null().default(1))
            .col(ColumnDef::new("created_at").big_integer().not_null())
            .to_owned();
        manager.create_table(projects).await?;

        let api_keys = Table::create()
            .table("api_keys")
            .col(ColumnDef::new("id").uuid().not_null().primary_key())
            // Null for operator keys.
            .col(ColumnDef::new("project_id").uuid())
            .col(ColumnDef::new("name").text().not_null())
            // SHA-256 of the secret part: 256 random bits need no slow hash.
            .col(ColumnDef::new("hash").binary().not_null())
            .col(ColumnDef::new("scopes").big_integer().not_null())
            .col(ColumnDef::new("created_at").big_integer().not_null())
            .col(ColumnDef::new("expires_at").big_integer())
            .col(ColumnDef::new("last_used_at").big_integer())
            .col(ColumnDef::new("revoked_at").big_integer())
            .to_owned();
        manager.create_table(api_keys).await?;
        let by_project =
            Index::create().name("api_keys_project").table("api_keys").col("project_id").col("id").to_owned();
        manager.create_index(by_project).await?;

        let audit = Table::create()
            .table("audit_events")
            .col(ColumnDef::new("id").uuid().not_null().primary_key())
            // Null where the operator acted on no project.
            .col(ColumnDef::new("project_id").uuid())
            .col(ColumnDef::new("key_id").uuid())
            .col(ColumnDef::new("action").text().not_null())
            .col(ColumnDef::new("resource").text().not_null())
            .col(ColumnDef::new("origin").text())
            .col(ColumnDef::new("before").text())
            .col(ColumnDef::new("after").text())
            .col(ColumnDef::new("created_at").big_integer().not_null())
            .to_owned();
        manager.create_table(audit).await?;
        let by_project = Index::create()
            .name("audit_events_project")
            .table("audit_events")
            .col("project_id")
            .col("id")
            .to_owned();
        manager.create_index(by_project).await
    }
}
