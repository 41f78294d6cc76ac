//! What failed attempts do to their endpoint: failures in a row, the breaker, and the disable policy. All of it
//! in the transaction of the attempts.
//!
//! Locks are taken in the order projects, queue, health, endpoints, which calls of people keep to as well.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use sea_orm::{Statement, Value};
use uuid::Uuid;

use super::deliveries::unsigned;
use super::error::Result;
use super::now_sql;
use super::outcomes::{FinishedAttempt, Next};
use super::rows::{Kind, Rows};
use super::streaks::{Streak, Streaks};
use super::tx::Tx;
use super::warnings::Warning;
use crate::domain::alert::{AlertDetail, AlertEvent};
use crate::domain::breaker::BreakerPolicy;
use crate::domain::change::EndpointChangeKind;
use crate::domain::clock::Timestamp;
use crate::domain::delivery::{DeliveryStatus, Probe};
use crate::domain::disable::DisablePolicy;
use crate::domain::endpoint::EndpointStatus;
use crate::domain::id::{DeliveryId, EndpointId, ProjectId};

/// By what failures are judged.
#[derive(Clone, Copy, Debug)]
pub struct FailureRules {
    pub breaker: BreakerPolicy,
    /// The fault is ours: failures count towards no disable policy.
    pub egress_failing: bool,
    /// Within what time attempts show whether it is.
    pub egress_window: Duration,
}

/// Of a row of `endpoint_health`: the next success is news. After a pause an endpoint has no failures, and its recovery may
/// be untold all the same.
pub(super) const HAS_FAILED: &str = "(consecutive_failures > 0 OR recovery_untold > 0)";

/// What the engine must know after the commit.
#[derive(Debug, Default)]
pub struct Aftermath {
    /// Endpoints that became INACTIVE, with the routing version that says so.
    pub disabled: Vec<(ProjectId, i64, EndpointId)>,
    /// Endpoints that a probe made ACTIVE, likewise.
    pub recovered: Vec<(ProjectId, i64, EndpointId)>,
    /// Breakers that opened now.
    pub opened: Vec<EndpointId>,
    /// All breakers met that are open.
    pub open: HashSet<EndpointId>,
    /// Breakers that a success closed.
    pub closed: Vec<EndpointId>,
    /// The deliveries that ended: whose they are, and their final statuses.
    pub ended: Vec<(ProjectId, DeliveryStatus)>,
}

/// An endpoint before the batch.
struct Before {
    status: EndpointStatus,
    counted: u32,
    counted_since: Option<Timestamp>,
}

/// The endpoints of a batch's failures before it; one that is absent is gone.
pub(super) struct States(HashMap<EndpointId, Before>);

impl States {
    /// Whether a failed attempt's delivery becomes DISCARDED, because of its endpoint's state.
    pub(super) fn is_closed(&self, one: &FinishedAttempt) -> bool {
        let is_probe = one.probe == Some(Probe::Endpoint);
        self.0.get(&one.attempt.endpoint).is_none_or(|before| before.status.discards() && !is_probe)
    }
}

/// Failures of an endpoint after the batch.
struct After {
    endpoint: EndpointId,
    failures: u32,
    counted: u32,
    counted_since: Option<Timestamp>,
    opens: u16,
    probe: Option<DeliveryId>,
    /// Its failing was told.
    warned: bool,
}

impl Tx {
    /// A look at the endpoints of which attempts failed.
    pub(super) async fn states_of(&self, finished: &[FinishedAttempt]) -> Result<States> {
        let failed = finished.iter().filter(|one| !one.attempt.outcome.is_success());
        let endpoints: BTreeSet<EndpointId> = failed.map(|one| one.attempt.endpoint).collect();
        let mut rows = Rows::new([("id", Kind::Uuid)]);
        for endpoint in endpoints {
            rows.push([endpoint.uuid().into()]);
        }
        let sql = "SELECT e.id, e.status, h.counted, h.counted_since FROM v JOIN endpoints e ON e.id = v.id \
                   LEFT JOIN endpoint_health h ON h.endpoint_id = v.id";
        let mut states = HashMap::new();
        for row in rows.query(self.db(), sql).await? {
            let Some(status) = EndpointStatus::from_code(row.try_get_by_index(1)?) else { continue };
            let before = Before {
                status,
                counted: number(row.try_get_by_index::<Option<i32>>(2)?.unwrap_or_default()),
                counted_since: row.try_get_by_index::<Option<i64>>(3)?.map(Timestamp::from_millis),
            };
            states.insert(EndpointId::from_uuid(row.try_get_by_index(0)?), before);
        }
        Ok(States(states))
    }

    /// Bumps the projects of endpoints whose state will most likely change, before any other row is locked.
    pub(super) async fn bump_ahead(
        &mut self,
        finished: &[FinishedAttempt],
        streaks: &Streaks,
        states: &States,
        rules: &FailureRules,
    ) -> Result<BTreeMap<ProjectId, i64>> {
        let likely = streaks.0.iter().filter(|(endpoint, streak)| {
            let Some(before) = states.0.get(endpoint) else { return false };
            let first = before.counted_since.unwrap_or(streak.first);
            let met = streak.disable.is_met(before.counted + streak.failures, first, streak.last);
            before.status == EndpointStatus::Active && (streak.gone || (met && !rules.egress_failing))
        });
        let probes =
            finished.iter().filter(|one| one.probe == Some(Probe::Endpoint) && one.next != Next::Again);
        let projects: BTreeSet<ProjectId> =
            likely.map(|(_, streak)| streak.project).chain(probes.map(|one| one.attempt.project)).collect();
        let mut bumped = BTreeMap::new();
        for project in projects {
            bumped.insert(project, self.bump_routing(project).await?);
        }
        Ok(bumped)
    }

    /// Counts the batch's successes and failures, moves breakers, switches off what failed too often, and tells of all
    /// that. A success of an endpoint that is not `failing` costs nothing.
    pub(super) async fn judge_endpoints(
        &mut self,
        streaks: &Streaks,
        failing: &HashSet<EndpointId>,
        exhausted: Vec<Warning>,
        bumped: &mut BTreeMap<ProjectId, i64>,
        rules: &FailureRules,
    ) -> Result<Aftermath> {
        let (closed, answering) = self.heal(streaks, failing).await?;
        let mut aftermath = Aftermath { closed, ..Aftermath::default() };
        let mut failed = self.count_failures(streaks, rules).await?;
        let is_met = |after: &After| {
            streaks.0.get(&after.endpoint).is_some_and(|streak| after.meets(&streak.disable, streak.last))
        };
        // The round's verdict may be older than the outage.
        if failed.iter().any(is_met) && self.egress_is_failing(rules.egress_window).await? {
            self.count_anew(&mut failed).await?;
        }
        self.move_breakers(streaks, &failed, rules, &mut aftermath).await?;
        // With all else that locks rows of health, before any endpoint is changed.
        let exhausted = self.note_exhausted(exhausted).await?;
        let failed: HashMap<EndpointId, After> =
            failed.into_iter().map(|after| (after.endpoint, after)).collect();
        let mut failing = Vec::new();
        for (endpoint, streak) in &streaks.0 {
            let after = failed.get(endpoint);
            if let Some(warning) = after.and_then(|after| after.warning(streak)) {
                failing.push(warning);
            }
            if !streak.gone && !after.is_some_and(|after| after.meets(&streak.disable, streak.last)) {
                continue;
            }
            let version = match bumped.get(&streak.project) {
                Some(version) => *version,
                None => self.bump_routing(streak.project).await?,
            };
            bumped.insert(streak.project, version);
            if self.switch_off(*endpoint, streak, after).await? {
                aftermath.open.remove(endpoint);
                aftermath.opened.retain(|opened| opened != endpoint);
                aftermath.disabled.push((streak.project, version, *endpoint));
                failing.retain(|(failing, ..)| failing != endpoint);
            }
        }
        self.tell_recovered(answering).await?;
        self.tell_failing(failing).await?;
        self.tell_each(AlertEvent::DeliveryExhausted, exhausted).await?;
        Ok(aftermath)
    }

    /// Starts the counts of endpoints with a success anew; returns those whose breaker that closed, and those whose
    /// recovery is to be told.
    async fn heal(
        &self,
        streaks: &Streaks,
        failing: &HashSet<EndpointId>,
    ) -> Result<(Vec<EndpointId>, Vec<Warning>)> {
        let mut healed = Rows::new([("id", Kind::Uuid)]);
        for (endpoint, streak) in &streaks.0 {
            if streak.any_success && failing.contains(endpoint) {
                healed.push([endpoint.uuid().into()]);
            }
        }
        let sql = format!(
            "UPDATE endpoint_health SET consecutive_failures = 0, failing_since = NULL, counted = 0, \
             counted_since = NULL FROM v WHERE endpoint_id = v.id AND {HAS_FAILED} RETURNING \
             endpoint_id, breaker_opens, project_id, recovery_untold"
        );
        let (mut closed, mut answering) = (Vec::new(), Vec::new());
        for row in healed.query(self.db(), &sql).await? {
            let endpoint = EndpointId::from_uuid(row.try_get_by_index(0)?);
            if row.try_get_by_index::<i16>(1)? > 0 {
                closed.push(endpoint);
            }
            if row.try_get_by_index::<i16>(3)? > 0 {
                let project = ProjectId::from_uuid(row.try_get_by_index(2)?);
                answering.push((endpoint, project, AlertDetail::None));
            }
        }
        for endpoint in &closed {
            self.close_breaker(*endpoint).await?;
        }
        Ok((closed, answering))
    }

    async fn count_failures(&self, streaks: &Streaks, rules: &FailureRules) -> Result<Vec<After>> {
        let mut failing = Rows::new([
            ("id", Kind::Uuid),
            ("project_id", Kind::Uuid),
            ("failures", Kind::Int),
            ("since", Kind::BigInt),
            ("counted", Kind::Int),
        ]);
        for (endpoint, streak) in streaks.0.iter().filter(|(_, streak)| streak.failures > 0) {
            let counted = if rules.egress_failing { 0 } else { streak.failures };
            failing.push([
                endpoint.uuid().into(),
                streak.project.uuid().into(),
                i32::try_from(streak.failures).unwrap_or(i32::MAX).into(),
                streak.first.as_millis().into(),
                i32::try_from(counted).unwrap_or(i32::MAX).into(),
            ]);
        }
        // None counted means that the fault is ours: what counted before starts anew too, or the outage's time
        // would switch endpoints off as soon as it is over. `WHERE true` keeps SQLite from reading ON CONFLICT as
        // a join's ON.
        let sql = "INSERT INTO endpoint_health \
                   (endpoint_id, project_id, consecutive_failures, failing_since, counted, counted_since) \
                   SELECT v.id, v.project_id, v.failures, v.since, v.counted, \
                   CASE v.counted WHEN 0 THEN NULL ELSE v.since END \
                   FROM v JOIN endpoints ON endpoints.id = v.id WHERE true \
                   ON CONFLICT (endpoint_id) DO UPDATE SET \
                   consecutive_failures = endpoint_health.consecutive_failures + excluded.consecutive_failures, \
                   failing_since = COALESCE(endpoint_health.failing_since, excluded.failing_since), \
                   counted = CASE excluded.counted WHEN 0 THEN 0 ELSE endpoint_health.counted + excluded.counted END, \
                   counted_since = CASE excluded.counted WHEN 0 THEN NULL \
                   ELSE COALESCE(endpoint_health.counted_since, excluded.counted_since) END \
                   RETURNING endpoint_id, consecutive_failures, counted, counted_since, breaker_opens, breaker_probe, \
                   recovery_untold";
        let rows = failing.query(self.db(), sql).await?;
        rows.iter()
            .map(|row| {
                Ok(After {
                    endpoint: EndpointId::from_uuid(row.try_get_by_index(0)?),
                    failures: number(row.try_get_by_index(1)?),
                    counted: number(row.try_get_by_index(2)?),
                    counted_since: row.try_get_by_index::<Option<i64>>(3)?.map(Timestamp::from_millis),
                    opens: u16::try_from(row.try_get_by_index::<i16>(4)?).unwrap_or_default(),
                    probe: row.try_get_by_index::<Option<Uuid>>(5)?.map(DeliveryId::from_uuid),
                    warned: row.try_get_by_index::<i16>(6)? > 0,
                })
            })
            .collect()
    }

    /// The fault is ours: these failures count for nothing after all.
    async fn count_anew(&self, failed: &mut [After]) -> Result<()> {
        let mut rows = Rows::new([("id", Kind::Uuid)]);
        for after in failed {
            (after.counted, after.counted_since) = (0, None);
            rows.push([after.endpoint.uuid().into()]);
        }
        let sql =
            "UPDATE endpoint_health SET counted = 0, counted_since = NULL FROM v WHERE endpoint_id = v.id";
        rows.execute(self.db(), sql).await?;
        Ok(())
    }

    /// A breaker whose probe was called off learned nothing, and rests for as long as before: there is one probe per
    /// rest, whatever it comes to.
    pub(super) async fn rest_again<'a>(
        &self,
        finished: impl Iterator<Item = &'a FinishedAttempt>,
        rules: &FailureRules,
    ) -> Result<()> {
        let called_off = |one: &&FinishedAttempt| {
            one.probe == Some(Probe::Breaker) && one.next != Next::Again && !one.attempt.outcome.counts()
        };
        let now = now_sql(self.backend());
        // In the order in which rows are locked.
        let mut called_off: Vec<_> = finished.filter(called_off).collect();
        called_off.sort_unstable_by_key(|one| one.attempt.endpoint);
        for one in called_off {
            let (endpoint, delivery) = (one.attempt.endpoint.uuid(), one.attempt.delivery.uuid());
            let sql = "SELECT breaker_opens FROM endpoint_health WHERE endpoint_id = $1 AND breaker_probe = $2 \
                       AND breaker_opens > 0";
            let values = [Value::from(endpoint), Value::from(delivery)];
            let statement = Statement::from_sql_and_values(self.backend(), sql, values);
            let Some(row) = self.db().query_one_raw(statement).await? else { continue };
            let opens = unsigned(row.try_get_by_index(0)?).unwrap_or_default();
            let rest = i64::try_from(rules.breaker.rest(opens).as_millis()).unwrap_or(i64::MAX);
            let sql = format!(
                "UPDATE endpoint_health SET breaker_until = {now} + $3, breaker_probe = NULL \
                 WHERE endpoint_id = $1 AND breaker_probe = $2 AND breaker_opens > 0"
            );
            self.run(&sql, [endpoint.into(), delivery.into(), rest.into()]).await?;
        }
        Ok(())
    }

    async fn move_breakers(
        &self,
        streaks: &Streaks,
        failed: &[After],
        rules: &FailureRules,
        aftermath: &mut Aftermath,
    ) -> Result<()> {
        let mut moved = Rows::new([("id", Kind::Uuid), ("opens", Kind::SmallInt), ("rest", Kind::BigInt)]);
        for after in failed {
            let probe = streaks.0.get(&after.endpoint).and_then(|streak| streak.probe);
            let probe_failed = probe.is_some() && probe == after.probe;
            let opens = rules.breaker.opens(after.opens, after.failures, probe_failed);
            if opens > 0 {
                aftermath.open.insert(after.endpoint);
            }
            if opens == after.opens {
                continue;
            }
            if after.opens == 0 {
                aftermath.opened.push(after.endpoint);
            }
            let rest = i64::try_from(rules.breaker.rest(opens).as_millis()).unwrap_or(i64::MAX);
            let stored = i16::try_from(opens).unwrap_or(i16::MAX);
            moved.push([after.endpoint.uuid().into(), stored.into(), rest.into()]);
        }
        let now = now_sql(self.backend());
        let sql = format!(
            "UPDATE endpoint_health SET breaker_opens = v.opens, breaker_until = {now} + v.rest, \
             breaker_probe = NULL FROM v WHERE endpoint_id = v.id"
        );
        moved.execute(self.db(), &sql).await?;
        Ok(())
    }

    /// ACTIVE → INACTIVE, if the endpoint's settings of now say so too.
    async fn switch_off(&mut self, id: EndpointId, streak: &Streak, after: Option<&After>) -> Result<bool> {
        // The project's row is locked, so nobody changes the endpoint meanwhile.
        let Some(mut endpoint) = self.endpoint(streak.project, id).await? else { return Ok(false) };
        if endpoint.status != EndpointStatus::Active {
            return Ok(false);
        }
        let reason = match after {
            _ if streak.gone => "the receiver answered 410 Gone".to_owned(),
            None => return Ok(false),
            Some(after) => {
                let policy = match endpoint.settings.disable_policy {
                    Some(policy) => policy,
                    None => self.project_disable_policy(streak.project).await?.unwrap_or_default(),
                };
                if !after.meets(&policy, streak.last) {
                    return Ok(false);
                }
                let since = after.counted_since.unwrap_or(streak.first);
                let span = crate::domain::clock::spoken(streak.last.since(since));
                format!("{} attempts failed in a row over {span}; the last: {}", after.counted, streak.cause)
            }
        };
        endpoint.status = EndpointStatus::Inactive;
        endpoint.status_reason = reason;
        endpoint.status_changed_at = Timestamp::now();
        endpoint.consecutive_failures = after.map_or(0, |after| after.failures);
        self.update_endpoint(EndpointChangeKind::Disabled, &endpoint).await?;
        self.close_breaker(id).await?;
        self.forget_failing(id).await?;
        Ok(true)
    }

    /// Zeroes the counts of failures in a row and closes the breaker. What was told stays told: an endpoint that was warned
    /// of has yet to recover.
    pub async fn reset_health(&self, endpoint: EndpointId) -> Result<()> {
        let sql = "UPDATE endpoint_health SET consecutive_failures = 0, failing_since = NULL, counted = 0, \
                   counted_since = NULL, breaker_opens = 0, breaker_until = NULL, breaker_probe = NULL \
                   WHERE endpoint_id = $1";
        let values = [endpoint.uuid().into()];
        self.db().execute_raw(Statement::from_sql_and_values(self.backend(), sql, values)).await?;
        Ok(())
    }
}

impl After {
    fn meets(&self, policy: &DisablePolicy, last: Timestamp) -> bool {
        self.counted_since.is_some_and(|first| policy.is_met(self.counted, first, last))
    }

    /// What is to be told of it where it is half way to being switched off.
    fn warning(&self, streak: &Streak) -> Option<Warning> {
        let since = self.counted_since.filter(|_| !self.warned)?;
        streak.disable.is_half_met(self.counted, since, streak.last).then(|| {
            let detail = AlertDetail::Failing { failures: self.counted, since, error: streak.cause.clone() };
            (self.endpoint, streak.project, detail)
        })
    }
}

fn number(stored: i32) -> u32 {
    u32::try_from(stored).unwrap_or_default()
}
