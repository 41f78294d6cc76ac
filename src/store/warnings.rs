//! What is told of endpoints that fail without being switched off yet: half way to it, the all-clear after that, and
//! that deliveries use up their attempts. In the transaction of the attempts.
//!
//! What was told is noted with the endpoint's health, so that an endpoint that fails all the time, or now and then, makes
//! few alerts. A healthy endpoint costs nothing here.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use super::error::Result;
use super::outcomes::FinishedAttempt;
use super::rows::{Kind, Rows};
use super::tx::Tx;
use crate::domain::alert::{AlertDetail, AlertEvent};
use crate::domain::clock::Timestamp;
use crate::domain::id::{EndpointId, ProjectId};

/// At least so long between two warnings of one endpoint; what fails on is told of when it is over.
const FAILING_APART: Duration = Duration::from_secs(10 * 60);
/// The same for deliveries that used up their attempts.
const EXHAUSTED_APART: Duration = Duration::from_secs(3600);

/// Something to tell of an endpoint.
pub(super) type Warning = (EndpointId, ProjectId, AlertDetail);

impl Tx {
    /// Tells of endpoints that are half way to being switched off, once until they recover.
    pub(super) async fn tell_failing(&mut self, warnings: Vec<Warning>) -> Result<()> {
        let apart = FAILING_APART.as_millis();
        let sql = format!(
            "UPDATE endpoint_health SET failing_told_at = v.now, recovery_untold = 1 FROM v \
             WHERE endpoint_id = v.id AND recovery_untold = 0 \
             AND (failing_told_at IS NULL OR failing_told_at <= v.now - {apart}) RETURNING endpoint_id"
        );
        self.tell_once(AlertEvent::DeliveryFailing, warnings, &sql).await
    }

    /// Tells of endpoints that answer again after that was told.
    pub(super) async fn tell_recovered(&mut self, recovered: Vec<Warning>) -> Result<()> {
        let sql = "UPDATE endpoint_health SET recovery_untold = 0 FROM v \
                   WHERE endpoint_id = v.id AND recovery_untold = 1 RETURNING endpoint_id";
        self.tell_once(AlertEvent::DeliveryRecovered, recovered, sql).await
    }

    /// Tells that deliveries used up their attempts.
    pub(super) async fn tell_exhausted<'a>(
        &mut self,
        exhausted: impl Iterator<Item = &'a FinishedAttempt>,
    ) -> Result<()> {
        let warnings = exhausted.map(|one| {
            let attempt = &one.attempt;
            let detail = AlertDetail::Exhausted {
                delivery: attempt.delivery,
                event: attempt.event,
                event_type: one.event_type.to_string(),
                attempts: attempt.number,
                error: one.cause(),
            };
            (attempt.endpoint, attempt.project, detail)
        });
        // The endpoint may have no row: a success of the same batch counts for nothing in one that was healthy.
        let apart = EXHAUSTED_APART.as_millis();
        let sql = format!(
            "INSERT INTO endpoint_health (endpoint_id, project_id, consecutive_failures, exhausted_told_at) \
             SELECT v.id, v.project_id, 0, v.now FROM v JOIN endpoints ON endpoints.id = v.id WHERE true \
             ON CONFLICT (endpoint_id) DO UPDATE SET exhausted_told_at = excluded.exhausted_told_at \
             WHERE endpoint_health.exhausted_told_at IS NULL \
             OR endpoint_health.exhausted_told_at <= excluded.exhausted_told_at - {apart} RETURNING endpoint_id"
        );
        self.tell_once(AlertEvent::DeliveryExhausted, warnings.collect(), &sql).await
    }

    /// Forgets that a recovery is still to be told, because something else says more.
    pub(super) async fn forget_failing(&self, endpoint: EndpointId) -> Result<()> {
        let mut rows = Rows::new([("id", Kind::Uuid)]);
        rows.push([endpoint.uuid().into()]);
        let sql = "UPDATE endpoint_health SET recovery_untold = 0 FROM v WHERE endpoint_id = v.id";
        rows.execute(self.db(), sql).await?;
        Ok(())
    }

    /// Tells of those endpoints that `sql` notes and returns. The last thing to tell of each counts.
    async fn tell_once(&mut self, event: AlertEvent, warnings: Vec<Warning>, sql: &str) -> Result<()> {
        let warnings: BTreeMap<EndpointId, (ProjectId, AlertDetail)> =
            warnings.into_iter().map(|(endpoint, project, detail)| (endpoint, (project, detail))).collect();
        let now = Timestamp::now().as_millis();
        let mut rows = Rows::new([("id", Kind::Uuid), ("project_id", Kind::Uuid), ("now", Kind::BigInt)]);
        for (endpoint, (project, _)) in &warnings {
            rows.push([endpoint.uuid().into(), project.uuid().into(), now.into()]);
        }
        let mut noted = HashSet::new();
        for row in rows.query(self.db(), sql).await? {
            noted.insert(EndpointId::from_uuid(row.try_get_by_index(0)?));
        }
        let heard = self.heard(&noted).await?;
        for (id, (project, detail)) in warnings {
            if !heard.contains(&id) {
                continue;
            }
            match self.endpoint(project, id).await {
                Ok(Some(endpoint)) => self.raise(event, &endpoint, detail).await?,
                Ok(None) => {}
                // One that does not read stops no attempts of others from being recorded.
                Err(error) if error.is_unreadable() => {
                    tracing::error!(endpoint = %id, error = %error, "what happens to it is not told");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Those of the endpoints of which someone may want to be told.
    async fn heard(&self, endpoints: &HashSet<EndpointId>) -> Result<HashSet<EndpointId>> {
        let mut rows = Rows::new([("id", Kind::Uuid)]);
        for endpoint in endpoints {
            rows.push([endpoint.uuid().into()]);
        }
        let sql = "SELECT e.id FROM v JOIN endpoints e ON e.id = v.id JOIN projects p ON p.id = e.project_id \
                   WHERE e.alerts_sealed IS NOT NULL OR p.alerts_sealed IS NOT NULL \
                   OR p.operational_webhook IS NOT NULL";
        let found = rows.query(self.db(), sql).await?;
        found.iter().map(|row| Ok(EndpointId::from_uuid(row.try_get_by_index(0)?))).collect()
    }
}
