//! Endpoints count their changes, so that a watcher can tell an older change from a newer one.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // `version` counts changes of settings only, as etags must.
        let revision = ColumnDef::new("revision").big_integer().not_null().default(1).to_owned();
        let table = Table::alter().table("endpoints").add_column(revision).to_owned();
        manager.alter_table(table).await
    }
}
