//! Whose endpoints were that are deleted: what was queued for them ends later, and Watch tells it by owner.

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
            .table("deleted_owners")
            .col(ColumnDef::new("endpoint_id").uuid().not_null().primary_key())
            .col(ColumnDef::new("owner_id").text().not_null())
            // Long after its last delivery ended.
            .col(ColumnDef::new("expires_at").big_integer().not_null())
            .to_owned();
        manager.create_table(table).await?;
        let expiry = Index::create()
            .name("deleted_owners_expiry")
            .table("deleted_owners")
            .col("expires_at")
            .to_owned();
        manager.create_index(expiry).await
    }
}
