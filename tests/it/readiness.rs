//! Readiness follows the database: away for some seconds is NOT_SERVING, for health, `/healthz` and the command.

use std::process::Stdio;

use tokio::process::Command;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::support::{Database, PATIENCE, World, web};

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_its_database_is_not_serving() {
    let world = World::new(Database::postgres().await).await;
    let channel = tonic::transport::Endpoint::from_shared(world.server.address()).expect("a URL");
    let mut health = HealthClient::new(channel.connect().await.expect("connected"));
    let request = HealthCheckRequest { service: "hawser.v1.EventService".to_owned() };
    let mut stream = health.watch(request).await.expect("a stream").into_inner();
    let mut next = async |expected: ServingStatus| {
        let message = tokio::time::timeout(PATIENCE, stream.message()).await.expect("in time");
        assert_eq!(message.expect("goes on").expect("a message").status(), expected);
    };
    next(ServingStatus::Serving).await;
    assert_eq!(web::get(world.server.admin(), "/healthz").await.0, 200);

    world.server.database().set_reachable(false).await;
    next(ServingStatus::NotServing).await;
    assert_eq!(web::get(world.server.admin(), "/healthz").await.0, 503);
    let mut command = Command::new(env!("CARGO_BIN_EXE_hawser"));
    command.args(["health", "--addr", &world.server.address()]).env_clear().stdin(Stdio::null());
    assert_eq!(command.output().await.expect("started").status.code(), Some(3));

    world.server.database().set_reachable(true).await;
    next(ServingStatus::Serving).await;
    assert_eq!(web::get(world.server.admin(), "/healthz").await.0, 200);
}
