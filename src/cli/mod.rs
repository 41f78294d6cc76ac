//! The command line. Data goes to stdout, everything else to stderr; errors name what to do next.

mod arguments;
mod audit;
mod connect;
mod contract;
mod deliveries;
mod demo;
mod endpoints;
mod health;
mod import;
mod keys;
mod listing;
mod logging;
mod migrate;
mod projects;
mod secrets;
mod serve;
mod table;
mod watch;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Webhook delivery over gRPC: one binary, SQLite inside, PostgreSQL when one machine is not enough.
#[derive(Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not serving (health), 4 rows refused (import).\n\
                  Start with `hawser demo`, then `hawser serve --help`."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Serve(Box<serve::Serve>),
    Demo(demo::Demo),
    Migrate(migrate::Migrate),
    Keys(keys::Keys),
    Projects(projects::Projects),
    Endpoints(Box<endpoints::Endpoints>),
    Deliveries(deliveries::Deliveries),
    Secrets(secrets::Secrets),
    Import(Box<import::Import>),
    Audit(Box<audit::Audit>),
    Watch(watch::Watch),
    Health(health::Health),
}

/// Runs a command to its end.
pub fn run(cli: Cli) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: the runtime cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(async {
        match cli.command {
            Command::Serve(command) => command.run().await,
            Command::Demo(command) => command.run().await,
            Command::Migrate(command) => command.run().await,
            Command::Keys(command) => command.run().await,
            Command::Projects(command) => command.run().await,
            Command::Endpoints(command) => command.run().await,
            Command::Deliveries(command) => command.run().await,
            Command::Secrets(command) => command.run().await,
            Command::Import(command) => command.run().await,
            Command::Audit(command) => command.run().await,
            Command::Watch(command) => command.run().await,
            Command::Health(command) => command.run().await,
        }
    });
    // What still runs was given its time; a blocking name look-up must not hold the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
