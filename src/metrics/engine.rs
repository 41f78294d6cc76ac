//! The engine: what waits, what is tried, how long it takes. Counted per batch where there is one; nothing here
//! allocates.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::seconds;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ClassLabel {
    class: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StatusLabel {
    status: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct AlertLabels {
    channel: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

/// All measures of the engine.
pub struct EngineMetrics {
    published: Family<ResultLabel, Counter>,
    publish_seconds: Histogram,
    attempts: Family<ClassLabel, Counter>,
    attempt_seconds: Histogram,
    first_attempt_seconds: Histogram,
    ended: Family<StatusLabel, Counter>,
    turn_events: Histogram,
    turn_outcomes: Histogram,
    turn_seconds: Histogram,
    /// Turns that the database did not take.
    pub turns_failed: Counter,
    /// Messages to other nodes, and those of theirs that were heard.
    pub bells_rung: Counter,
    pub bells_heard: Counter,
    /// Claims made, and the deliveries that they found.
    pub claims: Counter,
    pub claimed: Counter,
    queue: Family<StateLabel, Gauge>,
    pub oldest_due_seconds: Gauge<f64, AtomicU64>,
    pub outcomes_waiting: Gauge,
    pub events_waiting: Gauge,
    pub lease_seconds: Gauge<f64, AtomicU64>,
    pub breakers_open: Gauge,
    /// 1 while the fault is taken to be on our side of the network.
    pub egress_failing: Gauge,
    alerts: Family<AlertLabels, Counter>,
}

impl EngineMetrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            published: Family::default(),
            publish_seconds: Histogram::new(seconds()),
            attempts: Family::default(),
            attempt_seconds: Histogram::new(seconds()),
            first_attempt_seconds: Histogram::new(seconds()),
            ended: Family::default(),
            turn_events: Histogram::new(sizes()),
            turn_outcomes: Histogram::new(sizes()),
            turn_seconds: Histogram::new(seconds()),
            turns_failed: Counter::default(),
            bells_rung: Counter::default(),
            bells_heard: Counter::default(),
            claims: Counter::default(),
            claimed: Counter::default(),
            queue: Family::default(),
            oldest_due_seconds: Gauge::default(),
            outcomes_waiting: Gauge::default(),
            events_waiting: Gauge::default(),
            lease_seconds: Gauge::default(),
            breakers_open: Gauge::default(),
            egress_failing: Gauge::default(),
            alerts: Family::default(),
        };
        metrics.register(registry);
        metrics
    }

    fn register(&self, registry: &mut Registry) {
        registry.register("events", "Events handed over, by what became of them", self.published.clone());
        registry.register(
            "publish_seconds",
            "From the hand-over of an event to its durable answer",
            self.publish_seconds.clone(),
        );
        registry.register("attempts", "Attempts by how they ended", self.attempts.clone());
        registry.register("attempt_seconds", "How long attempts took", self.attempt_seconds.clone());
        registry.register(
            "first_attempt_seconds",
            "From the publish of an event to the start of a delivery's first attempt",
            self.first_attempt_seconds.clone(),
        );
        registry.register("deliveries_ended", "Deliveries by their final status", self.ended.clone());
        registry.register("turn_events", "Events in one commit", self.turn_events.clone());
        registry.register("turn_outcomes", "Outcomes in one commit", self.turn_outcomes.clone());
        registry.register("turn_seconds", "How long a commit took", self.turn_seconds.clone());
        registry.register(
            "turns_failed",
            "Commits that the database did not take",
            self.turns_failed.clone(),
        );
        registry.register("bells_rung", "Messages by which other nodes were woken", self.bells_rung.clone());
        registry.register(
            "bells_heard",
            "Messages of other nodes that woke this one",
            self.bells_heard.clone(),
        );
        registry.register("claims", "Claims of due work", self.claims.clone());
        registry.register("claimed_deliveries", "Deliveries that claims found", self.claimed.clone());
        registry.register("deliveries_waiting", "Open deliveries by where they are", self.queue.clone());
        registry.register(
            "oldest_due_seconds",
            "For how long the oldest unclaimed delivery has been due",
            self.oldest_due_seconds.clone(),
        );
        registry.register("outcomes_waiting", "Outcomes not yet written", self.outcomes_waiting.clone());
        registry.register("events_waiting", "Events that wait for their commit", self.events_waiting.clone());
        registry.register(
            "breakers_open",
            "Endpoints to which sending rests after failures in a row",
            self.breakers_open.clone(),
        );
        registry.register(
            "egress_failing",
            "1 while most endpoints fail without an answer, so that none is switched off",
            self.egress_failing.clone(),
        );
        registry.register(
            "lease_seconds",
            "How long the process may still start attempts without a renewal",
            self.lease_seconds.clone(),
        );
        registry.register("alerts", "Attempts to send alerts, by how they ended", self.alerts.clone());
    }

    /// An event was answered: `accepted`, `duplicate`, `refused`, `overloaded` or `failed`.
    pub fn published(&self, result: &'static str, took: Duration) {
        self.published.get_or_create(&ResultLabel { result }).inc();
        self.publish_seconds.observe(took.as_secs_f64());
    }

    /// An attempt ended, `success` or with its error's class; `waited` is from publish to start for a first one.
    pub fn attempted(&self, class: &'static str, took: Duration, waited: Option<Duration>) {
        self.attempts.get_or_create(&ClassLabel { class }).inc();
        self.attempt_seconds.observe(took.as_secs_f64());
        if let Some(waited) = waited {
            self.first_attempt_seconds.observe(waited.as_secs_f64());
        }
    }

    /// An alert was `sent`, is to be tried again (`retry`), or was given up (`failed`).
    pub fn alert(&self, channel: &'static str, result: &'static str) {
        self.alerts.get_or_create(&AlertLabels { channel, result }).inc();
    }

    /// Deliveries reached a final status.
    pub fn ended(&self, status: &'static str, deliveries: u64) {
        if deliveries > 0 {
            self.ended.get_or_create(&StatusLabel { status }).inc_by(deliveries);
        }
    }

    /// A commit with this many events and outcomes.
    pub fn turn(&self, events: usize, outcomes: usize, took: Duration) {
        for (histogram, size) in [(&self.turn_events, events), (&self.turn_outcomes, outcomes)] {
            if size > 0 {
                histogram.observe(f64::from(u32::try_from(size).unwrap_or(u32::MAX)));
            }
        }
        self.turn_seconds.observe(took.as_secs_f64());
    }

    /// How many deliveries are `due`, in `lanes` or `in_flight`; or kept from being due: `paused`, `breaker`,
    /// `rate_limit`.
    pub fn waiting(&self, state: &'static str, deliveries: u64) {
        let deliveries = i64::try_from(deliveries).unwrap_or(i64::MAX);
        self.queue.get_or_create(&StateLabel { state }).set(deliveries);
    }
}

/// Bounds of batch sizes.
fn sizes() -> impl Iterator<Item = f64> {
    [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0].into_iter()
}
