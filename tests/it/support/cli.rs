//! The `hawser` command, with a world's server and key.

use std::process::Stdio;

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::World;

/// What a command said and how it ended.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    /// Its lines of JSON.
    pub fn json(&self) -> Vec<Value> {
        self.out.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }
}

/// Runs it with this key.
pub async fn hawser_as(world: &World, key: &str, arguments: &[&str], input: &str) -> Said {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hawser"));
    command.args(arguments).args(["--addr", &world.server.address(), "--key", key]).env_clear();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("started");
    let mut stdin = child.stdin.take().expect("piped");
    // It may have ended already, without reading.
    let _ended = stdin.write_all(input.as_bytes()).await;
    drop(stdin);
    let output = child.wait_with_output().await.expect("ended");
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8").trim().to_owned();
    let code = output.status.code().expect("an exit code");
    Said { code, out: text(&output.stdout), err: text(&output.stderr) }
}

/// Runs it with this standard input.
pub async fn hawser_reading(world: &World, arguments: &[&str], input: &str) -> Said {
    hawser_as(world, &world.key, arguments, input).await
}

pub async fn hawser(world: &World, arguments: &[&str]) -> Said {
    hawser_reading(world, arguments, "").await
}
