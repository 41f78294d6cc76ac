//! `hawser serve`.

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

use super::logging;
use crate::app::App;
use crate::config::{Config, Options, write_operator_key};

/// Run the server
///
/// Without any setting it listens on 127.0.0.1:8610 and keeps its data in ./hawser-data: a SQLite file, the
/// master key, and the operator key, which is made on the first start. Every setting can be a flag, an
/// environment variable, or a key of a TOML file.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    hawser serve\n  \
    hawser serve --store postgres://hawser@db/hawser --listen 0.0.0.0:8610 --tls-cert a.pem --tls-key a.key\n  \
    hawser serve --config /etc/hawser.toml\n\n\
    SIGTERM or Ctrl-C stops it in order; a second one at once.")]
pub struct Serve {
    #[command(flatten)]
    options: Options,
}

impl Serve {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let options = match &self.options.config {
            Some(path) => self.options.clone().over(Options::read(path)?),
            None => self.options,
        };
        logging::start(options.log.as_deref(), options.log_format.unwrap_or_default())?;
        let config = Config::load(Options { config: None, ..options })?;
        let data = config.data.clone();
        let app = App::start(config).await?;
        if let Some(key) = &app.operator_key {
            show_operator_key(&data, key.reveal())?;
        }
        app.run_until(stop_signal()?).await?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Once: in a file, and on the terminal if there is one.
fn show_operator_key(data: &Path, key: &str) -> anyhow::Result<()> {
    let path = write_operator_key(data, key)?;
    tracing::info!(file = %path.display(), "made the first operator key");
    if std::io::stderr().is_terminal() {
        eprintln!("\nOperator key (shown once, kept in {}):\n  {key}\n", path.display());
    }
    Ok(())
}

/// SIGTERM or SIGINT; after the first, another one ends the process at once.
pub fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            eprintln!("stopped at once; what was in flight is attempted again after the next start");
            #[expect(
                clippy::disallowed_methods,
                reason = "asked for twice; the store is safe at any instant"
            )]
            std::process::exit(130);
        });
    })
}
