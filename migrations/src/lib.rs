//! Hawser's schema, one file per migration, the same on SQLite and PostgreSQL.
//!
//! Migrations never see entities, which change. They use portable builders; what only one database has
//! (partitions, storage settings) stands behind a match on the backend in `dialect`.
//!
//! Shapes that every table shares: ids are UUIDv7; times are Unix milliseconds; states and kinds are small
//! numbers that the domain names; lists and maps that are only read whole are JSON text; sealed values are
//! bytes in the format of the store's vault. Hot tables have no foreign keys.

mod dialect;
mod m0001_tenants;
mod m0002_endpoints;
mod m0003_deliveries;
mod m0004_feed;
mod m0010_lease_fence;
mod m0011_revisions;
mod m0012_failing;
mod m0014_expansions;
mod m0015_probes;
mod m0016_content_types;
mod m0016_rate_limits;
mod m0017_signatures;
mod m0018_rotation;
mod m0019_credentials;
mod m0020_alerts;
mod m0021_bulk;
mod m0022_project_limits;
mod m0023_labels;
mod m0024_route_versions;
mod m0025_alert_places;
mod m0026_deleted_owners;

use sea_orm_migration::prelude::*;

pub use sea_orm_migration::MigratorTrait;

/// All migrations, oldest first.
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m0001_tenants::Migration),
            Box::new(m0002_endpoints::Migration),
            Box::new(m0003_deliveries::Migration),
            Box::new(m0004_feed::Migration),
            Box::new(m0010_lease_fence::Migration),
            Box::new(m0011_revisions::Migration),
            Box::new(m0012_failing::Migration),
            Box::new(m0014_expansions::Migration),
            Box::new(m0015_probes::Migration),
            Box::new(m0016_content_types::Migration),
            Box::new(m0016_rate_limits::Migration),
            Box::new(m0017_signatures::Migration),
            Box::new(m0018_rotation::Migration),
            Box::new(m0019_credentials::Migration),
            Box::new(m0020_alerts::Migration),
            Box::new(m0021_bulk::Migration),
            Box::new(m0022_project_limits::Migration),
            Box::new(m0023_labels::Migration),
            Box::new(m0024_route_versions::Migration),
            Box::new(m0025_alert_places::Migration),
            Box::new(m0026_deleted_owners::Migration),
        ]
    }
}
