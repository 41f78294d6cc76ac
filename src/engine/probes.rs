//! Probes of PENDING endpoints: each is claimed by one node and attempted at once, beside the lanes. How it ends
//! is the store's to decide with its outcome.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::routing::AT_ONCE;
use super::writer::chain;
use super::{Shared, worker};
use crate::domain::id::{DeliveryId, EndpointId};
use crate::store::{Claimed, Lane, Result, Store, StoreError};

/// The slow round, which also finds the probes of nodes that ended before they claimed them.
const ROUND: Duration = Duration::from_secs(1);
/// Probes started in one round.
const PROBES_MAX: u32 = 64;
const CLAIM_LONGEST: Duration = Duration::from_secs(10);

/// What a probe is claimed for.
pub enum Wanted {
    /// An open breaker that has rested; the store chooses the delivery.
    Breaker(EndpointId),
    /// The PENDING endpoint of this delivery.
    Endpoint(DeliveryId),
}

/// Claims one probe under the present lease; none where another node was faster, or nothing may start.
pub async fn claim(store: &Store, shared: &Shared, wanted: Wanted) -> Result<Option<Claimed>> {
    let lease = shared.keeper.lease();
    if !shared.may_start(lease) {
        return Ok(None);
    }
    let claim = async {
        let tx = store.begin(Lane::Engine).await?;
        let claimed = match wanted {
            Wanted::Breaker(endpoint) => tx.claim_probe(endpoint, lease).await?,
            Wanted::Endpoint(delivery) => tx.claim_endpoint_probe(delivery, lease).await?,
        };
        tx.commit().await?;
        Ok(claimed)
    };
    let claimed = store.in_time(CLAIM_LONGEST, claim).await;
    if claimed.as_ref().is_err_and(StoreError::is_ambiguous) {
        // It may have claimed what nobody here knows of.
        shared.keeper.give_up(lease);
    }
    claimed
}

/// Starts probes: when the bell rings because one was asked for here, and in rounds.
pub async fn run(store: Store, shared: Arc<Shared>, bell: Arc<Notify>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = bell.notified() => {}
            () = tokio::time::sleep(ROUND) => {}
            () = stop.cancelled() => return,
        }
        if let Err(error) = start(&store, &shared, &stop).await {
            tracing::warn!(error = chain(&error), "probes could not be started; the next round tries again");
        }
    }
}

async fn start(store: &Store, shared: &Arc<Shared>, stop: &CancellationToken) -> Result<()> {
    for delivery in store.in_time(CLAIM_LONGEST, store.waiting_probes(PROBES_MAX)).await? {
        if stop.is_cancelled() {
            return Ok(());
        }
        let claimed = match claim(store, shared, Wanted::Endpoint(delivery)).await {
            // It concerns this one alone.
            Err(error) if !error.is_transient() => {
                tracing::warn!(%delivery, error = chain(&error), "a probe could not be claimed");
                continue;
            }
            claimed => claimed?,
        };
        if let Some(claimed) = claimed {
            shared.confirm(&claimed, AT_ONCE).await;
            for job in claimed.deliveries {
                worker::probe(shared, job);
            }
        }
    }
    Ok(())
}
