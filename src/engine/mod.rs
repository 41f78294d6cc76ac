//! The engine moves deliveries: from a publish to a durable row, from a row to an attempt, from an attempt to
//! its recorded outcome.
//!
//! The cast. **Ingest** takes events from services and answers when they are durable. The **writers** gather
//! whatever waits while the last commit ran and write it in one transaction per turn: on SQLite one writer
//! for everything, on PostgreSQL one each for events, outcomes and claims. The **expander** makes the deliveries
//! of events that reach many endpoints. Events whose routes are long to read wait **aside**. **Lanes** hold work in memory per
//! endpoint and give slots in turn. The **workers** make attempts. The **claimer** fetches due work for free
//! slots. The **keeper** renews the process's lease, without which nothing is sent, and frees those of dead
//! processes. **Probes** try out endpoints that were switched off. **Alerts** tell people what happens to endpoints. The **pacer** reserves
//! the slots of endpoints with a rate limit. On PostgreSQL there may be other nodes: **versions** keeps the routing table as new as their changes,
//! and **bells** tell each other what is worth a look. **Upkeep** moves what is queued for an endpoint whose state changed.
//!
//! What is promised: an event is acknowledged after its commit; an outcome is written under the fencing token
//! of its claim; a crash repeats at most what was in flight or not yet written. What is not: any order
//! between deliveries.

mod alerts;
mod aside;
mod bells;
mod breakers;
mod checkpoints;
mod claimer;
mod doorbell;
mod expander;
mod failures;
mod gauges;
mod guard;
mod ingest;
mod intake;
mod keeper;
mod lanes;
mod pacer;
mod pending;
mod probes;
mod publish_rates;
mod request;
mod routing;
mod shared;
mod supervise;
mod tidy;
mod trim;
mod turn;
mod upkeep;
mod uptime;
mod versions;
mod worker;
mod writer;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use alerts::{MailSettings, MailTls, SenderSettings};
pub use intake::{IngestHandle, Publish};
pub use lanes::LaneLimits;
pub use routing::RoutingTable;

use crate::dispatch::Dispatcher;
use crate::domain::breaker::BreakerPolicy;
use crate::domain::error::{Error, Result};
use crate::domain::event::FanOut;
use crate::domain::id::{EndpointId, ProjectId};
use crate::domain::url_rules::UrlRules;
use crate::metrics::Metrics;
use crate::store::{Hold, Store};
use aside::Aside;
use breakers::Breakers;
use doorbell::Doorbell;
use guard::Guard;
use keeper::Keeper;
use lanes::Lanes;
use pacer::Pacer;
use pending::Pending;
use shared::Shared;
pub use supervise::supervise_until;
use supervise::{supervise, supervise_on_thread};
use turn::{Inbox, Outcome};
use versions::Versions;
use writer::Writer;

/// How the engine behaves.
#[derive(Clone, Debug)]
pub struct EngineSettings {
    pub lanes: LaneLimits,
    pub rules: UrlRules,
    pub breaker: BreakerPolicy,
    /// Within what time attempts show whether the fault is ours.
    pub egress_window: Duration,
    pub fan_out: FanOut,
    /// Open deliveries that a project may have.
    pub pending_max: u64,
    /// This process's name in the table of leases.
    pub node: String,
    /// How long the change log keeps its records.
    pub changes_retention: Duration,
    /// How long its lease lasts unless it is renewed.
    pub lease: Duration,
    pub alerts: SenderSettings,
}

/// What services may do with the engine besides publishing.
#[derive(Clone)]
pub struct Wake {
    routing: Arc<RoutingTable>,
    claims: Arc<Doorbell>,
    probes: Arc<Notify>,
    pacer: Arc<Pacer>,
    align: Align,
}

impl Wake {
    /// To be awaited after a change of endpoints or subscriptions was committed and before it is acknowledged:
    /// no attempt of this process starts by the old settings after it.
    pub async fn routes_changed(&self, project: ProjectId, version: i64) {
        self.routing.renew(project, version).await;
    }

    /// The same after a change of many: whoever needs the project's routes next reads them, so that changes one after
    /// the other do not read them each time.
    pub fn routes_outdated(&self, project: ProjectId, version: i64) {
        self.routing.outdate(project, version);
    }

    /// Something became due.
    pub fn due(&self) {
        self.claims.ring();
    }

    /// Something became due for an endpoint with a rate limit.
    pub fn paced(&self, project: ProjectId, endpoint: EndpointId) {
        self.pacer.tell(project, endpoint);
    }

    /// A delivery waits to probe its endpoint.
    pub fn probe(&self) {
        self.probes.notify_one();
    }

    /// The endpoint's state changed, and its queued work follows: goes on, or ends.
    pub fn align(&self, endpoint: EndpointId) {
        self.align.tell(endpoint);
    }
}

/// Tells upkeep of endpoints whose queued work must follow their state.
#[derive(Clone)]
struct Align(mpsc::Sender<EndpointId>);

impl Align {
    fn tell(&self, endpoint: EndpointId) {
        if self.0.try_send(endpoint).is_err() {
            tracing::debug!(%endpoint, "many endpoints changed at once; the slow round takes this one");
        }
    }
}

/// A running engine.
pub struct Engine {
    pub ingest: IngestHandle,
    pub wake: Wake,
    pub routing: Arc<RoutingTable>,
    shared: Arc<Shared>,
    store: Store,
    /// Ends claiming; what is claimed goes on.
    stop_claiming: CancellationToken,
    /// Ends attempts and upkeep, and claiming with them.
    stop: CancellationToken,
    /// Ends the writers, once everything that waits is written.
    flush: CancellationToken,
    /// Ends the keeping of the lease.
    end: CancellationToken,
    /// Ends the ringing of other nodes, last of all.
    silence: CancellationToken,
    claimer: TaskTracker,
    attempts: TaskTracker,
    alerting: TaskTracker,
    writers: TaskTracker,
    keepers: TaskTracker,
    ringing: TaskTracker,
    outcomes: mpsc::Sender<Outcome>,
    /// Rings when a task ended that must not.
    pub failed: CancellationToken,
}

/// Outcomes that may wait to be written: with those in flight, all that a crash can repeat.
const OUTCOME_QUEUE: usize = 1024;
/// Endpoints whose queued work waits to follow their state; the slow round takes those beyond.
const ALIGN_QUEUE: usize = 1024;

impl Engine {
    /// Takes a lease, frees what dead processes held, and starts.
    pub async fn start(
        store: Store,
        dispatcher: Dispatcher,
        settings: EngineSettings,
        metrics: Arc<Metrics>,
    ) -> Result<Self> {
        let (publish_tx, publish_rx) = mpsc::channel(intake::QUEUE);
        let (outcome_tx, outcome_rx) = mpsc::channel(OUTCOME_QUEUE);
        let (claim_tx, claim_rx) = mpsc::channel(1);
        let (align_tx, align_rx) = mpsc::channel(ALIGN_QUEUE);
        let align = Align(align_tx);

        // Before anything is taken that others would miss: its settings may be of no use.
        let mailer = settings.alerts.mail.map(alerts::Mailer::new).transpose().map_err(Error::internal)?;
        let keeper = Keeper::start(&store, &settings.node, settings.lease).await?;
        let routing = RoutingTable::new(store.clone(), settings.rules.clone());
        let versions = Versions::new(&store);
        let (claims, probes) = (Arc::<Doorbell>::default(), Arc::<Notify>::default());
        let pacer = Arc::<Pacer>::default();
        let attempts = TaskTracker::new();
        let shared = Arc::new(Shared {
            lanes: Lanes::new(settings.lanes),
            routing: routing.clone(),
            keeper,
            versions: versions.clone(),
            dispatcher,
            attempts: attempts.clone(),
            outcomes: outcome_tx.clone(),
            claims: claims.clone(),
            pacer: pacer.clone(),
            metrics: metrics.clone(),
            breakers: Breakers::default(),
            breaker: settings.breaker,
            guard: Guard::new(settings.egress_window),
            align: align.clone(),
            fan_out: settings.fan_out,
            pending: Pending::new(settings.pending_max),
            aside: Aside::new(publish_tx.downgrade(), routing.clone()),
            expansions: Notify::new(),
        });

        let (stop, flush) = (CancellationToken::new(), CancellationToken::new());
        let stop_claiming = stop.child_token();
        let (end, silence) = (CancellationToken::new(), CancellationToken::new());
        let failed = CancellationToken::new();
        let (writers, claimer, alerting) = (TaskTracker::new(), TaskTracker::new(), TaskTracker::new());
        let (keepers, ringing) = (TaskTracker::new(), TaskTracker::new());
        let inboxes = if store.has_single_writer() {
            vec![Inbox::all(publish_rx, outcome_rx, claim_rx)]
        } else {
            vec![Inbox::publishes(publish_rx), Inbox::outcomes(outcome_rx), Inbox::claims(claim_rx)]
        };
        for inbox in inboxes {
            let writer = Writer::new(store.clone(), shared.clone(), inbox, flush.clone());
            if store.has_single_writer() {
                // SQLite's statements run where they are called for, and block.
                supervise_on_thread(&writers, &failed, "writer", writer.run());
            } else {
                supervise(&writers, &failed, "writer", writer.run());
            }
        }
        let task = claimer::run(store.clone(), shared.clone(), claim_tx, stop_claiming.clone());
        supervise_until(&claimer, &failed, &stop_claiming, "claimer", task);
        let task = expander::run(store.clone(), shared.clone(), stop.clone());
        supervise_until(&claimer, &failed, &stop, "expander", task);
        let task = keeper::free(store.clone(), shared.clone(), stop.clone());
        supervise_until(&claimer, &failed, &stop, "freeing of leases", task);
        let task = versions::run(store.clone(), routing.clone(), versions, stop.clone());
        supervise_until(&claimer, &failed, &stop, "routing versions", task);
        let task = bells::hear(store.clone(), shared.clone(), stop.clone());
        supervise_until(&claimer, &failed, &stop, "hearing other nodes", task);
        let task = keeper::run(store.clone(), shared.clone(), settings.node, end.clone());
        supervise_until(&keepers, &failed, &end, "lease keeper", task);
        let task = checkpoints::run(store.clone(), end.clone());
        supervise_until(&keepers, &failed, &end, "checkpoints", task);
        let task = bells::send(store.clone(), shared.clone(), silence.clone());
        supervise_until(&ringing, &failed, &silence, "ringing other nodes", task);
        let task = pacer::run(store.clone(), shared.clone(), stop_claiming.clone());
        supervise_until(&claimer, &failed, &stop_claiming, "pacer", task);
        let task = pacer::start(shared.clone(), stop.clone());
        supervise_until(&claimer, &failed, &stop, "starting of paced attempts", task);
        let task = upkeep::run(store.clone(), align_rx, shared.clone(), stop.clone());
        supervise_until(&claimer, &failed, &stop, "upkeep", task);
        let task = tidy::run(store.clone(), routing.clone(), stop.clone());
        supervise_until(&claimer, &failed, &stop, "housekeeping", task);
        let task =
            trim::run(store.clone(), settings.changes_retention, settings.alerts.retention, stop.clone());
        supervise_until(&claimer, &failed, &stop, "trimming by age", task);
        let task = alerts::certificates::run(store.clone(), stop.clone());
        supervise_until(&claimer, &failed, &stop, "warnings of certificates", task);
        let (rules, retry) = (settings.rules, settings.alerts.retry);
        let sender = alerts::Sender::new(store.clone(), shared.clone(), rules, retry, mailer);
        for channel in sender.channels() {
            let task = sender.clone().run(channel, stop_claiming.clone());
            supervise_until(&alerting, &failed, &stop_claiming, "alerts", task);
        }
        let task = breakers::run(store.clone(), shared.clone(), stop_claiming.clone());
        supervise_until(&claimer, &failed, &stop_claiming, "breakers", task);
        let task = guard::run(store.clone(), shared.clone(), stop.clone());
        supervise_until(&claimer, &failed, &stop, "systemic guard", task);
        let task = probes::run(store.clone(), shared.clone(), probes.clone(), stop_claiming.clone());
        supervise_until(&claimer, &failed, &stop_claiming, "probes", task);
        let task = pending::run(store.clone(), shared.clone(), stop.clone());
        supervise_until(&claimer, &failed, &stop, "counting of pending deliveries", task);
        let task = gauges::run(store.clone(), shared.clone(), publish_tx.downgrade(), stop.clone());
        supervise_until(&claimer, &failed, &stop, "gauges", task);

        Ok(Self {
            ingest: IngestHandle::new(publish_tx, routing.clone(), metrics),
            wake: Wake { routing: routing.clone(), claims, probes, pacer, align },
            routing,
            shared,
            store,
            stop_claiming,
            stop,
            flush,
            end,
            silence,
            claimer,
            attempts,
            alerting,
            writers,
            keepers,
            ringing,
            outcomes: outcome_tx,
            failed,
        })
    }

    /// From now on nothing that lies in the database is taken: no delivery, no probe, no alert. What comes from callers,
    /// who are still served, is sent as far as there is room for it.
    pub fn stop_claiming(&self) {
        self.stop_claiming.cancel();
    }

    /// Stops in bounded phases: no new attempts and alerts, then what is in flight, then the unwritten outcomes, then the
    /// lease. What does not end within `drain` is repeated after the next start.
    pub async fn shutdown(self, drain: Duration) {
        self.stop.cancel();
        let drained = tokio::time::timeout(drain, async {
            self.release_waiting().await;
            self.attempts.close();
            self.alerting.close();
            tokio::join!(self.attempts.wait(), self.alerting.wait());
        });
        if drained.await.is_err() {
            let (in_flight, alerting) = (self.attempts.len(), self.alerting.len());
            tracing::warn!(in_flight, alerting, "attempts or alerts did not end within the drain time");
        }
        self.claimer.close();
        let _ended = tokio::time::timeout(FLUSH_BUDGET, self.claimer.wait()).await;
        self.flush.cancel();
        self.writers.close();
        if tokio::time::timeout(FLUSH_BUDGET, self.writers.wait()).await.is_err() {
            tracing::error!(
                "the last outcomes could not be written in time; their attempts will be repeated"
            );
        }
        self.end.cancel();
        self.keepers.close();
        let _ended = tokio::time::timeout(FLUSH_BUDGET, self.keepers.wait()).await;
        self.shared.keeper.end(&self.store).await;
        self.silence.cancel();
        self.ringing.close();
        let _ended = tokio::time::timeout(FLUSH_BUDGET, self.ringing.wait()).await;
    }

    /// Gives back what waits in the lanes, so that other nodes need not wait for the end.
    async fn release_waiting(&self) {
        for job in self.shared.lanes.close() {
            if self.outcomes.send(Outcome::Released(job.release(Hold::No))).await.is_err() {
                return;
            }
        }
    }
}

const FLUSH_BUDGET: Duration = Duration::from_secs(5);
