//! Alerts that are given up, for the log: one line for each place and round, since a place that is gone makes many.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::domain::alert::{AlertPlace, Channel};
use crate::domain::id::AlertId;
use crate::store::HeldAlert;

/// Those that were not told yet.
#[derive(Default)]
pub struct GivenUp(Mutex<HashMap<AlertPlace, Lost>>);

struct Lost {
    channel: Channel,
    alerts: usize,
    /// The last one, and why.
    last: AlertId,
    error: String,
}

impl GivenUp {
    pub fn note(&self, alert: &HeldAlert, error: &str) {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let alerts = places.get(&alert.place).map_or(0, |lost| lost.alerts) + 1;
        let lost = Lost { channel: alert.channel, alerts, last: alert.id, error: error.to_owned() };
        places.insert(alert.place, lost);
    }

    /// Tells those of a channel.
    pub fn tell(&self, channel: Channel) {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        places.retain(|_, lost| {
            if lost.channel != channel {
                return true;
            }
            let Lost { alerts, last, error, .. } = lost;
            let channel = channel.as_str();
            tracing::warn!(channel, alerts, %last, error, "alerts could not be sent, and are given up");
            false
        });
    }
}
