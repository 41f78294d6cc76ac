//! How an endpoint wants payloads: as they are, or as forms.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // 1 is JSON.
        let content_type = ColumnDef::new("content_type").small_integer().not_null().default(1).to_owned();
        let table = Table::alter().table("endpoints").add_column(content_type).to_owned();
        manager.alter_table(table).await
    }
}
