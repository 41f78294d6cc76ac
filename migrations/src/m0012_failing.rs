//! What failing endpoints need: policies of projects and endpoints, the disable policy's count, the breaker.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for (table, column) in [
            ("projects", ColumnDef::new("retry_policy").text().to_owned()),
            ("projects", ColumnDef::new("disable_policy").text().to_owned()),
            // Counts changes of what clients may set; the etag is made of it.
            ("projects", ColumnDef::new("version").big_integer().not_null().default(1).to_owned()),
            ("endpoints", ColumnDef::new("disable_policy").text().to_owned()),
            // 0: the cap follows the endpoint.
            ("endpoints", ColumnDef::new("max_in_flight").integer().not_null().default(0).to_owned()),
            // Failures in a row that the disable policy counts, and since when: not those that were our fault.
            ("endpoint_health", ColumnDef::new("counted").integer().not_null().default(0).to_owned()),
            ("endpoint_health", ColumnDef::new("counted_since").big_integer().to_owned()),
            // How often in a row the breaker opened; 0 where it is closed.
            (
                "endpoint_health",
                ColumnDef::new("breaker_opens").small_integer().not_null().default(0).to_owned(),
            ),
            // By the database's clock.
            ("endpoint_health", ColumnDef::new("breaker_until").big_integer().to_owned()),
            // The delivery that probes, for as long as it is claimed.
            ("endpoint_health", ColumnDef::new("breaker_probe").uuid().to_owned()),
        ] {
            let alter = Table::alter().table(table).add_column(column).to_owned();
            manager.alter_table(alter).await?;
        }
        // Open breakers, which are few, by when they are due.
        let open = Index::create()
            .name("endpoint_health_breaker")
            .table("endpoint_health")
            .col("breaker_until")
            .cond_where(Expr::col("breaker_opens").gt(0))
            .to_owned();
        manager.create_index(open).await?;
        let inactive = Index::create()
            .name("endpoints_inactive")
            .table("endpoints")
            .col("id")
            // 3 is INACTIVE.
            .cond_where(Expr::col("status").eq(3))
            .to_owned();
        manager.create_index(inactive).await?;
        // Endpoints with parked work, so that the slow round finds each with one step.
        let parked = Index::create()
            .name("queue_parked")
            .table("queue")
            .col("endpoint_id")
            .cond_where(Expr::col("parked").gt(0))
            .to_owned();
        manager.create_index(parked).await
    }
}
