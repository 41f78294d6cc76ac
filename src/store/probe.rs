//! Probes of INACTIVE endpoints: one delivery is sent again while its endpoint is PENDING, and how that ends decides
//! the endpoint's state, in the transaction of the outcome or in the one that frees a dead process's claims.
//!
//! The probe's row in the queue stays parked, so that only [`Tx::claim_endpoint_probe`] takes it. Every step here
//! is taken with the project's row locked.

use std::collections::BTreeMap;

use sea_orm::{Statement, Value};
use uuid::Uuid;

use super::claim::{Claimed, RETURNED};
use super::error::Result;
use super::health::Aftermath;
use super::outcomes::{FinishedAttempt, Next, PARKED_PROBE};
use super::tx::Tx;
use super::{Store, now_sql};
use crate::domain::attempt::ErrorClass;
use crate::domain::change::{Change, DeliveryChange, DeliveryChangeKind, EndpointChangeKind};
use crate::domain::clock::Timestamp;
use crate::domain::delivery::{DeliveryStatus, Probe};
use crate::domain::endpoint::{Circuit, Endpoint, EndpointStatus};
use crate::domain::id::{DeliveryId, EndpointId, LeaseId, ProjectId};

impl Store {
    /// Deliveries that are to probe, that are due and that nobody holds, `limit` at most.
    pub async fn waiting_probes(&self, limit: u32) -> Result<Vec<DeliveryId>> {
        // 4 is PENDING.
        let sql = format!(
            "SELECT q.id FROM endpoints e JOIN queue q ON q.id = e.probe \
             WHERE e.status = 4 AND q.claimed_by IS NULL AND q.parked = {PARKED_PROBE} \
             AND q.due_at <= {} LIMIT $1",
            now_sql(self.backend())
        );
        let statement = Statement::from_sql_and_values(self.backend(), sql, [Value::from(i64::from(limit))]);
        let rows = self.own_reader().query_all_raw(statement).await?;
        rows.iter().map(|row| Ok(DeliveryId::from_uuid(row.try_get_by_index(0)?))).collect()
    }
}

impl Tx {
    /// INACTIVE → PENDING, with this delivery as the probe.
    pub async fn begin_probe(&mut self, mut endpoint: Endpoint, delivery: DeliveryId) -> Result<()> {
        endpoint.status = EndpointStatus::Pending;
        endpoint.status_reason = format!("{delivery} is retried as a probe");
        endpoint.status_changed_at = Timestamp::now();
        endpoint.updated_at = endpoint.status_changed_at;
        endpoint.consecutive_failures = self.count_probe(endpoint.id, 0).await?;
        let values = [endpoint.id.uuid().into(), delivery.uuid().into()];
        self.run("UPDATE endpoints SET probe = $2 WHERE id = $1", values).await?;
        self.update_endpoint(EndpointChangeKind::Probing, &endpoint).await
    }

    /// Claims a delivery that is to probe; none where another node was faster.
    pub async fn claim_endpoint_probe(
        &self,
        delivery: DeliveryId,
        lease: LeaseId,
    ) -> Result<Option<Claimed>> {
        if !self.lease_stands(lease).await? {
            return Ok(None);
        }
        let sql = format!(
            "UPDATE queue SET claimed_by = $2, token = token + 1 \
             WHERE id = $1 AND claimed_by IS NULL AND parked = {PARKED_PROBE} \
             RETURNING {RETURNED}"
        );
        let values = [delivery.uuid().into(), lease.uuid().into()];
        let statement = Statement::from_sql_and_values(self.backend(), sql, values);
        let mut claimed = self.claimed(lease, self.db().query_all_raw(statement).await?).await?;
        let Some(probe) = claimed.deliveries.first_mut() else { return Ok(None) };
        probe.probe = Some(Probe::Endpoint);
        self.charge_probe(probe.endpoint).await?;
        Ok(Some(claimed))
    }

    /// What these attempts, still held under their claims, decide as probes. Their projects are locked.
    pub(super) async fn end_probes<'a>(
        &mut self,
        finished: impl Iterator<Item = &'a FinishedAttempt>,
        bumped: &BTreeMap<ProjectId, i64>,
        aftermath: &mut Aftermath,
    ) -> Result<()> {
        let ended = |one: &&FinishedAttempt| one.probe == Some(Probe::Endpoint) && one.next != Next::Again;
        for one in finished.filter(ended) {
            let attempt = &one.attempt;
            let Some(version) = bumped.get(&attempt.project).copied() else { continue };
            let Some(endpoint) = self.probed_by(attempt.project, attempt.endpoint, attempt.delivery).await?
            else {
                continue;
            };
            let switched = (attempt.project, version, attempt.endpoint);
            match &attempt.outcome.error {
                None => {
                    self.recover(endpoint).await?;
                    aftermath.recovered.push(switched);
                }
                Some((class, detail)) => {
                    let cause = if detail.is_empty() { class.as_str() } else { detail };
                    let counted = i32::from(attempt.outcome.counts());
                    self.fall_back(endpoint, format!("the probe failed: {cause}"), counted).await?;
                    aftermath.disabled.push(switched);
                }
            }
        }
        Ok(())
    }

    /// Ends the probes that a dead process held: nobody knows what became of them.
    pub(super) async fn cancel_probes(&mut self, lease: LeaseId) -> Result<()> {
        let sql = "SELECT e.project_id, e.id, e.probe FROM endpoints e JOIN queue q ON q.id = e.probe \
                   WHERE e.status = 4 AND q.claimed_by = $1 ORDER BY e.project_id, e.id";
        let statement = Statement::from_sql_and_values(self.backend(), sql, [lease.uuid().into()]);
        let mut held = Vec::new();
        for row in self.db().query_all_raw(statement).await? {
            let project = ProjectId::from_uuid(row.try_get_by_index(0)?);
            let endpoint = EndpointId::from_uuid(row.try_get_by_index(1)?);
            held.push((project, endpoint, DeliveryId::from_uuid(row.try_get_by_index(2)?)));
        }
        let mut locked = None;
        for (project, ..) in &held {
            if locked.replace(*project) != Some(*project) {
                self.bump_routing(*project).await?;
            }
        }
        for (project, endpoint, delivery) in held {
            let Some(endpoint) = self.probed_by(project, endpoint, delivery).await? else { continue };
            // Its outcome may have come first, before the project was locked.
            let values = [delivery.uuid().into(), lease.uuid().into()];
            if self.run("DELETE FROM queue WHERE id = $1 AND claimed_by = $2", values).await? == 0 {
                continue;
            }
            self.cancel_delivery(project, &endpoint, delivery).await?;
            self.fall_back(endpoint, "the process that made the probe died".to_owned(), 0).await?;
        }
        Ok(())
    }

    async fn cancel_delivery(
        &mut self,
        project: ProjectId,
        endpoint: &Endpoint,
        id: DeliveryId,
    ) -> Result<()> {
        let (status, class, now) = (DeliveryStatus::Failed, ErrorClass::Cancelled, Timestamp::now());
        let sql = "UPDATE deliveries SET status = $2, next_attempt_at = NULL, last_error = $3, last_status = NULL, \
                   ended_at = $4 WHERE id = $1";
        let values = [id.uuid().into(), status.code().into(), class.code().into(), now.as_millis().into()];
        self.run(sql, values).await?;
        let Some(delivery) = self.delivery(project, id).await? else { return Ok(()) };
        self.record(Change::Delivery(DeliveryChange {
            kind: DeliveryChangeKind::Cancelled,
            project,
            delivery: id,
            event: delivery.event,
            endpoint: endpoint.id,
            owner: endpoint.settings.owner_id.as_deref().map(Into::into),
            event_type: delivery.event_type,
            status,
            attempts: delivery.attempts,
            next_attempt_at: None,
            last_error: Some(class),
            last_status: None,
            created_at: delivery.created_at,
            ended_at: Some(now),
            attempt: None,
        }));
        Ok(())
    }

    /// The endpoint, if it is PENDING and this delivery its probe.
    async fn probed_by(
        &self,
        project: ProjectId,
        endpoint: EndpointId,
        delivery: DeliveryId,
    ) -> Result<Option<Endpoint>> {
        let sql = "SELECT probe FROM endpoints WHERE id = $1 AND status = 4";
        let statement = Statement::from_sql_and_values(self.backend(), sql, [endpoint.uuid().into()]);
        let row = self.db().query_one_raw(statement).await?;
        match row.map(|row| row.try_get_by_index::<Option<Uuid>>(0)).transpose()?.flatten() {
            Some(probe) if probe == delivery.uuid() => self.endpoint(project, endpoint).await,
            _ => Ok(None),
        }
    }

    /// PENDING → ACTIVE.
    async fn recover(&mut self, mut endpoint: Endpoint) -> Result<()> {
        self.reset_health(endpoint.id).await?;
        (endpoint.consecutive_failures, endpoint.circuit) = (0, Circuit::Closed);
        endpoint.status = EndpointStatus::Active;
        endpoint.status_reason = "the probe succeeded".to_owned();
        endpoint.status_changed_at = Timestamp::now();
        self.update_endpoint(EndpointChangeKind::Recovered, &endpoint).await
    }

    /// PENDING → INACTIVE.
    async fn fall_back(&mut self, mut endpoint: Endpoint, reason: String, failures: i32) -> Result<()> {
        endpoint.consecutive_failures = self.count_probe(endpoint.id, failures).await?;
        endpoint.status = EndpointStatus::Inactive;
        endpoint.status_reason = reason;
        endpoint.status_changed_at = Timestamp::now();
        self.update_endpoint(EndpointChangeKind::Disabled, &endpoint).await
    }

    /// Adds to the failures in a row, and says how many there are.
    async fn count_probe(&self, endpoint: EndpointId, failures: i32) -> Result<u32> {
        let sql = "UPDATE endpoint_health SET consecutive_failures = consecutive_failures + $2 \
                   WHERE endpoint_id = $1 RETURNING consecutive_failures";
        let values = [endpoint.uuid().into(), failures.into()];
        let row =
            self.db().query_one_raw(Statement::from_sql_and_values(self.backend(), sql, values)).await?;
        let count = row.map_or(Ok(0), |row| row.try_get_by_index::<i32>(0))?;
        Ok(u32::try_from(count).unwrap_or_default())
    }
}
