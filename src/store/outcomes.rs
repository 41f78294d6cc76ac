//! Writing what became of attempts: many outcomes in one transaction, each fenced by its claim.

use std::collections::HashSet;
use std::sync::Arc;

use sea_orm::QueryResult;

use super::error::Result;
use super::ingest::headers_json;
use super::notify::Bells;
use super::rows::{Kind, Rows};
use super::tx::Tx;
use crate::domain::change::{Change, DeliveryChange, DeliveryChangeKind};
use crate::domain::clock::Timestamp;
use crate::domain::delivery::{Attempt, Claim, DeliveryStatus};
use crate::domain::id::{DeliveryId, EndpointId, EventId, ProjectId};

/// What happens next to a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Success,
    Retry(Timestamp),
    Failed,
}

impl Next {
    const fn status(self) -> DeliveryStatus {
        match self {
            Self::Success => DeliveryStatus::Success,
            Self::Retry(_) => DeliveryStatus::Retry,
            Self::Failed => DeliveryStatus::Failed,
        }
    }
}

/// An attempt that was made, with the claim it was made under.
#[derive(Clone, Debug)]
pub struct FinishedAttempt {
    pub attempt: Attempt,
    pub claim: Claim,
    pub owner: Option<Arc<str>>,
    pub event_type: Arc<str>,
    /// Of the delivery.
    pub created_at: Timestamp,
    pub ended_at: Timestamp,
    pub next: Next,
}

/// A claim given back without an attempt.
#[derive(Clone, Copy, Debug)]
pub struct Released {
    pub delivery: DeliveryId,
    pub claim: Claim,
    /// Keep it out of the scan until its endpoint is resumed.
    pub park: bool,
}

/// A claimed delivery whose endpoint is gone.
#[derive(Clone, Debug)]
pub struct Discarded {
    pub delivery: DeliveryId,
    pub claim: Claim,
    pub project: ProjectId,
    pub event: EventId,
    pub endpoint: EndpointId,
    pub event_type: Arc<str>,
    pub attempts: u16,
    pub created_at: Timestamp,
}

/// `queue.parked` of work whose endpoint is paused.
pub(super) const PARKED_PAUSED: i16 = 1;

impl Tx {
    /// Writes attempts, moves their deliveries on, and counts for endpoints and charts.
    ///
    /// A delivery whose claim is no longer ours keeps its state; its attempt was made and is recorded all the
    /// same. Safe to repeat after a commit whose answer was lost. Returns the deliveries that were moved.
    pub async fn finish_attempts(&mut self, finished: &[FinishedAttempt]) -> Result<HashSet<DeliveryId>> {
        let held = self.settle_queue(finished).await?;
        self.insert_attempts(finished).await?;
        let moved: Vec<&FinishedAttempt> =
            finished.iter().filter(|one| held.contains(&one.attempt.delivery)).collect();
        self.move_deliveries(&moved).await?;
        self.count_failures(finished).await?;
        self.add_rollups(finished).await?;
        for one in &moved {
            self.record(Change::Delivery(attempted(one)));
        }
        Ok(held)
    }

    /// Ends or reschedules the claimed rows; says which were still ours.
    async fn settle_queue(&self, finished: &[FinishedAttempt]) -> Result<HashSet<DeliveryId>> {
        let mut ends = Rows::new([("id", Kind::Uuid), ("token", Kind::BigInt), ("lease", Kind::Uuid)]);
        let mut retries = Rows::new([
            ("id", Kind::Uuid),
            ("token", Kind::BigInt),
            ("lease", Kind::Uuid),
            ("due_at", Kind::BigInt),
            ("attempts", Kind::SmallInt),
        ]);
        for one in finished {
            let id = one.attempt.delivery.uuid();
            match one.next {
                Next::Retry(due) => retries.push([
                    id.into(),
                    one.claim.token.into(),
                    one.claim.lease.uuid().into(),
                    due.as_millis().into(),
                    small(one.attempt.number).into(),
                ]),
                Next::Success | Next::Failed => {
                    ends.push([id.into(), one.claim.token.into(), one.claim.lease.uuid().into()])
                }
            }
        }
        let mut held = ids(&ends.query(self.db(), DELETE_HELD).await?)?;
        let sql = "UPDATE queue SET claimed_by = NULL, due_at = v.due_at, attempts = v.attempts FROM v \
                   WHERE queue.id = v.id AND queue.token = v.token AND queue.claimed_by = v.lease \
                   RETURNING queue.id";
        held.extend(ids(&retries.query(self.db(), sql).await?)?);
        Ok(held)
    }

    async fn insert_attempts(&self, finished: &[FinishedAttempt]) -> Result<()> {
        let mut rows = Rows::new([
            ("id", Kind::Uuid),
            ("delivery_id", Kind::Uuid),
            ("project_id", Kind::Uuid),
            ("endpoint_id", Kind::Uuid),
            ("event_id", Kind::Uuid),
            ("number", Kind::SmallInt),
            ("started_at", Kind::BigInt),
            ("status_code", Kind::SmallInt),
            ("error_class", Kind::SmallInt),
            ("error_detail", Kind::Text),
            ("request_headers", Kind::Text),
            ("response_headers", Kind::Text),
            ("response_body", Kind::Bytes),
            ("flags", Kind::SmallInt),
            ("peer", Kind::Text),
            ("dns_us", Kind::Int),
            ("connect_us", Kind::Int),
            ("tls_us", Kind::Int),
            ("first_byte_us", Kind::Int),
            ("total_us", Kind::Int),
        ]);
        for one in finished {
            let (attempt, outcome) = (&one.attempt, &one.attempt.outcome);
            let timings = &outcome.timings;
            let (class, detail) = match &outcome.error {
                Some((class, detail)) => (class.code(), detail.clone()),
                None => (ABSENT, String::new()),
            };
            rows.push([
                attempt.id.uuid().into(),
                attempt.delivery.uuid().into(),
                attempt.project.uuid().into(),
                attempt.endpoint.uuid().into(),
                attempt.event.uuid().into(),
                small(attempt.number).into(),
                outcome.started_at.as_millis().into(),
                outcome.status.map_or(ABSENT, small).into(),
                class.into(),
                detail.into(),
                headers_json(&attempt.request_headers).into(),
                headers_json(&outcome.response_headers).into(),
                outcome.body.to_vec().into(),
                flags(attempt).into(),
                outcome.peer.map(|peer| peer.to_string()).unwrap_or_default().into(),
                micros(timings.dns_us).into(),
                micros(timings.connect_us).into(),
                micros(timings.tls_us).into(),
                micros(timings.first_byte_us).into(),
                micros(Some(timings.total_us)).into(),
            ]);
        }
        let sql = "INSERT INTO attempts (id, delivery_id, project_id, endpoint_id, event_id, number, started_at, \
                   status_code, error_class, error_detail, request_headers, response_headers, response_body, \
                   flags, peer, dns_us, connect_us, tls_us, first_byte_us, total_us) \
                   SELECT id, delivery_id, project_id, endpoint_id, event_id, number, started_at, \
                   NULLIF(status_code, -1), NULLIF(error_class, -1), NULLIF(error_detail, ''), request_headers, \
                   NULLIF(response_headers, ''), response_body, flags, NULLIF(peer, ''), NULLIF(dns_us, -1), \
                   NULLIF(connect_us, -1), NULLIF(tls_us, -1), NULLIF(first_byte_us, -1), total_us FROM v WHERE true \
                   ON CONFLICT (id) DO NOTHING";
        rows.execute(self.db(), sql).await?;
        Ok(())
    }

    async fn move_deliveries(&self, moved: &[&FinishedAttempt]) -> Result<()> {
        let mut rows = Rows::new([
            ("id", Kind::Uuid),
            ("status", Kind::SmallInt),
            ("attempts", Kind::SmallInt),
            ("next_attempt_at", Kind::BigInt),
            ("last_error", Kind::SmallInt),
            ("last_status", Kind::SmallInt),
            ("ended_at", Kind::BigInt),
        ]);
        for one in moved {
            let outcome = &one.attempt.outcome;
            let (next, end) = match one.next {
                Next::Retry(due) => (due.as_millis(), i64::from(ABSENT)),
                Next::Success | Next::Failed => (i64::from(ABSENT), one.ended_at.as_millis()),
            };
            rows.push([
                one.attempt.delivery.uuid().into(),
                one.next.status().code().into(),
                small(one.attempt.number).into(),
                next.into(),
                outcome.error.as_ref().map_or(ABSENT, |(class, _)| class.code()).into(),
                outcome.status.map_or(ABSENT, small).into(),
                end.into(),
            ]);
        }
        let sql = "UPDATE deliveries SET status = v.status, attempts = v.attempts, \
                   next_attempt_at = NULLIF(v.next_attempt_at, -1), last_error = NULLIF(v.last_error, -1), \
                   last_status = NULLIF(v.last_status, -1), ended_at = NULLIF(v.ended_at, -1) \
                   FROM v WHERE deliveries.id = v.id";
        rows.execute(self.db(), sql).await?;
        Ok(())
    }

    /// Ends claimed deliveries as DISCARDED.
    pub async fn discard(&mut self, discarded: &[Discarded]) -> Result<()> {
        let now = Timestamp::now();
        let mut ends = Rows::new([("id", Kind::Uuid), ("token", Kind::BigInt), ("lease", Kind::Uuid)]);
        for one in discarded {
            ends.push([one.delivery.uuid().into(), one.claim.token.into(), one.claim.lease.uuid().into()]);
        }
        let held = ids(&ends.query(self.db(), DELETE_HELD).await?)?;
        let mut rows =
            Rows::new([("id", Kind::Uuid), ("status", Kind::SmallInt), ("ended_at", Kind::BigInt)]);
        for one in discarded.iter().filter(|one| held.contains(&one.delivery)) {
            let status = DeliveryStatus::Discarded;
            rows.push([one.delivery.uuid().into(), status.code().into(), now.as_millis().into()]);
            self.record(Change::Delivery(DeliveryChange {
                kind: DeliveryChangeKind::Discarded,
                project: one.project,
                delivery: one.delivery,
                event: one.event,
                endpoint: one.endpoint,
                owner: None,
                event_type: one.event_type.clone(),
                status,
                attempts: one.attempts,
                next_attempt_at: None,
                last_error: None,
                last_status: None,
                created_at: one.created_at,
                ended_at: Some(now),
                attempt: None,
            }));
        }
        let sql = "UPDATE deliveries SET status = v.status, next_attempt_at = NULL, ended_at = v.ended_at \
                   FROM v WHERE deliveries.id = v.id";
        rows.execute(self.db(), sql).await?;
        Ok(())
    }

    /// Gives claims back; parks those whose endpoint is paused.
    pub async fn release(&mut self, released: &[Released]) -> Result<()> {
        let mut rows = Rows::new([
            ("id", Kind::Uuid),
            ("token", Kind::BigInt),
            ("lease", Kind::Uuid),
            ("parked", Kind::SmallInt),
        ]);
        for one in released {
            let parked = if one.park { PARKED_PAUSED } else { 0 };
            rows.push([
                one.delivery.uuid().into(),
                one.claim.token.into(),
                one.claim.lease.uuid().into(),
                parked.into(),
            ]);
        }
        // Resumed meanwhile, it must not be parked: nobody would let it go before the slow round. 2 is PAUSED.
        let sql = "UPDATE queue SET claimed_by = NULL, parked = CASE WHEN EXISTS (SELECT 1 FROM endpoints \
                   WHERE endpoints.id = queue.endpoint_id AND endpoints.status = 2) THEN v.parked ELSE 0 END FROM v \
                   WHERE queue.id = v.id AND queue.token = v.token AND queue.claimed_by = v.lease";
        if rows.execute(self.db(), sql).await? > 0 {
            self.ring(Bells::DUE);
        }
        Ok(())
    }
}

/// Removes claimed rows that are still held under the same token.
const DELETE_HELD: &str =
    "DELETE FROM queue WHERE (id, token, claimed_by) IN (SELECT id, token, lease FROM v) RETURNING id";

/// Stands for NULL among rows.
pub(super) const ABSENT: i16 = -1;

fn attempted(one: &FinishedAttempt) -> DeliveryChange {
    let attempt = &one.attempt;
    let (next_attempt_at, ended_at) = match one.next {
        Next::Retry(due) => (Some(due), None),
        Next::Success | Next::Failed => (None, Some(one.ended_at)),
    };
    DeliveryChange {
        kind: DeliveryChangeKind::Attempted,
        project: attempt.project,
        delivery: attempt.delivery,
        event: attempt.event,
        endpoint: attempt.endpoint,
        owner: one.owner.clone(),
        event_type: one.event_type.clone(),
        status: one.next.status(),
        attempts: attempt.number,
        next_attempt_at,
        last_error: attempt.outcome.error.as_ref().map(|(class, _)| *class),
        last_status: attempt.outcome.status,
        created_at: one.created_at,
        ended_at,
        attempt: Some(attempt.id),
    }
}

fn flags(attempt: &Attempt) -> i16 {
    let outcome = &attempt.outcome;
    i16::from(outcome.body_truncated)
        | i16::from(outcome.headers_truncated) << 1
        | i16::from(outcome.timings.reused) << 2
}

pub(super) fn small(number: u16) -> i16 {
    i16::try_from(number).unwrap_or(i16::MAX)
}

fn micros(value: Option<u32>) -> i32 {
    value.map_or(-1, |value| i32::try_from(value).unwrap_or(i32::MAX))
}

fn ids(rows: &[QueryResult]) -> Result<HashSet<DeliveryId>> {
    rows.iter().map(|row| Ok(DeliveryId::from_uuid(row.try_get_by_index(0)?))).collect()
}
