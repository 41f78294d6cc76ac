//! Writing what became of attempts: many outcomes in one transaction, each fenced by its claim.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use sea_orm::DbBackend;
use uuid::Uuid;

use super::db::{Db, Row};
use super::error::Result;
use super::health::{Aftermath, FailureRules, HAS_FAILED};
use super::rows::{Kind, Rows};
use super::streaks::Streaks;
use super::tx::Tx;
use super::warnings::exhausted;
use crate::domain::change::{Change, DeliveryChange, DeliveryChangeKind};
use crate::domain::clock::Timestamp;
use crate::domain::delivery::{Attempt, Claim, DeliveryStatus, Probe};
use crate::domain::disable::DisablePolicy;
use crate::domain::id::{DeliveryId, EndpointId};

/// What happens next to a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Success,
    /// The same process tries again at once, under the same claim; the attempt counts for nothing.
    Again,
    Retry(Timestamp),
    Failed,
    /// It failed, and its endpoint is INACTIVE or gone.
    Discarded,
}

impl Next {
    const fn status(self) -> DeliveryStatus {
        match self {
            Self::Success => DeliveryStatus::Success,
            Self::Again | Self::Retry(_) => DeliveryStatus::Retry,
            Self::Failed => DeliveryStatus::Failed,
            Self::Discarded => DeliveryStatus::Discarded,
        }
    }
}

/// Why a queued delivery is kept out of the scan. Stored numbers of `queue.parked`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hold {
    #[default]
    No = 0,
    /// Its endpoint is paused.
    Paused = 1,
    /// Its endpoint's breaker is open.
    Breaker = 2,
    /// It is to probe its endpoint, which is PENDING.
    Probe = 3,
    /// Its endpoint has a rate limit: it is claimed together with a slot.
    Rate = 4,
}

impl Hold {
    pub const fn code(self) -> i16 {
        self as i16
    }
}

pub(super) const PARKED_PAUSED: i16 = Hold::Paused.code();
pub(super) const PARKED_BREAKER: i16 = Hold::Breaker.code();
pub(super) const PARKED_PROBE: i16 = Hold::Probe.code();
pub(super) const PARKED_RATE: i16 = Hold::Rate.code();

/// An attempt that was made, with the claim it was made under.
#[derive(Clone, Debug)]
pub struct FinishedAttempt {
    pub attempt: Arc<Attempt>,
    pub claim: Claim,
    pub owner: Option<Arc<str>>,
    pub event_type: Arc<str>,
    /// Of the delivery.
    pub created_at: Timestamp,
    pub ended_at: Timestamp,
    pub next: Next,
    /// Attempts made when the delivery's budget begins.
    pub budget_start: u16,
    /// The endpoint's, as the attempt knew it.
    pub disable: DisablePolicy,
    pub probe: Option<Probe>,
    /// The endpoint has a rate limit.
    pub limited: bool,
}

impl FinishedAttempt {
    /// The same without what the receiver sent, in case that is what the database refuses.
    pub fn without_capture(mut self) -> Self {
        let outcome = &mut Arc::make_mut(&mut self.attempt).outcome;
        outcome.response_headers.clear();
        outcome.headers_truncated = true;
        outcome.body = bytes::Bytes::new();
        outcome.body_truncated = true;
        self
    }

    /// Why it failed, for people; empty where it did not.
    pub(super) fn cause(&self) -> String {
        match &self.attempt.outcome.error {
            None => String::new(),
            Some((class, detail)) if detail.is_empty() => class.as_str().to_owned(),
            Some((_, detail)) => detail.clone(),
        }
    }

    /// Whether it was the delivery's last attempt, and no other alert says so: what became of a probe, or of a 410, the
    /// endpoint's own tells.
    fn is_exhausted(&self) -> bool {
        let outcome = &self.attempt.outcome;
        self.next == Next::Failed
            && outcome.counts()
            && !outcome.is_gone()
            && self.probe != Some(Probe::Endpoint)
    }

    /// When the next attempt is due, and when the delivery ended.
    const fn times(&self, next: Next) -> (Option<Timestamp>, Option<Timestamp>) {
        match next {
            Next::Again => (Some(self.ended_at), None),
            Next::Retry(due) => (Some(due), None),
            Next::Success | Next::Failed | Next::Discarded => (None, Some(self.ended_at)),
        }
    }
}

/// An attempt with what it leads to, now that its endpoint's state is known.
struct Fate<'a> {
    one: &'a FinishedAttempt,
    next: Next,
}

/// What became of the claimed rows.
#[derive(Default)]
pub(super) struct Settled {
    /// Those that were still ours, by delivery and token: the outcome of an older claim may be in the same turn.
    pub held: HashSet<(DeliveryId, i64)>,
    /// Endpoints of those that ended for which a success may be news.
    pub failing: HashSet<EndpointId>,
}

impl Tx {
    /// Writes attempts, moves their deliveries on, judges their endpoints, and counts for charts.
    ///
    /// A delivery whose claim is no longer ours keeps its state, and its endpoint too; its attempt was made, and is
    /// recorded and told all the same. Safe to repeat after a commit whose answer was lost.
    pub async fn finish_attempts(
        &mut self,
        finished: &[FinishedAttempt],
        rules: &FailureRules,
    ) -> Result<Aftermath> {
        let streaks = Streaks::of(finished);
        let states = self.states_of(finished).await?;
        let mut bumped = self.bump_ahead(finished, &streaks, &states, rules).await?;
        let is_closed = |one: &FinishedAttempt| {
            one.attempt.outcome.error.is_some() && one.attempt.outcome.counts() && states.is_closed(one)
        };
        let fates: Vec<Fate<'_>> = finished
            .iter()
            .map(|one| match one.next {
                Next::Retry(_) | Next::Failed if is_closed(one) => Fate { one, next: Next::Discarded },
                next => Fate { one, next },
            })
            .collect();
        let Settled { held, failing } = self.settle_queue(&fates).await?;
        self.insert_attempts(finished);
        for one in finished {
            self.record_attempt(&one.attempt);
        }
        let (mut moved, late): (Vec<_>, Vec<_>) = fates
            .into_iter()
            .partition(|fate| held.contains(&(fate.one.attempt.delivery, fate.one.claim.token)));
        // Those of a turn whose commit was not answered are recorded and told already. All others lost their claim by it.
        let again = moved.iter().filter(|fate| fate.next == Next::Again);
        let told = again.chain(&late).map(|fate| fate.one.attempt.id);
        let told = self.recorded_attempts(told).await?;
        let counted = moved.iter().filter(|fate| fate.next != Next::Discarded).map(|fate| fate.one);
        let last = moved.iter().filter(|fate| fate.next == Next::Failed && fate.one.is_exhausted());
        let exhausted = last.map(|fate| exhausted(fate.one)).collect();
        let earlier = self.take_changes();
        self.rest_again(moved.iter().map(|fate| fate.one), rules).await?;
        let mut aftermath =
            self.judge_endpoints(&Streaks::of(counted), &failing, exhausted, &mut bumped, rules).await?;
        self.end_probes(moved.iter().map(|fate| fate.one), &bumped, &mut aftermath).await?;
        self.hold_back(&mut moved, &aftermath).await?;
        let statuses = moved.iter().map(|fate| (fate.one.attempt.project, fate.next.status()));
        aftermath.ended = statuses.filter(|(_, status)| status.is_final()).collect();
        self.move_deliveries(&moved);
        let made = moved.iter().map(|fate| fate.one).filter(|one| one.next != Next::Again);
        self.add_rollups(made);
        // The attempts are told before what they led to.
        let transitions = self.take_changes();
        let attempts = moved.iter().map(|fate| (fate, DeliveryChangeKind::Attempted));
        let attempts = attempts.chain(late.iter().map(|fate| (fate, DeliveryChangeKind::Late)));
        let attempts = attempts.filter(|(fate, _)| !told.contains(&fate.one.attempt.id));
        let attempts = attempts.map(|(fate, kind)| Change::Delivery(attempted(fate, kind)));
        for change in earlier.into_iter().chain(attempts).chain(transitions) {
            self.record(change);
        }
        Ok(aftermath)
    }

    /// Ends or reschedules the claimed rows.
    async fn settle_queue(&self, fates: &[Fate<'_>]) -> Result<Settled> {
        let mut again = Rows::new([
            ("id", Kind::Uuid),
            ("token", Kind::BigInt),
            ("lease", Kind::Uuid),
            ("attempts", Kind::SmallInt),
            ("budget_start", Kind::SmallInt),
        ]);
        let mut ends = Vec::new();
        let mut retries = Rows::new([
            ("id", Kind::Uuid),
            ("token", Kind::BigInt),
            ("lease", Kind::Uuid),
            ("due_at", Kind::BigInt),
            ("attempts", Kind::SmallInt),
            ("parked", Kind::SmallInt),
        ]);
        for Fate { one, next } in fates {
            let id = one.attempt.delivery.uuid();
            let (token, lease) = (one.claim.token.into(), one.claim.lease.uuid().into());
            let attempts = small(one.attempt.number).into();
            match next {
                Next::Again => {
                    again.push([id.into(), token, lease, attempts, small(one.budget_start).into()])
                }
                Next::Retry(due) => {
                    let parked = if one.limited { Hold::Rate } else { Hold::No }.code().into();
                    retries.push([id.into(), token, lease, due.as_millis().into(), attempts, parked]);
                }
                Next::Success | Next::Failed | Next::Discarded => {
                    ends.push((one.attempt.delivery, one.attempt.endpoint, one.claim));
                }
            }
        }
        // First, because the attempt after it may be in the same batch.
        let sql = "UPDATE queue SET attempts = v.attempts, budget_start = v.budget_start FROM v \
                   WHERE queue.id = v.id AND queue.token = v.token AND queue.claimed_by = v.lease \
                   RETURNING queue.id, queue.token";
        let mut held = self::held(&again.query(self.db(), sql).await?)?;
        let ended = self.end_held(&ends).await?;
        held.extend(ended.held);
        let sql = "UPDATE queue SET claimed_by = NULL, parked = v.parked, due_at = v.due_at, attempts = v.attempts \
                   FROM v WHERE queue.id = v.id AND queue.token = v.token AND queue.claimed_by = v.lease \
                   RETURNING queue.id, queue.token";
        held.extend(self::held(&retries.query(self.db(), sql).await?)?);
        Ok(Settled { held, failing: ended.failing })
    }

    /// Removes claimed rows that are still held under the same token; returns which were.
    pub(super) async fn end_held(&self, ends: &[(DeliveryId, EndpointId, Claim)]) -> Result<Settled> {
        let mut rows = Rows::new([("id", Kind::Uuid), ("token", Kind::BigInt), ("lease", Kind::Uuid)]);
        for (delivery, _, claim) in ends {
            rows.push([delivery.uuid().into(), claim.token.into(), claim.lease.uuid().into()]);
        }
        let mut settled = Settled::default();
        if let Db::Session(session) = self.db() {
            // RETURNING would cost SQLite more than the deletion itself.
            let sql = "DELETE FROM queue WHERE id = :id AND token = :token AND claimed_by = :lease";
            let deleted = rows.changed(session, sql)?;
            for ((delivery, endpoint, claim), _) in ends.iter().zip(deleted).filter(|(_, deleted)| *deleted) {
                settled.held.insert((*delivery, claim.token));
                settled.failing.insert(*endpoint);
            }
            return Ok(settled);
        }
        let sql = format!(
            "DELETE FROM queue WHERE (id, token, claimed_by) IN (SELECT id, token, lease FROM v) RETURNING id, token, \
             (SELECT h.endpoint_id FROM endpoint_health h WHERE h.endpoint_id = queue.endpoint_id AND {HAS_FAILED})"
        );
        for row in rows.query(self.db(), &sql).await? {
            settled.held.insert((DeliveryId::from_uuid(row.try_get_by_index(0)?), row.try_get_by_index(1)?));
            settled.failing.extend(row.try_get_by_index::<Option<Uuid>>(2)?.map(EndpointId::from_uuid));
        }
        Ok(settled)
    }

    /// What was rescheduled for an endpoint that is INACTIVE now ends, and is parked where the breaker is open.
    async fn hold_back(&self, moved: &mut [Fate<'_>], aftermath: &Aftermath) -> Result<()> {
        let disabled: HashSet<EndpointId> =
            aftermath.disabled.iter().map(|(_, _, endpoint)| *endpoint).collect();
        let mut ended = Rows::new([("id", Kind::Uuid)]);
        let mut parked = Rows::new([("id", Kind::Uuid)]);
        for fate in moved.iter_mut().filter(|fate| matches!(fate.next, Next::Retry(_))) {
            let attempt = &fate.one.attempt;
            if disabled.contains(&attempt.endpoint) {
                fate.next = Next::Discarded;
                ended.push([attempt.delivery.uuid().into()]);
            } else if aftermath.open.contains(&attempt.endpoint) {
                parked.push([attempt.delivery.uuid().into()]);
            }
        }
        ended.execute(self.db(), "DELETE FROM queue WHERE id IN (SELECT id FROM v)").await?;
        let sql = format!("UPDATE queue SET parked = {PARKED_BREAKER} FROM v WHERE queue.id = v.id");
        parked.execute(self.db(), &sql).await?;
        Ok(())
    }

    fn move_deliveries(&mut self, moved: &[Fate<'_>]) {
        let mut rows = Rows::new([
            ("id", Kind::Uuid),
            ("status", Kind::SmallInt),
            ("attempts", Kind::SmallInt),
            ("next_attempt_at", Kind::BigInt),
            ("last_error", Kind::SmallInt),
            ("last_status", Kind::SmallInt),
            ("ended_at", Kind::BigInt),
        ]);
        // A free attempt and the one after it may be in the same batch: the later one is what counts.
        let mut last: HashMap<DeliveryId, &Fate<'_>> = HashMap::with_capacity(moved.len());
        for fate in moved {
            last.insert(fate.one.attempt.delivery, fate);
        }
        for Fate { one, next } in last.into_values() {
            let outcome = &one.attempt.outcome;
            let (due, end) = one.times(*next);
            let millis = |time: Option<Timestamp>| time.map_or(i64::from(ABSENT), Timestamp::as_millis);
            rows.push([
                one.attempt.delivery.uuid().into(),
                next.status().code().into(),
                small(one.attempt.number).into(),
                millis(due).into(),
                outcome.error.as_ref().map_or(ABSENT, |(class, _)| class.code()).into(),
                outcome.status.map_or(ABSENT, small).into(),
                millis(end).into(),
            ]);
        }
        let sql = match self.backend() {
            DbBackend::Postgres => {
                "UPDATE deliveries SET status = v.status, attempts = v.attempts, \
                 next_attempt_at = NULLIF(v.next_attempt_at, -1), last_error = NULLIF(v.last_error, -1), \
                 last_status = NULLIF(v.last_status, -1), ended_at = NULLIF(v.ended_at, -1) \
                 FROM v WHERE deliveries.id = v.id"
            }
            // A join costs SQLite a table of its own for each row.
            _ => {
                "UPDATE deliveries SET status = :status, attempts = :attempts, \
                 next_attempt_at = NULLIF(:next_attempt_at, -1), last_error = NULLIF(:last_error, -1), \
                 last_status = NULLIF(:last_status, -1), ended_at = NULLIF(:ended_at, -1) WHERE id = :id"
            }
        };
        rows.add_to(self.last(), sql);
    }
}

/// Stands for NULL among rows.
pub(super) const ABSENT: i16 = -1;

fn attempted(fate: &Fate<'_>, kind: DeliveryChangeKind) -> DeliveryChange {
    let one = fate.one;
    let attempt = &one.attempt;
    let (next_attempt_at, ended_at) = one.times(fate.next);
    DeliveryChange {
        kind,
        project: attempt.project,
        delivery: attempt.delivery,
        event: attempt.event,
        endpoint: attempt.endpoint,
        owner: one.owner.clone(),
        event_type: one.event_type.clone(),
        status: fate.next.status(),
        attempts: attempt.number,
        next_attempt_at,
        last_error: attempt.outcome.error.as_ref().map(|(class, _)| *class),
        last_status: attempt.outcome.status,
        created_at: one.created_at,
        ended_at,
        attempt: Some(attempt.id),
    }
}

pub(super) fn small(number: u16) -> i16 {
    i16::try_from(number).unwrap_or(i16::MAX)
}

fn held(rows: &[Row]) -> Result<HashSet<(DeliveryId, i64)>> {
    rows.iter()
        .map(|row| Ok((DeliveryId::from_uuid(row.try_get_by_index(0)?), row.try_get_by_index(1)?)))
        .collect()
}
