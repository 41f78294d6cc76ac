//! One HTTP request, guarded: the only way out of Hawser.
//!
//! Every attempt resolves (or reuses a checked connection), checks each address before it is dialled and the
//! peer after, verifies TLS, sends exactly one request, and reads a bounded answer within one time limit. It
//! follows no redirect, uses no proxy of the environment, keeps no cookie and decompresses nothing. What it
//! came to is always an [`AttemptOutcome`](crate::domain::attempt::AttemptOutcome), never an error beside it.

mod capture;
mod client;
mod connector;
mod failure;
mod resolver;
mod tls;

#[cfg(test)]
mod tests;

pub use client::{DispatchSettings, Dispatcher, OutboundRequest, SetupError};
