//! The real binary, started, killed and started again on the same data.

use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::process::{Child, Command};

use super::{Database, PATIENCE};

/// A server process with its data.
pub struct Server {
    child: Option<Child>,
    /// Shared with the other nodes on it.
    database: Arc<Database>,
    folder: tempfile::TempDir,
    arguments: Vec<String>,
    /// What runs the binary, if anything does.
    wrapper: Vec<String>,
    starts: usize,
    address: String,
    admin: String,
    portal: String,
}

impl Server {
    /// Starts on a fresh store, with http and loopback allowed.
    pub async fn start(database: Database) -> Self {
        Self::start_with(database, &["--allow-http", "--allow-net", "127.0.0.0/8"]).await
    }

    /// With these arguments. Endpoints are not pinged: most tests make them before their receiver answers, or count
    /// what it gets.
    pub async fn start_with(database: Database, arguments: &[&str]) -> Self {
        Self::start_pinging(database, &[arguments, &["--skip-ping"]].concat()).await
    }

    /// With these arguments, and pings.
    pub async fn start_pinging(database: Database, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let arguments = arguments.iter().map(|text| (*text).to_owned()).collect();
        Self::first_start(Arc::new(database), folder, arguments).await
    }

    /// With these arguments, run by a program such as prlimit.
    pub async fn start_under(wrapper: &[&str], database: Database, arguments: &[&str]) -> Self {
        let own = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let folder = tempfile::tempdir().expect("a folder");
        let mut server = Self::new(Arc::new(database), folder, own(arguments));
        server.wrapper = own(wrapper);
        server.spawn().await;
        server
    }

    /// Another node on the same database, which must be PostgreSQL: with the same arguments and master key.
    pub async fn join(&self) -> Self {
        self.join_by(None).await
    }

    /// The same, with another way to the database.
    pub async fn join_through(&self, store: &str) -> Self {
        self.join_by(Some(store)).await
    }

    async fn join_by(&self, store: Option<&str>) -> Self {
        assert!(self.database.url().is_some(), "a SQLite store has one process");
        let folder = tempfile::tempdir().expect("a folder");
        let key = |folder: &tempfile::TempDir| folder.path().join("master.key");
        std::fs::copy(key(&self.folder), key(&folder)).expect("the master key");
        let mut arguments = self.arguments.clone();
        if let Some(store) = store {
            arguments.extend(["--store".to_owned(), store.to_owned()]);
        }
        Self::first_start(self.database.clone(), folder, arguments).await
    }

    async fn first_start(database: Arc<Database>, folder: tempfile::TempDir, arguments: Vec<String>) -> Self {
        let mut server = Self::new(database, folder, arguments);
        server.spawn().await;
        server
    }

    fn new(database: Arc<Database>, folder: tempfile::TempDir, arguments: Vec<String>) -> Self {
        Self {
            child: None,
            database,
            folder,
            arguments,
            wrapper: Vec::new(),
            starts: 0,
            address: String::new(),
            admin: String::new(),
            portal: String::new(),
        }
    }

    /// Starts with these arguments from the next time on.
    pub fn set_arguments(&mut self, arguments: &[&str]) {
        self.arguments = arguments.iter().map(|text| (*text).to_owned()).collect();
    }

    /// Starts again on the same data.
    pub async fn spawn(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        self.starts += 1;
        let ready = self.folder.path().join(format!("ready-{}", self.starts));
        let log = std::fs::File::create(self.log_path()).expect("a log file");
        let mut command = match self.wrapper.split_first() {
            None => Command::new(program()),
            Some((wrapper, rest)) => {
                let mut command = Command::new(wrapper);
                command.args(rest).arg(program());
                command
            }
        };
        command
            .args(["serve", "--data"])
            .arg(self.folder.path())
            .arg("--ready-file")
            .arg(&ready)
            .args(&self.arguments)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true);
        for listener in ["--listen", "--admin-listen", "--portal-listen"] {
            if !self.arguments.iter().any(|argument| argument == listener) {
                command.args([listener, "127.0.0.1:0"]);
            }
        }
        if let Some(url) = self.database.url()
            && !self.arguments.iter().any(|argument| argument == "--store")
        {
            command.args(["--store", url]);
        }
        self.child = Some(command.spawn().expect("the binary starts"));
        let text = self.file(&ready).await;
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        self.address = json["grpc"].as_str().expect("an address").to_owned();
        self.admin = json["admin"].as_str().expect("an address").to_owned();
        self.portal = json["portal"].as_str().expect("an address").to_owned();
    }

    /// Waits for a file that the server writes.
    async fn file(&mut self, path: &std::path::Path) -> String {
        let child = self.child.as_mut().expect("it runs");
        let waiting = async {
            loop {
                match std::fs::read_to_string(path) {
                    Ok(text) if !text.is_empty() => return text,
                    // Files cannot be awaited; the server's end can.
                    _ => {
                        if tokio::time::timeout(Duration::from_millis(5), child.wait()).await.is_ok() {
                            return String::new();
                        }
                    }
                }
            }
        };
        let text = tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_default();
        assert!(!text.is_empty(), "the server did not come up:\n{}", self.log());
        text
    }

    pub fn address(&self) -> String {
        format!("http://{}", self.address)
    }

    /// HOST:PORT of gRPC.
    pub fn authority(&self) -> &str {
        &self.address
    }

    /// HOST:PORT of the admin listener.
    pub fn admin(&self) -> &str {
        &self.admin
    }

    /// HOST:PORT of the portal.
    pub fn portal(&self) -> &str {
        &self.portal
    }

    pub async fn operator_key(&mut self) -> String {
        let path = self.folder.path().join("operator.key");
        self.file(&path).await.trim().to_owned()
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join(format!("log-{}", self.starts))
    }

    /// What it logged since its last start.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    pub fn database(&self) -> &Database {
        &self.database
    }

    pub fn data(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// SIGKILL: nothing of it runs any more when this returns.
    pub async fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().await.expect("killed");
    }

    /// A file of its folder in /proc.
    pub fn proc(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.pid())).expect("Linux tells")
    }

    fn pid(&self) -> u32 {
        self.child.as_ref().and_then(Child::id).expect("it runs")
    }

    /// Sends a signal, such as STOP or CONT.
    pub async fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        let told = Command::new("kill").args(["-s", name, &pid]).status().await.expect("kill exists");
        assert!(told.success());
    }

    /// SIGTERM; waits for the end.
    pub async fn terminate(&mut self) -> ExitStatus {
        self.signal("TERM").await;
        let mut child = self.child.take().expect("it runs");
        match tokio::time::timeout(PATIENCE, child.wait()).await {
            Ok(status) => status.expect("waited"),
            Err(_) => panic!("the server did not end:\n{}", self.log()),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the server's log ---\n{}", self.log());
        }
    }
}

/// Whether the server that is tested is optimised, as a release build is.
pub fn is_optimised() -> bool {
    std::env::var_os("HAWSER_BIN").is_some() || !cfg!(debug_assertions)
}

/// The server to test: HAWSER_BIN, such as a release build, or the one that was built with the tests.
fn program() -> std::path::PathBuf {
    std::env::var_os("HAWSER_BIN").map_or_else(|| env!("CARGO_BIN_EXE_hawser").into(), Into::into)
}
