//! `hawser secrets`: data on stdout, everything else on stderr.

use std::process::Stdio;

use tokio::process::Command;

use crate::support::secrets::list;
use crate::support::{Database, World};

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_rotates_lists_reveals_and_expires() {
    let world = World::new(Database::sqlite()).await;
    let (endpoint, first) = world.endpoint("https://example.com/hook", "").await;
    let (address, key) = (world.server.address(), world.key.clone());
    let run = |arguments: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hawser"));
        // What is common to them may come last.
        command.arg("secrets").args(arguments.split_whitespace()).args(["--addr", &address, "--key", &key]);
        command.env_clear().stdin(Stdio::null());
        async move {
            let output = command.output().await.expect("started");
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
            (output.status.success(), text(&output.stdout), text(&output.stderr))
        }
    };
    let (done, value, said) = run(&format!("rotate {} --grace 2h --type ed25519", endpoint.id)).await;
    assert!(done && value.starts_with("whsk_") && !value.contains('\n'), "{said}");
    assert!(said.contains("whpk_") && !said.contains(&value), "{said}");
    let secrets = list(&world.client, &endpoint.id).await.secrets;
    let time = |time: &Option<prost_types::Timestamp>| time.as_ref().expect("a time").seconds;
    assert_eq!(time(&secrets[1].expire_time) - time(&secrets[0].create_time), 2 * 3600);

    let (_, table, _) = run(&format!("list {}", endpoint.id)).await;
    assert!(table.contains("retiring") && table.contains(&secrets[0].public_key), "{table}");
    assert!(!table.contains(&value) && !table.contains(&first), "{table}");
    assert_eq!(run(&format!("reveal {}", secrets[1].id)).await.1, first);
    assert!(run(&format!("expire {}", secrets[1].id)).await.0);
    let (done, shown, said) = run(&format!("reveal {}", secrets[1].id)).await;
    assert!(!done && shown.is_empty() && said.contains("expired"), "{said}");

    let file = world.server.data().join("own");
    std::fs::write(&file, format!("{first}\n")).expect("written");
    let (_, own, _) = run(&format!("rotate {} --secret-file {}", endpoint.id, file.display())).await;
    assert_eq!(own, first);
    let again = format!("rotate {} --request-id 0198f3a0-0000-7000-8000-000000000001", endpoint.id);
    assert_eq!(run(&again).await.1, run(&again).await.1);
}
