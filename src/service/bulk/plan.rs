//! What a row comes to: an endpoint to create, a change of the one that is there, or nothing.

use std::collections::HashMap;

use super::super::Services;
use super::super::endpoint_writes::first_subscription;
use super::super::endpoints::{CreatedEndpoint, EndpointField};
use super::super::secrets::{NewSecret, check_fits_all};
use super::{Bulk, BulkOutcome, BulkRow, Planning};
use crate::domain::clock::Timestamp;
use crate::domain::endpoint::{Endpoint, EndpointSettings};
use crate::domain::error::{Error, ErrorKind, Result};
use crate::domain::id::EndpointId;
use crate::domain::secret::{LiveSecret, SecretKind};
use crate::domain::subscription::Subscription;
use crate::store::{EndpointKey, Tx};

/// What a row comes to.
pub enum Plan {
    Create(Box<CreatedEndpoint>),
    Change(Box<Change>),
    Unchanged(Box<Endpoint>),
}

/// A change of an endpoint, of its first subscription, or both.
pub struct Change {
    pub before: Endpoint,
    pub after: Endpoint,
    /// None before: the endpoint has no subscription.
    pub subscription: Option<(Option<Subscription>, Subscription)>,
}

impl Plan {
    pub const fn writes(&self) -> bool {
        !matches!(self, Self::Unchanged(_))
    }

    /// The endpoint's settings as they will be.
    pub fn settings(&self) -> &EndpointSettings {
        match self {
            Self::Create(new) => &new.endpoint.settings,
            Self::Change(change) => &change.after.settings,
            Self::Unchanged(endpoint) => &endpoint.settings,
        }
    }

    pub fn outcome(self, dry_run: bool) -> BulkOutcome {
        match self {
            Self::Create(_) if dry_run => BulkOutcome::WouldCreate,
            Self::Create(new) => BulkOutcome::Created(new),
            Self::Change(change) if dry_run => BulkOutcome::WouldUpdate(change.after.id),
            Self::Change(change) => BulkOutcome::Updated(change.after.id),
            Self::Unchanged(endpoint) => BulkOutcome::Unchanged(endpoint.id),
        }
    }
}

impl Bulk {
    /// The plans of a batch, by what the store holds now.
    pub(super) async fn first_plans(&self, rows: Vec<(i64, Result<BulkRow>)>) -> Result<Vec<Planning>> {
        let keyed = |row: BulkRow| Ok((self.services.key_of(&row)?, row));
        let rows: Vec<(i64, Result<(EndpointKey, BulkRow)>)> =
            rows.into_iter().map(|(number, row)| (number, row.and_then(keyed))).collect();
        let sound = || rows.iter().filter_map(|(_, row)| row.as_ref().ok());
        let keys: Vec<&EndpointKey> = sound().map(|(key, _)| key).collect();
        let store = &self.services.store;
        let found = store.endpoints_by_key(self.project, &keys).await?;
        let (subscribing, signing) = asked(sound().map(|(_, row)| row).zip(&found));
        let subscriptions = store.first_subscriptions(&subscribing).await?;
        let secrets = store.live_secrets_among(self.project, &signing).await?;

        let mut found = found.into_iter();
        let planning = |(number, row): (i64, Result<(EndpointKey, BulkRow)>)| match row {
            Ok((_, row)) => {
                let found = found.next().unwrap_or_default();
                let plan = self.plan_one(&row, found, &subscriptions).and_then(|plan| {
                    check_secrets(&row, &plan, &secrets)?;
                    Ok(plan)
                });
                Planning { number, row: Some(row), plan, ping: None }
            }
            Err(error) => Planning { number, row: None, plan: Err(error), ping: None },
        };
        Ok(rows.into_iter().map(planning).collect())
    }

    /// Plans again, in the transaction that will write, what would be written.
    pub(super) async fn plan_again(&self, tx: &Tx, planning: &mut [&mut Planning]) -> Result<()> {
        let keys = planning.iter().filter_map(|one| one.row.as_ref()).map(|row| self.services.key_of(row));
        let keys = keys.collect::<Result<Vec<_>>>()?;
        let found = tx.endpoints_by_key(self.project, &keys.iter().collect::<Vec<_>>()).await?;
        let rows = planning.iter().filter_map(|one| one.row.as_ref());
        let (subscribing, _) = asked(rows.zip(&found));
        let subscriptions = tx.first_subscriptions(&subscribing).await?;
        let mut found = found.into_iter();
        for one in planning.iter_mut() {
            let Some(row) = &one.row else { continue };
            let found = found.next().unwrap_or_default();
            let Ok(planned) = &one.plan else { continue };
            // One that is still to be made keeps its id, and the secret that it was pinged with.
            if found.is_empty() && matches!(planned, Plan::Create(_)) {
                continue;
            }
            let plan = self.plan_one(row, found, &subscriptions);
            one.plan = plan.and_then(|plan| {
                if one.ping.is_some() && !plan.settings().reaches_as(planned.settings()) {
                    let message = "the endpoint was changed while it was pinged; try again";
                    return Err(Error::new(ErrorKind::Aborted, "ENDPOINT_CHANGED", message));
                }
                Ok(plan)
            });
        }
        Ok(())
    }

    fn plan_one(
        &self,
        row: &BulkRow,
        mut found: Vec<Endpoint>,
        subscriptions: &HashMap<EndpointId, Subscription>,
    ) -> Result<Plan> {
        let Some(before) = found.pop() else {
            let event_types = row.event_types.clone();
            let new = self.services.new_endpoint(
                self.project,
                row.settings.clone(),
                event_types,
                row.secret.clone(),
            )?;
            return Ok(Plan::Create(Box::new(new)));
        };
        if !found.is_empty() {
            let rule = "more than one endpoint has it and the owner_id; say which by its uid";
            return Err(Error::invalid("endpoint.url", rule));
        }
        let after = self.services.changed_endpoint(&before, row.settings.clone(), &row.fields)?;
        let subscription = change_of_subscription(row, &before, subscriptions.get(&before.id));
        if after == before && subscription.is_none() {
            return Ok(Plan::Unchanged(Box::new(before)));
        }
        Ok(Plan::Change(Box::new(Change { before, after, subscription })))
    }
}

impl Services {
    fn key_of(&self, row: &BulkRow) -> Result<EndpointKey> {
        if let Some(uid) = &row.settings.uid {
            return Ok(EndpointKey::Uid(uid.clone()));
        }
        let url = self.rules.parse(&row.settings.url);
        let url = url.map_err(|error| Error::invalid("endpoint.url", error.to_string()))?;
        Ok(EndpointKey::Address(row.settings.owner_id.clone(), url.to_string()))
    }
}

/// The endpoints whose first subscription, and those whose secrets, their rows are about.
fn asked<'a>(
    rows: impl Iterator<Item = (&'a BulkRow, &'a Vec<Endpoint>)>,
) -> (Vec<EndpointId>, Vec<EndpointId>) {
    let (mut subscribing, mut signing) = (Vec::new(), Vec::new());
    for (row, found) in rows {
        let ids = found.iter().map(|endpoint| endpoint.id);
        if !row.event_types.is_empty() {
            subscribing.extend(ids.clone());
        }
        if matches!(row.secret, NewSecret::Given(_)) || row.fields.contains(&EndpointField::Signature) {
            signing.extend(ids);
        }
    }
    (subscribing, signing)
}

fn change_of_subscription(
    row: &BulkRow,
    endpoint: &Endpoint,
    first: Option<&Subscription>,
) -> Option<(Option<Subscription>, Subscription)> {
    match first {
        _ if row.event_types.is_empty() => None,
        Some(first) if first.event_types == row.event_types => None,
        Some(first) => {
            let event_types = row.event_types.clone();
            let (version, updated_at) = (first.version + 1, Timestamp::now());
            let after = Subscription { event_types, version, updated_at, ..first.clone() };
            Some((Some(first.clone()), after))
        }
        None => Some((None, first_subscription(endpoint, row.event_types.clone()))),
    }
}

/// A secret that is given is the endpoint's already, and a new signature fits those that it has.
fn check_secrets(row: &BulkRow, plan: &Plan, live: &HashMap<EndpointId, Vec<LiveSecret>>) -> Result<()> {
    let endpoint = match plan {
        Plan::Create(_) => return Ok(()),
        Plan::Change(change) => &change.after,
        Plan::Unchanged(endpoint) => endpoint.as_ref(),
    };
    let live = live.get(&endpoint.id).map(Vec::as_slice).unwrap_or_default();
    if let NewSecret::Given(given) = &row.secret
        && !live.iter().any(|one| one.secret == *given)
    {
        let rule = "is not the endpoint's, which is there already; RotateSecret changes it";
        return Err(Error::invalid("secret", rule));
    }
    match plan {
        Plan::Change(change) if change.after.settings.signature != change.before.settings.signature => {
            let kinds: Vec<SecretKind> = live.iter().map(|one| one.secret.kind()).collect();
            check_fits_all(endpoint.id, &endpoint.settings.signature, &kinds)
        }
        _ => Ok(()),
    }
}
