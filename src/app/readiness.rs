//! Whether this process is to be sent calls: it has started, is not stopping, and reaches its database. One
//! truth, told by gRPC health and by `/healthz`.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::store::Store;

/// How often the database is asked, and for how long it may not answer. Calls meanwhile are UNAVAILABLE each by
/// itself; a short outage is not worth moving all clients elsewhere.
const ASK_EVERY: Duration = Duration::from_secs(1);
const AWAY_MAX: Duration = Duration::from_secs(5);

/// Says whether the server serves.
pub struct Readiness {
    serving: watch::Sender<bool>,
}

impl Readiness {
    /// Not ready yet.
    pub fn new() -> Self {
        Self { serving: watch::Sender::new(false) }
    }

    pub fn subscribe(&self) -> watch::Receiver<bool> {
        self.serving.subscribe()
    }

    /// Everything has started.
    pub fn begin(&self) {
        self.serving.send_replace(true);
    }

    /// Stays ready while the database answers, until `stop`.
    pub async fn run(self, store: Store, stop: CancellationToken) {
        let mut answered = Instant::now();
        loop {
            tokio::select! {
                () = tokio::time::sleep(ASK_EVERY) => {}
                () = stop.cancelled() => break,
            }
            let asked = tokio::time::timeout(AWAY_MAX, store.ping());
            let reached = tokio::select! {
                reached = asked => matches!(reached, Ok(Ok(()))),
                () = stop.cancelled() => break,
            };
            if reached {
                answered = Instant::now();
            }
            let ready = answered.elapsed() < AWAY_MAX;
            if self.serving.send_if_modified(|serving| std::mem::replace(serving, ready) != ready) {
                if ready {
                    tracing::info!("the database answers again: serving");
                } else {
                    tracing::error!(
                        "the database has been away for some seconds: not serving until it answers"
                    );
                }
            }
        }
        self.serving.send_replace(false);
    }
}
