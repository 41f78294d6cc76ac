//! Rate limits of endpoints, and how far their slots are taken.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // All null where there is no limit.
        for column in [
            ColumnDef::new("rate_requests").integer().to_owned(),
            ColumnDef::new("rate_per_ms").big_integer().to_owned(),
            ColumnDef::new("rate_burst").integer().to_owned(),
        ] {
            let table = Table::alter().table("endpoints").add_column(column).to_owned();
            manager.alter_table(table).await?;
        }
        let slots = Table::create()
            .table("rate_slots")
            .col(ColumnDef::new("endpoint_id").uuid().not_null().primary_key())
            // The first moment that nobody has reserved, in microseconds by the database's clock.
            .col(ColumnDef::new("next_at").big_integer().not_null())
            .to_owned();
        manager.create_table(slots).await
    }
}
