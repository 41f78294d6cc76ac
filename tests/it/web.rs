//! gRPC-Web on the gRPC port: calls, streams, refusals, and which pages may read them.

use bytes::Bytes;
use hawser_client::pb;
use http::Request;
use http_body_util::Full;

use crate::support::web::{self, Frame};
use crate::support::{Database, Receiver, Server, World, on_both};

on_both!(a_browser_calls_and_watches);

async fn a_browser_calls_and_watches(database: Database) {
    let (world, receiver) = (World::new(database).await, Receiver::ok().await);
    let at = world.server.authority();
    let (endpoint, _) = world.endpoint(&receiver.url("/web"), "acme").await;

    let list = pb::ListEndpointsRequest::default();
    let mut answer = web::call(at, "EndpointService/ListEndpoints", &list, Some(&world.key), &[]).await;
    assert_eq!(answer.header("content-type"), "application/grpc-web+proto");
    let reply: pb::ListEndpointsResponse = answer.message().await;
    assert_eq!(reply.endpoints.len(), 1);
    assert_eq!(answer.grpc_status().await, 0);

    let watch = pb::WatchRequest::default();
    let mut stream = web::call(at, "WatchService/Watch", &watch, Some(&world.key), &[]).await;
    let first: pb::WatchResponse = stream.message().await;
    assert!(matches!(first.change, Some(pb::watch_response::Change::Bookmark(_))), "{first:?}");
    let event = world.publish_to(&endpoint, b"{}").await.event_id;
    loop {
        let change: pb::WatchResponse = stream.message().await;
        if let Some(pb::watch_response::Change::DeliveryChange(change)) = change.change {
            assert_eq!(change.delivery.expect("a delivery").event_id, event);
            break;
        }
    }
    drop(stream);

    // Refusals are gRPC-Web too: by authentication, by validation, by a method that is not there.
    for (method, key, code) in [
        ("EndpointService/ListEndpoints", None, 16),
        ("EndpointService/ListEndpoints", Some("hk_nonsense"), 16),
        ("WatchService/Watch", None, 16),
        ("EndpointService/Nothing", Some(world.key.as_str()), 12),
    ] {
        let mut answer = web::call(at, method, &list, key, &[]).await;
        assert_eq!(answer.status, 200, "{method}");
        assert_eq!(answer.header("content-type"), "application/grpc-web+proto", "{method}");
        assert_eq!(answer.grpc_status().await, code, "{method}");
    }
    let bad = pb::GetEndpointRequest { endpoint_id: "nonsense".to_owned(), ..Default::default() };
    let mut answer = web::call(at, "EndpointService/GetEndpoint", &bad, Some(&world.key), &[]).await;
    assert!(!answer.header("grpc-status-details-bin").is_empty(), "{:?}", answer.headers);
    assert_eq!(answer.grpc_status().await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_pages_of_configured_origins_may_read() {
    let own = "https://app.example.com";
    let server = Server::start_with(Database::sqlite(), &["--web-origin", own]).await;
    let at = server.authority();
    let preflight = async |origin: &str| {
        let request = Request::options("/hawser.v1.EndpointService/ListEndpoints")
            .header("host", at)
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,content-type,x-grpc-web,grpc-timeout");
        web::send(at, request.body(Full::<Bytes>::default()).expect("a request")).await
    };
    let answer = preflight(own).await;
    assert!(answer.status.is_success());
    assert_eq!(answer.header("access-control-allow-origin"), own);
    for name in ["authorization", "content-type", "x-grpc-web", "grpc-timeout"] {
        assert!(answer.header("access-control-allow-headers").contains(name), "{:?}", answer.headers);
    }
    for other in ["https://evil.example.com", "http://app.example.com", "https://app.example.com:444", "null"]
    {
        assert_eq!(preflight(other).await.header("access-control-allow-origin"), "", "{other}");
    }

    let list = pb::ListEndpointsRequest::default();
    let (method, evil) = ("EndpointService/ListEndpoints", "https://evil.example.com");
    let answer = web::call(at, method, &list, None, &[("origin", own)]).await;
    assert_eq!(answer.header("access-control-allow-origin"), own);
    for name in ["grpc-status", "grpc-message", "grpc-status-details-bin"] {
        assert!(answer.header("access-control-expose-headers").contains(name), "{:?}", answer.headers);
    }
    let answer = web::call(at, method, &list, None, &[("origin", evil)]).await;
    assert_eq!(answer.header("access-control-allow-origin"), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_with_its_last_frame_whole() {
    let world = World::new(Database::sqlite()).await;
    let watch = pb::WatchRequest::default();
    let headers = [("grpc-timeout", "3S")];
    let at = world.server.authority();
    let mut stream = web::call(at, "WatchService/Watch", &watch, Some(&world.key), &headers).await;
    let mut frames = Vec::new();
    while let Some(frame) = stream.frame().await {
        frames.push(frame);
    }
    let last = frames.pop().expect("trailers");
    let Frame::Trailers(text) = last else { panic!("{last:?}") };
    assert!(text.contains("grpc-status:4") || text.contains("grpc-status: 4"), "{text}");
    assert!(frames.iter().all(|frame| matches!(frame, Frame::Message(_))), "{frames:?}");
}
