//! The engine's tasks are watched: one that ends when it must not ends the process.

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Runs a task that ends only when its work is done by shutdown; any other end is the process's.
pub fn supervise(
    tracker: &TaskTracker,
    failed: &CancellationToken,
    name: &'static str,
    task: impl Future<Output = ()> + Send + 'static,
) {
    let failed = failed.clone();
    let inner = tokio::spawn(task);
    tracker.spawn(async move {
        if let Err(error) = inner.await {
            tracing::error!(task = name, error = %error, "a task of the engine failed");
            failed.cancel();
        }
    });
}

/// The same for tasks that end only by the stop token.
pub fn supervise_until(
    tracker: &TaskTracker,
    failed: &CancellationToken,
    stop: &CancellationToken,
    name: &'static str,
    task: impl Future<Output = ()> + Send + 'static,
) {
    let (failed, stop) = (failed.clone(), stop.clone());
    let inner = tokio::spawn(task);
    tracker.spawn(async move {
        let ended = inner.await;
        if !stop.is_cancelled() {
            tracing::error!(task = name, result = ?ended, "a task of the engine ended");
            failed.cancel();
        }
    });
}
