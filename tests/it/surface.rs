//! What surrounds the services: health, compression, limits, one process per SQLite file, the demo, the CLI.

use std::process::Stdio;

use hawser_client::pb;
use hawser_client::pb::publish_event_request::Target;
use prost::Message;
use tokio::process::Command;
use tonic::Code;
use tonic::codec::CompressionEncoding::Gzip;
use tonic::metadata::MetadataMap;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;

use crate::support::{Database, PATIENCE, Receiver, World, on_both};

on_both!(health_answers_and_its_streams_end_on_drain, too_large_messages_are_refused);

/// The full names of the contract's services.
fn every_service() -> Vec<String> {
    let set =
        prost_types::FileDescriptorSet::decode(hawser::grpc::pb::FILE_DESCRIPTOR_SET).expect("the contract");
    let ours = set.file.iter().filter(|file| file.package() == "hawser.v1");
    let services = ours.flat_map(|file| &file.service);
    services.map(|service| format!("hawser.v1.{}", service.name())).collect()
}

async fn health_answers_and_its_streams_end_on_drain(database: Database) {
    let mut world = World::new(database).await;
    let channel = tonic::transport::Endpoint::from_shared(world.server.address()).expect("a URL");
    let mut health = HealthClient::new(channel.connect().await.expect("connected"));
    let check = |service: &str| HealthCheckRequest { service: service.to_owned() };
    let services = every_service();
    assert!(services.len() >= 8 && services.contains(&"hawser.v1.EventService".to_owned()), "{services:?}");
    for service in std::iter::once("").chain(services.iter().map(String::as_str)) {
        let reply = health.check(check(service)).await;
        let reply = reply.unwrap_or_else(|status| panic!("{service:?}: {status}")).into_inner();
        assert_eq!(reply.status(), ServingStatus::Serving, "{service:?}");
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
    // Small on the wire, and too large all the same.
    let endpoint = pb::Endpoint { description: "x".repeat(5 * 1024 * 1024), ..Default::default() };
    let request = pb::CreateEndpointRequest { endpoint: Some(endpoint), ..Default::default() };
    let mut endpoints = world.client.endpoints().send_compressed(Gzip);
    let status = endpoints.create_endpoint(request).await.expect_err("too large");
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    assert_eq!(status.get_error_details().error_info().expect("a reason").reason, "MESSAGE_TOO_LARGE");
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_calls_get_compressed_replies() {
    let (world, receiver) = (World::new(Database::sqlite()).await, Receiver::ok().await);
    let (endpoint, _) = world.endpoint(&receiver.url("/"), "acme").await;
    let encoding = |metadata: &MetadataMap| {
        metadata.get("grpc-encoding").map(|value| value.to_str().expect("ASCII").to_owned())
    };
    let payload = "compressible ".repeat(10_000);
    let request = pb::PublishEventRequest {
        event_type: "test.event".to_owned(),
        target: Some(Target::EndpointId(endpoint.id)),
        payload: payload.clone().into(),
        ..Default::default()
    };
    let plain = world.client.events().publish_event(request.clone()).await.expect("published");
    assert_eq!(encoding(plain.metadata()), None, "who does not take it gets none");
    let mut events = world.client.events().send_compressed(Gzip).accept_compressed(Gzip);
    let reply = events.publish_event(request).await.expect("what is compressed is read");
    assert_eq!(encoding(reply.metadata()).as_deref(), Some("gzip"));
    let seen = receiver.wait_for_count(2).await;
    assert!(seen.iter().all(|one| one.body == payload), "it is delivered as it was before");

    let mut watches = world.client.watches().accept_compressed(Gzip);
    let reply = watches.watch(pb::WatchRequest::default()).await.expect("watching");
    assert_eq!(encoding(reply.metadata()).as_deref(), Some("gzip"));
    let mut stream = reply.into_inner();
    let first = tokio::time::timeout(PATIENCE, stream.message()).await.expect("a message in time");
    assert!(first.expect("the stream goes on").is_some());
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
