//! Watch: the change log as streams.
//!
//! One reader per process, the [`Feed`], follows the log while anyone watches and keeps the newest records in a
//! ring. A stream is a [`Watcher`], which is asked for its next message when its client has room: it takes from
//! the ring, or from the store where it is behind it, so an idle or stalled stream costs a cursor and little
//! more. Only committed records are read, in the order of commits, so a stream has no gap and no repeat,
//! whatever process it resumes on.

mod details;
mod feed;
mod filter;
mod log;
mod snapshot;
mod stream;
mod streams;
mod token;

use std::sync::Arc;
use std::time::Duration;

pub use feed::Feed;
pub use filter::WatchFilter;
pub use stream::Watcher;

use super::Services;
use crate::domain::change::{Cursor, DeliveryChange, EndpointChangeKind};
use crate::domain::clock::Timestamp;
use crate::domain::delivery::Attempt;
use crate::domain::endpoint::Endpoint;
use crate::domain::error::{Error, ErrorKind, Result};
use crate::domain::id::ProjectId;
use crate::domain::principal::{Principal, Scope};
use crate::store::Reads;
use token::{Place, Tokens};

/// The limits of streams.
#[derive(Clone, Debug)]
pub struct WatchSettings {
    /// Streams of one project in this process.
    pub streams_per_project: usize,
    /// A stream whose client takes nothing for so long, though there is something to send, is ended.
    pub lag_max: Duration,
    /// Streams behind the ring that may read from the store at once.
    pub store_reads: usize,
}

/// Streams of one process, those included that were told to end and did not hear it yet.
const STREAMS_MAX: usize = 20_000;

/// Where a stream begins.
#[derive(Clone, Debug)]
pub enum Start {
    /// With what commits from now on.
    Now,
    /// With the oldest change that is kept.
    Earliest,
    /// With all endpoints as they are, then what changes.
    Snapshot,
    /// Right after the message that carried it.
    Token(String),
}

/// One message of a stream.
pub struct WatchItem {
    pub payload: WatchPayload,
    pub token: String,
    pub at: Timestamp,
}

pub enum WatchPayload {
    /// An endpoint as it is, at the start of a stream.
    Snapshot(Box<Endpoint>),
    Endpoint(EndpointChangeKind, Box<Endpoint>),
    Delivery(Box<DeliveryChange>, Payload),
    /// Shown without what the receiver answered: bodies are not streamed.
    Attempt(Arc<Attempt>),
    Bookmark {
        /// All endpoints of the snapshot were sent.
        snapshot_end: bool,
    },
}

/// The payload of a new delivery's event.
pub enum Payload {
    NotAsked,
    Inline(bytes::Bytes),
    /// It is too large to be sent along, or gone.
    Omitted,
}

impl Services {
    /// Begins a stream. Its first message is a bookmark, so that there is a token from the start.
    pub async fn watch(
        &self,
        principal: &Principal,
        project: Option<ProjectId>,
        start: Start,
        filter: WatchFilter,
    ) -> Result<Watcher> {
        let project = self.project_of(principal, project, Scope::Watch).await?;
        if filter.include_payload {
            principal.project_for(Some(project), Scope::EventsRead)?;
        }
        let tokens = Tokens::new(self.store.clone(), project, &filter);
        let seat = self.feed.enter(project, principal.key_id, !filter.no_attempts)?;
        let bounds = self.store.log_bounds(Reads::Call).await?;
        let place = match start {
            Start::Now => Place::live(Cursor::after(bounds.last)),
            Start::Earliest => Place::live(Cursor::after(bounds.floor)),
            // Taken before the first endpoint is read, so that no change is missed.
            Start::Snapshot => Place::snapshot(Cursor::after(bounds.last)),
            Start::Token(token) => tokens.open(&token)?,
        };
        if place.cursor.position > bounds.last {
            let message =
                "the token is from later than this database's last change: it was restored, or is another";
            return Err(Error::new(ErrorKind::FailedPrecondition, "DATABASE_CHANGED", message));
        }
        if !place.cursor.has_passed(bounds.floor) {
            return Err(too_old(&tokens, bounds.floor));
        }
        Ok(Watcher::new(seat, project, filter, tokens, place))
    }
}

/// What follows the token was forgotten in part.
fn too_old(tokens: &Tokens, floor: i64) -> Error {
    let earliest = tokens.seal(Place::live(Cursor::after(floor)));
    let message = "changes after this token are no longer kept; start anew, or from the earliest token";
    Error::new(ErrorKind::OutOfRange, "TOKEN_TOO_OLD", message).with("earliest_token", earliest)
}
