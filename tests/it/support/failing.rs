//! What tests of failing endpoints share: policies, hosts that refuse, and ways to await a state.

use hawser_client::WatchStream;
use hawser_client::pb::{self, watch_response::Change};

use super::world::next;
use super::{Database, Server, World};

/// A world whose server has these arguments beside the usual ones.
pub async fn world_with(database: Database, policy: pb::PausedPolicy, arguments: &[&str]) -> World {
    let usual = ["--allow-http", "--allow-net", "127.0.0.0/8"];
    World::on(Server::start_with(database, &[&usual, arguments].concat()).await, policy).await
}

/// For tests in which no breaker is to open.
pub const NO_BREAKER: [&str; 2] = ["--breaker-failures", "100000"];

pub fn millis(millis: i64) -> prost_types::Duration {
    let nanos = i32::try_from(millis % 1000 * 1_000_000).expect("small");
    prost_types::Duration { seconds: millis / 1000, nanos }
}

/// The same wait every time.
pub fn linear(wait: i64, max_attempts: i32) -> pb::RetryPolicy {
    let strategy = pb::retry_policy::Strategy::Linear(pb::LinearBackoff { wait: Some(millis(wait)) });
    pb::RetryPolicy { strategy: Some(strategy), max_attempts }
}

pub fn disable(failures: i32, span: i64) -> pb::DisablePolicy {
    pb::DisablePolicy { failures, span: Some(millis(span)), off: false }
}

pub async fn get(world: &World, id: &str) -> pb::Endpoint {
    let request = pb::GetEndpointRequest { endpoint_id: id.to_owned(), ..Default::default() };
    let reply = world.client.endpoints().get_endpoint(request).await.expect("found");
    reply.into_inner().endpoint.expect("an endpoint")
}

/// Reads the stream until an endpoint changes in this way, and returns it.
pub async fn until_endpoint(
    stream: &mut WatchStream,
    id: &str,
    kind: pb::EndpointChangeType,
) -> pb::Endpoint {
    loop {
        if let Some(Change::EndpointChange(change)) = next(stream).await.change {
            let is_kind = change.r#type() == kind;
            let endpoint = change.endpoint.expect("an endpoint");
            if endpoint.id == id && is_kind {
                return endpoint;
            }
        }
    }
}

/// Reads the stream until the next attempt of this endpoint.
pub async fn next_attempt(stream: &mut WatchStream, id: &str) -> pb::Attempt {
    loop {
        if let Some(Change::Attempt(attempt)) = next(stream).await.change
            && attempt.endpoint_id == id
        {
            return attempt;
        }
    }
}

/// A place on this host where nothing listens, nor will: the port stays taken, so that no other test's server gets it.
pub fn refusing_address(host: &str) -> std::net::SocketAddr {
    let host: std::net::IpAddr = host.parse().expect("an address");
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind((host, 0).into()).expect("a free port");
    let address = socket.local_addr().expect("bound");
    std::mem::forget(socket);
    address
}

/// The same as an endpoint's URL.
pub fn refusing(host: &str) -> String {
    format!("http://{}/hook", refusing_address(host))
}

/// Reads the stream until each of these events' deliveries was in that status.
pub async fn until_all(stream: &mut WatchStream, events: &[String], status: pb::DeliveryStatus) {
    let mut missing: std::collections::HashSet<&String> = events.iter().collect();
    while !missing.is_empty() {
        if let Some(Change::DeliveryChange(change)) = next(stream).await.change {
            let delivery = change.delivery.expect("a delivery");
            if delivery.status() == status {
                missing.remove(&delivery.event_id);
            }
        }
    }
}

/// The deliveries of an endpoint in these statuses.
pub async fn deliveries_in(
    world: &World,
    endpoint: &str,
    statuses: &[pb::DeliveryStatus],
) -> Vec<pb::Delivery> {
    let request = pb::ListDeliveriesRequest {
        endpoint_id: endpoint.to_owned(),
        statuses: statuses.iter().map(|status| (*status).into()).collect(),
        page_size: 1000,
        ..Default::default()
    };
    world.client.deliveries().list_deliveries(request).await.expect("listed").into_inner().deliveries
}

/// Activates an endpoint, and asks again while its old work is being discarded.
pub async fn activate(world: &World, id: &str) -> pb::Endpoint {
    let request = pb::ActivateEndpointRequest { endpoint_id: id.to_owned(), ..Default::default() };
    loop {
        match world.client.endpoints().activate_endpoint(request.clone()).await {
            Ok(reply) => return reply.into_inner().endpoint.expect("an endpoint"),
            Err(status) => {
                assert_eq!(
                    hawser_client::reason(&status).as_deref(),
                    Some("ENDPOINT_DISCARDING"),
                    "{status}"
                );
            }
        }
    }
}
