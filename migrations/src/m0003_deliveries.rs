//! The hot tables: events, deliveries, attempts, what is due, idempotency keys.
//!
//! `deliveries` is what people read; `queue` is what the engine works from: one narrow row per open
//! delivery, deleted when it is final. A queue row that is claimed or parked is in no index but its key's,
//! so a delivery that succeeds at once costs no index entry there.

use sea_orm_migration::prelude::*;

use crate::dialect::{by_id, default_partition, postgres_only};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        events(manager).await?;
        deliveries(manager).await?;
        attempts(manager).await?;
        queue(manager).await?;
        idempotency_keys(manager).await
    }
}

async fn events(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let mut table = Table::create();
    table
        .table("events")
        .col(ColumnDef::new("id").uuid().not_null().primary_key())
        .col(ColumnDef::new("project_id").uuid().not_null())
        .col(ColumnDef::new("event_type").text().not_null())
        .col(ColumnDef::new("target_kind").small_integer().not_null())
        // The endpoint's id or the owner's, as text; null for a broadcast.
        .col(ColumnDef::new("target").text())
        .col(ColumnDef::new("payload").binary().not_null())
        .col(ColumnDef::new("headers").text())
        .col(ColumnDef::new("idempotency_key").text())
        .col(ColumnDef::new("delivery_count").integer().not_null())
        .col(ColumnDef::new("created_at").big_integer().not_null());
    by_id(manager, &mut table, false);
    manager.create_table(table).await?;
    default_partition(manager, "events", "").await?;
    let by_project =
        Index::create().name("events_project").table("events").col("project_id").col("id").to_owned();
    manager.create_index(by_project).await
}

async fn deliveries(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let mut table = Table::create();
    table
        .table("deliveries")
        .col(ColumnDef::new("id").uuid().not_null().primary_key())
        .col(ColumnDef::new("project_id").uuid().not_null())
        .col(ColumnDef::new("event_id").uuid().not_null())
        .col(ColumnDef::new("endpoint_id").uuid().not_null())
        // No index holds what outcomes change, so that PostgreSQL can update in place (HOT).
        .col(ColumnDef::new("status").small_integer().not_null())
        .col(ColumnDef::new("attempts").small_integer().not_null())
        .col(ColumnDef::new("next_attempt_at").big_integer())
        .col(ColumnDef::new("last_error").small_integer())
        .col(ColumnDef::new("last_status").small_integer())
        .col(ColumnDef::new("created_at").big_integer().not_null())
        .col(ColumnDef::new("ended_at").big_integer());
    by_id(manager, &mut table, true);
    manager.create_table(table).await?;
    default_partition(manager, "deliveries", "WITH (fillfactor = 80)").await?;
    for index in [
        Index::create().name("deliveries_project").table("deliveries").col("project_id").col("id").to_owned(),
        Index::create()
            .name("deliveries_endpoint")
            .table("deliveries")
            .col("endpoint_id")
            .col("id")
            .to_owned(),
        Index::create().name("deliveries_event").table("deliveries").col("event_id").col("id").to_owned(),
    ] {
        manager.create_index(index).await?;
    }
    Ok(())
}

async fn attempts(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let mut table = Table::create();
    table
        .table("attempts")
        .col(ColumnDef::new("id").uuid().not_null().primary_key())
        .col(ColumnDef::new("delivery_id").uuid().not_null())
        .col(ColumnDef::new("project_id").uuid().not_null())
        .col(ColumnDef::new("endpoint_id").uuid().not_null())
        .col(ColumnDef::new("event_id").uuid().not_null())
        .col(ColumnDef::new("number").small_integer().not_null())
        .col(ColumnDef::new("started_at").big_integer().not_null())
        .col(ColumnDef::new("status_code").small_integer())
        .col(ColumnDef::new("error_class").small_integer())
        .col(ColumnDef::new("error_detail").text())
        .col(ColumnDef::new("request_headers").text().not_null())
        .col(ColumnDef::new("response_headers").text())
        .col(ColumnDef::new("response_body").binary())
        // Bit 0: body cut; bit 1: headers cut; bit 2: reused connection.
        .col(ColumnDef::new("flags").small_integer().not_null())
        .col(ColumnDef::new("peer").text())
        .col(ColumnDef::new("dns_us").integer())
        .col(ColumnDef::new("connect_us").integer())
        .col(ColumnDef::new("tls_us").integer())
        .col(ColumnDef::new("first_byte_us").integer())
        .col(ColumnDef::new("total_us").integer().not_null());
    by_id(manager, &mut table, false);
    manager.create_table(table).await?;
    default_partition(manager, "attempts", "").await?;
    let by_delivery =
        Index::create().name("attempts_delivery").table("attempts").col("delivery_id").col("id").to_owned();
    manager.create_index(by_delivery).await
}

async fn queue(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let mut table = Table::create();
    table
        .table("queue")
        .col(ColumnDef::new("id").uuid().not_null().primary_key())
        .col(ColumnDef::new("project_id").uuid().not_null())
        .col(ColumnDef::new("endpoint_id").uuid().not_null())
        .col(ColumnDef::new("event_id").uuid().not_null())
        .col(ColumnDef::new("due_at").big_integer().not_null())
        // 0: waits to be due; otherwise why it is kept out of the scan.
        .col(ColumnDef::new("parked").small_integer().not_null())
        // The lease of the process that holds it.
        .col(ColumnDef::new("claimed_by").uuid())
        // The fencing token: grows with every claim, and outcomes name it.
        .col(ColumnDef::new("token").big_integer().not_null())
        // Attempts made when this budget began, and in all.
        .col(ColumnDef::new("budget_start").small_integer().not_null())
        .col(ColumnDef::new("attempts").small_integer().not_null())
        .col(ColumnDef::new("created_at").big_integer().not_null());
    if manager.get_database_backend() == sea_orm_migration::sea_orm::DbBackend::Sqlite {
        table.extra("WITHOUT ROWID");
    }
    manager.create_table(table).await?;
    // What a claim scans: due work, oldest first, with the endpoint beside it.
    let due = Index::create()
        .name("queue_due")
        .table("queue")
        .col("due_at")
        .col("endpoint_id")
        .cond_where(Expr::col("claimed_by").is_null())
        .cond_where(Expr::col("parked").eq(0))
        .to_owned();
    manager.create_index(due).await?;
    let waiting = Index::create()
        .name("queue_waiting")
        .table("queue")
        .col("endpoint_id")
        .col("parked")
        .col("due_at")
        .cond_where(Expr::col("claimed_by").is_null())
        .to_owned();
    manager.create_index(waiting).await?;
    postgres_only(
        manager,
        "ALTER TABLE queue SET (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, \
         autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0)",
    )
    .await
}

async fn idempotency_keys(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let table = Table::create()
        .table("idempotency_keys")
        .col(ColumnDef::new("project_id").uuid().not_null())
        .col(ColumnDef::new("key").text().not_null())
        .col(ColumnDef::new("event_id").uuid().not_null())
        .col(ColumnDef::new("content_hash").binary().not_null())
        .col(ColumnDef::new("delivery_count").integer().not_null())
        .col(ColumnDef::new("expires_at").big_integer().not_null())
        .primary_key(Index::create().name("idempotency_keys_pkey").col("project_id").col("key"))
        .to_owned();
    manager.create_table(table).await?;
    let by_expiry = Index::create()
        .name("idempotency_keys_expiry")
        .table("idempotency_keys")
        .col("expires_at")
        .to_owned();
    manager.create_index(by_expiry).await
}
