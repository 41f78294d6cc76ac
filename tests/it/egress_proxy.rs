//! Through an egress proxy: everything goes through it, to addresses that were checked here, and nowhere else.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use hawser_client::pb;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

use crate::oauth2::{endpoint, oauth2, shared};
use crate::support::pki::Authority;
use crate::support::token_server::reply;
use crate::support::world::quick_retries;
use crate::support::{Database, Receiver, Reply, Server, World, on_both};

on_both!(
    everything_goes_through_the_proxy_to_checked_addresses,
    the_proxy_is_told_user_and_password_and_nobody_else,
);

/// A CONNECT proxy that notes what it is asked for.
pub struct Proxy {
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    _accepting: AbortOnDropHandle<()>,
}

/// What a request is refused with, by its `proxy-authorization`, if it is.
type Judge = dyn Fn(&str) -> Option<u16> + Send + Sync;

impl Proxy {
    /// Refuses with this status, if there is one.
    async fn start(refusing: Option<u16>) -> Self {
        Self::judging(move |_| refusing).await
    }

    /// Refuses with the status that it gives for the request's `proxy-authorization`, if any.
    pub async fn judging(refusing: impl Fn(&str) -> Option<u16> + Send + Sync + 'static) -> Self {
        let refusing = Arc::new(refusing);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let noted = asked.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, noted.clone(), refusing.clone()));
            }
        });
        Self { address, asked, _accepting: AbortOnDropHandle::new(accepting) }
    }

    /// The targets so far.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("unpoisoned").clone()
    }
}

async fn serve(stream: TcpStream, asked: Arc<Mutex<Vec<String>>>, refusing: Arc<Judge>) {
    let mut stream = BufReader::new(stream);
    let (mut first, mut line, mut authorization) = (String::new(), String::new(), String::new());
    stream.read_line(&mut first).await.expect("a request");
    while line != "\r\n" {
        line.clear();
        stream.read_line(&mut line).await.expect("headers");
        if let Some(value) = line.strip_prefix("proxy-authorization: ") {
            value.trim_end().clone_into(&mut authorization);
        }
    }
    let target = first.split(' ').nth(1).expect("a target").to_owned();
    assert!(first.starts_with("CONNECT "), "{first}");
    asked.lock().expect("unpoisoned").push(target.clone());
    if let Some(status) = refusing(&authorization) {
        let _gone = stream.write_all(format!("HTTP/1.1 {status} No\r\n\r\n").as_bytes()).await;
        return;
    }
    let mut onwards = TcpStream::connect(&target).await.expect("the receiver");
    stream.write_all(b"HTTP/1.1 200 OK\r\nx: y\r\n\r\n").await.expect("answered");
    let _ended = copy_bidirectional(&mut stream, &mut onwards).await;
}

async fn everything_goes_through_the_proxy_to_checked_addresses(database: Database) {
    let proxy = Proxy::start(None).await;
    let url = format!("http://{}", proxy.address);
    // The proxy's own address is not among those that may be reached.
    let arguments = ["--allow-http", "--allow-net", "127.0.0.9/32", "--egress-proxy", &url];
    let server = Server::start_with(database, &arguments).await;
    let world = World::on(server, pb::PausedPolicy::Discard).await;
    let grant = reply(200, &json!({ "access_token": "t", "expires_in": 60 }));
    let plain = Receiver::listen("127.0.0.9:0", None, move |_, _| grant.clone()).await;
    let servers = Authority::new("servers");
    let secure = Receiver::listen("127.0.0.9:0", Some(servers.server(None)), |_, _| Reply::status(204)).await;

    let with_token = endpoint(plain.url("/"), oauth2(plain.url("/token"), shared("s", false)));
    let by_tls = pb::Endpoint {
        url: secure.url("/"),
        ca_certificate: servers.pem(),
        retry_policy: Some(quick_retries(1)),
        ..Default::default()
    };
    let authority =
        |receiver: &Receiver| receiver.url("").split("//").nth(1).expect("an authority").to_owned();
    for (wanted, receiver) in [(with_token, &plain), (by_tls, &secure)] {
        let (made, _) = world.create(wanted, &["*"]).await;
        let event = world.publish_to(&made, b"{}").await.event_id;
        let delivery = world.settled_deliveries_of(&event).await.remove(0);
        let attempts = world.attempts_of(&delivery.id).await;
        if receiver.url("").starts_with("http:") {
            assert_eq!(delivery.status(), pb::DeliveryStatus::Success, "{attempts:?}");
            assert_eq!(attempts[0].peer_address, authority(receiver), "who was reached, not the proxy");
        } else {
            // Its certificate is for another address: TLS is verified through the tunnel as without it.
            assert_eq!(attempts[0].error_detail, "certificate is for another host", "{attempts:?}");
        }
    }
    let asked = proxy.asked();
    assert!(asked.contains(&authority(&plain)) && asked.contains(&authority(&secure)), "{asked:?}");
    assert!(asked.iter().all(|target| target.starts_with("127.0.0.9:")), "{asked:?}");
    let paths: Vec<_> = plain.seen().into_iter().map(|seen| seen.path).collect();
    assert_eq!(paths, ["/token", "/"]);

    // A proxy that refuses is a failed connection.
    let refusing = Proxy::start(Some(403)).await;
    let url = format!("http://{}", refusing.address);
    let arguments = ["--allow-http", "--allow-net", "127.0.0.9/32", "--egress-proxy", &url];
    let server = Server::start_with(Database::sqlite(), &arguments).await;
    let world = World::on(server, pb::PausedPolicy::Discard).await;
    let wanted =
        pb::Endpoint { url: plain.url("/"), retry_policy: Some(quick_retries(1)), ..Default::default() };
    let (made, _) = world.create(wanted, &["*"]).await;
    let event = world.publish_to(&made, b"{}").await.event_id;
    let delivery = world.settled_deliveries_of(&event).await.remove(0);
    let attempt = world.attempts_of(&delivery.id).await.remove(0);
    assert_eq!(attempt.error_class(), pb::ErrorClass::Connect);
    assert_eq!(attempt.error_detail, "the egress proxy refused");
    assert_eq!(refusing.asked(), [authority(&plain)]);
}

async fn the_proxy_is_told_user_and_password_and_nobody_else(database: Database) {
    // "me:canary@pass"
    const TOLD: &str = "bWU6Y2FuYXJ5QHBhc3M=";
    let demanded = format!("Basic {TOLD}");
    let proxy = Proxy::judging(move |told| (told != demanded).then_some(407)).await;
    let receiver = Receiver::ok().await;
    let mut logs = Vec::new();
    let mut outcomes = Vec::new();
    for (user, database) in [("me:canary%40pass@", database), ("me:canary@", Database::sqlite())] {
        let url = format!("http://{user}{}", proxy.address);
        let arguments =
            ["--allow-http", "--allow-net", "127.0.0.0/8", "--log", "trace", "--egress-proxy", &url];
        let server = Server::start_with(database, &arguments).await;
        let world = World::on(server, pb::PausedPolicy::Discard).await;
        let wanted = pb::Endpoint {
            url: receiver.url("/"),
            retry_policy: Some(quick_retries(1)),
            ..Default::default()
        };
        let (made, _) = world.create(wanted, &["*"]).await;
        let event = world.publish_to(&made, b"{}").await.event_id;
        let delivery = world.settled_deliveries_of(&event).await.remove(0);
        let attempt = world.attempts_of(&delivery.id).await.remove(0);
        logs.push(format!("{attempt:?} {}", world.server.log()));
        outcomes.push((delivery.status(), attempt.error_detail));
    }
    let refused = "the egress proxy refused".to_owned();
    let expected = [(pb::DeliveryStatus::Success, String::new()), (pb::DeliveryStatus::Failed, refused)];
    assert_eq!(outcomes, expected);
    let [seen] = receiver.seen().try_into().expect("one request");
    assert!(!format!("{seen:?}").contains(TOLD), "it is the proxy's alone: {seen:?}");
    for log in logs {
        assert!(log.contains("TRACE") && !log.contains("canary") && !log.contains(TOLD), "{log}");
    }
}
