//! Alerts: whom to tell what, what is still to be told, and what was told already.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for (table, column) in [
            // Sealed, because URLs of Slack and Teams let everyone who has them post. Null: as the project says.
            ("endpoints", ColumnDef::new("alerts_sealed").binary().to_owned()),
            // For endpoints that do not say. Null: nobody is told.
            ("projects", ColumnDef::new("alerts_sealed").binary().to_owned()),
            // The webhook that the project's owner is told by, as JSON; null where there is none.
            ("projects", ColumnDef::new("operational_webhook").text().to_owned()),
            // What it is signed with: the current secret and those that retire.
            ("projects", ColumnDef::new("operational_secrets_sealed").binary().to_owned()),
            // When its failing was told, and whether its recovery is still to be told.
            ("endpoint_health", ColumnDef::new("failing_told_at").big_integer().to_owned()),
            (
                "endpoint_health",
                ColumnDef::new("recovery_untold").small_integer().not_null().default(0).to_owned(),
            ),
            // When it was last told that a delivery used up its attempts.
            ("endpoint_health", ColumnDef::new("exhausted_told_at").big_integer().to_owned()),
            // When the end of its client certificate was last warned of, and which end that was.
            ("endpoints", ColumnDef::new("certificate_warned_at").big_integer().to_owned()),
            ("endpoints", ColumnDef::new("certificate_warned_of").big_integer().to_owned()),
        ] {
            let alter = Table::alter().table(table).add_column(column).to_owned();
            manager.alter_table(alter).await?;
        }
        let certificates = Index::create()
            .name("endpoints_certificate")
            .table("endpoints")
            .col("certificate_ends_at")
            .cond_where(Expr::col("certificate_ends_at").is_not_null())
            .to_owned();
        manager.create_index(certificates).await?;

        let alerts = Table::create()
            .table("alerts")
            .col(ColumnDef::new("id").uuid().not_null().primary_key())
            .col(ColumnDef::new("project_id").uuid().not_null())
            .col(ColumnDef::new("endpoint_id").uuid().not_null())
            .col(ColumnDef::new("channel").small_integer().not_null())
            // What is told, as JSON.
            .col(ColumnDef::new("body").text().not_null())
            // Where to; null where the project says, and once it is over.
            .col(ColumnDef::new("target_sealed").binary())
            .col(ColumnDef::new("status").small_integer().not_null())
            .col(ColumnDef::new("due_at").big_integer().not_null())
            .col(ColumnDef::new("attempts").small_integer().not_null())
            .col(ColumnDef::new("last_error").text())
            .col(ColumnDef::new("token").big_integer().not_null())
            .col(ColumnDef::new("claimed_by").uuid())
            .col(ColumnDef::new("created_at").big_integer().not_null())
            .col(ColumnDef::new("ended_at").big_integer())
            .to_owned();
        manager.create_table(alerts).await?;
        let due = Index::create()
            .name("alerts_due")
            .table("alerts")
            .col("channel")
            .col("due_at")
            // 1 is waiting.
            .cond_where(Expr::col("status").eq(1))
            .to_owned();
        manager.create_index(due).await
    }
}
