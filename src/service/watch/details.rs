//! What a change is sent with that its record does not hold: the attempt's row, the event's payload.
//!
//! The feed reads attempts once for all streams that keep up. A stream that is behind, or wants payloads,
//! reads the next few by itself, in one query for each kind.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use super::stream::Watcher;
use crate::domain::change::Change;
use crate::domain::delivery::Attempt;
use crate::domain::error::Result;
use crate::domain::id::{AttemptId, EventId};
use crate::store::Reads;

/// Attempts read ahead, and payloads, which may be large.
const ATTEMPTS: usize = 64;
const PAYLOADS: usize = 16;
/// Larger payloads are not sent along.
const PAYLOAD_MAX: u32 = 64 << 10;

/// Details of the next changes of a stream; none where a row is gone, or a payload too large.
#[derive(Default)]
pub struct Details {
    pub attempts: HashMap<AttemptId, Option<Arc<Attempt>>>,
    pub payloads: HashMap<EventId, Option<Bytes>>,
}

impl Watcher {
    /// Reads the details of the next changes of the first record at hand.
    pub(super) async fn read_details(&mut self) -> Result<()> {
        let (attempts, payloads) = self.missing_details();
        let reading = self.seat.read(async move |store| {
            let mut found = store.attempts_by_id(Reads::Callers, &attempts).await?;
            let mut bodies = store.payloads(&payloads, PAYLOAD_MAX).await?;
            Ok(Details {
                attempts: attempts.into_iter().map(|id| (id, found.remove(&id))).collect(),
                payloads: payloads.into_iter().map(|id| (id, bodies.remove(&id).flatten())).collect(),
            })
        });
        self.details = reading.await?;
        Ok(())
    }

    fn missing_details(&self) -> (Vec<AttemptId>, Vec<EventId>) {
        let (mut attempts, mut payloads) = (Vec::new(), Vec::new());
        let Some(entry) = self.records.front() else { return (attempts, payloads) };
        let Some(next) = self.next_place(entry.record.position) else { return (attempts, payloads) };
        for change in entry.record.changes.iter().skip(next as usize / 2) {
            let Change::Delivery(delivery) = change else { continue };
            if delivery.project != self.project || !self.filter.matches(change) {
                continue;
            }
            if self.filter.shows_attempt(delivery) {
                attempts.extend(delivery.attempt.filter(|id| !entry.attempts.contains_key(id)));
            }
            // One event has a delivery for each of its endpoints.
            if self.filter.shows_payload(delivery) && !payloads.contains(&delivery.event) {
                payloads.push(delivery.event);
            }
            if attempts.len() >= ATTEMPTS || payloads.len() >= PAYLOADS {
                break;
            }
        }
        (attempts, payloads)
    }
}
