//! The server under test, as a process of its own on a fresh store.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::process::{Child, Command};

/// A running server; killed when dropped.
pub struct Server {
    child: Child,
    pid: u32,
    address: SocketAddr,
    key: String,
    folder: tempfile::TempDir,
    postmaster: Option<u32>,
}

const START: Duration = Duration::from_secs(30);

impl Server {
    pub async fn start(binary: &Path, postgres: Option<&str>) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let ready = folder.path().join("ready");
        let log = std::fs::File::create(folder.path().join("log"))?;
        let mut command = Command::new(binary);
        command
            .args([
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--admin-listen",
                "off",
                "--allow-http",
                "--allow-net",
                "127.0.0.0/8",
            ])
            .arg("--data")
            .arg(folder.path())
            .arg("--ready-file")
            .arg(&ready)
            .stdin(Stdio::null())
            .stderr(log)
            .kill_on_drop(true);
        if let Some(url) = postgres {
            command.args(["--store", url]);
        }
        let child = command.spawn().with_context(|| format!("cannot start {}", binary.display()))?;
        let pid = child.id().context("the server ended at once")?;
        let text = wait_for(&ready, folder.path()).await?;
        let address: serde_json::Value = serde_json::from_str(&text)?;
        let address = address["grpc"].as_str().context("the ready file has no address")?.parse()?;
        // Written right after the server is ready.
        let key = wait_for(&folder.path().join("operator.key"), folder.path()).await?.trim().to_owned();
        let postmaster = match std::env::var("HAWSER_POSTMASTER") {
            Ok(pid) if postgres.is_some() => Some(pid.parse()?),
            _ => None,
        };
        Ok(Self { child, pid, address, key, folder, postmaster })
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
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let line = status.lines().find(|line| line.starts_with("VmRSS")).context("no VmRSS")?;
        let kib: u64 = line.split_whitespace().nth(1).context("no VmRSS")?.parse()?;
        Ok(kib / 1024)
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

async fn wait_for(path: &Path, folder: &Path) -> anyhow::Result<String> {
    let waiting = async {
        loop {
            match std::fs::read_to_string(path) {
                Ok(text) if !text.is_empty() => return text,
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    match tokio::time::timeout(START, waiting).await {
        Ok(text) => Ok(text),
        Err(_) => bail!("no {}; {}", path.display(), std::fs::read_to_string(folder.join("log"))?),
    }
}
