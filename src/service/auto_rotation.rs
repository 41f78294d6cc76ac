//! Rotations that endpoints make by themselves.
//!
//! When one is due is a column of the endpoint, so that it survives restarts. Every node looks for what is due; the
//! transaction that rotates looks again once it holds the project, so that one node rotates and the others find
//! nothing left to do.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Services;
use super::rotation::{TOO_MANY, rotate};
use super::secrets::{NewSecret, audit};
use crate::domain::clock::Timestamp;
use crate::domain::endpoint::Endpoint;
use crate::domain::error::Result;
use crate::domain::id::{EndpointId, ProjectId};
use crate::domain::principal::Principal;
use crate::store::{Lane, Tx};

/// How long a node may not know of what another node was told.
const ROUND: Duration = Duration::from_secs(60);
/// The wait after a look that failed.
const AGAIN: Duration = Duration::from_secs(5);
/// Rotations between two looks at what is due.
const BATCH: u32 = 100;

impl Services {
    /// Rotates what is due: to be run for as long as the server serves.
    pub async fn run_rotations(self, stop: CancellationToken) {
        loop {
            let wait = match self.rotate_due(&stop).await {
                Ok(wait) => wait,
                Err(error) => {
                    let cause = error.cause.as_ref().map(|cause| format!("{cause:#}"));
                    tracing::warn!(error = %error, cause, "secrets that are due could not be rotated; tried again");
                    AGAIN
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.rotations.notified() => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// One look; returns when to look again.
    async fn rotate_due(&self, stop: &CancellationToken) -> Result<Duration> {
        let mut next = ROUND;
        for (due, project, endpoint) in self.store.next_rotations(BATCH).await? {
            let now = Timestamp::now();
            if due > now {
                return Ok(next.min(due.since(now)));
            }
            if stop.is_cancelled() {
                return Ok(ROUND);
            }
            // One that cannot be rotated does not keep the others waiting.
            match self.rotate_if_due(project, endpoint).await {
                Ok(()) => next = Duration::ZERO,
                Err(error) => {
                    let cause = error.cause.as_ref().map(|cause| format!("{cause:#}"));
                    tracing::error!(%endpoint, error = %error, cause, "a secret that is due was not rotated");
                    self.postpone(endpoint, Timestamp::now().plus(ROUND)).await?;
                }
            }
        }
        Ok(next)
    }

    /// Says when an endpoint rotates next by its new period, counted from when its current secret was made.
    pub(super) async fn plan_rotation(&self, tx: &Tx, endpoint: &Endpoint) -> Result<()> {
        let secrets = tx.secrets_of(endpoint.project, endpoint.id).await?;
        let made =
            secrets.iter().filter(|secret| secret.expires_at.is_none()).map(|secret| secret.created_at).max();
        let due = endpoint.settings.rotation.period.and_then(|period| Some(made?.plus(period)));
        Ok(tx.set_rotation_due(endpoint.id, due).await?)
    }

    async fn rotate_if_due(&self, project: ProjectId, id: EndpointId) -> Result<()> {
        let mut tx = self.store.begin(Lane::Service).await?;
        let version = tx.bump_routing(project).await?;
        let now = Timestamp::now();
        let due = tx.rotation_due(id).await?;
        let endpoint = tx.endpoint(project, id).await?;
        let (Some(endpoint), true) = (endpoint, due.is_some_and(|due| due <= now)) else {
            // Another node was faster, or someone changed it.
            return Ok(tx.rollback().await?);
        };
        let grace = endpoint.settings.rotation.grace;
        let rotation = match rotate(&mut tx, &endpoint, grace, NewSecret::Make(None), now).await {
            Err(error) if error.reason == TOO_MANY => {
                // Rotations by hand filled it; the first that ends makes room.
                let ends = tx.secrets_of(project, id).await?;
                let ends =
                    ends.iter().filter(|secret| secret.is_live(now)).filter_map(|secret| secret.expires_at);
                let due = ends.min().unwrap_or(now.plus(ROUND));
                tx.set_rotation_due(id, Some(due)).await?;
                return Ok(tx.commit().await?);
            }
            other => other?,
        };
        let (before, after) = (&rotation.previous, &rotation.secret);
        audit(&tx, &Principal::server(), project, "AutoRotateSecret", Some(before), after, None).await?;
        self.commit_routes(tx, project, version).await
    }

    async fn postpone(&self, endpoint: EndpointId, due: Timestamp) -> Result<()> {
        let tx = self.store.begin(Lane::Service).await?;
        tx.set_rotation_due(endpoint, Some(due)).await?;
        Ok(tx.commit().await?)
    }
}
