//! Rotation of secrets, by hand and by itself; and the audit log's indexes for who reads it.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for column in [
            // Null: only by hand.
            ColumnDef::new("rotation_period_ms").big_integer().to_owned(),
            // 24 hours.
            ColumnDef::new("rotation_grace_ms").big_integer().not_null().default(86_400_000).to_owned(),
            ColumnDef::new("rotation_due_at").big_integer().to_owned(),
        ] {
            let alter = Table::alter().table("endpoints").add_column(column).to_owned();
            manager.alter_table(alter).await?;
        }
        let due = Index::create()
            .name("endpoints_rotation")
            .table("endpoints")
            .col("rotation_due_at")
            .cond_where(Expr::col("rotation_due_at").is_not_null())
            .to_owned();
        manager.create_index(due).await?;

        let requests = Table::create()
            .table("rotation_requests")
            .col(ColumnDef::new("project_id").uuid().not_null())
            .col(ColumnDef::new("request_id").uuid().not_null())
            .col(ColumnDef::new("endpoint_id").uuid().not_null())
            // Keyed, because a request may hold a secret.
            .col(ColumnDef::new("content_hash").binary().not_null())
            .col(ColumnDef::new("reply_sealed").binary().not_null())
            .col(ColumnDef::new("expires_at").big_integer().not_null())
            .primary_key(Index::create().name("rotation_requests_pkey").col("project_id").col("request_id"))
            .to_owned();
        manager.create_table(requests).await?;
        for index in [
            Index::create()
                .name("rotation_requests_expiry")
                .table("rotation_requests")
                .col("expires_at")
                .to_owned(),
            Index::create()
                .name("rotation_requests_endpoint")
                .table("rotation_requests")
                .col("endpoint_id")
                .to_owned(),
            Index::create()
                .name("audit_events_resource")
                .table("audit_events")
                .col("resource")
                .col("id")
                .to_owned(),
            Index::create()
                .name("audit_events_action")
                .table("audit_events")
                .col("project_id")
                .col("action")
                .col("id")
                .to_owned(),
        ] {
            manager.create_index(index).await?;
        }
        Ok(())
    }
}
