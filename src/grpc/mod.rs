//! The gRPC face: thin handlers (convert, call the service, convert), and what every call passes through.

mod alerts;
mod audit;
mod auth;
mod browsers;
mod bulk;
mod bulk_stream;
mod calls;
mod check;
mod convert;
mod credentials;
mod deadline;
mod deliveries;
mod endpoints;
mod events;
mod first_bytes;
mod health;
mod listener;
mod methods;
pub mod pb;
mod pings;
mod policies;
mod projects;
mod publish;
mod publish_stream;
mod secrets;
mod server;
mod signatures;
mod status;
mod stream_end;
mod subscriptions;
mod watch;

pub use calls::CallLimits;
pub use health::Health;
pub use listener::ConnectionLimits;
pub use server::{GrpcServer, GrpcSettings};

use tonic::{Request, Status};

use crate::domain::principal::Principal;
use crate::service::Services;

/// Implements all services of the contract.
#[derive(Clone)]
pub struct Api {
    services: Services,
    /// Ends streams when the server drains.
    stop: tokio_util::sync::CancellationToken,
}

/// The caller, as the authentication layer found it.
fn principal<T>(request: &Request<T>) -> Result<Principal, Status> {
    let found = request.extensions().get::<Principal>().cloned();
    found.ok_or_else(|| status::unauthenticated("send `authorization: Bearer <key>`"))
}
