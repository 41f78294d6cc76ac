//! What the two databases spell differently.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::{ConnectionTrait, DbBackend};

/// Range-partitions a table by its UUIDv7 id on PostgreSQL; on SQLite it makes the id the table's order
/// where `clustered`, which spares narrow tables a second tree.
pub fn by_id(manager: &SchemaManager<'_>, table: &mut TableCreateStatement, clustered: bool) {
    match manager.get_database_backend() {
        DbBackend::Postgres => {
            table.extra("PARTITION BY RANGE (id)");
        }
        _ if clustered => {
            table.extra("WITHOUT ROWID");
        }
        _ => {}
    }
}

/// The partition that takes what no other covers, so that an insert cannot fail for want of a partition.
/// The server makes the weekly ones ahead of time.
pub async fn default_partition(manager: &SchemaManager<'_>, table: &str, storage: &str) -> Result<(), DbErr> {
    if manager.get_database_backend() == DbBackend::Postgres {
        let sql = format!("CREATE TABLE {table}_default PARTITION OF {table} DEFAULT {storage}");
        manager.get_connection().execute_unprepared(&sql).await?;
    }
    Ok(())
}

/// Runs a statement on PostgreSQL only.
pub async fn postgres_only(manager: &SchemaManager<'_>, sql: &str) -> Result<(), DbErr> {
    if manager.get_database_backend() == DbBackend::Postgres {
        manager.get_connection().execute_unprepared(sql).await?;
    }
    Ok(())
}
