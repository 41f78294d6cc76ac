//! Connections to the gRPC port.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Connections now, and those that were not let in.
pub struct ConnectionMetrics {
    pub open: Gauge,
    /// Beyond `connections-max`.
    pub refused: Counter,
    /// TLS handshakes that failed or took too long.
    pub handshakes_failed: Counter,
}

impl ConnectionMetrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let (open, refused, handshakes_failed) = (Gauge::default(), Counter::default(), Counter::default());
        registry.register("connections", "Open connections to the gRPC port", open.clone());
        registry.register(
            "connections_refused",
            "Connections closed at once because connections-max was reached",
            refused.clone(),
        );
        registry.register(
            "tls_handshakes_failed",
            "TLS handshakes that failed or took too long",
            handshakes_failed.clone(),
        );
        Self { open, refused, handshakes_failed }
    }
}
