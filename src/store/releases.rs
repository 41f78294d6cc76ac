//! Claims that end without an attempt: given back, or their deliveries ended as DISCARDED.

use std::collections::HashSet;
use std::sync::Arc;

use super::error::Result;
use super::notify::Bells;
use super::outcomes::{ABSENT, Hold};
use super::rows::{Kind, Rows};
use super::tx::Tx;
use crate::domain::change::{Change, DeliveryChange, DeliveryChangeKind};
use crate::domain::clock::Timestamp;
use crate::domain::delivery::{Claim, DeliveryStatus};
use crate::domain::id::{DeliveryId, EndpointId, EventId, ProjectId};

/// A claim given back without an attempt.
#[derive(Clone, Copy, Debug)]
pub struct Released {
    pub delivery: DeliveryId,
    pub endpoint: EndpointId,
    pub claim: Claim,
    pub hold: Hold,
    /// Not before then; none: as it was due.
    pub due: Option<Timestamp>,
}

/// A claimed delivery whose endpoint is INACTIVE or gone.
#[derive(Clone, Debug)]
pub struct Discarded {
    pub delivery: DeliveryId,
    pub claim: Claim,
    pub project: ProjectId,
    pub event: EventId,
    pub endpoint: EndpointId,
    pub owner: Option<Arc<str>>,
    pub event_type: Arc<str>,
    pub attempts: u16,
    pub created_at: Timestamp,
}

impl Tx {
    /// Ends claimed deliveries as DISCARDED; says how many there were.
    pub async fn discard(&mut self, discarded: &[Discarded]) -> Result<u64> {
        let now = Timestamp::now();
        let ends: Vec<_> = discarded.iter().map(|one| (one.delivery, one.endpoint, one.claim)).collect();
        let held = self.end_held(&ends).await?.held;
        let gone = discarded.iter().filter(|one| one.owner.is_none()).map(|one| one.endpoint);
        let owners = self.owners_of(gone).await?;
        let mut rows =
            Rows::new([("id", Kind::Uuid), ("status", Kind::SmallInt), ("ended_at", Kind::BigInt)]);
        for one in discarded.iter().filter(|one| held.contains(&(one.delivery, one.claim.token))) {
            let status = DeliveryStatus::Discarded;
            rows.push([one.delivery.uuid().into(), status.code().into(), now.as_millis().into()]);
            self.record(Change::Delivery(DeliveryChange {
                kind: DeliveryChangeKind::Discarded,
                project: one.project,
                delivery: one.delivery,
                event: one.event,
                endpoint: one.endpoint,
                owner: one.owner.clone().or_else(|| owners.get(&one.endpoint).cloned()),
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
        rows.execute(self.db(), sql).await
    }

    /// Gives claims back; parks those that are to be held, if there is still a reason to. Returns the endpoints
    /// whose breaker was believed to be open and is not.
    pub async fn release(&mut self, released: &[Released]) -> Result<Vec<EndpointId>> {
        let resting: HashSet<EndpointId> =
            released.iter().filter(|one| one.hold == Hold::Breaker).map(|one| one.endpoint).collect();
        let open = self.held_open(resting.iter().copied()).await?;
        let mut rows = Rows::new([
            ("id", Kind::Uuid),
            ("token", Kind::BigInt),
            ("lease", Kind::Uuid),
            ("parked", Kind::SmallInt),
            ("due_at", Kind::BigInt),
        ]);
        for one in released {
            let hold = match one.hold {
                Hold::Breaker if !open.contains(&one.endpoint) => Hold::No,
                hold => hold,
            };
            rows.push([
                one.delivery.uuid().into(),
                one.claim.token.into(),
                one.claim.lease.uuid().into(),
                hold.code().into(),
                one.due.map_or(i64::from(ABSENT), Timestamp::as_millis).into(),
            ]);
        }
        // Resumed meanwhile, it must not be parked: nobody would let it go before the slow round. 1 is held for a
        // pause, and 2 the status PAUSED.
        let sql = "UPDATE queue SET claimed_by = NULL, parked = CASE WHEN v.parked = 1 AND NOT EXISTS \
                   (SELECT 1 FROM endpoints WHERE endpoints.id = queue.endpoint_id AND endpoints.status = 2) \
                   THEN 0 ELSE v.parked END, \
                   due_at = CASE WHEN v.due_at > queue.due_at THEN v.due_at ELSE queue.due_at END FROM v \
                   WHERE queue.id = v.id AND queue.token = v.token AND queue.claimed_by = v.lease";
        let given_back = rows.execute(self.db(), sql).await?;
        // Rung for nothing where all of it rests, which is what a breaker is for.
        let rests =
            |one: &Released| one.due.is_some() || (one.hold == Hold::Breaker && open.contains(&one.endpoint));
        if given_back > 0 && !released.iter().all(rests) {
            self.ring(Bells::DUE);
        }
        Ok(resting.difference(&open).copied().collect())
    }
}
