//! Many endpoints in one call, created or updated, each row for itself.
//!
//! Rows come in batches. What a batch comes to is planned first, by what the store holds then, and pinged if so wished:
//! that writes nothing and may be given up at any moment. What is left to be written is then planned anew inside one
//! transaction that holds the project, so that what changed meanwhile is seen.

mod plan;

use futures_util::future::try_join_all;

use super::endpoints::{CreatedEndpoint, EndpointField};
use super::pings::{BULK_PINGS, Ping, ping_failed};
use super::secrets::NewSecret;
use super::{Services, endpoints::PingFirst};
use crate::domain::endpoint::{Endpoint, EndpointSettings};
use crate::domain::error::{Error, ErrorKind, Result};
use crate::domain::id::{EndpointId, ProjectId};
use crate::domain::principal::{Principal, Scope};
use crate::domain::secret::LiveSecret;
use crate::domain::seen::{RowKey, SeenRows};
use crate::domain::subscription::EventTypePattern;
use crate::store::{Lane, StoreError, Tx};
use plan::{Change, Plan};

/// The most rows of a call, and of a batch of it.
pub const BULK_ROWS: usize = 100_000;
const BATCH: usize = 256;

/// What is done about pings before an endpoint is created, or changed in how it is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BulkPing {
    Off,
    /// The result tells what came of it.
    Report,
    /// Rows that do not accept it are refused.
    Require,
}

/// A row as it was given.
pub struct BulkRow {
    pub settings: EndpointSettings,
    /// What an update changes.
    pub fields: Vec<EndpointField>,
    /// Empty: all when it is created, what it has when it is updated.
    pub event_types: Vec<EventTypePattern>,
    pub secret: NewSecret,
}

/// What became of a row.
pub struct BulkResult {
    pub number: i64,
    pub outcome: Result<BulkOutcome>,
    /// None where it was not pinged.
    pub ping: Option<Ping>,
}

pub enum BulkOutcome {
    Created(Box<CreatedEndpoint>),
    Updated(EndpointId),
    Unchanged(EndpointId),
    WouldCreate,
    WouldUpdate(EndpointId),
}

/// A bulk call.
pub struct Bulk {
    services: Services,
    principal: Principal,
    project: ProjectId,
    dry_run: bool,
    ping: BulkPing,
    seen: SeenRows,
    /// In a dry run, once it is known: how many more endpoints the project may have, less those that would be created.
    room: Option<u32>,
}

/// A batch of which it is known what it comes to, and nothing is written.
pub struct Planned {
    rows: Vec<Planning>,
}

/// A row on its way.
struct Planning {
    number: i64,
    /// The row, unless it is refused already.
    row: Option<BulkRow>,
    plan: Result<Plan>,
    ping: Option<Ping>,
}

impl Services {
    /// Begins a bulk call.
    pub async fn bulk(
        &self,
        principal: Principal,
        project: Option<ProjectId>,
        dry_run: bool,
        ping: BulkPing,
    ) -> Result<Bulk> {
        let project = self.project_of(&principal, project, Scope::EndpointsWrite).await?;
        // As CreateEndpoint, which asks nobody on a server that skips pings.
        let ping = if self.wants_ping(PingFirst::Yes) { ping } else { BulkPing::Off };
        let (services, seen) = (self.clone(), SeenRows::default());
        Ok(Bulk { services, principal, project, dry_run, ping, seen, room: None })
    }
}

impl Bulk {
    /// How many rows to take at a time.
    pub const fn batch(&self) -> usize {
        match self.ping {
            BulkPing::Off => BATCH,
            BulkPing::Report | BulkPing::Require => BULK_PINGS,
        }
    }

    /// Finds out what a batch comes to; pings. Writes nothing. Rows that are refused already come as their error.
    pub async fn plan(&mut self, rows: Vec<(i64, Result<BulkRow>)>) -> Result<Planned> {
        let mut rows = self.first_plans(rows).await?;
        for one in &mut rows {
            let (Some(row), Ok(plan)) = (&one.row, &one.plan) else { continue };
            let after = plan.settings();
            let address = (after.owner_id.as_deref().unwrap_or_default(), after.url.as_str());
            let key = RowKey { uid: row.settings.uid.as_deref(), address: Some(address) };
            match self.seen.check(key) {
                Ok(()) => self.seen.add(one.number, key),
                Err(error) => one.plan = Err(error),
            }
        }
        if self.ping != BulkPing::Off {
            // As many as a batch has, and as there are places.
            try_join_all(rows.iter_mut().map(|one| self.ping_one(one))).await?;
        }
        if self.dry_run {
            let room = match self.room {
                Some(room) => room,
                None => self.services.store.endpoint_room(self.project, self.most()).await?,
            };
            self.room = Some(self.take_room(rows.iter_mut(), room));
        }
        Ok(Planned { rows })
    }

    /// Refuses the rows that would create an endpoint more than there is room for, and says how much room is left.
    fn take_room<'a>(&self, rows: impl Iterator<Item = &'a mut Planning>, mut room: u32) -> u32 {
        for one in rows.filter(|one| matches!(one.plan, Ok(Plan::Create(_)))) {
            match room.checked_sub(1) {
                Some(less) => room = less,
                None => {
                    let full = StoreError::ProjectFull { project: self.project, most: self.most() };
                    one.plan = Err(full.into());
                }
            }
        }
        room
    }

    fn most(&self) -> u32 {
        self.services.limits.endpoints_max
    }

    /// Writes what is to be written, and says what became of each row.
    pub async fn carry_out(&self, planned: Planned) -> Result<Vec<BulkResult>> {
        let Planned { mut rows } = planned;
        if !self.dry_run {
            let mut to_write: Vec<&mut Planning> =
                rows.iter_mut().filter(|one| one.plan.as_ref().is_ok_and(Plan::writes)).collect();
            self.write_or_halve(&mut to_write).await?;
        }
        let result = |one: Planning| BulkResult {
            number: one.number,
            outcome: one.plan.map(|plan| plan.outcome(self.dry_run)),
            ping: one.ping,
        };
        Ok(rows.into_iter().map(result).collect())
    }

    async fn ping_one(&self, one: &mut Planning) -> Result<()> {
        let Ok(plan) = &one.plan else { return Ok(()) };
        let secrets = match plan {
            Plan::Create(new) => vec![new.live_secret()],
            Plan::Change(change) if !change.after.settings.reaches_as(&change.before.settings) => {
                match self.secrets_for_ping(&change.after).await {
                    Ok(secrets) => secrets,
                    Err(error) if error.kind == ErrorKind::Unavailable => return Err(error),
                    Err(error) => {
                        one.plan = Err(error);
                        return Ok(());
                    }
                }
            }
            Plan::Change(_) | Plan::Unchanged(_) => return Ok(()),
        };
        let ping = self.services.ping_in_bulk(plan.settings(), &secrets).await?;
        if self.ping == BulkPing::Require && !ping.is_accepted() {
            one.plan = Err(ping_failed(plan.settings(), &ping, ""));
        }
        one.ping = Some(ping);
        Ok(())
    }

    /// What it is pinged with is all there, or that row is refused.
    async fn secrets_for_ping(&self, endpoint: &Endpoint) -> Result<Vec<LiveSecret>> {
        endpoint.check_readable()?;
        Ok(self.services.store.live_secrets_of(self.project, endpoint.id).await?)
    }

    /// Writes rows in one transaction. Where that fails by the fault of one of them, they are halved until that one
    /// alone is refused.
    async fn write_or_halve(&self, rows: &mut [&mut Planning]) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        match self.write(rows).await {
            Err(error) if error.kind == ErrorKind::Unavailable => Err(error),
            Err(error) => match rows {
                [one] => {
                    one.plan = Err(error);
                    Ok(())
                }
                many => {
                    let (left, right) = many.split_at_mut(many.len() / 2);
                    Box::pin(self.write_or_halve(left)).await?;
                    Box::pin(self.write_or_halve(right)).await
                }
            },
            Ok(()) => Ok(()),
        }
    }

    async fn write(&self, rows: &mut [&mut Planning]) -> Result<()> {
        let services = &self.services;
        let mut tx = services.store.begin(Lane::Service).await?;
        let version = tx.bump_routing(self.project).await?;
        self.plan_again(&tx, rows).await?;
        let mut routes_differ = false;
        for one in rows.iter_mut() {
            let Ok(Plan::Change(change)) = &one.plan else { continue };
            match self.write_change(&mut tx, change).await {
                Ok(()) => routes_differ = true,
                // Found before anything of it was written.
                Err(error) if is_of_row(&error) => one.plan = Err(error),
                Err(error) => return Err(error),
            }
        }
        let room = tx.endpoint_room(self.project, self.most()).await?;
        self.take_room(rows.iter_mut().map(|one| &mut **one), room);
        let created = rows.iter().filter_map(|one| match &one.plan {
            Ok(Plan::Create(new)) => Some(new.as_ref()),
            _ => None,
        });
        let new: Vec<&CreatedEndpoint> = created.collect();
        services.write_new_endpoints(&mut tx, &self.principal, &new).await?;
        // Whom an endpoint is made for, the next publish sees; nothing goes by other routes than before.
        let written = routes_differ || !new.is_empty();
        if !written {
            return Ok(tx.rollback().await?);
        }
        let (wake, project) = (services.wake.clone(), self.project);
        let follow = async move {
            if routes_differ {
                wake.routes_outdated(project, version);
            }
            Ok(())
        };
        services.commit(tx, follow).await?;
        services.rotations.notify_one();
        for one in rows.iter() {
            if let Ok(Plan::Change(change)) = &one.plan {
                services.endpoint_changed(&change.before, &change.after);
            }
        }
        Ok(())
    }

    async fn write_change(&self, tx: &mut Tx, change: &Change) -> Result<()> {
        let Change { before, after, subscription } = change;
        if after != before {
            self.services.write_changed_endpoint(tx, &self.principal, before, after).await?;
        }
        if let Some((before, after)) = subscription {
            self.services.write_subscription(tx, &self.principal, before.as_ref(), after).await?;
        }
        Ok(())
    }
}

/// Whether the error is a rule's about one row, and not the database's.
fn is_of_row(error: &Error) -> bool {
    matches!(
        error.kind,
        ErrorKind::InvalidArgument | ErrorKind::FailedPrecondition | ErrorKind::ResourceExhausted
    )
}
