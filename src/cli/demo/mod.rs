//! `hawser demo`: the main job on real input, in one command.
//!
//! A server on an embedded store, a real receiver that checks every signature by itself, two endpoints of one
//! owner and one whose receiver fails twice, and the changes live from Watch.

mod receiver;
mod scenario;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use hawser_client::{Client, Key};

use super::serve::stop_signal;
use super::{logging, watch};
use crate::app::App;
use crate::config::{Config, ListenOrOff, LogFormat, Options};
use receiver::Receiver;
use scenario::Scenario;

/// See the main job run: publish, deliver signed, retry, watch live
///
/// Starts a server on SQLite in a temporary folder and a receiver, publishes events, shows every attempt as
/// Watch tells it, checks each signature independently, and ends with a summary. Exits with 0 only if
/// everything arrived exactly as published.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  hawser demo\n  hawser demo --events 1000\n  hawser demo --keep")]
pub struct Demo {
    /// Events to publish to the owner's two endpoints
    #[arg(long, value_name = "NUMBER", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    events: u32,

    /// Leave the server and the receiver running until Ctrl-C
    #[arg(long)]
    keep: bool,

    /// Address for gRPC; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    listen: std::net::SocketAddr,
}

const TIME: Duration = Duration::from_secs(120);

impl Demo {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        logging::start(Some("warn"), LogFormat::Text)?;
        let folder = std::env::temp_dir().join(format!("hawser-demo-{}", std::process::id()));
        std::fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let result = self.run_in(&folder).await;
        std::fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
        result
    }

    async fn run_in(self, folder: &std::path::Path) -> anyhow::Result<ExitCode> {
        let options = Options {
            data: Some(folder.to_owned()),
            listen: Some(self.listen),
            admin_listen: Some(ListenOrOff::Off),
            portal_listen: Some(ListenOrOff::Off),
            allow_http: Some(true),
            allow_net: vec!["127.0.0.0/8".to_owned()],
            ..Options::default()
        };
        let app = App::start(Config::load(options)?).await?;
        let operator = app.operator_key.clone().context("a fresh store makes an operator key")?;
        let address = app.address;
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let server = tokio::spawn(app.run_until(async move {
            // Told, or left alone: both mean stop.
            let _either = stopped.await;
        }));

        let result = self.play(address, operator.reveal()).await;
        // The server may have ended by itself; its result says so.
        let _ended = stop.send(());
        server.await.context("the server's task failed")??;
        result.map(|()| ExitCode::SUCCESS)
    }

    async fn play(&self, address: std::net::SocketAddr, operator: &str) -> anyhow::Result<()> {
        let receiver = Receiver::start().await?;
        let operator_client = Client::connect(format!("http://{address}"), Key::new(operator)).await?;
        println!("server    http://{address} on SQLite in a temporary folder");
        println!("receiver  http://{}\n", receiver.address());

        let scenario = Scenario::prepare(&operator_client, &receiver, self.events).await?;
        println!("{}", watch::heading());
        let played = tokio::time::timeout(TIME, scenario.play(&receiver));
        let summary = played.await.context("not everything arrived in time")??;
        println!("\n{summary}");
        println!("{}", hints(address, operator, &scenario));
        if self.keep {
            println!("The server stays up until Ctrl-C.");
            stop_signal()?.await;
        }
        Ok(())
    }
}

/// How to go on with grpcurl while the server is up.
fn hints(address: std::net::SocketAddr, operator: &str, scenario: &Scenario) -> String {
    // The key dies with the demo's store, so it may be shown; on no terminal it is not.
    let key = if std::io::stdout().is_terminal() { operator } else { "$KEY" };
    let project = scenario.project();
    let call = |body: &str, method: &str| {
        format!(
            "  grpcurl -plaintext -H 'authorization: Bearer {key}' -d '{body}' {address} hawser.v1.{method}"
        )
    };
    [
        "Go on with grpcurl (`hawser demo --keep` leaves the server up):".to_owned(),
        format!("  grpcurl -plaintext -H 'authorization: Bearer {key}' {address} list"),
        call(&format!(r#"{{"project_id":"{project}"}}"#), "EndpointService/ListEndpoints"),
        call(
            &format!(
                r#"{{"project_id":"{project}","event_type":"invoice.paid","owner_id":"acme","payload":"eyJoaSI6MX0="}}"#
            ),
            "EventService/PublishEvent",
        ),
        call(&format!(r#"{{"project_id":"{project}","page_size":5}}"#), "DeliveryService/ListDeliveries"),
        call(&format!(r#"{{"project_id":"{project}"}}"#), "WatchService/Watch"),
    ]
    .join("\n")
}

/// Fails with what is wrong unless the condition holds.
fn ensure(condition: bool, problem: impl FnOnce() -> String) -> anyhow::Result<()> {
    if condition {
        return Ok(());
    }
    bail!(problem())
}
