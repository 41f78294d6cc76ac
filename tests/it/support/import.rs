//! `hawser import` as a person runs it, and a network between it and its server that outlives the server.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio_util::task::AbortOnDropHandle;

use super::{PATIENCE, World};

/// What a command came to.
pub struct Done {
    pub code: Option<i32>,
    pub out: String,
    pub said: String,
}

/// A command that runs; killed when dropped.
pub fn command(world: &World, address: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hawser"));
    command.args(["import", "--addr", address, "--key", &world.key]).args(arguments);
    command.env_clear().stdin(Stdio::null()).kill_on_drop(true);
    command
}

pub async fn import(world: &World, arguments: &[&str]) -> Done {
    let mut command = command(world, &world.server.address(), arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    finish(command.spawn().expect("started")).await
}

pub async fn finish(child: Child) -> Done {
    let ended = tokio::time::timeout(PATIENCE, child.wait_with_output()).await;
    let ended = ended.expect("it ends in time").expect("waited");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Done { code: ended.status.code(), out: text(&ended.stdout), said: text(&ended.stderr) }
}

/// The whole lines of a file of results.
pub fn results(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Waits until an import has written so many results.
pub async fn until_results(path: &Path, count: usize) {
    let waiting = async {
        // Files cannot be awaited.
        while std::fs::read(path).map_or(0, |text| text.iter().filter(|byte| **byte == b'\n').count()) < count
        {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("results in time");
}

/// Writes a file for an import.
pub fn file(world: &World, name: &str, text: &str) -> PathBuf {
    let path = world.server.data().join(name);
    std::fs::write(&path, text).expect("written");
    path
}

/// Passes connections on to wherever the server is now; ends when dropped.
pub struct Road {
    pub address: String,
    to: Arc<Mutex<String>>,
    _passing: AbortOnDropHandle<()>,
}

impl Road {
    pub async fn to(authority: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let own: SocketAddr = listener.local_addr().expect("bound");
        let to = Arc::new(Mutex::new(authority.to_owned()));
        let passing = tokio::spawn(pass(listener, to.clone()));
        Self { address: format!("http://{own}"), to, _passing: AbortOnDropHandle::new(passing) }
    }

    pub fn lead_to(&self, authority: &str) {
        *self.to.lock().expect("unpoisoned") = authority.to_owned();
    }
}

async fn pass(listener: TcpListener, to: Arc<Mutex<String>>) {
    loop {
        let Ok((mut client, _)) = listener.accept().await else { continue };
        let to = to.lock().expect("unpoisoned").clone();
        tokio::spawn(async move {
            // A server that is not there ends the connection.
            if let Ok(mut server) = TcpStream::connect(&to).await {
                let _ended = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            }
        });
    }
}
