//! Facts about the database itself: its incarnation, and the canaries that prove the master keys.

use sea_orm::{DbBackend, Statement, Value};
use uuid::Uuid;

use super::Store;
use super::db::Db;
use super::error::{Result, StoreError};
use super::vault::{Place, Vault};

impl Store {
    /// What the database says of how it makes commits durable, for the log.
    async fn setting(&self, sql: &str) -> Result<String> {
        let statement = Statement::from_string(self.backend(), sql);
        let row = self.inner.writers.service().await?.db().query_one_raw(statement).await?;
        row.map_or(Ok(String::new()), |row| {
            row.try_get_by_index::<String>(0).or_else(|_| Ok(row.try_get_by_index::<i32>(0)?.to_string()))
        })
    }

    pub(super) async fn durability(&self) -> Result<String> {
        let names: &[(&str, &str)] = match self.backend() {
            DbBackend::Postgres => {
                &[("fsync", "SHOW fsync"), ("synchronous_commit", "SHOW synchronous_commit")]
            }
            // 2 is FULL.
            _ => &[("journal_mode", "PRAGMA journal_mode"), ("synchronous", "PRAGMA synchronous")],
        };
        let mut shown = Vec::new();
        for (name, sql) in names {
            shown.push(format!("{name}={}", self.setting(sql).await?));
        }
        Ok(shown.join(" "))
    }
}

const INCARNATION: &str = "incarnation";
const CANARY: &str = "vault_canary";
const CANARY_TEXT: &[u8] = b"hawser";

/// The database's identity, made on first use.
pub async fn incarnation(db: Db<'_>) -> Result<Uuid> {
    let fresh = Uuid::now_v7();
    put_if_absent(db, INCARNATION, fresh.as_bytes().to_vec()).await?;
    let stored = get(db, INCARNATION).await?.unwrap_or_default();
    Uuid::from_slice(&stored).map_err(|_| StoreError::Corrupt("the database's incarnation".to_owned()))
}

/// Opens the canary of each master key's version, and names the first that does not fit.
pub async fn check_vault(db: Db<'_>, vault: &Vault) -> Result<()> {
    let place = Place { table: "store_meta", column: "value", row: Uuid::nil(), project: None };
    let newest = vault.versions().last().unwrap_or_default();
    if get(db, &format!("{CANARY}_{newest}")).await?.is_none() {
        if newest == vault.versions().next().unwrap_or_default() && any_canary(db).await? {
            return Err(wrong_key(newest));
        }
        put_if_absent(db, &format!("{CANARY}_{newest}"), vault.seal(&place, CANARY_TEXT)?).await?;
    }
    for version in vault.versions() {
        if let Some(canary) = get(db, &format!("{CANARY}_{version}")).await? {
            vault.open(&place, &canary).map_err(|_| wrong_key(version))?;
        }
    }
    Ok(())
}

fn wrong_key(version: u32) -> StoreError {
    StoreError::Setup(format!(
        "master key {version} is not the one that this database's secrets were sealed with"
    ))
}

async fn any_canary(db: Db<'_>) -> Result<bool> {
    let sql = "SELECT 1 FROM store_meta WHERE name LIKE 'vault_canary_%' LIMIT 1";
    let statement = Statement::from_string(db.backend(), sql);
    Ok(db.query_one_raw(statement).await?.is_some())
}

async fn get(db: Db<'_>, name: &str) -> Result<Option<Vec<u8>>> {
    let sql = "SELECT value FROM store_meta WHERE name = $1";
    let statement = Statement::from_sql_and_values(db.backend(), sql, [Value::from(name)]);
    match db.query_one_raw(statement).await? {
        Some(row) => Ok(Some(row.try_get_by_index(0)?)),
        None => Ok(None),
    }
}

async fn put_if_absent(db: Db<'_>, name: &str, value: Vec<u8>) -> Result<()> {
    let sql = "INSERT INTO store_meta (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING";
    let values = [Value::from(name), Value::from(value)];
    db.execute_raw(Statement::from_sql_and_values(db.backend(), sql, values)).await?;
    Ok(())
}
