//! One HTTP attempt: the guarded client that makes every outbound request.
//!
//! [`Dispatcher::send`] puts exactly one request on the wire and always ends in an
//! [`AttemptOutcome`](crate::domain::attempt::AttemptOutcome). The path of a request: `client` bounds it in time;
//! `connector` resolves, checks every address, by the lists and that it is not our `own`, dials and speaks TLS, through the
//! egress `proxy` where there is one, or the pool gives a connection that was checked before; `capture` keeps a bounded
//! piece of the answer; `failure` names what went wrong.

pub mod assertion;
mod capture;
mod client;
mod connector;
mod exchange;
mod failure;
mod identities;
pub mod identity;
mod kept;
mod own;
mod proxy;
mod resolver;
mod tls;
mod tokens;
mod unverified;

#[cfg(test)]
mod tests;

pub use client::{DispatchSettings, Dispatcher, Identity, OutboundRequest, SetupError};
pub use exchange::{Exchange, Grant, TOKEN_TIME};
pub use own::OwnPlaces;
pub use proxy::{EgressProxy, InvalidProxy};
pub use tls::UNVERIFIED;
pub use tokens::{Token, TokenError};
