//! Every setting, as flags, environment and file give it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Context;

/// Settings of the server. A flag wins over the environment, and that over the file. Serialised, it may hold
/// secrets: only `show` does so, after redacting.
#[derive(Clone, Default, clap::Args, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Options {
    /// A TOML file whose keys are these flags without their dashes
    #[arg(long, value_name = "FILE", env = "HAWSER_CONFIG")]
    #[serde(skip)]
    pub config: Option<PathBuf>,

    /// Folder for the SQLite file, the master key and the operator key [default: hawser-data]
    #[arg(long, value_name = "FOLDER", env = "HAWSER_DATA")]
    pub data: Option<PathBuf>,

    /// sqlite:PATH or postgres://USER:PASSWORD@HOST/DATABASE [default: a SQLite file in the data folder]
    #[arg(long, value_name = "URL", env = "HAWSER_STORE", hide_env_values = true)]
    pub store: Option<String>,

    /// Bring the schema up to date at start [default: true]
    #[arg(long, value_name = "BOOL", env = "HAWSER_MIGRATE", num_args = 0..=1, default_missing_value = "true")]
    pub migrate: Option<bool>,

    /// Database connections for what callers read [default: 8]
    #[arg(long, value_name = "NUMBER", env = "HAWSER_READ_CONNECTIONS")]
    pub read_connections: Option<u32>,

    /// Address for gRPC [default: 127.0.0.1:8610]
    #[arg(long, value_name = "ADDRESS", env = "HAWSER_LISTEN")]
    pub listen: Option<SocketAddr>,

    /// PEM file with the server's certificate chain; with it the server speaks TLS, to services and customers
    #[arg(long, value_name = "FILE", env = "HAWSER_TLS_CERT")]
    pub tls_cert: Option<PathBuf>,

    /// PEM file with the certificate's private key
    #[arg(long, value_name = "FILE", env = "HAWSER_TLS_KEY")]
    pub tls_key: Option<PathBuf>,

    /// PEM file with the CA whose client certificates gRPC demands
    #[arg(long, value_name = "FILE", env = "HAWSER_TLS_CLIENT_CA")]
    pub tls_client_ca: Option<PathBuf>,

    /// Answer reflection without a key
    #[arg(long, value_name = "BOOL", env = "HAWSER_REFLECTION_OPEN", num_args = 0..=1, default_missing_value = "true")]
    pub reflection_open: Option<bool>,

    /// The largest request message in bytes [default: 4194304]
    #[arg(long, value_name = "BYTES", env = "HAWSER_MESSAGE_MAX")]
    pub message_max: Option<usize>,

    /// Origins whose web pages may call with gRPC-Web, such as `https://app.example.com` (may repeat)
    #[arg(long, value_name = "ORIGIN", env = "HAWSER_WEB_ORIGIN", value_delimiter = ',')]
    pub web_origin: Vec<String>,

    /// Seconds that a call may take, streams excepted [default: 30]
    #[arg(long, value_name = "SECONDS", env = "HAWSER_REQUEST_TIMEOUT")]
    pub request_timeout: Option<u64>,

    /// Calls in progress at once, streams excepted; more are refused at once [default: 4096]
    #[arg(long, value_name = "NUMBER", env = "HAWSER_CALLS_MAX")]
    pub calls_max: Option<usize>,

    /// Connections at once; more are closed as they come [default: 10000]
    #[arg(long, value_name = "NUMBER", env = "HAWSER_CONNECTIONS_MAX")]
    pub connections_max: Option<usize>,

    /// Seconds after which a connection is asked to go, give or take a tenth; 0: never [default: 1800]
    #[arg(long, value_name = "SECONDS", env = "HAWSER_CONNECTION_AGE")]
    pub connection_age: Option<u64>,

    /// Address for /metrics and /healthz, without a key; or off [default: 127.0.0.1:8612]
    #[arg(long, value_name = "ADDRESS", env = "HAWSER_ADMIN_LISTEN")]
    pub admin_listen: Option<ListenOrOff>,

    /// Address for what customers may reach, so far the public keys of endpoints; or off [default: 127.0.0.1:8611]
    #[arg(long, value_name = "ADDRESS", env = "HAWSER_PORTAL_LISTEN")]
    pub portal_listen: Option<ListenOrOff>,

    /// Keys that secrets are sealed with, VERSION:BASE64[,VERSION:BASE64…] [default: master.key in the data folder]
    #[arg(long, value_name = "KEYS", env = "HAWSER_MASTER_KEY", hide_env_values = true)]
    pub master_key: Option<String>,

    /// An operator key to accept [default: one is made on an empty store]
    #[arg(long, value_name = "KEY", env = "HAWSER_OPERATOR_KEY", hide_env_values = true)]
    pub operator_key: Option<String>,

    /// Allow endpoints with http URLs
    #[arg(long, value_name = "BOOL", env = "HAWSER_ALLOW_HTTP", num_args = 0..=1, default_missing_value = "true")]
    pub allow_http: Option<bool>,

    /// A host name to allow though it is not public, such as localhost (may repeat)
    #[arg(long, value_name = "NAME", env = "HAWSER_ALLOW_HOST", value_delimiter = ',')]
    pub allow_host: Vec<String>,

    /// A block of addresses to allow though it is not public, such as 10.0.0.0/8 (may repeat)
    #[arg(long, value_name = "CIDR", env = "HAWSER_ALLOW_NET", value_delimiter = ',')]
    pub allow_net: Vec<String>,

    /// A block of addresses never to connect to; wins over allow-net (may repeat)
    #[arg(long, value_name = "CIDR", env = "HAWSER_BLOCK_NET", value_delimiter = ',')]
    pub block_net: Vec<String>,

    /// A DNS server to ask instead of the system's (may repeat)
    #[arg(long, value_name = "ADDRESS", env = "HAWSER_NAMESERVER", value_delimiter = ',')]
    pub nameserver: Vec<SocketAddr>,

    /// PEM file with certificates to trust for deliveries, beside the system's
    #[arg(long, value_name = "FILE", env = "HAWSER_CA_FILE")]
    pub ca_file: Option<PathBuf>,

    /// Development only: do not verify the TLS certificates of receivers, whoever they are
    #[arg(long, value_name = "BOOL", env = "HAWSER_INSECURE_SKIP_TLS_VERIFY", num_args = 0..=1, default_missing_value = "true")]
    pub insecure_skip_tls_verify: Option<bool>,

    /// An HTTP proxy that every outbound connection goes through (CONNECT), `http://[USER:PASSWORD@]HOST:PORT`
    #[arg(long, value_name = "URL", env = "HAWSER_EGRESS_PROXY", hide_env_values = true)]
    pub egress_proxy: Option<String>,

    /// Accept new and changed endpoints without asking whether they answer
    #[arg(long, value_name = "BOOL", env = "HAWSER_SKIP_PING", num_args = 0..=1, default_missing_value = "true")]
    pub skip_ping: Option<bool>,

    /// HEAD, GET or POST: what a new or changed endpoint is asked with, in turn (may repeat) [default: all, in this order]
    #[arg(long, value_name = "METHOD", env = "HAWSER_PING_METHOD", value_delimiter = ',')]
    pub ping_method: Vec<String>,

    /// Pings and token tests that a project key may make in a minute on this server [default: 10]
    #[arg(long, value_name = "NUMBER", env = "HAWSER_PINGS_PER_MINUTE")]
    pub pings_per_minute: Option<usize>,

    /// Seconds that resolving a receiver's name may take [default: 5]
    #[arg(long, value_name = "SECONDS", env = "HAWSER_DNS_TIMEOUT")]
    pub dns_timeout: Option<u64>,

    /// Seconds that connecting to a receiver may take, TLS included [default: 10]
    #[arg(long, value_name = "SECONDS", env = "HAWSER_CONNECT_TIMEOUT")]
    pub connect_timeout: Option<u64>,

    /// Attempts in flight at once; one endpoint gets at most a quarter of them [default: 1024]
    #[arg(long, value_name = "NUMBER", env = "HAWSER_SLOTS")]
    pub slots: Option<usize>,

    /// Seconds for which the change log keeps its records, and Watch its tokens [default: 604800, 7 days]
    #[arg(long, value_name = "SECONDS", env = "HAWSER_CHANGES_RETENTION")]
    pub changes_retention: Option<u64>,

    /// Watch streams that a project may have on this server [default: 1000]
    #[arg(long, value_name = "NUMBER", env = "HAWSER_WATCH_STREAMS")]
    pub watch_streams: Option<usize>,

    /// Seconds after which a Watch stream whose client takes nothing is ended [default: 30]
    #[arg(long, value_name = "SECONDS", env = "HAWSER_WATCH_LAG_MAX")]
    pub watch_lag_max: Option<u64>,

    /// Failed attempts in a row after which sending to an endpoint rests [default: 5]
    #[arg(long, value_name = "NUMBER", env = "HAWSER_BREAKER_FAILURES")]
    pub breaker_failures: Option<u32>,

    /// Seconds of the first rest; each failed probe doubles it, up to 20 times this [default: 30]
    #[arg(long, value_name = "SECONDS", env = "HAWSER_BREAKER_PAUSE")]
    pub breaker_pause: Option<u64>,

    /// Seconds within which attempts show whether this server is at fault, when most endpoints do not answer [default: 300]
    #[arg(long, value_name = "SECONDS", env = "HAWSER_EGRESS_WINDOW")]
    pub egress_window: Option<u64>,

    /// Deliveries that a project may have pending [default: 5000000]
    #[arg(long, value_name = "NUMBER", env = "HAWSER_PENDING_MAX")]
    pub pending_max: Option<u64>,

    /// Endpoints that a project may have [default: 100000]
    #[arg(long, value_name = "NUMBER", env = "HAWSER_ENDPOINTS_MAX")]
    pub endpoints_max: Option<u32>,

    /// Endpoints that one event may reach at most [default: 10000]
    #[arg(long, value_name = "NUMBER", env = "HAWSER_FAN_OUT_MAX")]
    pub fan_out_max: Option<usize>,

    /// Above so many endpoints an event's deliveries are made after its acknowledgement, in steps [default: 1000]
    #[arg(long, value_name = "NUMBER", env = "HAWSER_FAN_OUT_AT_ONCE")]
    pub fan_out_at_once: Option<usize>,

    /// Seconds of the shortest `rotation_period` that an endpoint may have [default: 604800]
    #[arg(long, value_name = "SECONDS", env = "HAWSER_ROTATION_PERIOD_MIN")]
    pub rotation_period_min: Option<u64>,

    /// HOST or HOST:PORT of the mail server for alerts by e-mail [default: none, and e-mail addresses are refused]
    #[arg(long, value_name = "SERVER", env = "HAWSER_SMTP_SERVER")]
    pub smtp_server: Option<String>,

    /// How the connection to it is protected: starttls (port 587), tls (port 465), none (port 25) [default: starttls]
    #[arg(long, value_name = "MODE", env = "HAWSER_SMTP_TLS")]
    pub smtp_tls: Option<SmtpTls>,

    /// The user to log in there as
    #[arg(long, value_name = "NAME", env = "HAWSER_SMTP_USER")]
    pub smtp_user: Option<String>,

    /// That user's password
    #[arg(long, value_name = "PASSWORD", env = "HAWSER_SMTP_PASSWORD", hide_env_values = true)]
    pub smtp_password: Option<String>,

    /// Whom mail is from, such as `Hawser <hawser@example.com>`
    #[arg(long, value_name = "MAILBOX", env = "HAWSER_SMTP_FROM")]
    pub smtp_from: Option<String>,

    /// Attempts to send an alert before it is given up [default: 12]
    #[arg(long, value_name = "NUMBER", env = "HAWSER_ALERT_ATTEMPTS")]
    pub alert_attempts: Option<u16>,

    /// Seconds of the wait after the first of them; each is three times the one before, 2 h at most [default: 5]
    #[arg(long, value_name = "SECONDS", env = "HAWSER_ALERT_BACKOFF")]
    pub alert_backoff: Option<u64>,

    /// Seconds for which alerts are kept, sent or not [default: 2592000, 30 days]
    #[arg(long, value_name = "SECONDS", env = "HAWSER_ALERTS_RETENTION")]
    pub alerts_retention: Option<u64>,

    /// Seconds for attempts in flight to end when the server stops [default: 25]
    #[arg(long, value_name = "SECONDS", env = "HAWSER_DRAIN")]
    pub drain: Option<u64>,

    /// This process's name in the table of leases [default: host name and process id]
    #[arg(long, value_name = "NAME", env = "HAWSER_NODE")]
    pub node: Option<String>,

    /// Seconds that this process's lease lasts unless it is renewed, which happens at a third of it [default: 15]
    #[arg(long, value_name = "SECONDS", env = "HAWSER_LEASE")]
    pub lease: Option<u64>,

    /// What to log, as tracing's filters read it [default: info]
    #[arg(long, value_name = "FILTER", env = "HAWSER_LOG")]
    pub log: Option<String>,

    /// text or json [default: text]
    #[arg(long, value_name = "FORMAT", env = "HAWSER_LOG_FORMAT")]
    pub log_format: Option<LogFormat>,

    /// File to write the bound address to, as JSON, once the server serves
    #[arg(long, value_name = "FILE", env = "HAWSER_READY_FILE")]
    pub ready_file: Option<PathBuf>,
}

/// How the connection to the mail server is protected.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Deserialize, serde::Serialize,
)]
#[serde(rename_all = "lowercase")]
pub enum SmtpTls {
    #[default]
    Starttls,
    Tls,
    None,
}

/// How log lines look.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Deserialize, serde::Serialize,
)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// Where a listener is, if anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum ListenOrOff {
    Off,
    At(SocketAddr),
}

impl ListenOrOff {
    pub const fn address(self) -> Option<SocketAddr> {
        match self {
            Self::At(address) => Some(address),
            Self::Off => None,
        }
    }
}

impl FromStr for ListenOrOff {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            address => address.parse().map(Self::At).map_err(|_| "must be ADDRESS:PORT, or off".to_owned()),
        }
    }
}

impl TryFrom<String> for ListenOrOff {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<ListenOrOff> for String {
    fn from(listen: ListenOrOff) -> Self {
        match listen {
            ListenOrOff::Off => "off".to_owned(),
            ListenOrOff::At(address) => address.to_string(),
        }
    }
}

impl Options {
    /// Reads a file.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        // The error's own text quotes the line, which may hold a secret.
        toml::from_str(&text).map_err(|error| {
            let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
            anyhow::anyhow!(
                "{} is not a valid configuration: line {line}: {}",
                path.display(),
                error.message()
            )
        })
    }

    /// These settings, and those of `file` where there are none.
    pub fn over(self, file: Self) -> Self {
        let list = |own: Vec<String>, other: Vec<String>| if own.is_empty() { other } else { own };
        Self {
            config: self.config,
            data: self.data.or(file.data),
            store: self.store.or(file.store),
            migrate: self.migrate.or(file.migrate),
            read_connections: self.read_connections.or(file.read_connections),
            listen: self.listen.or(file.listen),
            tls_cert: self.tls_cert.or(file.tls_cert),
            tls_key: self.tls_key.or(file.tls_key),
            tls_client_ca: self.tls_client_ca.or(file.tls_client_ca),
            reflection_open: self.reflection_open.or(file.reflection_open),
            message_max: self.message_max.or(file.message_max),
            web_origin: list(self.web_origin, file.web_origin),
            request_timeout: self.request_timeout.or(file.request_timeout),
            calls_max: self.calls_max.or(file.calls_max),
            connections_max: self.connections_max.or(file.connections_max),
            connection_age: self.connection_age.or(file.connection_age),
            admin_listen: self.admin_listen.or(file.admin_listen),
            portal_listen: self.portal_listen.or(file.portal_listen),
            master_key: self.master_key.or(file.master_key),
            operator_key: self.operator_key.or(file.operator_key),
            allow_http: self.allow_http.or(file.allow_http),
            allow_host: list(self.allow_host, file.allow_host),
            allow_net: list(self.allow_net, file.allow_net),
            block_net: list(self.block_net, file.block_net),
            nameserver: if self.nameserver.is_empty() { file.nameserver } else { self.nameserver },
            ca_file: self.ca_file.or(file.ca_file),
            insecure_skip_tls_verify: self.insecure_skip_tls_verify.or(file.insecure_skip_tls_verify),
            egress_proxy: self.egress_proxy.or(file.egress_proxy),
            skip_ping: self.skip_ping.or(file.skip_ping),
            ping_method: list(self.ping_method, file.ping_method),
            pings_per_minute: self.pings_per_minute.or(file.pings_per_minute),
            dns_timeout: self.dns_timeout.or(file.dns_timeout),
            connect_timeout: self.connect_timeout.or(file.connect_timeout),
            slots: self.slots.or(file.slots),
            changes_retention: self.changes_retention.or(file.changes_retention),
            watch_streams: self.watch_streams.or(file.watch_streams),
            watch_lag_max: self.watch_lag_max.or(file.watch_lag_max),
            breaker_failures: self.breaker_failures.or(file.breaker_failures),
            breaker_pause: self.breaker_pause.or(file.breaker_pause),
            egress_window: self.egress_window.or(file.egress_window),
            fan_out_max: self.fan_out_max.or(file.fan_out_max),
            pending_max: self.pending_max.or(file.pending_max),
            endpoints_max: self.endpoints_max.or(file.endpoints_max),
            fan_out_at_once: self.fan_out_at_once.or(file.fan_out_at_once),
            rotation_period_min: self.rotation_period_min.or(file.rotation_period_min),
            smtp_server: self.smtp_server.or(file.smtp_server),
            smtp_tls: self.smtp_tls.or(file.smtp_tls),
            smtp_user: self.smtp_user.or(file.smtp_user),
            smtp_password: self.smtp_password.or(file.smtp_password),
            smtp_from: self.smtp_from.or(file.smtp_from),
            alert_attempts: self.alert_attempts.or(file.alert_attempts),
            alert_backoff: self.alert_backoff.or(file.alert_backoff),
            alerts_retention: self.alerts_retention.or(file.alerts_retention),
            drain: self.drain.or(file.drain),
            node: self.node.or(file.node),
            lease: self.lease.or(file.lease),
            log: self.log.or(file.log),
            log_format: self.log_format.or(file.log_format),
            ready_file: self.ready_file.or(file.ready_file),
        }
    }
}

impl std::fmt::Debug for Options {
    /// Without the values that may be secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("data", &self.data)
            .field("store", &self.store.as_ref().map(|_| "[redacted]"))
            .field("listen", &self.listen)
            .field("master_key", &self.master_key.as_ref().map(|_| "[redacted]"))
            .field("operator_key", &self.operator_key.as_ref().map(|_| "[redacted]"))
            .field("smtp_password", &self.smtp_password.as_ref().map(|_| "[redacted]"))
            .finish_non_exhaustive()
    }
}
