//! Alerts: written in the transaction of what they tell, one for each channel that wants it; claimed, sent and
//! recorded afterwards.
//!
//! A claim names the process's lease and a fencing token, as those of deliveries do.

use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use sea_orm::{DbBackend, Statement, Value};
use sha2::Sha256;

use super::audit::first_id;
use super::db::Row;
use super::error::{Result, StoreError};
use super::operational::OperationalTarget;
use super::projects::alerts_place;
use super::routes::{from_json, policy_of};
use super::rows::{Kind, Rows};
use super::tx::Tx;
use super::vault::Place;
use super::{Lane, Store, now_sql};
use crate::domain::alert::{Alert, AlertDetail, AlertEvent, AlertPlace, Channel, OperationalWebhook};
use crate::domain::clock::Timestamp;
use crate::domain::delivery::Claim;
use crate::domain::endpoint::{Endpoint, SealedSetting};
use crate::domain::id::{AlertId, LeaseId, ProjectId};
use crate::domain::secret::{SecretBytes, SecretText};

/// Stored numbers of `alerts.status`; never reuse one.
const WAITING: i16 = 1;
const SENT: i16 = 2;
const FAILED: i16 = 3;

/// An alert that is ours to send.
#[derive(Clone, Copy)]
pub struct HeldAlert {
    pub id: AlertId,
    pub channel: Channel,
    pub place: AlertPlace,
    pub claim: Claim,
    /// Those made before.
    pub attempts: u16,
}

/// The same with what it holds.
pub struct ClaimedAlert {
    pub held: HeldAlert,
    /// What is told, and where; or why it cannot be.
    pub content: Result<(Alert, AlertTarget), &'static str>,
}

/// Where an alert goes.
pub enum AlertTarget {
    /// The address of a mailbox, or the URL of a channel in Slack or Teams.
    Given(SecretText),
    Operational(OperationalTarget),
}

/// What sending an alert came to.
#[derive(Clone, Debug)]
pub enum AlertFate {
    Sent,
    Retry {
        wait: Duration,
        error: String,
    },
    Failed {
        error: String,
    },
    /// Nothing was tried: it is due again, for whoever comes.
    GivenBack,
    /// It was tried, and how that went could not be recorded.
    Unrecorded {
        wait: Duration,
    },
}

fn has_own(endpoint: &Endpoint) -> bool {
    endpoint.settings.alerts.is_some() || endpoint.unreadable.contains(&SealedSetting::Alerts)
}

impl Tx {
    /// Writes the alerts that this makes: one for each channel that wants to be told.
    pub(super) async fn raise(
        &mut self,
        event: AlertEvent,
        endpoint: &Endpoint,
        detail: AlertDetail,
    ) -> Result<()> {
        self.raise_all(event, &[endpoint], detail).await
    }

    /// The same of several endpoints of one project.
    pub(super) async fn raise_all(
        &mut self,
        event: AlertEvent,
        endpoints: &[&Endpoint],
        detail: AlertDetail,
    ) -> Result<()> {
        let Some(first) = endpoints.first() else { return Ok(()) };
        let project = first.project;
        let sql = "SELECT name, alerts_sealed, operational_webhook FROM projects WHERE id = $1";
        let statement = Statement::from_sql_and_values(self.backend(), sql, [project.uuid().into()]);
        let Some(row) = self.db().query_one_raw(statement).await? else { return Ok(()) };
        let name: String = row.try_get_by_index(0)?;
        // One whose own cannot be read has its own all the same, which may say that the project's people are not told.
        let defaults = if endpoints.iter().all(|endpoint| has_own(endpoint)) {
            None
        } else {
            match self.store().open_alerts(&alerts_place(project), row.try_get_by_index(1)?) {
                // What happens to its endpoints must go on happening.
                Err(error) if error.is_unreadable() => {
                    tracing::error!(%project, error = %error, "nobody is told by the project's alerts");
                    None
                }
                opened => opened?,
            }
        };
        let operational: Option<OperationalWebhook> = match policy_of(row.try_get_by_index(2)?) {
            Err(error) if error.is_unreadable() => {
                tracing::error!(%project, error = %error, "the project's operational webhook is not told");
                None
            }
            read => read?,
        };
        let to_operational = operational.is_some_and(|webhook| webhook.wants(event));
        let mut alerts = Vec::new();
        for endpoint in endpoints {
            if endpoint.unreadable.contains(&SealedSetting::Alerts) {
                tracing::error!(endpoint = %endpoint.id, "its alerts cannot be read: nobody is told by them");
            }
            let defaults = defaults.as_ref().filter(|_| !has_own(endpoint));
            let settings = endpoint.settings.alerts.as_ref().or(defaults);
            let mut targets = Vec::new();
            if let Some(settings) = settings.filter(|settings| settings.wants(event)) {
                targets.extend(settings.targets());
            }
            if to_operational {
                // Where to, and signed by what, the project says when it is sent.
                targets.push((Channel::Operational, ""));
            }
            if !targets.is_empty() {
                alerts.push((Alert::new(event, &name, endpoint, detail.clone()), targets));
            }
        }
        if !alerts.is_empty() {
            self.write_alerts(&alerts).await?;
            self.alerted();
        }
        Ok(())
    }

    async fn write_alerts(&self, alerts: &[(Alert, Vec<(Channel, &str)>)]) -> Result<()> {
        let mut rows = Rows::new([
            ("id", Kind::Uuid),
            ("project_id", Kind::Uuid),
            ("endpoint_id", Kind::Uuid),
            ("channel", Kind::SmallInt),
            ("body", Kind::Text),
            ("target", Kind::Bytes),
            ("place", Kind::BigInt),
            ("created_at", Kind::BigInt),
        ]);
        let key = self.store().vault().derive("places of alerts")?;
        for (alert, targets) in alerts {
            let body = super::endpoints::to_json(alert)?;
            for (channel, target) in targets {
                let id = AlertId::new();
                let place = place_of(&key, *channel, alert.project, target);
                let target = match channel {
                    Channel::Operational => Vec::new(),
                    _ => self.store().vault().seal(&target_place(id, alert.project), target.as_bytes())?,
                };
                rows.push([
                    id.uuid().into(),
                    alert.project.uuid().into(),
                    alert.endpoint.uuid().into(),
                    channel.code().into(),
                    body.clone().into(),
                    target.into(),
                    place.0.into(),
                    alert.at.as_millis().into(),
                ]);
            }
        }
        let (now, operational) = (now_sql(self.backend()), Channel::Operational.code());
        let sql = format!(
            "INSERT INTO alerts (id, project_id, endpoint_id, channel, body, target_sealed, place, status, due_at, \
             attempts, token, created_at) SELECT v.id, v.project_id, v.endpoint_id, v.channel, v.body, \
             CASE v.channel WHEN {operational} THEN NULL ELSE v.target END, v.place, {WAITING}, {now}, 0, 0, v.created_at FROM v"
        );
        rows.execute(self.db(), &sql).await?;
        Ok(())
    }

    /// Claims those of these alerts that are still due. Fails with [`StoreError::LeaseGone`] where the lease was given up.
    pub async fn claim_alerts(
        &self,
        channel: Channel,
        lease: LeaseId,
        alerts: &[AlertId],
    ) -> Result<Vec<ClaimedAlert>> {
        if !self.lease_stands(lease).await? {
            return Err(StoreError::LeaseGone);
        }
        let skip = match self.backend() {
            DbBackend::Postgres => "FOR UPDATE SKIP LOCKED",
            _ => "",
        };
        let due = due_sql(self.backend(), channel);
        let ids = (0..alerts.len()).map(|at| format!("${}", at + 2)).collect::<Vec<_>>().join(", ");
        let sql = format!(
            "UPDATE alerts SET claimed_by = $1, token = token + 1 WHERE id IN \
             (SELECT id FROM alerts WHERE id IN ({ids}) AND {due} {skip}) \
             RETURNING id, project_id, body, target_sealed, attempts, token, place"
        );
        let values = std::iter::once(lease.uuid()).chain(alerts.iter().map(|id| id.uuid()));
        let statement = Statement::from_sql_and_values(self.backend(), sql, values.map(Value::from));
        let mut claimed = Vec::new();
        for row in self.db().query_all_raw(statement).await? {
            let held = HeldAlert {
                id: AlertId::from_uuid(row.try_get_by_index(0)?),
                channel,
                place: AlertPlace(row.try_get_by_index(6)?),
                claim: Claim { lease, token: row.try_get_by_index(5)? },
                attempts: u16::try_from(row.try_get_by_index::<i16>(4)?).unwrap_or_default(),
            };
            claimed.push(ClaimedAlert { held, content: self.content(channel, &row).await? });
        }
        // RETURNING is in no order.
        claimed.sort_by_key(|alert| alert.held.id);
        Ok(claimed)
    }

    /// What a claimed row tells, and where. One that does not read does not keep the others from being sent.
    async fn content(
        &self,
        channel: Channel,
        row: &Row,
    ) -> Result<Result<(Alert, AlertTarget), &'static str>> {
        let project = ProjectId::from_uuid(row.try_get_by_index(1)?);
        let body: String = row.try_get_by_index(2)?;
        let Ok(alert) = from_json::<Alert>(&body) else { return Ok(Err("what it tells does not read")) };
        if channel == Channel::Operational {
            let target = self.operational_target(project).await?;
            return Ok(target.map(|target| (alert, AlertTarget::Operational(target))));
        }
        let id = AlertId::from_uuid(row.try_get_by_index(0)?);
        let sealed: Option<Vec<u8>> = row.try_get_by_index(3)?;
        let opened = self.store().vault().open(&target_place(id, project), &sealed.unwrap_or_default());
        let text =
            opened.ok().and_then(|bytes| Some(SecretText::new(std::str::from_utf8(bytes.expose()).ok()?)));
        Ok(match text {
            Some(text) => Ok((alert, AlertTarget::Given(text))),
            None => Err("where it goes does not open: it was sealed with another key"),
        })
    }
}

impl Store {
    /// Alerts of a channel that are due and that nobody holds, the oldest first, but for those to these places.
    pub async fn due_alerts(
        &self,
        channel: Channel,
        except: &[AlertPlace],
        limit: usize,
    ) -> Result<Vec<(AlertId, AlertPlace)>> {
        let due = due_sql(self.backend(), channel);
        // One parameter, however many they are: several statements, each without its own ones, would give all of them.
        let others = match self.backend() {
            DbBackend::Postgres => "SELECT other::bigint FROM json_array_elements_text($1::json) AS v(other)",
            _ => "SELECT value FROM json_each($1)",
        };
        let sql = format!(
            "SELECT id, place FROM alerts WHERE {due} AND place NOT IN ({others}) ORDER BY due_at LIMIT {limit}"
        );
        let places: Vec<String> = except.iter().map(|place| place.0.to_string()).collect();
        let values = [format!("[{}]", places.join(",")).into()];
        let statement = Statement::from_sql_and_values(self.backend(), sql, values);
        let found = self.own_reader().query_all_raw(statement).await?;
        found
            .iter()
            .map(|row| {
                Ok((AlertId::from_uuid(row.try_get_by_index(0)?), AlertPlace(row.try_get_by_index(1)?)))
            })
            .collect()
    }

    /// Records what sending came to, under the claim; says whether it still stood. Where it goes is forgotten with
    /// its end.
    pub async fn finish_alert(&self, alert: &HeldAlert, fate: &AlertFate) -> Result<bool> {
        let (status, wait, error) = match fate {
            AlertFate::Sent => (SENT, Duration::ZERO, None),
            AlertFate::Retry { wait, error } => (WAITING, *wait, Some(error.as_str())),
            AlertFate::Failed { error } => (FAILED, Duration::ZERO, Some(error.as_str())),
            AlertFate::GivenBack => (WAITING, Duration::ZERO, None),
            AlertFate::Unrecorded { wait } => (WAITING, *wait, None),
        };
        let made = i16::from(!matches!(fate, AlertFate::GivenBack));
        let now = now_sql(self.backend());
        let sql = format!(
            "UPDATE alerts SET claimed_by = NULL, attempts = attempts + $7, status = $4, due_at = {now} + $5, \
             last_error = COALESCE($6, last_error), ended_at = CASE $4 WHEN {WAITING} THEN NULL ELSE {now} END, \
             target_sealed = CASE $4 WHEN {WAITING} THEN target_sealed ELSE NULL END \
             WHERE id = $1 AND token = $2 AND claimed_by = $3"
        );
        let values = [
            Value::from(alert.id.uuid()),
            alert.claim.token.into(),
            alert.claim.lease.uuid().into(),
            status.into(),
            i64::try_from(wait.as_millis()).unwrap_or(i64::MAX).into(),
            error.into(),
            made.into(),
        ];
        let tx = self.begin(Lane::Engine).await?;
        let statement = Statement::from_sql_and_values(self.backend(), sql, values);
        let stood = tx.db().execute_raw(statement).await? == 1;
        tx.commit().await?;
        Ok(stood)
    }

    /// Forgets alerts that were made before that time, a bounded number each time. Says how many, and how many of
    /// them were never sent.
    pub async fn forget_alerts(&self, before: Timestamp, limit: u32) -> Result<(usize, usize)> {
        let sql = format!(
            "DELETE FROM alerts WHERE id IN (SELECT id FROM alerts WHERE id < $1 ORDER BY id LIMIT {limit}) \
             RETURNING status"
        );
        let values = [first_id(before).into()];
        let statement = Statement::from_sql_and_values(self.backend(), sql, values);
        let rows = self.inner.writers.engine().await?.db().query_all_raw(statement).await?;
        let waiting = rows
            .iter()
            .map(|row| Ok(usize::from(row.try_get_by_index::<i16>(0)? == WAITING)))
            .sum::<Result<usize>>()?;
        Ok((rows.len(), waiting))
    }
}

fn due_sql(backend: DbBackend, channel: Channel) -> String {
    let (channel, now) = (channel.code(), now_sql(backend));
    format!("status = {WAITING} AND channel = {channel} AND claimed_by IS NULL AND due_at <= {now}")
}

/// Alerts with the same one go to the same place. Keyed, since whoever reads the database must not find out a URL by
/// trying; wherever the project's webhook is, it is one place.
fn place_of(key: &SecretBytes, channel: Channel, project: ProjectId, target: &str) -> AlertPlace {
    let mut hash = [0; 8];
    // HMAC takes keys of every length (RFC 2104), so this cannot fail.
    if let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key.expose()) {
        mac.update(&channel.code().to_be_bytes());
        match channel {
            Channel::Email => {}
            Channel::Slack | Channel::Teams => mac.update(target.as_bytes()),
            Channel::Operational => mac.update(project.uuid().as_bytes()),
        }
        hash.copy_from_slice(&mac.finalize().into_bytes()[..8]);
    }
    AlertPlace(i64::from_be_bytes(hash))
}

/// Where an alert's sealed target lives.
fn target_place(alert: AlertId, project: ProjectId) -> Place {
    Place { table: "alerts", column: "target_sealed", row: alert.uuid(), project: Some(project) }
}
