//! Resume tokens: a place in the log, bound to the database, the project and the filters.

use uuid::Uuid;

use super::filter::WatchFilter;
use crate::domain::change::Cursor;
use crate::domain::error::{Error, ErrorKind, Result};
use crate::domain::id::ProjectId;
use crate::store::Store;

/// Where a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// All up to here was seen. While a snapshot is sent: where the live part will begin.
    pub cursor: Cursor,
    /// The last endpoint of the snapshot that was seen, nil before the first; none where it is done.
    pub snapshot: Option<Uuid>,
}

impl Place {
    pub const fn live(cursor: Cursor) -> Self {
        Self { cursor, snapshot: None }
    }

    /// The beginning of a snapshot.
    pub const fn snapshot(cursor: Cursor) -> Self {
        Self { cursor, snapshot: Some(Uuid::nil()) }
    }

    fn to_bytes(self) -> Vec<u8> {
        let mut bytes = self.cursor.position.to_be_bytes().to_vec();
        bytes.extend_from_slice(&self.cursor.index.to_be_bytes());
        if let Some(endpoint) = self.snapshot {
            bytes.extend_from_slice(endpoint.as_bytes());
        }
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (position, rest) = bytes.split_first_chunk::<8>()?;
        let (index, rest) = rest.split_first_chunk::<4>()?;
        let cursor = Cursor { position: i64::from_be_bytes(*position), index: u32::from_be_bytes(*index) };
        let snapshot = if rest.is_empty() { None } else { Some(Uuid::from_slice(rest).ok()?) };
        Some(Self { cursor, snapshot })
    }
}

/// Makes and reads the tokens of one stream.
pub struct Tokens {
    store: Store,
    project: String,
    filter: String,
}

impl Tokens {
    pub fn new(store: Store, project: ProjectId, filter: &WatchFilter) -> Self {
        Self { store, project: project.to_string(), filter: filter.fingerprint() }
    }

    fn context(&self) -> [&str; 3] {
        ["watch", &self.project, &self.filter]
    }

    pub fn seal(&self, place: Place) -> String {
        let mut bytes = self.store.incarnation().as_bytes().to_vec();
        bytes.extend_from_slice(&place.to_bytes());
        self.store.token_key().seal(&bytes, &self.context())
    }

    pub fn open(&self, token: &str) -> Result<Place> {
        let refused = || {
            Error::invalid(
                "resume_token",
                "is not a token of this project with these filters, or was damaged",
            )
        };
        let bytes = self.store.token_key().open(token, &self.context()).ok_or_else(refused)?;
        let (incarnation, rest) = bytes.split_first_chunk::<16>().ok_or_else(refused)?;
        if Uuid::from_bytes(*incarnation) != self.store.incarnation() {
            let message = "the token was made by another database, before a restore or a replacement";
            return Err(Error::new(ErrorKind::FailedPrecondition, "DATABASE_CHANGED", message));
        }
        Place::from_bytes(rest).ok_or_else(refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_round_trip_and_nothing_else_reads() {
        let cursor = Cursor { position: 7_000_000_000, index: 3 };
        for place in
            [Place::live(cursor), Place::snapshot(cursor), Place { cursor, snapshot: Some(Uuid::now_v7()) }]
        {
            let bytes = place.to_bytes();
            assert_eq!(Place::from_bytes(&bytes), Some(place));
            assert_eq!(Place::from_bytes(&bytes[..bytes.len() - 1]), None);
        }
    }
}
