//! Limits of projects: how many endpoints each has, and how fast it may publish.

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
        for column in [
            // Null where there is no limit.
            ColumnDef::new("publishes_per_second").integer().to_owned(),
            // Kept by whoever creates and deletes endpoints, in that transaction, so that nobody counts them.
            ColumnDef::new("endpoint_count").big_integer().not_null().default(0).to_owned(),
        ] {
            let table = Table::alter().table("projects").add_column(column).to_owned();
            manager.alter_table(table).await?;
        }
        let count = "UPDATE projects SET endpoint_count = \
                     (SELECT COUNT(*) FROM endpoints WHERE endpoints.project_id = projects.id)";
        manager.get_connection().execute_unprepared(count).await?;
        Ok(())
    }
}
