//! The server under test, as a process of its own on a fresh store.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::process::{Child, Command};

/// A running server; killed when dropped.
pub struct Server {
    binary: PathBuf,
    postgres: Option<String>,
    child: Child,
    pid: u32,
    address: SocketAddr,
    key: String,
    folder: tempfile::TempDir,
    postmaster: Option<u32>,
}

const START: Duration = Duration::from_secs(30);

/// A server that just started, and how long that took.
pub struct StartedServer {
    pub server: Server,
    pub took: Duration,
}

impl Server {
    pub async fn start(binary: &Path, postgres: Option<&str>) -> anyhow::Result<StartedServer> {
        let folder = tempfile::tempdir()?;
        let began = Instant::now();
        let (child, address) = spawn(binary, postgres, folder.path()).await?;
        let took = began.elapsed();
        let pid = child.id().context("the server ended at once")?;
        // Written right after the server is ready.
        let key = wait_for(&folder.path().join("operator.key"), folder.path()).await?.trim().to_owned();
        let postmaster = match std::env::var("HAWSER_POSTMASTER") {
            Ok(pid) if postgres.is_some() => Some(pid.parse()?),
            _ => None,
        };
        let (binary, postgres) = (binary.to_owned(), postgres.map(ToOwned::to_owned));
        let server = Self { binary, postgres, child, pid, address, key, folder, postmaster };
        Ok(StartedServer { server, took })
    }

    /// SIGKILL, then a start on the same data; says how long that start took.
    pub async fn kill_and_restart(&mut self) -> anyhow::Result<Duration> {
        self.child.kill().await?;
        std::fs::remove_file(self.folder.path().join("ready"))?;
        let began = Instant::now();
        let (child, address) = spawn(&self.binary, self.postgres.as_deref(), self.folder.path()).await?;
        let took = began.elapsed();
        self.pid = child.id().context("the server ended at once")?;
        (self.child, self.address) = (child, address);
        Ok(took)
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn operator_key(&self) -> &str {
        &self.key
    }

    /// PostgreSQL's first process, as `scripts/bench` tells it.
    pub fn postmaster(&self) -> Option<u32> {
        self.postmaster
    }

    /// How the database makes commits durable, as the server read it from there.
    pub fn durability(&self) -> anyhow::Result<String> {
        let log = std::fs::read_to_string(self.folder.path().join("log"))?;
        let line =
            log.lines().find(|line| line.contains("the store is open")).context("the log has no settings")?;
        Ok(line.split_once("settings=").map(|(_, settings)| settings.replace('"', "")).unwrap_or_default())
    }

    /// Resident memory.
    pub fn memory_mib(&self) -> anyhow::Result<u64> {
        Ok(self.memory_kib()? / 1024)
    }

    pub fn memory_kib(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let line = status.lines().find(|line| line.starts_with("VmRSS")).context("no VmRSS")?;
        Ok(line.split_whitespace().nth(1).context("no VmRSS")?.parse()?)
    }

    pub async fn stop(mut self) -> anyhow::Result<()> {
        let asked = Command::new("kill").arg(self.pid.to_string()).status().await?;
        if !asked.success() {
            bail!("the server could not be told to stop");
        }
        let ended = tokio::time::timeout(START, self.child.wait()).await??;
        if !ended.success() {
            bail!("the server ended with {ended}");
        }
        Ok(())
    }
}

async fn spawn(binary: &Path, postgres: Option<&str>, folder: &Path) -> anyhow::Result<(Child, SocketAddr)> {
    let ready = folder.join("ready");
    let log = std::fs::File::create(folder.join("log"))?;
    let mut command = Command::new(binary);
    command
        .args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "off", "--portal-listen", "off"])
        .args(["--allow-http", "--allow-net", "127.0.0.0/8", "--skip-ping"])
        .arg("--data")
        .arg(folder)
        .arg("--ready-file")
        .arg(&ready)
        .stdin(Stdio::null())
        .stderr(log)
        .kill_on_drop(true);
    if let Some(url) = postgres {
        command.args(["--store", url]);
    }
    let child = command.spawn().with_context(|| format!("cannot start {}", binary.display()))?;
    let text = wait_for(&ready, folder).await?;
    let address: serde_json::Value = serde_json::from_str(&text)?;
    let address = address["grpc"].as_str().context("the ready file has no address")?.parse()?;
    Ok((child, address))
}

async fn wait_for(path: &Path, folder: &Path) -> anyhow::Result<String> {
    let waiting = async {
        loop {
            match std::fs::read_to_string(path) {
                Ok(text) if !text.is_empty() => return text,
                _ => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    };
    match tokio::time::timeout(START, waiting).await {
        Ok(text) => Ok(text),
        Err(_) => bail!("no {}; {}", path.display(), std::fs::read_to_string(folder.join("log"))?),
    }
}
