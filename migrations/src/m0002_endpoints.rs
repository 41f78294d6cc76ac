//! Endpoints, their health, their signing secrets and their subscriptions.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let endpoints = Table::create()
            .table("endpoints")
            .col(ColumnDef::new("id").uuid().not_null().primary_key())
            .col(ColumnDef::new("project_id").uuid().not_null())
            .col(ColumnDef::new("uid").text())
            .col(ColumnDef::new("name").text().not_null())
            .col(ColumnDef::new("url").text().not_null())
            .col(ColumnDef::new("description").text().not_null())
            .col(ColumnDef::new("owner_id").text())
            .col(ColumnDef::new("labels").text().not_null())
            .col(ColumnDef::new("http_timeout_ms").integer().not_null())
            .col(ColumnDef::new("retry_policy").text())
            // Custom headers may hold credentials.
            .col(ColumnDef::new("headers_sealed").binary())
            .col(ColumnDef::new("status").small_integer().not_null())
            .col(ColumnDef::new("status_reason").text().not_null())
            .col(ColumnDef::new("status_changed_at").big_integer().not_null())
            .col(ColumnDef::new("version").big_integer().not_null())
            .col(ColumnDef::new("created_at").big_integer().not_null())
            .col(ColumnDef::new("updated_at").big_integer().not_null())
            .to_owned();
        manager.create_table(endpoints).await?;
        for index in [
            Index::create()
                .name("endpoints_project")
                .table("endpoints")
                .col("project_id")
                .col("id")
                .to_owned(),
            Index::create()
                .name("endpoints_owner")
                .table("endpoints")
                .col("project_id")
                .col("owner_id")
                .col("id")
                .to_owned(),
            // Nulls do not collide, so endpoints without a uid are free.
            Index::create()
                .name("endpoints_uid")
                .table("endpoints")
                .col("project_id")
                .col("uid")
                .unique()
                .to_owned(),
        ] {
            manager.create_index(index).await?;
        }

        // Apart from `endpoints`, because attempts write here and people write there. A healthy endpoint
        // has no row, or an unchanging one.
        let health = Table::create()
            .table("endpoint_health")
            .col(ColumnDef::new("endpoint_id").uuid().not_null().primary_key())
            .col(ColumnDef::new("project_id").uuid().not_null())
            .col(ColumnDef::new("consecutive_failures").integer().not_null())
            .col(ColumnDef::new("failing_since").big_integer())
            .to_owned();
        manager.create_table(health).await?;

        let secrets = Table::create()
            .table("secrets")
            .col(ColumnDef::new("id").uuid().not_null().primary_key())
            .col(ColumnDef::new("project_id").uuid().not_null())
            .col(ColumnDef::new("endpoint_id").uuid().not_null())
            .col(ColumnDef::new("sealed").binary().not_null())
            .col(ColumnDef::new("created_at").big_integer().not_null())
            .col(ColumnDef::new("expires_at").big_integer())
            .to_owned();
        manager.create_table(secrets).await?;
        let by_endpoint =
            Index::create().name("secrets_endpoint").table("secrets").col("endpoint_id").col("id").to_owned();
        manager.create_index(by_endpoint).await?;
        let by_project =
            Index::create().name("secrets_project").table("secrets").col("project_id").to_owned();
        manager.create_index(by_project).await?;

        let subscriptions = Table::create()
            .table("subscriptions")
            .col(ColumnDef::new("id").uuid().not_null().primary_key())
            .col(ColumnDef::new("project_id").uuid().not_null())
            .col(ColumnDef::new("endpoint_id").uuid().not_null())
            .col(ColumnDef::new("event_types").text().not_null())
            .col(ColumnDef::new("enabled").boolean().not_null())
            .col(ColumnDef::new("version").big_integer().not_null())
            .col(ColumnDef::new("created_at").big_integer().not_null())
            .col(ColumnDef::new("updated_at").big_integer().not_null())
            .to_owned();
        manager.create_table(subscriptions).await?;
        for index in [
            Index::create()
                .name("subscriptions_project")
                .table("subscriptions")
                .col("project_id")
                .col("id")
                .to_owned(),
            Index::create()
                .name("subscriptions_endpoint")
                .table("subscriptions")
                .col("endpoint_id")
                .col("id")
                .to_owned(),
        ] {
            manager.create_index(index).await?;
        }
        Ok(())
    }
}
