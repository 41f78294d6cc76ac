//! What surrounds the services: health, reflection, limits, one process per SQLite file, the demo, the CLI.

use std::process::Stdio;

use hawser_client::pb;
use tokio::process::Command;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;

use crate::support::{Database, PATIENCE, World, on_both};

on_both!(health_answers_and_its_streams_end_on_drain, too_large_messages_are_refused);

async fn health_answers_and_its_streams_end_on_drain(database: Database) {
    let mut world = World::new(database).await;
    let channel = tonic::transport::Endpoint::from_shared(world.server.address()).expect("a URL");
    let mut health = HealthClient::new(channel.connect().await.expect("connected"));
    let check = |service: &str| HealthCheckRequest { service: service.to_owned() };
    for service in ["", "hawser.v1.EventService"] {
        let reply = health.check(check(service)).await.expect("known").into_inner();
        assert_eq!(reply.status(), ServingStatus::Serving);
    }
    assert_eq!(health.check(check("nobody")).await.expect_err("unknown").code(), Code::NotFound);
    let mut unknown = health.watch(check("nobody")).await.expect("a stream").into_inner();
    let first = unknown.message().await.expect("goes on").expect("a message");
    assert_eq!(first.status(), ServingStatus::ServiceUnknown);
    let mut stream = health.watch(check("")).await.expect("a stream").into_inner();
    assert_eq!(stream.message().await.expect("goes on").expect("one").status(), ServingStatus::Serving);
    assert!(world.server.terminate().await.success());
    let told = async { stream.message().await.expect("goes on").expect("one").status() };
    let told = tokio::time::timeout(PATIENCE, told).await.expect("it is told");
    assert_eq!(told, ServingStatus::NotServing);
    let end =
        tokio::time::timeout(PATIENCE, stream.message()).await.expect("the stream ends with the server");
    assert_eq!(end.expect_err("with a status").code(), Code::Unavailable);
}

async fn too_large_messages_are_refused(database: Database) {
    let world = World::new(database).await;
    let request = pb::PublishEventRequest { payload: vec![0; 18 * 1024 * 1024].into(), ..Default::default() };
    let status = world.client.events().publish_event(request).await.expect_err("too large");
    assert_eq!(status.code(), Code::OutOfRange);
    assert!(status.message().contains("message-max"), "{status}");
    let endpoint = pb::Endpoint { description: "x".repeat(5 * 1024 * 1024), ..Default::default() };
    let request = pb::CreateEndpointRequest { endpoint: Some(endpoint), ..Default::default() };
    let status = world.client.endpoints().create_endpoint(request).await.expect_err("too large");
    assert_eq!(status.code(), Code::OutOfRange);
    assert_eq!(status.get_error_details().error_info().expect("a reason").reason, "MESSAGE_TOO_LARGE");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sqlite_file_has_one_process() {
    let world = World::new(Database::sqlite()).await;
    let second = Command::new(env!("CARGO_BIN_EXE_hawser"))
        .args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--admin-listen",
            "off",
            "--portal-listen",
            "off",
            "--data",
        ])
        .arg(world.server.data())
        .output()
        .await
        .expect("started");
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && said.contains("another hawser process"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_master_key_is_named_at_start() {
    let mut world = World::new(Database::sqlite()).await;
    world.server.terminate().await;
    let key = "1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let wrong = Command::new(env!("CARGO_BIN_EXE_hawser"))
        .args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--admin-listen",
            "off",
            "--portal-listen",
            "off",
            "--master-key",
            key,
            "--data",
        ])
        .arg(world.server.data())
        .output()
        .await
        .expect("started");
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(!wrong.status.success() && said.contains("master key 1"), "{said}");
    assert!(!said.contains("AAAA"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_ends_well() {
    let demo = Command::new(env!("CARGO_BIN_EXE_hawser")).args(["demo", "--events", "8"]).output();
    let demo = tokio::time::timeout(PATIENCE, demo).await.expect("in time").expect("started");
    let said = String::from_utf8_lossy(&demo.stdout).into_owned();
    assert!(demo.status.success(), "{said}\n{}", String::from_utf8_lossy(&demo.stderr));
    assert!(said.contains("every signature verified") && said.contains("grpcurl"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_speaks_to_the_server() {
    let mut world = World::new(Database::sqlite()).await;
    let (address, operator) = (world.server.address(), world.server.operator_key().await);
    let run = |arguments: Vec<String>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hawser"));
        command.args(arguments).env_clear().stdin(Stdio::null());
        async move { command.output().await.expect("started") }
    };
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let health = run(words(&format!("health --addr {address}"))).await;
    assert_eq!(String::from_utf8_lossy(&health.stdout).trim(), "SERVING");
    let project = &world.project;
    let made = run(words(&format!(
        "keys --addr {address} --key {operator} create --project {project} --name cli --scope watch"
    )))
    .await;
    let key = String::from_utf8_lossy(&made.stdout).trim().to_owned();
    assert!(made.status.success() && key.starts_with("hk_"), "{}", String::from_utf8_lossy(&made.stderr));
    let listed =
        run(words(&format!("keys --addr {address} --key {operator} list --project {project}"))).await;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.contains("cli") && !listed.contains(&key), "{listed}");
    let refused = run(words(&format!("keys --addr {address} --key {key} list"))).await;
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("operator"), "{refused:?}");
    // On a stopped server the store itself is worked on.
    let data = world.server.data().to_owned();
    let store = format!("--store sqlite:{}/hawser.db --data {}", data.display(), data.display());
    let busy = run(words(&format!("keys {store} list"))).await;
    assert!(String::from_utf8_lossy(&busy.stderr).contains("another hawser process"), "{busy:?}");
    world.server.terminate().await;
    let rescue = run(words(&format!("keys {store} create --name rescue"))).await;
    assert!(String::from_utf8_lossy(&rescue.stdout).starts_with("hk_"), "{rescue:?}");
    let listed = run(words(&format!("keys {store} list --project {project}"))).await;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let id =
        listed.lines().find(|line| line.contains(" cli ")).and_then(|line| line.split_whitespace().next());
    let revoked = run(words(&format!("keys {store} revoke {}", id.expect("the key of before")))).await;
    assert!(revoked.status.success(), "{revoked:?}");
    let stopped = run(words("health --addr http://127.0.0.1:9")).await;
    assert_eq!(stopped.status.code(), Some(1));
}
