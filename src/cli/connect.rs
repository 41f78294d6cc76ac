//! Reaching a running server.

use std::path::PathBuf;

use anyhow::Context;
use hawser_client::{Client, Key};

use crate::config::read_operator_key;

/// Which server, and with which key
#[derive(clap::Args, Clone)]
pub struct Server {
    /// The server's address
    #[arg(long, value_name = "URL", env = "HAWSER_ADDR", default_value = "http://127.0.0.1:8610")]
    pub addr: String,

    /// The key [default: operator.key in the data folder]
    #[arg(long, value_name = "KEY", env = "HAWSER_KEY", hide_env_values = true)]
    pub key: Option<String>,

    /// Data folder to find operator.key in
    #[arg(long, value_name = "FOLDER", env = "HAWSER_DATA", default_value = "hawser-data")]
    pub data: PathBuf,

    /// PEM file with the CA of the server's certificate, instead of the system's
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
}

impl Server {
    pub async fn connect(&self) -> anyhow::Result<Client> {
        let key = self.key.clone().or_else(|| read_operator_key(&self.data));
        let key =
            key.context("no key: give --key, set HAWSER_KEY, or name the server's data folder with --data")?;
        let ca = match &self.ca {
            Some(path) => Some(
                std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?,
            ),
            None => None,
        };
        Client::connect_with(self.addr.clone(), Key::new(key), ca.as_deref())
            .await
            .with_context(|| format!("is a server running at {}? Start one with `hawser serve`", self.addr))
    }
}

/// A refused call in words, with the fields it names.
pub fn explain(status: &tonic::Status) -> anyhow::Error {
    let fields: Vec<String> = hawser_client::field_violations(status)
        .into_iter()
        .map(|violation| format!("\n  {}: {}", violation.field, violation.description))
        .collect();
    anyhow::anyhow!("{:?}: {}{}", status.code(), status.message(), fields.concat())
}
