//! gRPC health v1 (grpc.health.v1), without authentication: "" and every service of the contract.
//!
//! What it tells is decided in `app`. Unlike the ready-made one it tells watchers of unknown
//! names SERVICE_UNKNOWN, and ends its streams when the server drains.

use std::pin::Pin;
use std::time::Duration;

use tokio::sync::watch;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health as HealthService;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::status;
use crate::domain::error::Error;

/// How long a reader may take to be told the end.
const FAREWELL: Duration = Duration::from_secs(1);

const NAMES: [&str; 9] = [
    "",
    "hawser.v1.ProjectService",
    "hawser.v1.EndpointService",
    "hawser.v1.SubscriptionService",
    "hawser.v1.EventService",
    "hawser.v1.DeliveryService",
    "hawser.v1.WatchService",
    "hawser.v1.SecretService",
    "hawser.v1.AuditService",
];

/// Tells whether the server serves.
pub struct Health {
    serving: watch::Receiver<bool>,
    stop: CancellationToken,
}

impl Health {
    /// `stop` ends the streams.
    pub fn new(serving: watch::Receiver<bool>, stop: CancellationToken) -> Self {
        Self { serving, stop }
    }
}

fn reply(serving: bool) -> HealthCheckResponse {
    let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl HealthService for Health {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let name = request.into_inner().service;
        if !NAMES.contains(&name.as_str()) {
            return Err(Error::not_found("service", name).into());
        }
        Ok(Response::new(reply(*self.serving.borrow())))
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let known = NAMES.contains(&request.into_inner().service.as_str());
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let (mut serving, stop) = (self.serving.clone(), self.stop.clone());
        tokio::spawn(async move {
            loop {
                let answer = if known {
                    reply(*serving.borrow_and_update())
                } else {
                    HealthCheckResponse { status: ServingStatus::ServiceUnknown.into() }
                };
                if sender.send(Ok(answer)).await.is_err() {
                    return;
                }
                tokio::select! {
                    biased;
                    // Readiness ends first when the server stops; the stream then waits for its own end.
                    Ok(()) = serving.changed(), if known => {}
                    () = sender.closed() => return,
                    () = stop.cancelled() => {
                        // The reader may be gone already, or read no more.
                        let _told = tokio::time::timeout(FAREWELL, sender.send(Err(status::draining()))).await;
                        return;
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}
