//! What bounds calls and connections: deadlines, places, ages, first words.

use hawser_client::pb;
use hawser_client::pb::publish_event_request::Target;
use sqlx::{Connection, Executor};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tonic::Code;
use tonic_types::StatusExt;

use crate::support::feed::eventually;
use crate::support::web;
use crate::support::world::{next, publish};
use crate::support::{Database, PATIENCE, Receiver, Server, World, on_both};

on_both!(timeouts_that_do_not_parse_are_refused, a_project_has_no_more_pending_than_it_may);

async fn timeouts_that_do_not_parse_are_refused(database: Database) {
    let world = World::new(database).await;
    let list = pb::ListEndpointsRequest::default();
    for (timeout, code) in [("10S", 0), ("5x", 3), ("", 3), ("123456789S", 3)] {
        let headers = [("grpc-timeout", timeout)];
        let method = "EndpointService/ListEndpoints";
        let mut answer = web::call(world.server.authority(), method, &list, Some(&world.key), &headers).await;
        assert_eq!(answer.grpc_status().await, code, "{timeout:?}");
    }
}

async fn a_project_has_no_more_pending_than_it_may(database: Database) {
    let arguments = ["--allow-http", "--allow-net", "127.0.0.0/8", "--pending-max", "3"];
    let server = Server::start_with(database, &arguments).await;
    let world = World::on(server, pb::PausedPolicy::Hold).await;
    let receiver = Receiver::ok().await;
    let (endpoint, _) = world.endpoint(&receiver.url("/hook"), "acme").await;
    let request = pb::PauseEndpointRequest { endpoint_id: endpoint.id.clone(), ..Default::default() };
    world.client.endpoints().pause_endpoint(request).await.expect("paused");
    for _ in 0..3 {
        world.publish_to(&endpoint, b"{}").await;
    }
    let target = Target::EndpointId(endpoint.id.clone());
    let refused = publish(&world.client, target, b"{}", "").await.expect_err("as many as it may");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let details = refused.get_error_details();
    assert_eq!(details.error_info().expect("a reason").reason, "PENDING_DELIVERIES");
    assert_eq!(details.quota_failure().expect("details").violations[0].subject, world.project);
    // Nothing is made of an event that nobody gets.
    world.publish(Target::OwnerId("nobody".to_owned()), b"{}").await;
}

/// A server on PostgreSQL where an endpoint's subscriptions cannot be changed while the returned session holds
/// the project's row.
async fn blocked(arguments: &[&str]) -> (World, pb::Endpoint, sqlx::PgConnection, Receiver) {
    let arguments = [&["--allow-http", "--allow-net", "127.0.0.0/8"], arguments].concat();
    let server = Server::start_with(Database::postgres().await, &arguments).await;
    let world = World::on(server, pb::PausedPolicy::Discard).await;
    let receiver = Receiver::ok().await;
    let (endpoint, _) = world.endpoint(&receiver.url("/"), "acme").await;
    let mut session = world.server.database().session().await;
    session.execute("BEGIN").await.expect("begun");
    session.execute("SELECT 1 FROM projects FOR UPDATE").await.expect("locked");
    (world, endpoint, session, receiver)
}

fn subscribe(endpoint: &pb::Endpoint) -> pb::CreateSubscriptionRequest {
    let subscription = pb::Subscription {
        endpoint_id: endpoint.id.clone(),
        event_types: vec!["blocked.*".to_owned()],
        ..Default::default()
    };
    pb::CreateSubscriptionRequest { subscription: Some(subscription), ..Default::default() }
}

async fn subscriptions(world: &World) -> usize {
    let request = pb::ListSubscriptionsRequest::default();
    let mut client = world.client.subscriptions();
    client.list_subscriptions(request).await.expect("listed").into_inner().subscriptions.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_cut_leaves_nothing_half_done() {
    let (world, endpoint, mut session, _receiver) = blocked(&["--request-timeout", "4"]).await;
    let (at, method) = (world.server.authority(), "SubscriptionService/CreateSubscription");
    let before = subscriptions(&world).await;
    for headers in [&[("grpc-timeout", "200m")][..], &[("grpc-timeout", "1H")], &[]] {
        let mut answer = web::call(at, method, &subscribe(&endpoint), Some(&world.key), headers).await;
        assert_eq!(answer.grpc_status().await, 4, "{headers:?}");
    }
    session.execute("COMMIT").await.expect("let go");
    // Whoever comes now waits behind what the cut calls may have left.
    let request = subscribe(&endpoint);
    world.client.subscriptions().create_subscription(request).await.expect("created");
    assert_eq!(subscriptions(&world).await, before + 1);
    session.close().await.expect("closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_beyond_the_limit_are_refused_at_once() {
    let (world, endpoint, mut session, _receiver) = blocked(&["--calls-max", "1"]).await;
    let (mut first, mut second) = (world.client.subscriptions(), world.client.subscriptions());
    let holding = tokio::spawn(async move {
        loop {
            // A list below may have the only place just then.
            match first.create_subscription(subscribe(&endpoint)).await {
                Err(status) if status.code() == Code::ResourceExhausted => {}
                ended => return ended,
            }
        }
    });
    // Lists succeed until the call above has the only place.
    let refused = async {
        loop {
            if let Err(status) = second.list_subscriptions(pb::ListSubscriptionsRequest::default()).await {
                return status;
            }
        }
    };
    let refused = tokio::time::timeout(PATIENCE, refused).await.expect("refused");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    let details = refused.get_error_details();
    assert_eq!(details.error_info().expect("a reason").reason, "OVERLOADED");
    assert!(details.retry_info().is_some_and(|retry| retry.retry_delay.is_some()));
    // Health has a place of its own, and streams are not counted.
    assert_eq!(web::get(world.server.admin(), "/healthz").await.0, 200);
    let watch = pb::WatchRequest::default();
    let at = world.server.authority();
    let mut stream = web::call(at, "WatchService/Watch", &watch, Some(&world.key), &[]).await;
    let _bookmark: pb::WatchResponse = stream.message().await;
    session.execute("COMMIT").await.expect("let go");
    holding.await.expect("joined").expect("created");
    second.list_subscriptions(pb::ListSubscriptionsRequest::default()).await.expect("room again");
}

/// Reads until the other side closes.
async fn closed(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    // A reset is an end as well.
    let _end = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("closed in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_limit_are_closed() {
    let server = Server::start_with(Database::sqlite(), &["--connections-max", "2"]).await;
    let at = server.authority();
    let first = TcpStream::connect(at).await.expect("connected");
    let second = TcpStream::connect(at).await.expect("connected");
    let mut third = TcpStream::connect(at).await.expect("accepted by the kernel");
    closed(&mut third).await;
    let (_, metrics) = web::get(server.admin(), "/metrics").await;
    assert!(metrics.contains("hawser_connections_refused_total 1"), "{metrics}");
    drop((first, second));
    // Their places come free.
    let list = pb::ListEndpointsRequest::default();
    let free = async {
        loop {
            let (_, metrics) = web::get(server.admin(), "/metrics").await;
            if metrics.contains("hawser_connections 0") {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, free).await.expect("free");
    let mut answer = web::call(at, "EndpointService/ListEndpoints", &list, None, &[]).await;
    assert_eq!(answer.grpc_status().await, 16);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_says_nothing_is_closed() {
    let server = Server::start(Database::sqlite()).await;
    let mut silent = TcpStream::connect(server.authority()).await.expect("connected");
    closed(&mut silent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_end_with_their_aged_connection_and_go_on_by_another() {
    let arguments = ["--allow-http", "--allow-net", "127.0.0.0/8", "--connection-age", "1"];
    let server = Server::start_with(Database::sqlite(), &arguments).await;
    let (world, receiver) = (World::on(server, pb::PausedPolicy::Discard).await, Receiver::ok().await);
    let watch = pb::WatchRequest::default();
    let at = world.server.authority();
    let mut stream = web::call(at, "WatchService/Watch", &watch, Some(&world.key), &[]).await;
    assert_eq!(stream.grpc_status().await, 14);
    // Our client resumes by itself. A call that meets the very end of a connection is cut with it, and made again.
    let made = eventually("an endpoint", || {
        let endpoint = pb::Endpoint { url: receiver.url("/"), ..Default::default() };
        let request = pb::CreateEndpointRequest { endpoint: Some(endpoint), ..Default::default() };
        let mut endpoints = world.client.endpoints();
        async move { endpoints.create_endpoint(request).await }
    });
    let endpoint = made.await.into_inner().endpoint.expect("an endpoint").id;
    let watching = || world.client.watch(pb::WatchRequest::default());
    let mut changes = eventually("watching", watching).await;
    next(&mut changes).await;
    for round in 0..3 {
        let mut stream = web::call(at, "WatchService/Watch", &watch, Some(&world.key), &[]).await;
        assert_eq!(stream.grpc_status().await, 14, "round {round}");
        let (target, key) = (Target::EndpointId(endpoint.clone()), format!("round {round}"));
        let publishing = || publish(&world.client, target.clone(), b"{}", &key);
        let event = eventually("published", publishing).await.event_id;
        crate::support::world::until(&mut changes, &event, pb::DeliveryStatus::Success).await;
    }
}
