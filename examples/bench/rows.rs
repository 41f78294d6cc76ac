//! The rows: each puts its load on a server and says in one line what it measured.

use std::time::Instant;

use hawser_client::{Client, Key, pb};

use crate::cpu::Cpu;
use crate::load::{self, OWNER, Way};
use crate::receiver::Receiver;
use crate::server::{Server, StartedServer};

/// A running server with its receiver and client.
pub struct Bench {
    pub server: Server,
    pub receiver: Receiver,
    pub client: Client,
    pub key: Key,
}

/// What the throughput row puts on.
#[derive(clap::Args)]
pub struct Throughput {
    /// Events to publish
    #[arg(long, default_value_t = 40_000)]
    events: u32,
    /// Concurrent publishers
    #[arg(long, default_value_t = 32)]
    publishers: u32,
    /// Each publishes on a stream of its own (StreamPublishEvents), not by calls
    #[arg(long)]
    streams: bool,
    /// Endpoints that each event goes to
    #[arg(long, default_value_t = 1)]
    endpoints: u32,
    /// Events stored before measuring begins
    #[arg(long, default_value_t = 0)]
    stored: u32,
    /// Other endpoints in the project, which get nothing
    #[arg(long, default_value_t = 0)]
    others: u32,
}

impl Throughput {
    /// Events acknowledged and deliveries made in a second, and what each cost.
    pub async fn run(&self, bench: &Bench) -> anyhow::Result<String> {
        let Bench { server, receiver, client, .. } = bench;
        load::endpoints(client, receiver, self.endpoints).await?;
        for number in 0..self.others {
            load::endpoint(client, receiver.url(1_000_000 + number), "others").await?;
        }
        let warm_up = (500 * self.publishers.min(4)).max(self.stored);
        load::publish_all(client, OWNER, warm_up, self.publishers).await?;
        receiver.wait_for(u64::from(warm_up) * u64::from(self.endpoints)).await?;
        receiver.reset();

        let deliveries = u64::from(self.events) * u64::from(self.endpoints);
        let before = Cpu::now(server)?;
        let started = Instant::now();
        let way = if self.streams { Way::Streams } else { Way::Calls };
        load::publish_by(way, client, OWNER, self.events, self.publishers).await?;
        let published = started.elapsed();
        receiver.wait_for(deliveries).await?;
        let took = started.elapsed();
        let cpu = Cpu::now(server)?.since(&before);
        Ok(format!(
            "{} publishers{}, {} to each event{} | {:.0} events/s acknowledged, {:.0} deliveries/s | {} | repeats {} | \
             memory {} MiB",
            self.publishers,
            if self.streams { ", each on its stream" } else { "" },
            self.endpoints,
            self.beside(),
            f64::from(self.events) / published.as_secs_f64(),
            deliveries as f64 / took.as_secs_f64(),
            cpu.per_thousand(deliveries),
            receiver.repeats(),
            server.memory_mib()?,
        ))
    }

    fn beside(&self) -> String {
        let mut text = String::new();
        if self.stored > 0 {
            text.push_str(&format!(", {} events stored before", self.stored));
        }
        if self.others > 0 {
            text.push_str(&format!(", {} other endpoints", self.others));
        }
        text
    }
}

/// What the latency row puts on.
#[derive(clap::Args)]
pub struct Latency {
    /// Events a second
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// For how long
    #[arg(long, default_value_t = 15)]
    seconds: u32,
}

impl Latency {
    /// From the call of a publish to the arrival of its request at the receiver.
    pub async fn run(&self, bench: &Bench) -> anyhow::Result<String> {
        let Bench { server, receiver, client, .. } = bench;
        load::endpoints(client, receiver, 1).await?;
        load::publish_all(client, OWNER, 500, 4).await?;
        receiver.wait_for(500).await?;
        receiver.reset();
        let before = Cpu::now(server)?;
        load::publish_at(client, &[OWNER.to_owned()], self.rate, self.seconds).await?;
        let events = u64::from(self.rate) * u64::from(self.seconds);
        receiver.wait_for(events).await?;
        let cpu = Cpu::now(server)?.since(&before);
        let [p50, p99, max] = receiver.latency_ms([0.5, 0.99, 1.0]);
        Ok(format!(
            "{}/s for {} s | publish to arrival p50 {p50:.2} ms, p99 {p99:.2} ms, max {max:.2} ms | {} | repeats {}",
            self.rate,
            self.seconds,
            cpu.per_thousand(events),
            receiver.repeats(),
        ))
    }
}

/// What the memory row puts on.
#[derive(clap::Args)]
pub struct Memory {
    /// Deliveries left pending
    #[arg(long, default_value_t = 100_000)]
    pending: u32,
}

impl Memory {
    /// Resident memory at rest, and with work pending for endpoints that do not answer.
    pub async fn run(&self, bench: &Bench) -> anyhow::Result<String> {
        const ENDPOINTS: u32 = 10;
        let Bench { server, receiver, client, .. } = bench;
        let idle = server.memory_mib()?;
        for number in 0..ENDPOINTS {
            load::endpoint(client, receiver.silent_url(number), OWNER).await?;
        }
        load::publish_all(client, OWNER, self.pending / ENDPOINTS, 32).await?;
        Ok(format!("idle {idle} MiB, with {} deliveries pending {} MiB", self.pending, server.memory_mib()?))
    }
}

/// From the start of the process to its answering, on an empty store and after a crash on a used one, and how soon it works
/// again after that.
pub async fn start(started: StartedServer) -> anyhow::Result<String> {
    let empty = started.took;
    let mut server = started.server;
    let receiver = Receiver::start(&tokio::runtime::Handle::current(), std::time::Duration::ZERO).await?;
    let (client, _) = load::project(&server).await?;
    load::endpoints(&client, &receiver, 1).await?;
    load::publish_all(&client, OWNER, 10_000, 32).await?;
    receiver.wait_for(10_000).await?;
    // What it held when it was killed is attempted again by the next one.
    load::endpoint(&client, receiver.slow_url(1_000), "held").await?;
    load::publish(&client, "held").await?;
    receiver.wait_for_slow(1).await?;
    let again = server.kill_and_restart().await?;
    let restarted = Instant::now();
    let taken_up = async {
        receiver.wait_for_slow(2).await?;
        anyhow::Ok(restarted.elapsed())
    };
    let new_work = async {
        let (client, _) = load::project(&server).await?;
        let secret = load::endpoint(&client, receiver.url(1), "new").await?;
        receiver.expect(1, &secret)?;
        load::publish(&client, "new").await?;
        receiver.wait_for(10_001).await?;
        anyhow::Ok(restarted.elapsed())
    };
    let (held, new) = tokio::try_join!(taken_up, new_work)?;
    let [empty, again, held, new] = [empty, again, held, new].map(|time| time.as_secs_f64() * 1000.0);
    Ok(format!(
        "ready after {empty:.0} ms on an empty store, {again:.0} ms after kill -9; then a new project's first event came after \
         {new:.0} ms, and what it held was attempted again after {held:.0} ms"
    ))
}

/// One live Watch, as in real use.
pub async fn watch(client: &Client) -> anyhow::Result<tokio::task::JoinHandle<()>> {
    let mut watch = client.watch(pb::WatchRequest::default()).await?;
    Ok(tokio::spawn(async move { while watch.message().await.is_ok() {} }))
}
