//! Who has no key uses up nothing that others need.

use std::time::Duration;

use hawser_client::pb::publish_event_request::Target;
use hawser_client::{Key, pb};
use sqlx::Executor;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::support::feed::eventually;
use crate::support::world::{project, publish};
use crate::support::{Database, Receiver, Reply, World, in_time, on_both};

on_both!(a_connection_has_so_many_streams_that_need_no_key);

/// As many as the server allows a connection.
const KEYLESS: usize = 32;

async fn a_connection_has_so_many_streams_that_need_no_key(database: Database) {
    let world = World::new(database).await;
    let channel = tonic::transport::Endpoint::from_shared(world.server.address()).expect("a URL");
    let mut health = HealthClient::new(channel.connect().await.expect("connected"));
    let mut streams = Vec::new();
    for _ in 0..KEYLESS {
        let mut stream = health.watch(HealthCheckRequest::default()).await.expect("a stream").into_inner();
        stream.message().await.expect("goes on").expect("a message");
        streams.push(stream);
    }
    let refused = health.watch(HealthCheckRequest::default()).await.expect_err("one too many");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    health.check(HealthCheckRequest::default()).await.expect("a check is no stream");
    let mut other = HealthClient::new(channel.connect().await.expect("connected"));
    other.watch(HealthCheckRequest::default()).await.expect("another connection has its own");
    drop(streams.pop());
    let watch = || {
        let mut health = health.clone();
        async move { health.watch(HealthCheckRequest::default()).await }
    };
    eventually("the place is free again", watch).await;
}

/// Their keys are looked for in the database, on connections that the engine needs none of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invented_keys_do_not_keep_the_engine_from_its_database() {
    in_time(async {
        let world = World::new(Database::postgres().await).await;
        let (_, key) = project(&world.operator, pb::PausedPolicy::Discard).await;
        let (id, secret) = key.trim_start_matches("hk_").split_once('_').expect("an id and a secret");
        // Longer than a node goes on that cannot read which routes are in force.
        let receiver = Receiver::scripted(|_, _| Reply::after(Duration::from_millis(300))).await;
        let endpoint = pb::Endpoint { url: receiver.url("/"), max_in_flight: 1, ..Default::default() };
        let (endpoint, _) = world.create(endpoint, &["*"]).await;
        for _ in 0..40 {
            let target = Target::EndpointId(endpoint.id.clone());
            publish(&world.client, target, b"{}", "").await.expect("published");
        }
        let mut holder = world.server.database().session().await;
        holder.execute("BEGIN; LOCK TABLE api_keys IN ACCESS EXCLUSIVE MODE").await.expect("locked");
        let mut strangers = tokio::task::JoinSet::new();
        for number in 10..40 {
            let key = format!("hk_{}{number}_{secret}", &id[..id.len() - 2]);
            let client = world.client.with_key(&Key::new(key)).expect("a key");
            strangers.spawn(async move {
                loop {
                    let request = pb::ListEndpointsRequest { page_size: 1, ..Default::default() };
                    client.endpoints().list_endpoints(request).await.expect_err("nobody knows the key");
                }
            });
        }
        receiver.wait_for_count(40).await;
        strangers.abort_all();
        holder.execute("COMMIT").await.expect("it still held the keys");
    })
    .await;
}
