//! Connections to the database.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PoolLabels {
    pool: &'static str,
    state: &'static str,
}

/// How the pools are used.
pub struct DatabaseMetrics {
    connections: Family<PoolLabels, Gauge>,
}

impl DatabaseMetrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let connections = Family::default();
        registry.register("database_connections", "Connections by pool, busy or idle", connections.clone());
        Self { connections }
    }

    /// Each pool's name, how many connections it has, and how many of them are idle.
    pub fn pools(&self, pools: &[(&'static str, u32, usize)]) {
        for (pool, open, idle) in pools {
            let idle = i64::try_from(*idle).unwrap_or(i64::MAX);
            let busy = i64::from(*open).saturating_sub(idle).max(0);
            for (state, connections) in [("busy", busy), ("idle", idle)] {
                self.connections.get_or_create(&PoolLabels { pool, state }).set(connections);
            }
        }
    }
}
