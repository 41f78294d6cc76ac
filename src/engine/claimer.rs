//! The claimer: fetches due work for free slots. Doorbells make it quick; the slow round alone would do.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::writer::{ClaimCall, chain};
use super::{Shared, worker};
use crate::store::ClaimRequest;

/// The slow round.
const ROUND: Duration = Duration::from_millis(500);
/// Deliveries in one claim, in all and of one endpoint.
const CLAIM: usize = 256;
const CLAIM_PER_ENDPOINT: u32 = 32;
/// Full lanes that a claim names; more would make its statement too long, and are rare.
const WITHOUT_MAX: usize = 512;

pub async fn run(shared: Arc<Shared>, calls: mpsc::Sender<ClaimCall>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let again = claim(&shared, &calls).await;
        if again {
            continue;
        }
        let round = Instant::now();
        tokio::select! {
            () = shared.claims.wait(ROUND) => {}
            () = shared.lanes.room() => {}
            () = stop.cancelled() => {}
        }
        if round.elapsed() >= ROUND {
            shared.lanes.sweep();
        }
    }
}

/// One claim; says whether another may find more at once.
async fn claim(shared: &Arc<Shared>, calls: &mpsc::Sender<ClaimCall>) -> bool {
    // Nothing could be sent, so it would only be given back.
    if !shared.may_start(shared.keeper.lease()) {
        return false;
    }
    let (free, mut full) = shared.lanes.claimable();
    if free == 0 || full.len() > WITHOUT_MAX {
        shared.lanes.set_more_due(true);
        return false;
    }
    full.sort_unstable();
    let spilled = shared.lanes.spilled();
    let limit = u32::try_from(free.min(CLAIM)).unwrap_or_default();
    let request = ClaimRequest { limit, per_endpoint: CLAIM_PER_ENDPOINT, without: full.clone() };
    let (reply, answer) = oneshot::channel();
    if calls.send(ClaimCall { request, reply }).await.is_err() {
        return false;
    }
    let claimed = match answer.await {
        Ok(Ok(claimed)) => claimed,
        Ok(Err(error)) => {
            tracing::warn!(error = chain(&error), "claiming due work failed");
            return false;
        }
        Err(_) => return false,
    };
    let found = claimed.deliveries.len();
    shared.metrics.engine.claims.inc();
    shared.metrics.engine.claimed.inc_by(found as u64);
    // An endpoint with work in the table of which nothing was found, though its lane was open and the claim
    // was not full, has none that is due any more.
    if found < limit as usize {
        for (endpoint, spill) in spilled {
            let open = full.binary_search(&endpoint).is_err();
            if open && !claimed.deliveries.iter().any(|job| job.endpoint == endpoint) {
                shared.lanes.clear_spill(endpoint, spill);
            }
        }
    }
    shared.lanes.set_more_due(found > 0 || !full.is_empty());
    shared.take_in(claimed).await;
    worker::pump(shared);
    found > 0
}
