//! When a Watch stream told of each event.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Context;
use hawser_client::pb::watch_response::Change;
use hawser_client::{Client, pb};
use tokio::sync::watch;
use tokio::time::Instant;

/// When each event's first delivery was told, on whichever stream. Clones share it.
#[derive(Clone)]
pub struct Told(watch::Sender<HashMap<String, Instant>>);

/// How long to wait for what is still to be told.
const LONGEST: Duration = Duration::from_secs(30);

impl Told {
    pub fn new() -> Self {
        Self(watch::Sender::new(HashMap::new()))
    }

    /// Opens a stream, and reads it for as long as the future that it returns runs.
    pub async fn follow(
        &self,
        client: &Client,
        request: pb::WatchRequest,
    ) -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
        let mut stream = client.watches().watch(request).await?.into_inner();
        stream.message().await?.context("a bookmark")?;
        let told = self.0.clone();
        Ok(async move {
            while let Ok(Some(message)) = stream.message().await {
                if let Some(Change::DeliveryChange(change)) = message.change
                    && change.r#type() == pb::DeliveryChangeType::Created
                {
                    let event = change.delivery.unwrap_or_default().event_id;
                    told.send_modify(|told| {
                        told.entry(event).or_insert_with(Instant::now);
                    });
                }
            }
        })
    }

    /// How long each of these was on its way since it was sent, shortest first. What is not told in time is missing.
    pub async fn delays(&self, sent: &[(String, Instant)]) -> Vec<Duration> {
        let mut told = self.0.subscribe();
        let all = told.wait_for(|told| sent.iter().all(|(event, _)| told.contains_key(event)));
        let _all_or_late = tokio::time::timeout(LONGEST, all).await;
        let told = self.0.borrow();
        let delay = |(event, began): &(String, Instant)| Some(told.get(event)?.duration_since(*began));
        let mut delays: Vec<Duration> = sent.iter().filter_map(delay).collect();
        delays.sort_unstable();
        delays
    }
}

/// The value at this part of them, which are sorted, in milliseconds.
pub fn at(sorted: &[Duration], part: f64) -> f64 {
    let index = (sorted.len().saturating_sub(1) as f64 * part) as usize;
    sorted.get(index).map_or(f64::NAN, |delay| delay.as_secs_f64() * 1e3)
}
