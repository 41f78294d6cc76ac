//! `hawser migrate`.

use std::process::ExitCode;

use crate::config::Options;
use crate::store::{Store, StoreSettings};

/// Bring the store's schema up to date and leave
///
/// `serve` does this by itself unless --migrate=false. Several may run at once: one migrates, the others wait.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  hawser migrate --store postgres://hawser@db/hawser")]
pub struct Migrate {
    #[command(flatten)]
    options: Options,
}

impl Migrate {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let options = match &self.options.config {
            Some(path) => self.options.clone().over(Options::read(path)?),
            None => self.options,
        };
        let (url, vault) = (options.database()?, options.vault()?);
        let place = url.to_string();
        let store = Store::open(StoreSettings { url, vault, migrate: true, read_connections: 1 }).await?;
        store.close().await;
        eprintln!("{place} is up to date");
        Ok(ExitCode::SUCCESS)
    }
}
