//! How many files the process may have open. Each connection is one, and most systems begin with 1,024.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Config;
use crate::http::PortalServer;

/// For the database, DNS, alerts, the admin listener, and what is a file.
const OTHERS: usize = 512;

/// The most that may be needed with these settings. An attempt may have two questions to name servers open before its
/// connection.
pub fn needed(config: &Config) -> u64 {
    let receivers = config.dispatch.kept_max + 2 * config.engine.lanes.slots;
    let callers = config.grpc.connections.max + PortalServer::CONNECTIONS;
    u64::try_from(receivers + callers + OTHERS).unwrap_or(u64::MAX)
}

/// Raises the limit to the highest that this process may give itself, and tells where that is less than may be needed.
pub fn raise(needed: u64) {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // Without a highest one, such as on macOS, there is no asking for it.
    let wanted = maximum.or(Some(needed));
    let limit = match setrlimit(Resource::Nofile, Rlimit { current: wanted, maximum }) {
        Ok(()) => wanted,
        Err(error) => {
            tracing::warn!(%error, "the limit of open files could not be raised");
            current
        }
    };
    if let Some(limit) = limit.filter(|limit| *limit < needed) {
        tracing::warn!(
            limit,
            needed,
            "the limit of open files is lower than what the slots and connections may need; raise it, or lower slots \
             and connections-max"
        );
    }
}
