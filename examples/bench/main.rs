//! The benchmark's driver: starts the real server as its own process, publishes to it, receives what it
//! delivers, and measures rates, latencies, memory and the CPU of each part.
//!
//! A run prints one row. CPU is read from /proc, so this runs on Linux.

mod cpu;
mod load;
mod neighbour;
mod receiver;
mod rows;
mod server;
mod told;
mod watchers;

use std::time::Duration;

use anyhow::bail;
use clap::{Parser, Subcommand};

use neighbour::Neighbour;
use receiver::Receiver;
use rows::{Bench, Latency, Memory, Throughput};
use server::Server;
use watchers::Watchers;

/// Measure one row
#[derive(Parser)]
struct Arguments {
    /// The server's binary
    #[arg(long, default_value = "target/release/hawser")]
    server: std::path::PathBuf,

    /// PostgreSQL's URL of an empty database; without it the server runs on embedded SQLite
    #[arg(long)]
    postgres: Option<String>,

    /// Milliseconds that the receiver takes to answer
    #[arg(long, default_value_t = 0)]
    delay: u64,

    #[command(subcommand)]
    row: Row,
}

#[derive(Subcommand)]
enum Row {
    /// As fast as it goes
    Throughput(Throughput),
    /// At a steady rate
    Latency(Latency),
    /// At a steady rate to many endpoints, alone and beside something bad
    Neighbour(Neighbour),
    /// At rest, and with work pending
    Memory(Memory),
    /// Many streams that see little
    Watchers(Watchers),
    /// From process to service
    Start,
}

fn main() -> anyhow::Result<()> {
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        bail!("a TLS provider was installed twice");
    }
    // A runtime of its own, so that the receiver's CPU is told from the driver's.
    let receivers = runtime(cpu::RECEIVER_THREAD)?;
    runtime("driver")?.block_on(run(Arguments::parse(), receivers.handle()))
}

fn runtime(name: &str) -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().thread_name(name).enable_all().build()
}

async fn run(arguments: Arguments, receivers: &tokio::runtime::Handle) -> anyhow::Result<()> {
    let started = Server::start(&arguments.server, arguments.postgres.as_deref()).await?;
    let database = if arguments.postgres.is_some() { "PostgreSQL" } else { "SQLite" };
    let durability = started.server.durability()?;
    let text = if let Row::Start = arguments.row {
        rows::start(started).await?
    } else {
        let server = started.server;
        let receiver = Receiver::start(receivers, Duration::from_millis(arguments.delay)).await?;
        let (client, key) = load::project(&server).await?;
        let watching = rows::watch(&client).await?;
        let bench = Bench { server, receiver, client, key };
        let text = match &arguments.row {
            Row::Throughput(row) => row.run(&bench).await?,
            Row::Latency(row) => row.run(&bench).await?,
            Row::Neighbour(row) => row.run(&bench).await?,
            Row::Memory(row) => row.run(&bench).await?,
            Row::Watchers(row) => row.run(&bench.server, &bench.receiver).await?,
            Row::Start => bail!("handled above"),
        };
        watching.abort();
        bench.server.stop().await?;
        text
    };
    let delay = match arguments.delay {
        0 => String::new(),
        delay => format!("receiver answers after {delay} ms, "),
    };
    println!("{database} ({durability}) | {delay}{text}");
    Ok(())
}
