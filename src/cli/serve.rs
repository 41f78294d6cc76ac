//! `hawser serve`.

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use clap::CommandFactory;
use clap::parser::ValueSource;
use tokio::signal::unix::{SignalKind, signal};

use super::{Cli, logging};
use crate::app::App;
use crate::config::{Config, Options, Source, show};

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

    /// Print every setting as TOML with where it came from, without secrets, and exit
    #[arg(long)]
    print_config: bool,
}

impl Serve {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let file = self.options.config.as_deref().map(Options::read).transpose()?.unwrap_or_default();
        let options = Options { config: None, ..self.options.clone().over(file.clone()) };
        if self.print_config {
            Config::check(options)?;
            print!("{}", show(&self.options, &file, source()?)?);
            return Ok(ExitCode::SUCCESS);
        }
        logging::start(options.log.as_deref(), options.log_format.unwrap_or_default())?;
        let config = Config::load(options)?;
        let data = config.data.clone();
        // Listened for from the beginning, so that nobody who was told that it is ready comes too early.
        let mut stop = Box::pin(stop_signal()?);
        let app = tokio::select! {
            app = App::start(config) => app?,
            () = &mut stop => return Ok(ExitCode::SUCCESS),
        };
        if let Some(key) = &app.operator_key {
            show_operator_key(&data, key.reveal());
        }
        app.run_until(stop).await?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Tells where a setting came from. The command line is parsed once more, since what was parsed into types does
/// not say.
fn source() -> anyhow::Result<impl Fn(&str) -> Source> {
    let matches = Cli::command().try_get_matches_from(std::env::args_os())?;
    let serve = matches.subcommand_matches("serve").cloned().unwrap_or_default();
    Ok(move |name: &str| match serve.value_source(name) {
        Some(ValueSource::CommandLine) => Source::Flag,
        Some(ValueSource::EnvVariable) => Source::Environment,
        _ => Source::Other,
    })
}

/// Once, on the terminal if there is one.
fn show_operator_key(data: &Path, key: &str) {
    if std::io::stderr().is_terminal() {
        eprintln!("\nOperator key (shown once, kept in {}):\n  {key}\n", data.join("operator.key").display());
    }
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
