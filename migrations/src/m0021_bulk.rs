//! An index by which bulk calls find an endpoint by its owner and URL.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::{ConnectionTrait, DbBackend};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // PostgreSQL's index entries end at a third of a page, and URLs may be longer.
        let url = match manager.get_database_backend() {
            DbBackend::Postgres => "md5(url)",
            _ => "url",
        };
        let sql = format!(
            "CREATE INDEX endpoints_address ON endpoints (project_id, COALESCE(owner_id, ''), {url})"
        );
        manager.get_connection().execute_unprepared(&sql).await?;
        Ok(())
    }
}
