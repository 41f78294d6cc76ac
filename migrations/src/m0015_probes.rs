//! PENDING endpoints, and the delivery that probes each.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // The delivery that probes, or probed last; it means something only while the endpoint is PENDING.
        let probe = ColumnDef::new("probe").uuid().to_owned();
        let table = Table::alter().table("endpoints").add_column(probe).to_owned();
        manager.alter_table(table).await?;
        // PENDING endpoints, which are few.
        let pending = Index::create()
            .name("endpoints_pending")
            .table("endpoints")
            .col("id")
            // 4 is PENDING.
            .cond_where(Expr::col("status").eq(4))
            .to_owned();
        manager.create_index(pending).await
    }
}
