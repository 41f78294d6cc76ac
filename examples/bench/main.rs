//! The benchmark's driver: starts the real server as its own process, publishes to it, receives what it
//! delivers, and measures rates, latencies and the CPU of each part.
//!
//! A run prints one row. CPU of the server and the database is read from /proc, so this runs on Linux.

mod cpu;
mod receiver;
mod server;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Parser;
use hawser_client::{Client, Key, pb};
use tokio::task::JoinSet;

use cpu::Cpu;
use receiver::Receiver;
use server::Server;

/// Measure one row: throughput to one endpoint, or latency at a steady rate
#[derive(Parser)]
struct Arguments {
    /// The server's binary
    #[arg(long, default_value = "target/release/hawser")]
    server: std::path::PathBuf,

    /// PostgreSQL's URL of an empty database; without it the server runs on embedded SQLite
    #[arg(long)]
    postgres: Option<String>,

    /// Events for the throughput row
    #[arg(long, default_value_t = 40_000)]
    events: u32,

    /// Concurrent publishers for the throughput row
    #[arg(long, default_value_t = 32)]
    publishers: u32,

    /// Measure latency at so many events a second instead
    #[arg(long)]
    rate: Option<u32>,

    /// Seconds of the latency row
    #[arg(long, default_value_t = 15)]
    seconds: u32,

    /// Endpoints that each event goes to
    #[arg(long, default_value_t = 1)]
    endpoints: u32,

    /// Milliseconds that the receiver takes to answer
    #[arg(long, default_value_t = 0)]
    delay: u64,
}

const PAYLOAD: usize = 512;
const OWNER: &str = "bench";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        bail!("a TLS provider was installed twice");
    }
    let arguments = Arguments::parse();
    let receiver = Receiver::start(Duration::from_millis(arguments.delay)).await?;
    let server = Server::start(&arguments.server, arguments.postgres.as_deref()).await?;
    let client = prepare(&server, &receiver, arguments.endpoints).await?;
    // One live Watch, as in real use.
    let mut watch = client.watch(pb::WatchRequest::default()).await?;
    let watching = tokio::spawn(async move { while watch.message().await.is_ok() {} });

    let warm_up = 500 * arguments.publishers.min(4);
    publish_all(&client, warm_up, arguments.publishers).await?;
    receiver.wait_for(u64::from(warm_up) * u64::from(arguments.endpoints)).await?;
    receiver.reset();

    let row = match arguments.rate {
        Some(rate) => latency(&client, &receiver, &server, rate, arguments.seconds).await?,
        None => throughput(&client, &receiver, &server, &arguments).await?,
    };
    watching.abort();
    let database = if arguments.postgres.is_some() { "PostgreSQL" } else { "SQLite" };
    println!("{database} ({}) | {row}", server.durability()?);
    server.stop().await
}

/// A project with endpoints of one owner, and a client with a key of it.
async fn prepare(server: &Server, receiver: &Receiver, endpoints: u32) -> anyhow::Result<Client> {
    let operator =
        Client::connect(format!("http://{}", server.address()), Key::new(server.operator_key())).await?;
    let project = pb::Project { name: "bench".to_owned(), ..pb::Project::default() };
    let reply =
        operator.projects().create_project(pb::CreateProjectRequest { project: Some(project) }).await?;
    let project = reply.into_inner().project.context("no project")?.id;
    let api_key = pb::ApiKey {
        project_id: project,
        name: "bench".to_owned(),
        scopes: (1..=7).collect(),
        ..pb::ApiKey::default()
    };
    let reply =
        operator.projects().create_api_key(pb::CreateApiKeyRequest { api_key: Some(api_key) }).await?;
    let client = operator.with_key(&Key::new(reply.into_inner().secret))?;
    for number in 0..endpoints {
        let endpoint =
            pb::Endpoint { url: receiver.url(number), owner_id: OWNER.to_owned(), ..pb::Endpoint::default() };
        let request =
            pb::CreateEndpointRequest { endpoint: Some(endpoint), ..pb::CreateEndpointRequest::default() };
        let reply = client.endpoints().create_endpoint(request).await?.into_inner();
        receiver.expect(number, &reply.secret)?;
    }
    Ok(client)
}

/// 512 bytes of JSON that begin with the time of sending.
fn payload() -> Vec<u8> {
    let mut text = format!("{{\"sent_us\":{},\"fill\":\"", receiver::now_us());
    while text.len() < PAYLOAD - 2 {
        text.push('x');
    }
    text.push_str("\"}");
    text.into_bytes()
}

async fn publish(client: &Client) -> anyhow::Result<()> {
    let request = pb::PublishEventRequest {
        event_type: "bench.event".to_owned(),
        target: Some(pb::publish_event_request::Target::OwnerId(OWNER.to_owned())),
        payload: payload().into(),
        ..pb::PublishEventRequest::default()
    };
    client.events().publish_event(request).await?;
    Ok(())
}

/// Publishes so many events with so many publishers, each waiting for its answer.
async fn publish_all(client: &Client, events: u32, publishers: u32) -> anyhow::Result<()> {
    let left = Arc::new(AtomicU32::new(events));
    let mut tasks = JoinSet::new();
    for _ in 0..publishers {
        let (client, left) = (client.clone(), left.clone());
        tasks.spawn(async move {
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
            {
                publish(&client).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

async fn throughput(
    client: &Client,
    receiver: &Receiver,
    server: &Server,
    arguments: &Arguments,
) -> anyhow::Result<String> {
    let deliveries = u64::from(arguments.events) * u64::from(arguments.endpoints);
    let before = Cpu::now(server)?;
    let started = Instant::now();
    publish_all(client, arguments.events, arguments.publishers).await?;
    let published = started.elapsed();
    receiver.wait_for(deliveries).await?;
    let took = started.elapsed();
    let cpu = Cpu::now(server)?.since(&before);
    let per_thousand = |seconds: f64| seconds * 1000.0 / deliveries as f64;
    Ok(format!(
        "{} endpoints, {} publishers, {deliveries} deliveries, {} ms receiver | {:.0} events/s acknowledged, {:.0} deliveries/s | \
         CPU s per 1,000: server {:.3}, database {:.3}, driver and receiver {:.3} | repeats {} | memory {} MiB",
        arguments.endpoints,
        arguments.publishers,
        arguments.delay,
        f64::from(arguments.events) / published.as_secs_f64(),
        deliveries as f64 / took.as_secs_f64(),
        per_thousand(cpu.server),
        per_thousand(cpu.database),
        per_thousand(cpu.own),
        receiver.repeats(),
        server.memory_mib()?,
    ))
}

/// Open loop: each event is sent at its time, however long the ones before take.
async fn latency(
    client: &Client,
    receiver: &Receiver,
    server: &Server,
    rate: u32,
    seconds: u32,
) -> anyhow::Result<String> {
    let before = Cpu::now(server)?;
    let mut tick = tokio::time::interval(Duration::from_secs(1) / rate);
    let mut tasks = JoinSet::new();
    for _ in 0..rate * seconds {
        tick.tick().await;
        let client = client.clone();
        tasks.spawn(async move { publish(&client).await });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    let events = u64::from(rate) * u64::from(seconds);
    receiver.wait_for(events).await?;
    let cpu = Cpu::now(server)?.since(&before);
    let mut latencies = receiver.latencies_us();
    latencies.sort_unstable();
    let at = |part: f64| latencies[((latencies.len() - 1) as f64 * part) as usize] as f64 / 1000.0;
    Ok(format!(
        "{rate}/s for {seconds} s | publish to arrival p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms | \
         CPU s per 1,000: server {:.3}, database {:.3} | repeats {} | memory {} MiB",
        at(0.5),
        at(0.99),
        at(1.0),
        cpu.server * 1000.0 / events as f64,
        cpu.database * 1000.0 / events as f64,
        receiver.repeats(),
        server.memory_mib()?,
    ))
}
