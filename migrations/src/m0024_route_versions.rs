//! Which endpoints' routes changed since when, so that a change of one endpoint costs the reading of one.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::ConnectionTrait;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // The project's version when the endpoint, a secret or a subscription of it changed last.
        let column = ColumnDef::new("routing_version").big_integer().not_null().default(0).to_owned();
        manager.alter_table(Table::alter().table("endpoints").add_column(column).to_owned()).await?;
        // The version since which all routes of the project are others: its settings are part of each.
        let column = ColumnDef::new("routing_base").big_integer().not_null().default(0).to_owned();
        manager.alter_table(Table::alter().table("projects").add_column(column).to_owned()).await?;
        let index = "CREATE INDEX endpoints_routing ON endpoints (project_id, routing_version)";
        manager.get_connection().execute_unprepared(index).await?;
        Ok(())
    }
}
