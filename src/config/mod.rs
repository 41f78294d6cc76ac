//! Configuration: one definition of every setting, read from flags, environment and file, in this order.
//!
//! A flag `--some-name`, the variable `HAWSER_SOME_NAME` and the file's key `some-name` are the same setting.
//! What was read is then checked as a whole and becomes the settings of each part.

mod defaults;
mod keys;
mod mail;
mod options;
mod show;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use http::HeaderValue;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

pub use keys::{KeyFile, read_master_keys, read_operator_key, write_operator_key};
pub use options::{ListenOrOff, LogFormat, Options, SmtpTls};
pub use show::{Source, show};

use crate::dispatch::{DispatchSettings, OwnPlaces};
use crate::domain::address::{AddressPolicy, Cidr};
use crate::domain::breaker::BreakerPolicy;
use crate::domain::egress;
use crate::domain::event::FanOut;
use crate::domain::rotation::{PERIOD_MAX, PERIOD_MIN};
use crate::domain::url_rules::UrlRules;
use crate::engine::{EngineSettings, LaneLimits};
use crate::grpc::{CallLimits, ConnectionLimits, GrpcSettings};
use crate::service::{PingSettings, ServiceLimits, WatchSettings};
use crate::store::{DatabaseUrl, StoreSettings, Vault};
use crate::tls::ServerTls;

/// Everything a server needs, checked.
#[derive(Debug)]
pub struct Config {
    pub data: PathBuf,
    pub listen: SocketAddr,
    pub grpc: GrpcSettings,
    pub tls: Option<ServerTls>,
    pub admin_listen: Option<SocketAddr>,
    pub portal_listen: Option<SocketAddr>,
    pub store: StoreSettings,
    pub engine: EngineSettings,
    pub dispatch: DispatchSettings,
    pub rules: UrlRules,
    pub watch: WatchSettings,
    pub pings: PingSettings,
    pub limits: ServiceLimits,
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

const LEASE_RANGE: std::ops::RangeInclusive<u64> = 3..=300;
/// gRPC's port, the portal's, and the admin listener's.
pub const PORT: u16 = 8610;
pub const PORTAL_PORT: u16 = 8611;
pub const ADMIN_PORT: u16 = 8612;

/// Whether a key that is missing is made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Make,
    Leave,
}

impl Config {
    /// Reads the file that `options` names, puts the flags and the environment on top, and checks the whole.
    pub fn load(options: Options) -> anyhow::Result<Self> {
        let options = match &options.config {
            Some(path) => options.clone().over(Options::read(path)?),
            None => options,
        };
        Self::build(options, Missing::Make)
    }

    /// Checks the whole as [`Config::load`] does, and makes no file.
    pub fn check(options: Options) -> anyhow::Result<()> {
        Self::build(options, Missing::Leave).map(|_| ())
    }

    fn build(options: Options, missing: Missing) -> anyhow::Result<Self> {
        let data = options.data_folder();
        let (url, vault) = (options.database()?, options.vault_or(missing)?);
        // The listeners are known once they are bound.
        let own = OwnPlaces { listeners: Vec::new(), database: url.place() };
        let rules = UrlRules {
            allow_http: options.allow_http.unwrap_or(false),
            allowed_hosts: options.allow_host.clone(),
            addresses: AddressPolicy {
                allow: cidrs("allow-net", &options.allow_net)?,
                block: cidrs("block-net", &options.block_net)?,
            },
        };
        let extra_roots = options.ca_file.as_deref().map(read_roots).transpose().context("ca-file")?;
        let usual = LaneLimits::default();
        let slots = options.slots.unwrap_or(usual.slots);
        if !(1..=65_536).contains(&slots) {
            bail!("slots must be 1 to 65,536, and is {slots}");
        }
        let lanes = LaneLimits { slots, cap_max: (slots / 4).max(1), ..usual };
        let lanes = LaneLimits {
            cap_start: lanes.cap_start.min(lanes.cap_max),
            cap_min: lanes.cap_min.min(lanes.cap_max),
            ..lanes
        };
        let read_connections = options.read_connections.unwrap_or(defaults::READ_CONNECTIONS).max(1);
        let watch = WatchSettings {
            streams_per_project: options.watch_streams.unwrap_or(defaults::WATCH_STREAMS),
            lag_max: Duration::from_secs(options.watch_lag_max.unwrap_or(defaults::WATCH_LAG).max(1)),
            // The rest is for calls.
            store_reads: (read_connections as usize / 4).max(1),
        };
        let changes_retention = options.changes_retention.unwrap_or(defaults::CHANGES_RETENTION).max(1);
        let lease = options.lease.unwrap_or(defaults::LEASE);
        if !LEASE_RANGE.contains(&lease) {
            bail!("lease must be 3 to 300 seconds, and is {lease}");
        }
        let lease = Duration::from_secs(lease);
        let usual = DispatchSettings::default();
        Ok(Self {
            listen: options.listen.unwrap_or_else(defaults::listen),
            grpc: options.grpc()?,
            tls: options.tls()?,
            admin_listen: options.admin_listen.unwrap_or_else(defaults::admin_listen).address(),
            portal_listen: options.portal_listen.unwrap_or_else(defaults::portal_listen).address(),
            store: StoreSettings { url, vault, migrate: options.migrate.unwrap_or(true), read_connections },
            engine: EngineSettings {
                lanes,
                rules: rules.clone(),
                breaker: options.breaker()?,
                egress_window: options.egress_window()?,
                fan_out: options.fan_out()?,
                pending_max: options.pending_max.unwrap_or(defaults::PENDING_MAX),
                node: options.node_name(),
                lease,
                alerts: options.alerts(extra_roots.as_deref().unwrap_or_default())?,
                changes_retention: Duration::from_secs(changes_retention),
            },
            watch,
            pings: options.pings()?,
            limits: ServiceLimits {
                rotation_period_min: options.rotation_period_min()?,
                endpoints_max: options.endpoints_max.unwrap_or(defaults::ENDPOINTS_MAX),
            },
            dispatch: DispatchSettings {
                addresses: rules.addresses.clone(),
                own,
                name_servers: options.nameserver.clone(),
                extra_roots: extra_roots.unwrap_or_default(),
                dns_timeout: Options::seconds("dns-timeout", options.dns_timeout, usual.dns_timeout)?,
                connect_timeout: Options::seconds(
                    "connect-timeout",
                    options.connect_timeout,
                    usual.connect_timeout,
                )?,
                // Work that moves from host to host finds its connections still there.
                kept_max: 4 * slots,
                verify_tls: !options.insecure_skip_tls_verify.unwrap_or(false),
                egress_proxy: options
                    .egress_proxy
                    .as_deref()
                    .map(str::parse)
                    .transpose()
                    .context("egress-proxy")?,
                ..usual
            },
            rules,
            operator_key: options.operator_key.clone().map(|key| OperatorKey(zeroize::Zeroizing::new(key))),
            drain: Duration::from_secs(options.drain.unwrap_or(defaults::DRAIN)),
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
        self.vault_or(Missing::Make)
    }

    fn vault_or(&self, missing: Missing) -> anyhow::Result<Vault> {
        let make = missing == Missing::Make;
        let keys = read_master_keys(self.master_key.as_deref(), &self.data_folder(), make)?;
        Ok(Vault::new(keys)?)
    }

    fn fan_out(&self) -> anyhow::Result<FanOut> {
        let defaults = FanOut::default();
        let max = self.fan_out_max.unwrap_or(defaults.max);
        let at_once = self.fan_out_at_once.unwrap_or(defaults.at_once);
        if !(1..=100_000).contains(&max) {
            bail!("fan-out-max must be 1 to 100,000, and is {max}");
        }
        if !(1..=1_000).contains(&at_once) {
            bail!("fan-out-at-once must be 1 to 1,000, and is {at_once}");
        }
        Ok(FanOut { max, at_once })
    }

    fn node_name(&self) -> String {
        self.node.clone().unwrap_or_else(|| {
            let host = std::fs::read_to_string("/etc/hostname").unwrap_or_default();
            let host = host.trim();
            format!("{}-{}", if host.is_empty() { "hawser" } else { host }, std::process::id())
        })
    }

    fn breaker(&self) -> anyhow::Result<BreakerPolicy> {
        let default = BreakerPolicy::default();
        let failures = self.breaker_failures.unwrap_or(default.failures);
        let pause = self.breaker_pause.unwrap_or(default.pause.as_secs());
        if failures == 0 || !(1..=3600).contains(&pause) {
            bail!("breaker-failures must be 1 or more, and breaker-pause 1 to 3,600 s");
        }
        Ok(BreakerPolicy { failures, pause: Duration::from_secs(pause) })
    }

    fn egress_window(&self) -> anyhow::Result<Duration> {
        let window = self.egress_window.unwrap_or(egress::WINDOW.as_secs());
        if !(1..=3600).contains(&window) {
            bail!("egress-window must be 1 to 3,600 s, and is {window}");
        }
        Ok(Duration::from_secs(window))
    }

    fn rotation_period_min(&self) -> anyhow::Result<Duration> {
        let least = self.rotation_period_min.unwrap_or(PERIOD_MIN.as_secs());
        if !(1..=PERIOD_MAX.as_secs()).contains(&least) {
            bail!("rotation-period-min must be 1 s to 365 d, and is {least} s");
        }
        Ok(Duration::from_secs(least))
    }

    fn pings(&self) -> anyhow::Result<PingSettings> {
        let default = PingSettings::default();
        let per_minute = self.pings_per_minute.unwrap_or(default.per_minute);
        if !(1..=10_000).contains(&per_minute) {
            bail!("pings-per-minute must be 1 to 10,000, and is {per_minute}");
        }
        let mut methods = Vec::new();
        for name in &self.ping_method {
            match http::Method::from_bytes(name.as_bytes()) {
                Ok(method) if default.methods.contains(&method) => methods.push(method),
                _ => bail!("ping-method must be HEAD, GET or POST, and is {name:?}"),
            }
        }
        Ok(PingSettings {
            skip: self.skip_ping.unwrap_or(false),
            methods: if methods.is_empty() { default.methods } else { methods },
            per_minute,
        })
    }

    /// How long a step of an attempt may take, which as a whole takes a minute at most.
    fn seconds(name: &str, given: Option<u64>, default: Duration) -> anyhow::Result<Duration> {
        match given {
            None => Ok(default),
            Some(seconds @ 1..=60) => Ok(Duration::from_secs(seconds)),
            Some(seconds) => bail!("{name} must be 1 to 60 s, and is {seconds}"),
        }
    }

    fn grpc(&self) -> anyhow::Result<GrpcSettings> {
        let (calls, connections) = (
            self.calls_max.unwrap_or(defaults::CALLS_MAX),
            self.connections_max.unwrap_or(defaults::CONNECTIONS_MAX),
        );
        let timeout = self.request_timeout.unwrap_or(defaults::REQUEST_TIMEOUT);
        if calls == 0 || connections == 0 || timeout == 0 {
            bail!("calls-max, connections-max and request-timeout must be at least 1");
        }
        let age = self.connection_age.unwrap_or(defaults::CONNECTION_AGE);
        let web_origins = self.web_origin.iter().map(|text| web_origin(text)).collect::<Result<_, _>>()?;
        Ok(GrpcSettings {
            message_max: self.message_max.unwrap_or(defaults::MESSAGE_MAX),
            calls: CallLimits { timeout: Duration::from_secs(timeout), max: calls },
            connections: ConnectionLimits {
                max: connections,
                age: (age > 0).then(|| Duration::from_secs(age)),
            },
            reflection_open: self.reflection_open.unwrap_or(false),
            web_origins,
        })
    }

    /// The server's certificate, which is read here once so that what does not fit is told before the start.
    fn tls(&self) -> anyhow::Result<Option<ServerTls>> {
        let tls = match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => ServerTls {
                certificate: certificate.clone(),
                key: key.clone(),
                client_ca: self.tls_client_ca.clone(),
            },
            (None, None) if self.tls_client_ca.is_none() => return Ok(None),
            _ => bail!("tls-cert and tls-key go together, and tls-client-ca needs both"),
        };
        tls.read()?;
        Ok(Some(tls))
    }
}

/// An origin exactly as browsers send it, since they are compared as text.
fn web_origin(text: &str) -> anyhow::Result<HeaderValue> {
    let url = url::Url::parse(text).ok().filter(|url| url.origin().ascii_serialization() == text);
    match url {
        Some(url) if url.origin().is_tuple() => Ok(HeaderValue::from_str(text)?),
        _ => bail!("web-origin: {text:?} is not an origin such as https://app.example.com"),
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
    fn a_file_that_does_not_parse_is_told_by_its_line_and_not_by_its_text() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("hawser.toml");
        for text in ["slots = 7\nmaster_key = \"canary\"\n", "slots = 7\nmaster-key = canary\n"] {
            std::fs::write(&path, text).expect("written");
            let error = format!("{:#}", Options::read(&path).expect_err("refused"));
            assert!(error.contains("line 2") && !error.contains("canary"), "{error}");
        }
    }

    #[test]
    fn times_of_attempts_and_pings_are_set_and_bounded() {
        let folder = tempfile::tempdir().expect("folder");
        let given = |dns: u64, connect: u64, pings: usize| Options {
            data: Some(folder.path().to_owned()),
            dns_timeout: Some(dns),
            connect_timeout: Some(connect),
            pings_per_minute: Some(pings),
            ..Options::default()
        };
        let config = Config::build(given(2, 3, 4), Missing::Make).expect("valid");
        let times = [config.dispatch.dns_timeout, config.dispatch.connect_timeout].map(|time| time.as_secs());
        assert_eq!((times, config.pings.per_minute), ([2, 3], 4));
        for (bad, name) in [
            (given(0, 3, 4), "dns-timeout"),
            (given(2, 61, 4), "connect-timeout"),
            (given(2, 3, 0), "pings-per-minute"),
        ] {
            let error = Config::build(bad, Missing::Make).expect_err("out of range").to_string();
            assert!(error.starts_with(name), "{error}");
        }
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
        let shown = format!("{options:?} {:?}", Config::build(options.clone(), Missing::Leave).ok());
        assert!(!shown.contains("canary") && !shown.contains("QUFB"), "{shown}");
    }
}
