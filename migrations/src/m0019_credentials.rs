//! What endpoints authenticate us with, and whom we trust to be them.

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
            ColumnDef::new("authentication_sealed").binary().to_owned(),
            ColumnDef::new("client_certificate_sealed").binary().to_owned(),
            // When the client certificate ends, for those who warn of it.
            ColumnDef::new("certificate_ends_at").big_integer().to_owned(),
            // PEM.
            ColumnDef::new("authorities").text().to_owned(),
            // Grows when one of these changes, so that tokens and connections made with older ones are dropped.
            ColumnDef::new("credential_version").big_integer().not_null().default(0).to_owned(),
        ] {
            let alter = Table::alter().table("endpoints").add_column(column).to_owned();
            manager.alter_table(alter).await?;
        }
        Ok(())
    }
}
