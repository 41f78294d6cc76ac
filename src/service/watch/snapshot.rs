//! The start of a stream that begins with all endpoints as they are.
//!
//! The live part begins at a position that was taken before the first endpoint was read, so changes made
//! meanwhile are told as well; a client drops those whose revision is not above the endpoint's that it
//! knows. Endpoints are read in pages, in the order of their ids, and a token tells how far it came: a cut
//! in the middle goes on there.

use super::stream::Watcher;
use super::{WatchItem, WatchPayload};
use crate::domain::clock::Timestamp;
use crate::domain::endpoint::EndpointFilter;
use crate::domain::error::Result;
use crate::domain::page::PageRequest;

const PAGE: u32 = 100;

impl Watcher {
    /// Reads the next endpoints of the snapshot; none are left where it finds none.
    pub(super) async fn read_endpoints(&mut self) -> Result<()> {
        if self.filter.no_endpoint_changes {
            return Ok(());
        }
        let filter = EndpointFilter {
            ids: self.filter.endpoints.clone(),
            owner: self.filter.owner.clone(),
            ..EndpointFilter::default()
        };
        let after = self.place.snapshot.filter(|id| !id.is_nil());
        let (project, page) = (self.project, PageRequest { size: PAGE, after });
        let reading =
            self.seat.read(async move |store| Ok(store.endpoints(project, &filter, page).await?.items));
        self.endpoints = reading.await?.into();
        Ok(())
    }

    /// The next endpoint at hand, or the snapshot's end.
    pub(super) fn next_endpoint(&mut self) -> WatchItem {
        match self.endpoints.pop_front() {
            Some(endpoint) => {
                self.place.snapshot = Some(endpoint.id.uuid());
                self.item(WatchPayload::Snapshot(Box::new(endpoint)), Timestamp::now())
            }
            None => {
                self.place.snapshot = None;
                self.bookmark(true)
            }
        }
    }
}
