//! The live feed: how far it is, how late, and who follows it.

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
struct ReasonLabel {
    reason: &'static str,
}

/// All measures of the feed.
pub struct FeedMetrics {
    pub streams: Gauge,
    cut: Family<ReasonLabel, Counter>,
    position: Gauge,
    lag_seconds: Histogram,
    behind_seconds: Gauge<f64, AtomicU64>,
    /// Reads of the store by streams that are behind what is kept in memory.
    pub catch_ups: Counter,
}

impl FeedMetrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            streams: Gauge::default(),
            cut: Family::default(),
            position: Gauge::default(),
            lag_seconds: Histogram::new(seconds()),
            behind_seconds: Gauge::default(),
            catch_ups: Counter::default(),
        };
        registry.register("watch_streams", "Open Watch streams", metrics.streams.clone());
        registry.register(
            "watch_streams_cut",
            "Watch streams ended by the server, by the reason",
            metrics.cut.clone(),
        );
        registry.register(
            "feed_position",
            "Up to where the change log was read for streams",
            metrics.position.clone(),
        );
        registry.register(
            "feed_lag_seconds",
            "From the writing of a change to its being read for streams",
            metrics.lag_seconds.clone(),
        );
        registry.register(
            "feed_behind_seconds",
            "How long ago a change may have been written that is not read for streams yet",
            metrics.behind_seconds.clone(),
        );
        registry.register(
            "watch_catch_ups",
            "Reads of the store by streams that are behind",
            metrics.catch_ups.clone(),
        );
        metrics
    }

    /// A record was read for streams, so long after it was written.
    pub fn read(&self, position: i64, lag: Duration) {
        self.position.set(position);
        self.lag_seconds.observe(lag.as_secs_f64());
    }

    /// All changes that were written longer ago than this were read for streams.
    pub fn behind(&self, behind: Duration) {
        self.behind_seconds.set(behind.as_secs_f64());
    }

    /// A stream was told to end.
    pub fn cut(&self, reason: &'static str) {
        self.cut.get_or_create(&ReasonLabel { reason }).inc();
    }
}
