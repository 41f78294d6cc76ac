//! The HTTP faces beside gRPC: the admin listener, and the portal's.

mod admin;
mod jwks;
mod portal;

pub use admin::AdminServer;
pub use portal::PortalServer;
