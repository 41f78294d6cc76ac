//! Configuration: one definition of every setting, read from flags, environment and file, in this order.
//!
//! A flag `--some-name`, the variable `HAWSER_SOME_NAME` and the file's key `some-name` are the same setting.
//! What was read is then checked as a whole and becomes the settings of each part.

mod keys;
mod options;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

pub use keys::{KeyFile, read_master_keys, read_operator_key, write_operator_key};
pub use options::{LogFormat, Options};

use crate::dispatch::DispatchSettings;
use crate::domain::address::{AddressPolicy, Cidr};
use crate::domain::url_rules::UrlRules;
use crate::engine::{EngineSettings, LaneLimits};
use crate::grpc::{GrpcSettings, GrpcTls};
use crate::service::WatchSettings;
use crate::store::{DatabaseUrl, StoreSettings, Vault};

/// Everything a server needs, checked.
#[derive(Debug)]
pub struct Config {
    pub data: PathBuf,
    pub listen: SocketAddr,
    pub grpc: GrpcSettings,
    pub store: StoreSettings,
    pub engine: EngineSettings,
    pub dispatch: DispatchSettings,
    pub rules: UrlRules,
    pub watch: WatchSettings,
    pub operator_key: Option<OperatorKey>,
    pub drain: Duration,
    pub ready_file: Option<PathBuf>,
}

/// An operator key's text from the configuration.
#[derive(Clone)]
pub struct OperatorKey(pub zeroize::Zeroizing<String>);

impl std::fmt::Debug for OperatorKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

const DRAIN: u64 = 25;
const MESSAGE_MAX: usize = 4 * 1024 * 1024;
const READ_CONNECTIONS: u32 = 8;
const WATCH_STREAMS: usize = 1000;
const WATCH_LAG: u64 = 30;
const CHANGES_RETENTION: u64 = 7 * 24 * 3600;
/// gRPC's port.
pub const PORT: u16 = 8610;

impl Config {
    /// Reads the file that `options` names, puts the flags and the environment on top, and checks the whole.
    pub fn load(options: Options) -> anyhow::Result<Self> {
        let options = match &options.config {
            Some(path) => options.clone().over(Options::read(path)?),
            None => options,
        };
        Self::build(options)
    }

    fn build(options: Options) -> anyhow::Result<Self> {
        let data = options.data_folder();
        let (url, vault) = (options.database()?, options.vault()?);
        let rules = UrlRules {
            allow_http: options.allow_http.unwrap_or(false),
            allowed_hosts: options.allow_host.clone(),
            addresses: AddressPolicy {
                allow: cidrs("allow-net", &options.allow_net)?,
                block: cidrs("block-net", &options.block_net)?,
            },
        };
        let extra_roots = options.ca_file.as_deref().map(read_roots).transpose().context("ca-file")?;
        let defaults = LaneLimits::default();
        let slots = options.slots.unwrap_or(defaults.slots);
        if !(1..=65_536).contains(&slots) {
            bail!("slots must be 1 to 65,536, and is {slots}");
        }
        let lanes = LaneLimits { slots, cap_max: (slots / 4).max(1), ..defaults };
        let lanes = LaneLimits {
            cap_start: lanes.cap_start.min(lanes.cap_max),
            cap_min: lanes.cap_min.min(lanes.cap_max),
            ..lanes
        };
        let read_connections = options.read_connections.unwrap_or(READ_CONNECTIONS).max(1);
        let watch = WatchSettings {
            streams_per_project: options.watch_streams.unwrap_or(WATCH_STREAMS),
            lag_max: Duration::from_secs(options.watch_lag_max.unwrap_or(WATCH_LAG).max(1)),
            // The rest is for the feed itself and for calls.
            store_reads: (read_connections as usize / 4).max(1),
        };
        let changes_retention = options.changes_retention.unwrap_or(CHANGES_RETENTION).max(1);
        Ok(Self {
            listen: options.listen.unwrap_or(SocketAddr::from(([127, 0, 0, 1], PORT))),
            grpc: GrpcSettings {
                message_max: options.message_max.unwrap_or(MESSAGE_MAX),
                reflection_open: options.reflection_open.unwrap_or(false),
                tls: options.tls()?,
            },
            store: StoreSettings { url, vault, migrate: options.migrate.unwrap_or(true), read_connections },
            engine: EngineSettings {
                lanes,
                rules: rules.clone(),
                node: options.node_name(),
                changes_retention: Duration::from_secs(changes_retention),
            },
            watch,
            dispatch: DispatchSettings {
                addresses: rules.addresses.clone(),
                name_servers: options.nameserver.clone(),
                extra_roots: extra_roots.unwrap_or_default(),
                ..DispatchSettings::default()
            },
            rules,
            operator_key: options.operator_key.clone().map(|key| OperatorKey(zeroize::Zeroizing::new(key))),
            drain: Duration::from_secs(options.drain.unwrap_or(DRAIN)),
            ready_file: options.ready_file,
            data,
        })
    }
}

impl Options {
    /// Where files go that have no place of their own.
    pub fn data_folder(&self) -> PathBuf {
        self.data.clone().unwrap_or_else(|| PathBuf::from("hawser-data"))
    }

    /// The store's place: by default a SQLite file in the data folder.
    pub fn database(&self) -> anyhow::Result<DatabaseUrl> {
        match &self.store {
            Some(url) => Ok(DatabaseUrl::parse(url)?),
            None => Ok(DatabaseUrl::Sqlite(self.data_folder().join("hawser.db"))),
        }
    }

    /// The keys that secrets are sealed with.
    pub fn vault(&self) -> anyhow::Result<Vault> {
        let keys = read_master_keys(self.master_key.as_deref(), &self.data_folder())?;
        Ok(Vault::new(keys)?)
    }

    fn node_name(&self) -> String {
        self.node.clone().unwrap_or_else(|| {
            let host = std::fs::read_to_string("/etc/hostname").unwrap_or_default();
            let host = host.trim();
            format!("{}-{}", if host.is_empty() { "hawser" } else { host }, std::process::id())
        })
    }

    fn tls(&self) -> anyhow::Result<Option<GrpcTls>> {
        let read =
            |path: &Path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => Ok(Some(GrpcTls {
                certificate_pem: read(certificate).context("tls-cert")?,
                key_pem: zeroize::Zeroizing::new(read(key).context("tls-key")?),
                client_ca_pem: self
                    .tls_client_ca
                    .as_deref()
                    .map(read)
                    .transpose()
                    .context("tls-client-ca")?,
            })),
            (None, None) if self.tls_client_ca.is_none() => Ok(None),
            _ => bail!("tls-cert and tls-key go together, and tls-client-ca needs both"),
        }
    }
}

fn cidrs(name: &str, texts: &[String]) -> anyhow::Result<Vec<Cidr>> {
    texts.iter().map(|text| text.parse().with_context(|| format!("{name}: {text:?}"))).collect()
}

fn read_roots(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let certificates = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = certificates.with_context(|| format!("cannot read {}", path.display()))?;
    if certificates.is_empty() {
        bail!("{} holds no certificate", path.display());
    }
    Ok(certificates)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Args, Command};

    #[test]
    fn the_table_of_settings_is_complete() {
        let table = include_str!("../../docs/configuration.md");
        let command = Options::augment_args(Command::new("serve"));
        for argument in command.get_arguments() {
            let flag = argument.get_long().expect("every setting has a flag");
            assert!(table.contains(&format!("| `{flag}` |")), "docs/configuration.md lacks {flag}");
            if flag != "config" {
                let variable = format!("HAWSER_{}", flag.to_uppercase().replace('-', "_"));
                assert_eq!(argument.get_env().and_then(|env| env.to_str()), Some(variable.as_str()));
            }
        }
    }

    #[test]
    fn flags_win_over_the_file_and_unknown_keys_are_named() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("hawser.toml");
        std::fs::write(&path, "listen = \"127.0.0.1:1\"\nslots = 7\nallow-net = [\"10.0.0.0/8\"]\n")
            .expect("written");
        let flags = Options {
            config: Some(path.clone()),
            data: Some(folder.path().to_owned()),
            listen: Some(SocketAddr::from(([127, 0, 0, 1], 2))),
            ..Options::default()
        };
        let config = Config::load(flags.clone()).expect("valid");
        assert_eq!((config.listen.port(), config.engine.lanes.slots), (2, 7));
        assert!(config.rules.addresses.permits([10, 0, 0, 1].into()));

        std::fs::write(&path, "lisen = \"127.0.0.1:1\"\n").expect("written");
        let error = format!("{:#}", Config::load(flags).expect_err("unknown key"));
        assert!(error.contains("lisen"), "{error}");
    }

    #[test]
    fn debug_shows_no_key() {
        let folder = tempfile::tempdir().expect("folder");
        let options = Options {
            data: Some(folder.path().to_owned()),
            operator_key: Some("hk_canary".to_owned()),
            master_key: Some(format!("1:{}", "QUFB".repeat(10) + "QUE=")),
            ..Options::default()
        };
        let shown = format!("{options:?} {:?}", Config::build(options.clone()).ok());
        assert!(!shown.contains("canary") && !shown.contains("QUFB"), "{shown}");
    }
}
