//! Names: what a scripted name server answers decides what is dialled.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;

use super::sink::Sink;
use super::{class, detail, policy, post, request, settings};
use crate::dispatch::{DispatchSettings, Dispatcher};
use crate::domain::attempt::ErrorClass;

const A: u8 = 1;
const AAAA: u8 = 28;

/// Starts a name server on loopback. `answer` gives the addresses for each query, an empty list for none, or
/// the name of what goes wrong.
async fn name_server(answer: fn(&str, u8) -> Result<Vec<IpAddr>, Trouble>) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
    let address = socket.local_addr().expect("address");
    tokio::spawn(async move {
        let mut query = [0; 1500];
        while let Ok((_, from)) = socket.recv_from(&mut query).await {
            let (name, end) = question(&query);
            let kind = query[end - 3];
            let (code, found) = match answer(&name, kind) {
                Ok(found) => (0, found),
                Err(Trouble::NoSuchName) => (3, Vec::new()),
                Err(Trouble::ServerFailure) => (2, Vec::new()),
                Err(Trouble::Silence) => continue,
            };
            let mut reply =
                vec![query[0], query[1], 0x81, 0x80 | code, 0, 1, 0, found.len() as u8, 0, 0, 0, 0];
            reply.extend_from_slice(&query[12..end]);
            for address in found {
                let data = match address {
                    IpAddr::V4(v4) => v4.octets().to_vec(),
                    IpAddr::V6(v6) => v6.octets().to_vec(),
                };
                reply.extend_from_slice(&[0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 60, 0, data.len() as u8]);
                reply.extend(data);
            }
            socket.send_to(&reply, from).await.expect("send");
        }
    });
    address
}

enum Trouble {
    NoSuchName,
    ServerFailure,
    Silence,
}

/// The name asked for, and where the question ends.
fn question(query: &[u8]) -> (String, usize) {
    let (mut at, mut labels) = (12, Vec::new());
    while query[at] != 0 {
        let end = at + 1 + usize::from(query[at]);
        labels.push(String::from_utf8_lossy(&query[at + 1..end]).to_lowercase());
        at = end;
    }
    (labels.join("."), at + 5)
}

fn resolving_by(name_server: SocketAddr) -> Dispatcher {
    let settings = DispatchSettings {
        name_servers: vec![name_server],
        addresses: policy(&["127.0.0.0/8"]),
        ..settings()
    };
    Dispatcher::new(settings).expect("dispatcher")
}

fn addresses(texts: &[&str]) -> Result<Vec<IpAddr>, Trouble> {
    Ok(texts.iter().map(|text| text.parse().expect(text)).collect())
}

#[tokio::test]
async fn a_name_is_resolved_dialled_and_timed() {
    let sink = Sink::answering("200 OK", "", b"").await;
    let server = name_server(|name, kind| match (name, kind) {
        ("hooks.example.com", A) => addresses(&["127.0.0.1"]),
        _ => addresses(&[]),
    })
    .await;
    let port = sink.address.port();
    let dispatcher = resolving_by(server);
    let outcome = post(&dispatcher, &format!("http://Hooks.Example.com.:{port}/")).await;
    assert!(outcome.is_success(), "{outcome:?}");
    assert!(outcome.timings.dns_us.is_some() && outcome.timings.connect_us.is_some());
    assert_eq!(outcome.peer, Some(sink.address));
    assert!(sink.requests().concat().contains(&format!("host: hooks.example.com:{port}\r\n")));
    let again = post(&dispatcher, &format!("http://hooks.example.com:{port}/")).await;
    assert_eq!((again.timings.reused, again.timings.dns_us), (true, None));
}

#[tokio::test]
async fn the_next_address_is_tried() {
    let sink = Sink::answering("200 OK", "", b"").await;
    // Nothing listens on the others.
    let server = name_server(|_, kind| match kind {
        A => addresses(&["127.0.0.3", "127.0.0.2", "127.0.0.1"]),
        _ => addresses(&[]),
    })
    .await;
    let outcome =
        post(&resolving_by(server), &format!("http://a.example.com:{}/", sink.address.port())).await;
    assert!(outcome.is_success(), "{outcome:?}");
    assert_eq!(outcome.peer, Some(sink.address));
}

#[tokio::test]
async fn one_bad_answer_refuses_the_attempt() {
    let sink = Sink::answering("200 OK", "", b"").await;
    let server = name_server(|name, kind| match (name.split('.').next(), kind) {
        (Some("metadata"), A) => addresses(&["169.254.169.254"]),
        (Some("zero"), A) => addresses(&["0.0.0.0"]),
        (Some("mixed"), A) => addresses(&["127.0.0.1", "10.0.0.1"]),
        (Some("last"), A) => addresses(&[["127.0.0.1"; 30].as_slice(), &["192.168.0.1"]].concat()),
        (Some("other-family" | "mapped" | "nat64" | "six-to-four"), A) => addresses(&["127.0.0.1"]),
        (Some("other-family"), AAAA) => addresses(&["::1"]),
        (Some("mapped"), AAAA) => addresses(&["::ffff:169.254.169.254"]),
        (Some("nat64"), AAAA) => addresses(&["64:ff9b::a9fe:a9fe"]),
        (Some("six-to-four"), AAAA) => addresses(&["2002:7f00:1::"]),
        _ => addresses(&[]),
    })
    .await;
    let dispatcher = resolving_by(server);
    for name in ["metadata", "zero", "mixed", "last", "other-family", "mapped", "nat64", "six-to-four"] {
        let outcome = post(&dispatcher, &format!("http://{name}.example.com:{}/", sink.address.port())).await;
        assert_eq!(class(&outcome), Some(ErrorClass::BlockedAddress), "{name}: {outcome:?}");
        assert_eq!(detail(&outcome), "target address not allowed");
        assert_eq!((outcome.peer, outcome.timings.connect_us), (None, None));
    }
    assert_eq!(sink.connections(), 0);
}

#[tokio::test]
async fn failures_are_dns_and_bounded() {
    let server = name_server(|name, _| match name.split('.').next() {
        Some("nowhere") => Err(Trouble::NoSuchName),
        Some("broken") => Err(Trouble::ServerFailure),
        Some("silent") => Err(Trouble::Silence),
        _ => addresses(&[]),
    })
    .await;
    let dispatcher = resolving_by(server);
    let cases = [
        ("nowhere", "host name does not exist"),
        ("empty", "host name has no address"),
        ("broken", "DNS failed"),
        ("silent", "no answer from DNS"),
    ];
    for (name, said) in cases {
        let began = Instant::now();
        let outcome = post(&dispatcher, &format!("https://{name}.example.com/")).await;
        assert_eq!(class(&outcome), Some(ErrorClass::Dns), "{name}: {outcome:?}");
        assert!(detail(&outcome).starts_with(said), "{name}: {}", detail(&outcome));
        assert!(began.elapsed() < Duration::from_secs(5), "{name}");
    }
}

#[tokio::test]
async fn one_silent_family_does_not_hide_the_other() {
    let sink = Sink::answering("200 OK", "", b"").await;
    let server = name_server(|_, kind| match kind {
        A => addresses(&["127.0.0.1"]),
        _ => Err(Trouble::Silence),
    })
    .await;
    let outcome =
        post(&resolving_by(server), &format!("http://v4.example.com:{}/", sink.address.port())).await;
    assert!(outcome.is_success(), "{outcome:?}");
}

#[tokio::test]
async fn the_attempts_own_limit_is_a_timeout() {
    let server = name_server(|_, _| Err(Trouble::Silence)).await;
    let outcome =
        resolving_by(server).send(request("https://slow.example.com/", Duration::from_millis(50))).await;
    assert_eq!(class(&outcome), Some(ErrorClass::Timeout));
    assert_eq!(detail(&outcome), "no connection within 0.05 s");
}
