//! Opening the store: which database, its pools and settings, migrations, and the checks before the start.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use hawser_migrations::{Migrator, MigratorTrait};
use sea_orm::{DatabaseConnection, DbBackend, SqlxPostgresConnector};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, Executor};
use tokio::sync::{Notify, watch};

use super::error::{Result, StoreError};
use super::notify::Outbox;
use super::recent::Recent;
use super::silence::Suspicion;
use super::sqlite::open_sqlite;
use super::vault::Vault;
use super::writers::Writers;
use super::{Inner, Store};
use crate::domain::page::TokenKey;

/// Where the data is.
#[derive(Clone)]
pub enum DatabaseUrl {
    Sqlite(PathBuf),
    Postgres(Box<PgConnectOptions>),
}

impl DatabaseUrl {
    /// Reads `sqlite:PATH` or `postgres://…`.
    pub fn parse(text: &str) -> Result<Self> {
        if let Some(path) = text.strip_prefix("sqlite:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.is_empty() || path == ":memory:" {
                return Err(StoreError::Setup("a SQLite store needs a file: sqlite:PATH".to_owned()));
            }
            return Ok(Self::Sqlite(PathBuf::from(path)));
        }
        if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            // The driver's message may quote the URL, which may hold a password.
            let options = text
                .parse::<PgConnectOptions>()
                .map_err(|_| StoreError::Setup("the PostgreSQL URL does not parse".to_owned()))?;
            return Ok(Self::Postgres(Box::new(options)));
        }
        Err(StoreError::Setup("the store's URL must begin with sqlite: or postgres://".to_owned()))
    }
}

impl DatabaseUrl {
    /// Host and port of a database that is a server; one that is reached by a socket is on this machine.
    pub fn place(&self) -> Option<(String, u16)> {
        match self {
            Self::Sqlite(_) => None,
            Self::Postgres(options) => {
                let by_socket = options.get_socket().is_some() || options.get_host().starts_with('/');
                let host = if by_socket { "localhost" } else { options.get_host() };
                Some((host.to_owned(), options.get_port()))
            }
        }
    }
}

impl std::fmt::Display for DatabaseUrl {
    /// Without credentials.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Self::Postgres(options) => {
                let database = options.get_database().unwrap_or("");
                write!(f, "postgres://{}:{}/{database}", options.get_host(), options.get_port())
            }
        }
    }
}

impl std::fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// What opening the store needs.
#[derive(Debug)]
pub struct StoreSettings {
    pub url: DatabaseUrl,
    pub vault: Vault,
    /// Bring the schema up to date first; otherwise refuse to start on an older one.
    pub migrate: bool,
    /// Connections for what callers read.
    pub read_connections: u32,
}

/// Connections for what the server itself must read, which callers cannot use up.
pub(super) const OWN_CONNECTIONS: u32 = 6;
/// Connections for what a call must read before it may begin, such as its key: whoever lists does not use them up, and
/// whoever floods with keys that nobody knows uses up none but these.
pub(super) const CALL_CONNECTIONS: u32 = 3;
pub(super) const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// Any number will do, so long as all versions agree: one migrator at a time.
const MIGRATION_LOCK: i64 = 0x6861_7773_6572_0001;

impl Store {
    /// Opens the database, migrates it if asked, and proves that the master keys fit.
    pub async fn open(settings: StoreSettings) -> Result<Self> {
        let StoreSettings { url, vault, migrate, read_connections } = settings;
        let pools = match &url {
            DatabaseUrl::Sqlite(path) => open_sqlite(path, read_connections, migrate).await?,
            DatabaseUrl::Postgres(options) => open_postgres(options, read_connections, migrate).await?,
        };
        let token_key = TokenKey::new(vault.derive("tokens")?);
        let plain = pools.writers.service().await?;
        let incarnation = super::meta::incarnation(plain.db()).await?;
        super::meta::check_vault(plain.db(), &vault).await?;
        drop(plain);
        let store = Self {
            inner: Arc::new(Inner {
                backend: pools.backend,
                url,
                writers: pools.writers,
                own: pools.own,
                calls: pools.calls,
                read: pools.read,
                vault,
                token_key,
                incarnation,
                written: Notify::new(),
                committed: watch::Sender::new(()),
                recent: Recent::default(),
                alerted: watch::Sender::new(()),
                suspicion: pools.suspicion,
                damage_met: AtomicBool::new(false),
                outbox: Outbox::default(),
                process: uuid::Uuid::now_v7(),
                _lock: pools.lock,
            }),
        };
        store.make_partitions().await?;
        tracing::info!(settings = store.durability().await?, "the store is open");
        Ok(store)
    }
}

pub(super) struct Pools {
    pub backend: DbBackend,
    pub writers: Writers,
    pub own: DatabaseConnection,
    pub calls: DatabaseConnection,
    pub read: DatabaseConnection,
    pub suspicion: Suspicion,
    pub lock: Option<File>,
}

async fn open_postgres(given: &PgConnectOptions, read_connections: u32, migrate: bool) -> Result<Pools> {
    let options = given
        .clone()
        .application_name("hawser")
        // An acknowledged event must survive the server's crash, whatever the cluster's default says.
        .options([("synchronous_commit", "on")])
        // A process that stops inside a transaction keeps everyone waiting who commits after it.
        .options([("idle_in_transaction_session_timeout", "5000")])
        // Compiling takes longer than any statement here; and a way that is switched off below looks dear enough for it.
        .options([("jit", "off")])
        .disable_statement_logging();
    // A plan made while the tables were still empty would scan them, and be kept. The engine asks for rows by key, a few
    // at a time (and says so where it does not); others, whose questions vary, have each of them planned.
    let by_key = ["enable_seqscan", "enable_hashjoin", "enable_mergejoin"].map(|way| (way, "off"));
    let by_key = options.clone().options(by_key);
    // Ingest says the same few things for every turn: they are planned once, however short its lists are.
    let planned = by_key.clone().options([("plan_cache_mode", "force_generic_plan")]);
    let options = options.options([("plan_cache_mode", "force_custom_plan")]);
    let suspicion = Suspicion::default();
    let pool = |options: &PgConnectOptions, size: u32, timeout: &'static str| {
        let (handing_out, taking_back) = (suspicion.clone(), suspicion.clone());
        PgPoolOptions::new()
            .max_connections(size)
            .min_connections(0)
            .test_before_acquire(false)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .after_connect(move |connection, _| {
                Box::pin(async move { connection.execute(timeout).await.map(|_| ()) })
            })
            .before_acquire(move |connection, _| {
                let suspicion = handing_out.clone();
                Box::pin(async move { suspicion.pass(connection).await })
            })
            .after_release(move |connection, _| {
                let suspicion = taking_back.clone();
                Box::pin(async move { suspicion.pass(connection).await })
            })
            .connect_lazy_with(options.clone())
    };
    let short = "SET statement_timeout = '10s'";
    let connect = SqlxPostgresConnector::from_sqlx_postgres_pool;
    let service = connect(pool(&options, 4, "SET statement_timeout = '30s'"));
    service.get_postgres_connection_pool().acquire().await?;
    match migrate {
        true => migrate_postgres(given, &service).await?,
        false => check_migrated(&service).await?,
    }
    Ok(Pools {
        backend: DbBackend::Postgres,
        writers: Writers::Postgres {
            service,
            ingest: connect(pool(&planned, 2, short)),
            engine: connect(pool(&by_key, 6, short)),
        },
        own: connect(pool(&options, OWN_CONNECTIONS, short)),
        calls: connect(pool(&options, CALL_CONNECTIONS, short)),
        read: connect(pool(&options, read_connections, short)),
        suspicion: suspicion.clone(),
        lock: None,
    })
}

/// Refuses a schema that lacks something.
pub(super) async fn check_migrated(pool: &DatabaseConnection) -> Result<()> {
    match Migrator::get_pending_migrations(pool).await?.len() {
        0 => Ok(()),
        pending => {
            Err(StoreError::Setup(format!("the schema lacks {pending} migrations; run `hawser migrate`")))
        }
    }
}

/// Migrates under a lock of its own session, so that nodes that start together do not race.
async fn migrate_postgres(options: &PgConnectOptions, pool: &DatabaseConnection) -> Result<()> {
    let mut guard = options.connect().await?;
    sqlx::query("SELECT pg_advisory_lock($1)").bind(MIGRATION_LOCK).execute(&mut guard).await?;
    let migrated = Migrator::up(pool, None).await;
    // Closing the session frees the lock, whatever happened.
    guard.close().await?;
    Ok(migrated?)
}
