//! What one dead endpoint costs the others: latency of healthy endpoints alone, and again while an endpoint that
//! accepts and never answers has much pending.

use std::time::Duration;

use tokio::task::JoinSet;

use crate::load;
use crate::rows::Bench;

/// What the neighbour row puts on.
#[derive(clap::Args)]
pub struct Neighbour {
    /// Healthy endpoints, each with an owner of its own
    #[arg(long, default_value_t = 99)]
    healthy: u32,
    /// Deliveries that the dead one has pending
    #[arg(long, default_value_t = 10_000)]
    pending: u32,
    /// Events a second to the healthy ones in turn
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// For how long, each time
    #[arg(long, default_value_t = 15)]
    seconds: u32,
}

const DEAD: &str = "dead";

impl Neighbour {
    /// p50 and p99 with and without the dead one.
    pub async fn run(&self, bench: &Bench) -> anyhow::Result<String> {
        let Bench { receiver, client, .. } = bench;
        for number in 0..self.healthy {
            let secret = load::endpoint(client, receiver.url(number), &owner(number)).await?;
            receiver.expect(number, &secret)?;
            load::publish(client, &owner(number)).await?;
        }
        receiver.wait_for(u64::from(self.healthy)).await?;
        let alone = self.spread(bench).await?;
        load::endpoint(client, receiver.silent_url(1_000_000), DEAD).await?;
        load::publish_all(client, DEAD, self.pending, 32).await?;
        let beside = self.spread(bench).await?;
        Ok(format!(
            "neighbour of a dead endpoint with {} pending, {} healthy at {}/s for {} s | p99 {:.2} ms, alone {:.2} ms \
             (bar {:.2} ms) | p50 {:.2} ms, alone {:.2} ms",
            self.pending,
            self.healthy,
            self.rate,
            self.seconds,
            beside[1],
            alone[1],
            (1.2 * alone[1] + 20.0).min(40.0),
            beside[0],
            alone[0],
        ))
    }

    /// Open loop: each event is sent at its time, however long the ones before take.
    async fn spread(&self, bench: &Bench) -> anyhow::Result<[f64; 2]> {
        let Bench { receiver, client, .. } = bench;
        receiver.reset();
        let mut tick = tokio::time::interval(Duration::from_secs(1) / self.rate);
        let mut tasks = JoinSet::new();
        for number in 0..self.rate * self.seconds {
            let due = tick.tick().await;
            let (client, owner) = (client.clone(), owner(number % self.healthy));
            tasks.spawn(async move { load::publish_due(&client, &owner, due).await });
        }
        while let Some(ended) = tasks.join_next().await {
            ended??;
        }
        receiver.wait_for(u64::from(self.rate) * u64::from(self.seconds)).await?;
        Ok(receiver.latency_ms([0.5, 0.99]))
    }
}

fn owner(number: u32) -> String {
    format!("owner-{number}")
}
