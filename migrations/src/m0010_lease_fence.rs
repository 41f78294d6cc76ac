//! The fence around leases: nothing is claimed under a lease that was given up meanwhile.

use sea_orm_migration::prelude::*;

use crate::dialect::postgres_only;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    /// Says whether a lease still stands, and keeps it standing until the asking transaction ends: whoever
    /// frees a lease takes the same lock exclusively first. VOLATILE, so that the row is looked up by a snapshot
    /// of its own, taken when the lock is held. One call, so that asking costs a transaction no round trip.
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        postgres_only(
            manager,
            "CREATE FUNCTION lease_stands(lease uuid, high integer, low integer) RETURNS boolean \
             LANGUAGE plpgsql VOLATILE AS $$ BEGIN \
             PERFORM pg_advisory_xact_lock_shared(high, low); \
             RETURN EXISTS (SELECT 1 FROM leases WHERE leases.id = lease); \
             END $$",
        )
        .await
    }
}
