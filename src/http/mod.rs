//! The HTTP faces beside gRPC: the admin listener.

mod admin;

pub use admin::AdminServer;
