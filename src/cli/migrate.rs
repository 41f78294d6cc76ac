//! `hawser migrate`.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::config::Options;
use crate::store::{Store, StoreSettings};

/// Bring the store's schema up to date and leave
///
/// `serve` does this by itself unless --migrate=false. Several may run at once: one migrates, the others wait.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  hawser migrate --store postgres://hawser@db/hawser")]
pub struct Migrate {
    /// The server's TOML file, of which only the store and its keys count
    #[arg(long, value_name = "FILE", env = "HAWSER_CONFIG")]
    config: Option<PathBuf>,

    /// Folder for the SQLite file and the master key [default: hawser-data]
    #[arg(long, value_name = "FOLDER", env = "HAWSER_DATA")]
    data: Option<PathBuf>,

    /// sqlite:PATH or postgres://USER:PASSWORD@HOST/DATABASE [default: a SQLite file in the data folder]
    #[arg(long, value_name = "URL", env = "HAWSER_STORE", hide_env_values = true)]
    store: Option<String>,

    /// Keys that secrets are sealed with, VERSION:BASE64[,VERSION:BASE64…] [default: master.key in the data folder]
    #[arg(long, value_name = "KEYS", env = "HAWSER_MASTER_KEY", hide_env_values = true)]
    master_key: Option<String>,
}

impl Migrate {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let file = self.config.as_deref().map(Options::read).transpose()?.unwrap_or_default();
        let options =
            Options { data: self.data, store: self.store, master_key: self.master_key, ..Options::default() };
        let options = options.over(file);
        let (url, vault) = (options.database()?, options.vault()?);
        let place = url.to_string();
        let store = Store::open(StoreSettings { url, vault, migrate: true, read_connections: 1 }).await?;
        store.close().await;
        eprintln!("{place} is up to date");
        Ok(ExitCode::SUCCESS)
    }
}
