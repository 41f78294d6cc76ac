//! What attempts add up to: failures in a row for each endpoint, and five-minute sums for charts.

use std::collections::HashMap;

use super::error::Result;
use super::outcomes::{ABSENT, FinishedAttempt, small};
use super::rows::{Kind, Rows};
use super::tx::Tx;
use crate::domain::clock::Timestamp;
use crate::domain::id::{EndpointId, ProjectId};

const ROLLUP_MS: i64 = 5 * 60 * 1000;

impl Tx {
    /// Counts failures in a row per endpoint. A healthy endpoint costs a look and no write.
    pub(super) async fn count_failures(&self, finished: &[FinishedAttempt]) -> Result<()> {
        let mut streaks: HashMap<EndpointId, Streak> = HashMap::new();
        for one in finished {
            let streak = streaks.entry(one.attempt.endpoint).or_insert(Streak::new(one.attempt.project));
            streak.add(one.attempt.outcome.is_success(), one.ended_at);
        }
        let mut healed = Rows::new([("id", Kind::Uuid)]);
        let mut failing = Rows::new([
            ("id", Kind::Uuid),
            ("project_id", Kind::Uuid),
            ("failures", Kind::Int),
            ("since", Kind::BigInt),
        ]);
        let mut streaks: Vec<_> = streaks.into_iter().collect();
        // Everyone locks rows in the same order.
        streaks.sort_by_key(|(endpoint, _)| *endpoint);
        for (endpoint, streak) in streaks {
            if streak.any_success {
                healed.push([endpoint.uuid().into()]);
            }
            if streak.failures > 0 {
                failing.push([
                    endpoint.uuid().into(),
                    streak.project.uuid().into(),
                    streak.failures.into(),
                    streak.since.as_millis().into(),
                ]);
            }
        }
        let sql = "UPDATE endpoint_health SET consecutive_failures = 0, failing_since = NULL FROM v \
                   WHERE endpoint_id = v.id AND consecutive_failures > 0";
        healed.execute(self.db(), sql).await?;
        // `WHERE true` keeps SQLite from reading ON CONFLICT as a join's ON.
        let sql = "INSERT INTO endpoint_health (endpoint_id, project_id, consecutive_failures, failing_since) \
                   SELECT id, project_id, failures, since FROM v WHERE true \
                   ON CONFLICT (endpoint_id) DO UPDATE SET \
                   consecutive_failures = endpoint_health.consecutive_failures + excluded.consecutive_failures, \
                   failing_since = COALESCE(endpoint_health.failing_since, excluded.failing_since)";
        failing.execute(self.db(), sql).await?;
        Ok(())
    }

    /// Adds to the five-minute sums that charts read.
    pub(super) async fn add_rollups(&self, finished: &[FinishedAttempt]) -> Result<()> {
        let mut sums: HashMap<(EndpointId, i64), Sum> = HashMap::new();
        for one in finished {
            let bucket = one.ended_at.as_millis().div_euclid(ROLLUP_MS) * ROLLUP_MS;
            sums.entry((one.attempt.endpoint, bucket)).or_insert(Sum::new(one.attempt.project)).add(one);
        }
        let mut rows = Rows::new([
            ("endpoint_id", Kind::Uuid),
            ("bucket_at", Kind::BigInt),
            ("project_id", Kind::Uuid),
            ("successes", Kind::BigInt),
            ("failures", Kind::BigInt),
            ("total_us_sum", Kind::BigInt),
            ("total_us_max", Kind::BigInt),
            ("last_at", Kind::BigInt),
            ("last_status", Kind::SmallInt),
            ("last_error", Kind::SmallInt),
        ]);
        let mut sums: Vec<_> = sums.into_iter().collect();
        sums.sort_by_key(|(key, _)| *key);
        for ((endpoint, bucket), sum) in sums {
            rows.push([
                endpoint.uuid().into(),
                bucket.into(),
                sum.project.uuid().into(),
                sum.successes.into(),
                sum.failures.into(),
                sum.total_us.into(),
                sum.max_us.into(),
                sum.last_at.as_millis().into(),
                sum.last_status.into(),
                sum.last_error.into(),
            ]);
        }
        let larger = match self.backend() {
            sea_orm::DbBackend::Postgres => "GREATEST",
            _ => "MAX",
        };
        let sql = format!(
            "INSERT INTO rollups (endpoint_id, bucket_at, project_id, successes, failures, total_us_sum, \
             total_us_max, last_at, last_status, last_error) \
             SELECT endpoint_id, bucket_at, project_id, successes, failures, total_us_sum, total_us_max, last_at, \
             NULLIF(last_status, -1), NULLIF(last_error, -1) FROM v WHERE true \
             ON CONFLICT (endpoint_id, bucket_at) DO UPDATE SET \
             successes = rollups.successes + excluded.successes, \
             failures = rollups.failures + excluded.failures, \
             total_us_sum = rollups.total_us_sum + excluded.total_us_sum, \
             total_us_max = {larger}(rollups.total_us_max, excluded.total_us_max), \
             last_at = excluded.last_at, last_status = excluded.last_status, last_error = excluded.last_error"
        );
        rows.execute(self.db(), &sql).await?;
        Ok(())
    }
}

/// The last failures in a row of an endpoint within one batch.
struct Streak {
    project: ProjectId,
    failures: i32,
    since: Timestamp,
    any_success: bool,
}

impl Streak {
    fn new(project: ProjectId) -> Self {
        Self { project, failures: 0, since: Timestamp::from_millis(0), any_success: false }
    }

    fn add(&mut self, success: bool, at: Timestamp) {
        if success {
            self.failures = 0;
            self.any_success = true;
            return;
        }
        if self.failures == 0 {
            self.since = at;
        }
        self.failures = self.failures.saturating_add(1);
    }
}

struct Sum {
    project: ProjectId,
    successes: i64,
    failures: i64,
    total_us: i64,
    max_us: i64,
    last_at: Timestamp,
    last_status: i16,
    last_error: i16,
}

impl Sum {
    fn new(project: ProjectId) -> Self {
        Self {
            project,
            successes: 0,
            failures: 0,
            total_us: 0,
            max_us: 0,
            last_at: Timestamp::from_millis(0),
            last_status: ABSENT,
            last_error: ABSENT,
        }
    }

    fn add(&mut self, one: &FinishedAttempt) {
        let outcome = &one.attempt.outcome;
        if outcome.is_success() {
            self.successes += 1;
        } else {
            self.failures += 1;
        }
        let took = i64::from(outcome.timings.total_us);
        self.total_us += took;
        self.max_us = self.max_us.max(took);
        self.last_at = self.last_at.max(one.ended_at);
        self.last_status = outcome.status.map_or(ABSENT, small);
        self.last_error = outcome.error.as_ref().map_or(ABSENT, |(class, _)| class.code());
    }
}
