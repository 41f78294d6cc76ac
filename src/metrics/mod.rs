//! What operators measure: counters, gauges and histograms that the parts keep, shown in Prometheus' text form.
//!
//! The lowest module, which every part may use. Labels are closed sets (a method, a class, a status), never an
//! id, so that the number of series does not grow with use. The registry is a value: two servers in one
//! process count apart.

mod calls;
mod connections;
mod database;
mod engine;
mod feed;

use std::sync::Arc;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

pub use calls::{CallMetrics, Method, Open};
pub use connections::ConnectionMetrics;
pub use database::DatabaseMetrics;
pub use engine::EngineMetrics;
pub use feed::FeedMetrics;

/// All measures of one server.
pub struct Metrics {
    registry: Registry,
    pub calls: CallMetrics,
    pub connections: ConnectionMetrics,
    pub engine: EngineMetrics,
    pub feed: FeedMetrics,
    pub database: DatabaseMetrics,
}

impl Metrics {
    /// `started_at` in Unix seconds.
    pub fn new(version: &'static str, started_at: i64) -> Arc<Self> {
        let mut registry = Registry::with_prefix("hawser");
        let build = Info::new(vec![("version", version)]);
        registry.register("build", "The version that runs", build);
        let started: Gauge = Gauge::default();
        started.set(started_at);
        registry.register("start_time_seconds", "When the process started, in Unix time", started);
        Arc::new(Self {
            calls: CallMetrics::new(&mut registry),
            connections: ConnectionMetrics::new(&mut registry),
            engine: EngineMetrics::new(&mut registry),
            feed: FeedMetrics::new(&mut registry),
            database: DatabaseMetrics::new(&mut registry),
            registry,
        })
    }

    /// Everything in OpenMetrics' text form.
    pub fn render(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::with_capacity(16 * 1024);
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// Bounds in seconds from half a millisecond to a minute.
fn seconds() -> impl Iterator<Item = f64> {
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]
        .into_iter()
}
