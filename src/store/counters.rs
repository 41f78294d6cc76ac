//! What attempts add up to: five-minute sums for charts.

use std::collections::HashMap;

use super::outcomes::{ABSENT, FinishedAttempt, small};
use super::rows::{Kind, Rows};
use super::tx::Tx;
use crate::domain::clock::Timestamp;
use crate::domain::id::{EndpointId, ProjectId};

pub(super) const ROLLUP_MS: i64 = 5 * 60 * 1000;

impl Tx {
    /// Adds to the five-minute sums that charts read.
    pub(super) fn add_rollups<'a>(&mut self, finished: impl Iterator<Item = &'a FinishedAttempt>) {
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
        rows.add_to(self.last(), &sql);
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
