//! The gRPC face: thin handlers (convert, call the service, convert), and what every call passes through.

mod auth;
mod check;
mod convert;
mod deliveries;
mod endpoints;
mod events;
mod health;
pub mod pb;
mod projects;
mod server;
mod status;
mod subscriptions;
mod watch;

pub use health::Health;
pub use server::{GrpcServer, GrpcSettings, GrpcTls};

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
