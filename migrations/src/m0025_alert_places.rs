//! Where alerts go, told apart without being opened, so that one place's backlog holds up no others.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // A keyed hash. 0: written before there was one.
        let column = ColumnDef::new("place").big_integer().not_null().default(0).to_owned();
        manager.alter_table(Table::alter().table("alerts").add_column(column).to_owned()).await?;
        manager.drop_index(Index::drop().name("alerts_due").table("alerts").to_owned()).await?;
        let due = Index::create()
            .name("alerts_due")
            .table("alerts")
            .col("channel")
            .col("due_at")
            // So that those to one place are passed over without being read.
            .col("place")
            // 1 is waiting.
            .cond_where(Expr::col("status").eq(1))
            .to_owned();
        manager.create_index(due).await
    }
}
