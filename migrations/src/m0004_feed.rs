//! The change log that Watch reads, the leases of processes, and the roll-ups that charts read.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::DbBackend;

use crate::dialect::{by_id, default_partition, postgres_only};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        changes(manager).await?;

        let leases = Table::create()
            .table("leases")
            .col(ColumnDef::new("id").uuid().not_null().primary_key())
            .col(ColumnDef::new("node").text().not_null())
            .col(ColumnDef::new("acquired_at").big_integer().not_null())
            // By the database's clock.
            .col(ColumnDef::new("expires_at").big_integer().not_null())
            .to_owned();
        manager.create_table(leases).await?;

        // Five-minute sums per endpoint.
        let rollups = Table::create()
            .table("rollups")
            .col(ColumnDef::new("endpoint_id").uuid().not_null())
            .col(ColumnDef::new("bucket_at").big_integer().not_null())
            .col(ColumnDef::new("project_id").uuid().not_null())
            .col(ColumnDef::new("successes").big_integer().not_null())
            .col(ColumnDef::new("failures").big_integer().not_null())
            .col(ColumnDef::new("total_us_sum").big_integer().not_null())
            .col(ColumnDef::new("total_us_max").big_integer().not_null())
            .col(ColumnDef::new("last_at").big_integer().not_null())
            .col(ColumnDef::new("last_status").small_integer())
            .col(ColumnDef::new("last_error").small_integer())
            .primary_key(Index::create().name("rollups_pkey").col("endpoint_id").col("bucket_at"))
            .to_owned();
        manager.create_table(rollups).await?;
        let by_bucket = Index::create().name("rollups_bucket").table("rollups").col("bucket_at").to_owned();
        manager.create_index(by_bucket).await
    }
}

/// One record per transaction. `position` is the order of commits: on SQLite the single writer's
/// AUTOINCREMENT; on PostgreSQL drawn under an advisory lock that is held until the commit is visible.
async fn changes(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let mut table = Table::create();
    table.table("changes");
    if manager.get_database_backend() == DbBackend::Sqlite {
        table
            .col(ColumnDef::new("position").big_integer().not_null().primary_key().auto_increment())
            .col(ColumnDef::new("id").uuid().not_null());
    } else {
        table
            .col(ColumnDef::new("position").big_integer().not_null())
            .col(ColumnDef::new("id").uuid().not_null().primary_key());
    }
    table
        .col(ColumnDef::new("created_at").big_integer().not_null())
        .col(ColumnDef::new("body").binary().not_null());
    by_id(manager, &mut table, false);
    manager.create_table(table).await?;
    default_partition(manager, "changes", "").await?;
    postgres_only(manager, "CREATE SEQUENCE changes_position").await?;
    postgres_only(manager, "CREATE INDEX changes_position_idx ON changes (position)").await
}
