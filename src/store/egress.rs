//! Whether most endpoints fail without an answer: by what all nodes' attempts left in the store, so that every node
//! judges alike and a restart forgets nothing.

use std::collections::HashSet;
use std::time::Duration;

use sea_orm::{ConnectionTrait, DbBackend, Statement, Value};

use super::counters::ROLLUP_MS;
use super::error::{Result, StoreError};
use super::tx::Tx;
use super::{Lane, Store};
use crate::domain::attempt::ErrorClass;
use crate::domain::clock::Timestamp;
use crate::domain::egress::Sight;

/// The fact in `store_meta` that holds since when the fault is ours; absent while it is not.
const FAILING: &str = "egress_failing";
/// Hosts and ports looked at, to know whether enough of them differ.
const PLACES_MAX: u32 = 1000;

/// The endpoints attempted since a time, and those to which sending rests or did so until then.
const LATELY: &str = "WITH lately AS ( \
                        SELECT endpoint_id FROM rollups WHERE bucket_at >= $1 AND last_at >= $2 \
                        UNION SELECT endpoint_id FROM endpoint_health \
                        WHERE breaker_opens > 0 AND breaker_until >= $2 \
                      )";

impl Store {
    /// Whether the fault was ours as of the last verdict, and what attempts show now.
    pub async fn egress(&self, window: Duration) -> Result<(bool, Sight)> {
        look(self.reader(), window).await
    }

    /// Takes over a verdict. Says whether it is news: of several nodes that come to it, one is first.
    pub async fn note_egress(&self, failing: bool) -> Result<bool> {
        let tx = self.begin(Lane::Engine).await?;
        let changed = if failing {
            let sql = "INSERT INTO store_meta (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING";
            let since = Timestamp::now().as_millis().to_string().into_bytes();
            tx.run(sql, [FAILING.into(), since.into()]).await?
        } else {
            tx.run("DELETE FROM store_meta WHERE name = $1", [FAILING.into()]).await?
        };
        tx.commit().await?;
        Ok(changed > 0)
    }
}

impl Tx {
    /// Whether the fault is ours, as of the attempts written before this transaction.
    pub(super) async fn egress_is_failing(&self, window: Duration) -> Result<bool> {
        let (before, sight) = look(self.db(), window).await?;
        Ok(sight.is_failing(before))
    }
}

async fn look(db: &impl ConnectionTrait, window: Duration) -> Result<(bool, Sight)> {
    let backend = db.get_database_backend();
    let since = Timestamp::now().minus(window).as_millis();
    let values = || [Value::from(since.div_euclid(ROLLUP_MS) * ROLLUP_MS), Value::from(since)];
    // What was cancelled shows nothing. One step of the roll-ups' key for each endpoint.
    let sql = format!(
        "{LATELY} SELECT COUNT(unanswered), COUNT(CASE unanswered WHEN 1 THEN 1 END), \
         (SELECT COUNT(*) FROM store_meta WHERE name = '{FAILING}') FROM ( \
           SELECT (SELECT CASE WHEN r.last_error = {cancelled} THEN NULL \
           WHEN r.last_error IS NOT NULL AND r.last_status IS NULL THEN 1 ELSE 0 END \
           FROM rollups r WHERE r.endpoint_id = lately.endpoint_id ORDER BY r.bucket_at DESC LIMIT 1) \
           AS unanswered FROM lately \
         ) AS shown",
        cancelled = ErrorClass::Cancelled.code(),
    );
    let row = db.query_one_raw(Statement::from_sql_and_values(backend, sql, values())).await?;
    let row = row.ok_or_else(|| StoreError::Corrupt("a count gave no row".to_owned()))?;
    let count = |at| Ok::<_, StoreError>(u64::try_from(row.try_get_by_index::<i64>(at)?).unwrap_or_default());
    let mut sight = Sight { attempted: count(0)?, unanswered: count(1)?, hosts: 0 };
    let before = count(2)? > 0;
    // Hosts only decide when it begins.
    if !before && sight.is_suspicious() {
        let sql = format!(
            "{LATELY} SELECT DISTINCT {} FROM lately JOIN endpoints ON endpoints.id = lately.endpoint_id \
             LIMIT {PLACES_MAX}",
            place_sql(backend)
        );
        let rows = db.query_all_raw(Statement::from_sql_and_values(backend, sql, values())).await?;
        let places = rows.iter().map(|row| row.try_get_by_index(0)).collect::<Result<Vec<String>, _>>()?;
        sight.hosts = places.iter().map(|place| host(place)).collect::<HashSet<_>>().len();
    }
    Ok((before, sight))
}

/// Host and port of an endpoint's URL.
fn place_sql(backend: DbBackend) -> &'static str {
    match backend {
        DbBackend::Postgres => "split_part(url, '/', 3)",
        _ => {
            "substr(url, instr(url, '://') + 3, \
             instr(substr(url, instr(url, '://') + 3) || '/', '/') - 1)"
        }
    }
}

fn host(place: &str) -> &str {
    match place.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => place,
    }
}

#[cfg(test)]
mod tests {
    use super::host;

    #[test]
    fn a_port_makes_no_other_host() {
        for (place, expected) in [
            ("example.com", "example.com"),
            ("example.com:8443", "example.com"),
            ("[2001:db8::1]", "[2001:db8::1]"),
            ("[2001:db8::1]:80", "[2001:db8::1]"),
        ] {
            assert_eq!(host(place), expected);
        }
    }
}
