//! Whether most endpoints fail without an answer: by what all nodes' attempts left in the store, so that every node
//! judges alike and a restart forgets nothing.

use std::collections::HashSet;
use std::time::Duration;

use sea_orm::{DbBackend, Statement, Value};

use super::counters::ROLLUP_MS;
use super::db::Db;
use super::error::{Result, StoreError};
use super::tx::Tx;
use super::{Lane, Store};
use crate::domain::clock::Timestamp;
use crate::domain::egress::{SHOWS_NOTHING, Sight};

/// The fact in `store_meta` that holds when attempts last showed that the fault is ours; absent while it is not.
const FAILING: &str = "egress_failing";
/// Hosts and ports looked at, to know whether enough of them differ.
const PLACES_MAX: u32 = 1000;

/// The endpoints attempted since a time, and those to which sending rests or did so until then: so many of them as show
/// what holds for most. Each of these is looked at once; but the times of all are read.
const LATELY: &str = "WITH lately AS MATERIALIZED ( \
                        SELECT endpoint_id FROM ( \
                          SELECT endpoint_id FROM rollups WHERE bucket_at >= $1 AND last_at >= $2 \
                          UNION SELECT endpoint_id FROM endpoint_health \
                          WHERE breaker_opens > 0 AND breaker_until >= $2 \
                        ) AS all_of_them LIMIT 5000 \
                      )";
/// The time is written again when it is this old.
const SHOWN_AGAIN: Duration = Duration::from_secs(60);

impl Store {
    /// How long ago attempts showed that the fault is ours, if it was as of the last verdict, and what they show now.
    pub async fn egress(&self, window: Duration) -> Result<(Option<Duration>, Sight)> {
        look(self.own_reader(), window).await
    }

    /// The fault is ours. Says whether that is news: of several nodes that come to it, one is first.
    pub async fn begin_egress_failure(&self) -> Result<bool> {
        let sql = "INSERT INTO store_meta (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING";
        self.change_fact(sql, [FAILING.into(), now_value()]).await
    }

    /// Attempts still show it, as they last did so long `ago`.
    pub async fn confirm_egress_failure(&self, ago: Duration) -> Result<()> {
        if ago >= SHOWN_AGAIN {
            let sql = "UPDATE store_meta SET value = $2 WHERE name = $1";
            self.change_fact(sql, [FAILING.into(), now_value()]).await?;
        }
        Ok(())
    }

    /// It is over. Says whether that is news.
    pub async fn end_egress_failure(&self) -> Result<bool> {
        self.change_fact("DELETE FROM store_meta WHERE name = $1", [FAILING.into()]).await
    }

    async fn change_fact<const N: usize>(&self, sql: &str, values: [Value; N]) -> Result<bool> {
        let tx = self.begin(Lane::Engine).await?;
        let changed = tx.run(sql, values).await?;
        tx.commit().await?;
        Ok(changed > 0)
    }
}

fn now_value() -> Value {
    Timestamp::now().as_millis().to_string().into_bytes().into()
}

impl Tx {
    /// Whether the fault is ours, as of the attempts written before this transaction.
    pub(super) async fn egress_is_failing(&self, window: Duration) -> Result<bool> {
        let (shown, sight) = look(self.db(), window).await?;
        Ok(sight.is_failing(shown))
    }
}

async fn look(db: Db<'_>, window: Duration) -> Result<(Option<Duration>, Sight)> {
    let backend = db.backend();
    let now = Timestamp::now();
    let since = now.minus(window).as_millis();
    let values = || [Value::from(since.div_euclid(ROLLUP_MS) * ROLLUP_MS), Value::from(since)];
    // One step of the roll-ups' key for each endpoint.
    let nothing = SHOWS_NOTHING.map(|class| class.code().to_string()).join(", ");
    let judged = format!(
        "{LATELY}, shown AS MATERIALIZED ( \
           SELECT endpoint_id, (SELECT CASE WHEN r.last_error IN ({nothing}) THEN NULL \
           WHEN r.last_error IS NOT NULL AND r.last_status IS NULL THEN 1 ELSE 0 END \
           FROM rollups r WHERE r.endpoint_id = lately.endpoint_id ORDER BY r.bucket_at DESC LIMIT 1) \
           AS unanswered FROM lately \
         )",
    );
    let sql = format!(
        "{judged} SELECT COUNT(unanswered), COUNT(CASE unanswered WHEN 1 THEN 1 END), \
         (SELECT value FROM store_meta WHERE name = '{FAILING}') FROM shown"
    );
    let row = db.query_one_raw(Statement::from_sql_and_values(backend, sql, values())).await?;
    let row = row.ok_or_else(|| StoreError::Corrupt("a count gave no row".to_owned()))?;
    let count = |at| Ok::<_, StoreError>(u64::try_from(row.try_get_by_index::<i64>(at)?).unwrap_or_default());
    let mut sight = Sight { attempted: count(0)?, unanswered: count(1)?, hosts: 0 };
    let since_shown =
        row.try_get_by_index::<Option<Vec<u8>>>(2)?.map(|value| ago(&value, now)).transpose()?;
    if sight.is_suspicious() {
        let sql = format!(
            "{judged} SELECT DISTINCT {} FROM shown JOIN endpoints ON endpoints.id = shown.endpoint_id \
             WHERE unanswered IS NOT NULL LIMIT {PLACES_MAX}",
            place_sql(backend)
        );
        let rows = db.query_all_raw(Statement::from_sql_and_values(backend, sql, values())).await?;
        let places = rows.iter().map(|row| row.try_get_by_index(0)).collect::<Result<Vec<String>, _>>()?;
        sight.hosts = places.iter().map(|place| host(place)).collect::<HashSet<_>>().len();
    }
    Ok((since_shown, sight))
}

/// How long before now the stored time was; none where another node's clock is ahead.
fn ago(value: &[u8], now: Timestamp) -> Result<Duration> {
    let millis = str::from_utf8(value).ok().and_then(|text| text.parse::<i64>().ok());
    let millis = millis.ok_or_else(|| StoreError::Corrupt(format!("{FAILING} in store_meta")))?;
    Ok(Duration::from_millis(u64::try_from(now.as_millis() - millis).unwrap_or_default()))
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
