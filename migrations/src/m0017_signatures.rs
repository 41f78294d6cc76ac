//! How endpoints sign, and of which kind their secrets are.

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
            // Null: Standard Webhooks.
            ("endpoints", ColumnDef::new("signature").text().to_owned()),
            // 1 is HMAC, as all were.
            ("secrets", ColumnDef::new("kind").small_integer().not_null().default(1).to_owned()),
        ] {
            let alter = Table::alter().table(table).add_column(column).to_owned();
            manager.alter_table(alter).await?;
        }
        Ok(())
    }
}
