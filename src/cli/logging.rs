//! Structured logs on stderr.

use anyhow::Context;
use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// Starts logging. The driver's and the HTTP libraries' own lines are left out below warnings.
pub fn start(filter: Option<&str>, format: LogFormat) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter.unwrap_or("info,sqlx=warn,sea_orm=warn,hickory_resolver=warn"))
        .context("log is not a valid filter")?;
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    let started = match format {
        LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("logging cannot start: {error}"))
}
