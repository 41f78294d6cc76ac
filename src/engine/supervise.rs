//! Long-lived tasks are watched, the engine's and the server's: one that ends when it must not ends the process.

use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Runs a task that ends only when its work is done by shutdown; any other end is the process's.
pub fn supervise(
    tracker: &TaskTracker,
    failed: &CancellationToken,
    name: &'static str,
    task: impl Future<Output = ()> + Send + 'static,
) {
    watch_over(tracker, failed, name, tokio::spawn(task));
}

/// The same for a task that may block, on a thread of its own.
pub fn supervise_on_thread(
    tracker: &TaskTracker,
    failed: &CancellationToken,
    name: &'static str,
    task: impl Future<Output = ()> + Send + 'static,
) {
    let runtime = Handle::current();
    watch_over(tracker, failed, name, tokio::task::spawn_blocking(move || runtime.block_on(task)));
}

fn watch_over(tracker: &TaskTracker, failed: &CancellationToken, name: &'static str, task: JoinHandle<()>) {
    let failed = failed.clone();
    tracker.spawn(async move {
        if let Err(error) = task.await {
            tracing::error!(task = name, error = %error, "a task failed");
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
            tracing::error!(task = name, result = ?ended, "a task ended by itself");
            failed.cancel();
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn fails(told: bool, task: impl Future<Output = ()> + Send + 'static) -> bool {
        let (tracker, failed, stop) =
            (TaskTracker::new(), CancellationToken::new(), CancellationToken::new());
        if told {
            stop.cancel();
        }
        supervise_until(&tracker, &failed, &stop, "a task", task);
        tracker.close();
        tracker.wait().await;
        failed.is_cancelled()
    }

    #[tokio::test]
    async fn a_task_that_ends_untold_is_the_end_of_the_process() {
        assert!(fails(false, async {}).await, "it returned");
        assert!(fails(false, async { panic!("a defect") }).await, "it panicked");
        assert!(!fails(true, async {}).await, "it was told to");
    }
}
