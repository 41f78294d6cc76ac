//! The systemic guard: when most endpoints fail without an answer, the fault is most likely ours.
//!
//! Judged by what the store knows of all nodes' attempts, once a round. While it is so, failures count towards no
//! disable policy, and what was counted before starts anew, so that the outage's time does not switch endpoints off
//! once it is over. An answer of 410 still acts. Before an endpoint is switched off the store is asked again
//! (store/health.rs), so that nothing hangs on how old a round is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Shared;
use super::writer::chain;
use crate::domain::egress::Sight;
use crate::store::{Result, Store};

const ROUND: Duration = Duration::from_secs(2);
/// What takes longer waits on a connection that fell silent.
const LOOK_LONGEST: Duration = Duration::from_secs(10);

/// The verdict, as of the last round.
pub struct Guard {
    /// Attempts of this time are looked at.
    pub window: Duration,
    failing: AtomicBool,
}

impl Guard {
    pub fn new(window: Duration) -> Self {
        // Two rounds more, so that a late one misses nothing of a short window.
        Self { window: window + 2 * ROUND, failing: AtomicBool::new(false) }
    }

    /// Whether most endpoints fail without an answer.
    pub fn egress_failing(&self) -> bool {
        self.failing.load(Ordering::Acquire)
    }
}

pub async fn run(store: Store, shared: Arc<Shared>, stop: CancellationToken) {
    let mut round = tokio::time::interval(ROUND);
    round.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = round.tick() => {}
            () = stop.cancelled() => return,
        }
        let began = tokio::time::Instant::now();
        match store.in_time(LOOK_LONGEST, judge(&store, shared.guard.window)).await {
            Ok(failing) => shared.guard.failing.store(failing, Ordering::Release),
            Err(error) => {
                tracing::warn!(
                    error = chain(&error),
                    "attempts could not be judged; the next round tries again"
                );
            }
        }
        // Looking takes a tenth of the time at most, however many endpoints there are.
        round.reset_after(ROUND.max(10 * began.elapsed()));
    }
}

async fn judge(store: &Store, window: Duration) -> Result<bool> {
    let (shown, sight) = store.egress(window).await?;
    let failing = sight.is_failing(shown);
    let is_news = match (shown, failing) {
        (None, true) => store.begin_egress_failure().await?,
        (Some(_), false) => store.end_egress_failure().await?,
        (Some(ago), true) if sight.shows_it() => {
            store.confirm_egress_failure(ago).await?;
            false
        }
        _ => false,
    };
    if is_news {
        tell(failing, sight);
    }
    Ok(failing)
}

/// One line when it begins and one when it ends, from whichever node saw it first.
fn tell(failing: bool, Sight { attempted, unanswered, hosts }: Sight) {
    if failing {
        tracing::error!(
            alert = "system.egress_failing",
            attempted,
            unanswered,
            hosts,
            "most endpoints fail without an answer: no endpoint is switched off for failing"
        );
    } else {
        tracing::warn!(
            alert = "system.egress_failing",
            attempted,
            unanswered,
            "endpoints answer again: what fails too often is switched off as before"
        );
    }
}
