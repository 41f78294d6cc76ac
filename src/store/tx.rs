//! A write transaction: what services and the engine change in one piece.
//!
//! Its last statement writes the change record, then it commits. On PostgreSQL that statement takes an
//! advisory lock that is held until the commit is visible and draws the position inside it, so positions
//! are in the order of commits. Keep what comes before it short, and never wait for the network inside.

use std::collections::BTreeSet;
use std::sync::Arc;

use sea_orm::sea_query::{Expr, Query};
use sea_orm::{DbBackend, Statement, StatementBuilder, Value};

use super::db::Db;
use super::error::{Result, StoreError};
use super::notify::Bells;
use super::recent::Committed;
use super::rows::{Kind, Rows, Script};
use super::writers::Txn;
use super::{Lane, Store};
use crate::domain::change::Change;
use crate::domain::clock::Timestamp;
use crate::domain::delivery::Attempt;
use crate::domain::id::{AuditId, EndpointId, ProjectId};
use crate::domain::principal::Principal;

/// A write transaction. Dropped without [`Tx::commit`], it changes nothing.
pub struct Tx {
    txn: Txn,
    store: Store,
    changes: Vec<Change>,
    /// The attempts that the changes tell of.
    attempts: Vec<Arc<Attempt>>,
    /// Endpoints whose routes change.
    rerouted: BTreeSet<EndpointId>,
    /// What is written at the end, which nothing in the transaction reads.
    last: Script,
    /// What the commit rings in other processes.
    bells: Bells,
    /// Whether it wrote an alert.
    alerted: bool,
}

const AUDIT_COLUMNS: [&str; 9] =
    ["id", "project_id", "key_id", "action", "resource", "origin", "before", "after", "created_at"];

/// Who did what, for the audit log. Holds no secret.
pub struct AuditEntry<'a> {
    pub principal: &'a Principal,
    pub project: Option<ProjectId>,
    /// The call, such as `CreateEndpoint`.
    pub action: &'static str,
    /// The id of what it was done to.
    pub resource: String,
    /// As JSON without secrets.
    pub before: Option<String>,
    pub after: Option<String>,
}

impl Store {
    /// Begins a write transaction on a connection of that lane.
    pub async fn begin(&self, lane: Lane) -> Result<Tx> {
        let txn = self.inner.writers.begin(lane).await?;
        let last = Script::new(self.backend());
        let (changes, attempts) = (Vec::new(), Vec::new());
        let (rerouted, bells) = (BTreeSet::new(), Bells::default());
        Ok(Tx { txn, store: self.clone(), changes, attempts, rerouted, last, bells, alerted: false })
    }
}

impl Tx {
    pub(super) fn db(&self) -> Db<'_> {
        self.txn.db()
    }

    pub(super) fn backend(&self) -> DbBackend {
        self.store.backend()
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Adds to what Watch will tell of this transaction.
    pub fn record(&mut self, change: Change) {
        self.changes.push(change);
    }

    /// What is written at the end: no statement of the transaction sees it.
    pub(super) fn last(&mut self) -> &mut Script {
        &mut self.last
    }

    /// Says what the commit should wake in other processes.
    pub(super) fn ring(&mut self, bells: Bells) {
        self.bells = self.bells.with(bells);
    }

    /// Says which attempts the changes tell of.
    pub(super) fn record_attempt(&mut self, attempt: &Arc<Attempt>) {
        if self.store.inner.recent.is_wanted() {
            self.attempts.push(Attempt::without_body(attempt));
        }
    }

    /// Says that there is an alert to send.
    pub(super) fn alerted(&mut self) {
        self.alerted = true;
    }

    /// Takes out what was added so far, to be added again in another order.
    pub(super) fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// Says that an endpoint's route changes: its settings, its state, a secret or a subscription. Its project must be
    /// bumped too.
    pub(super) fn reroute(&mut self, endpoint: EndpointId) {
        self.rerouted.insert(endpoint);
    }

    /// Notes with the endpoints which version of their project has their new routes.
    fn write_routes(&mut self) {
        let mut rows = Rows::new([("id", Kind::Uuid)]);
        for endpoint in std::mem::take(&mut self.rerouted) {
            rows.push([endpoint.uuid().into()]);
        }
        let sql = "UPDATE endpoints SET routing_version = \
                   (SELECT p.routing_version FROM projects AS p WHERE p.id = endpoints.project_id) \
                   FROM v WHERE endpoints.id = v.id";
        rows.add_to(&mut self.last, sql);
    }

    /// Says that the project's endpoints or subscriptions change, so that no node decides by older ones.
    /// Returns the new version. Locks the project's row until the end.
    pub async fn bump_routing(&mut self, project: ProjectId) -> Result<i64> {
        let sql = "UPDATE projects SET routing_version = routing_version + 1 WHERE id = $1 RETURNING routing_version";
        let statement = Statement::from_sql_and_values(self.backend(), sql, [Value::from(project.uuid())]);
        match self.db().query_one_raw(statement).await? {
            Some(row) => {
                self.ring(Bells::ROUTES);
                Ok(row.try_get_by_index(0)?)
            }
            None => Err(StoreError::Corrupt(format!("project {project} is gone"))),
        }
    }

    /// Writes an entry of the audit log.
    pub async fn audit(&self, entry: AuditEntry<'_>) -> Result<()> {
        self.audit_all(vec![entry]).await
    }

    /// Writes entries of the audit log.
    pub async fn audit_all(&self, entries: Vec<AuditEntry<'_>>) -> Result<()> {
        let mut insert = Query::insert();
        insert.into_table("audit_events").columns(AUDIT_COLUMNS);
        for entry in entries {
            let values: [Value; AUDIT_COLUMNS.len()] = [
                AuditId::new().uuid().into(),
                entry.project.map(ProjectId::uuid).into(),
                (!entry.principal.is_server()).then(|| entry.principal.key_id.uuid()).into(),
                entry.action.into(),
                entry.resource.into(),
                entry.principal.origin.clone().into(),
                entry.before.into(),
                entry.after.into(),
                Timestamp::now().as_millis().into(),
            ];
            insert.values(values.map(Expr::value)).map_err(|error| StoreError::Corrupt(error.to_string()))?;
        }
        self.db().execute_raw(StatementBuilder::build(&insert, &self.backend())).await?;
        Ok(())
    }

    /// Writes the change record, if anything watchable changed, and commits.
    pub async fn commit(mut self) -> Result<()> {
        self.write_routes();
        let store = &self.store.inner;
        if self.changes.is_empty() {
            self.last.run(self.txn.db()).await?;
            self.txn.commit().await.map_err(unanswered)?;
            store.written.notify_one();
            if self.alerted {
                store.alerted.send_replace(());
            }
            store.outbox.ring(self.bells);
            return Ok(());
        }
        let record = super::changes::append(self.txn.db(), self.last, self.changes).await?;
        self.txn.commit().await.map_err(unanswered)?;
        store.written.notify_one();
        if store.recent.is_wanted() {
            store.recent.add(Committed { record, attempts: self.attempts });
        }
        store.committed.send_replace(());
        if self.alerted {
            store.alerted.send_replace(());
        }
        store.outbox.ring(self.bells.with(Bells::CHANGES));
        Ok(())
    }

    /// Ends it without changes, at once rather than when the connection is next used.
    pub async fn rollback(self) -> Result<()> {
        self.txn.rollback().await
    }
}

/// A COMMIT that was not answered may have been carried out all the same; one that was refused was not.
fn unanswered(error: StoreError) -> StoreError {
    if error.is_transient() { StoreError::Unanswered(Box::new(error)) } else { error }
}
