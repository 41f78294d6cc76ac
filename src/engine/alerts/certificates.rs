//! Client certificates that end soon are warned of. Any number of nodes look; the store lets one of them warn.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::super::writer::chain;
use crate::domain::clock::Timestamp;
use crate::domain::id::{EndpointId, ProjectId};
use crate::store::{Lane, Result, Store, StoreError};

const ROUND: Duration = Duration::from_secs(5);
/// Endpoints between two looks.
const BATCH: u32 = 100;
const STEP_LONGEST: Duration = Duration::from_secs(10);

pub async fn run(store: Store, stop: CancellationToken) {
    while !stop.is_cancelled() {
        if let Err(error) = look(&store, &stop).await {
            tracing::warn!(
                error = chain(&error),
                "certificates that end soon were not looked for; tried again"
            );
        }
        tokio::select! {
            () = tokio::time::sleep(ROUND) => {}
            () = stop.cancelled() => {}
        }
    }
}

async fn look(store: &Store, stop: &CancellationToken) -> Result<()> {
    let now = Timestamp::now();
    let ending = store.in_time(STEP_LONGEST, store.ending_certificates(now, BATCH)).await?;
    for (project, endpoint) in ending {
        if stop.is_cancelled() {
            return Ok(());
        }
        // One that cannot be read does not keep the others from being warned of.
        if let Err(error) = store.in_time(STEP_LONGEST, warn(store, project, endpoint, now)).await {
            tracing::warn!(%endpoint, error = chain(&error), "the end of its certificate was not warned of");
        }
    }
    Ok(())
}

async fn warn(store: &Store, project: ProjectId, endpoint: EndpointId, now: Timestamp) -> Result<()> {
    let mut tx = store.begin(Lane::Engine).await?;
    tx.warn_of_certificate(project, endpoint, now).await?;
    tx.commit().await?;
    Ok::<_, StoreError>(())
}
