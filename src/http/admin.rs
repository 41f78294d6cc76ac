//! What operators' machines ask, without a key and therefore on loopback unless told otherwise: `/metrics` and
//! `/healthz`.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// Answers for the process.
#[derive(Clone)]
pub struct AdminServer {
    pub metrics: Arc<Metrics>,
    /// The same truth as gRPC health's.
    pub ready: watch::Receiver<bool>,
}

impl AdminServer {
    /// Serves until the stop token; then closes at once, since nothing here must be finished.
    pub async fn run(self, listener: TcpListener, stop: CancellationToken) {
        let router =
            Router::new().route("/metrics", get(metrics)).route("/healthz", get(healthz)).with_state(self);
        tokio::select! {
            ended = axum::serve(listener, router) => {
                if let Err(error) = ended {
                    tracing::error!(error = %error, "the admin listener failed");
                }
            }
            () = stop.cancelled() => {}
        }
    }
}

/// As OpenMetrics names its own text form.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

async fn metrics(State(server): State<AdminServer>) -> Response {
    match server.metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => {
            tracing::error!(error = %error, "the metrics could not be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn healthz(State(server): State<AdminServer>) -> (StatusCode, &'static str) {
    match *server.ready.borrow() {
        true => (StatusCode::OK, "SERVING\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "NOT_SERVING\n"),
    }
}
