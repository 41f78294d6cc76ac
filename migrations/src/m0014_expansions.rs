//! Events whose deliveries are still being made, because they reach many endpoints.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let table = Table::create()
            .table("expansions")
            .col(ColumnDef::new("event_id").uuid().not_null().primary_key())
            .col(ColumnDef::new("project_id").uuid().not_null())
            .col(ColumnDef::new("event_type").text().not_null())
            .col(ColumnDef::new("created_at").big_integer().not_null())
            // Endpoints' ids, 16 bytes each, one after the other.
            .col(ColumnDef::new("targets").binary().not_null())
            // How many of them, from the front, have their delivery.
            .col(ColumnDef::new("expanded").integer().not_null())
            .to_owned();
        manager.create_table(table).await
    }
}
