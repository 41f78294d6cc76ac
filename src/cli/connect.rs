//! Reaching a running server.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use hawser_client::{Client, Key};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use crate::config::read_operator_key;

/// Apart from what a command itself takes.
pub const HEADING: &str = "Which server";

/// A project's place, for commands that work in one
#[derive(clap::Args, Clone)]
pub struct Place {
    #[command(flatten)]
    server: Server,

    /// The project, which an operator key must name
    #[arg(long, global = true, value_name = "ID", default_value = "", hide_default_value = true)]
    project: String,
}

impl Place {
    /// A client of the server, and the project to name to it.
    pub async fn enter(self) -> anyhow::Result<(Client, String)> {
        Ok((self.server.connect().await?, self.project))
    }
}

/// Which server, and with which key
#[derive(clap::Args, Clone)]
pub struct Server {
    /// The server's address
    #[arg(
        long,
        global = true,
        help_heading = HEADING,
        value_name = "URL",
        env = "HAWSER_ADDR",
        default_value = "http://127.0.0.1:8610"
    )]
    pub addr: String,

    /// The key [default: operator.key in the data folder]
    #[arg(long, global = true, help_heading = HEADING, value_name = "KEY", env = "HAWSER_KEY", hide_env_values = true)]
    pub key: Option<String>,

    /// Data folder to find operator.key in
    #[arg(long, global = true, help_heading = HEADING, value_name = "FOLDER", env = "HAWSER_DATA", default_value = "hawser-data")]
    pub data: PathBuf,

    #[command(flatten)]
    pub tls: Tls,
}

/// Whom to trust where the address is https, and what to show
#[derive(clap::Args, Clone)]
pub struct Tls {
    /// PEM file with the CA of the server's certificate, instead of the system's
    #[arg(long, global = true, help_heading = HEADING, value_name = "FILE", env = "HAWSER_CA")]
    ca: Option<PathBuf>,

    /// PEM file with a certificate to show, where the server demands one
    #[arg(long, global = true, help_heading = HEADING, value_name = "FILE", env = "HAWSER_CLIENT_CERT")]
    client_cert: Option<PathBuf>,

    /// PEM file with that certificate's private key
    #[arg(long, global = true, help_heading = HEADING, value_name = "FILE", env = "HAWSER_CLIENT_KEY")]
    client_key: Option<PathBuf>,
}

impl Tls {
    pub fn config(&self) -> anyhow::Result<ClientTlsConfig> {
        let mut config = match &self.ca {
            Some(path) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(path)?)),
            None => ClientTlsConfig::new().with_enabled_roots(),
        };
        match (&self.client_cert, &self.client_key) {
            (Some(certificate), Some(key)) => {
                config = config.identity(Identity::from_pem(read(certificate)?, read(key)?));
            }
            (None, None) => {}
            _ => bail!("--client-cert and --client-key go together"),
        }
        Ok(config)
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

impl Server {
    pub async fn connect(&self) -> anyhow::Result<Client> {
        let key = self.key.clone().or_else(|| read_operator_key(&self.data));
        let key =
            key.context("no key: give --key, set HAWSER_KEY, or name the server's data folder with --data")?;
        Client::connect_with(self.addr.clone(), Key::new(key), self.tls.config()?)
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
