//! A URL that the rules refuse is not connected to, though it stands in the database.

use std::net::TcpListener;

use hawser_client::pb;

use crate::support::failing::{get, next_attempt};
use crate::support::world::quick_retries;
use crate::support::{Database, Receiver, Server, World, on_both};

on_both!(a_forced_url_is_blocked);

async fn a_forced_url_is_blocked(database: Database) {
    let server = Server::start_with(database, &["--allow-http", "--allow-net", "127.0.0.1/32"]).await;
    let mut world = World::on(server, pb::PausedPolicy::Discard).await;
    let receiver = Receiver::ok().await;
    let traps = ["127.0.0.1:0", "127.0.0.2:0"].map(|place| TcpListener::bind(place).expect("a free port"));
    let [allowed, other] = traps.each_ref().map(|trap| trap.local_addr().expect("bound").port());
    // Not allowed; with a user; written so that others might read it otherwise; no HTTP at all.
    let forced = [
        format!("http://127.0.0.2:{other}/"),
        format!("http://user@127.0.0.1:{allowed}/"),
        format!("http://127.1:{allowed}/"),
        format!("ftp://127.0.0.1:{allowed}/"),
    ];
    let mut made = Vec::new();
    for number in 0..forced.len() {
        let endpoint = pb::Endpoint {
            uid: number.to_string(),
            url: receiver.url("/"),
            retry_policy: Some(quick_retries(1)),
            ..Default::default()
        };
        made.push(world.create(endpoint, &["*"]).await.0);
    }
    world.server.terminate().await;
    let mut session = world.server.sql().await;
    for (number, url) in forced.iter().enumerate() {
        session.run(&format!("UPDATE endpoints SET url = '{url}' WHERE uid = '{number}'")).await;
    }
    drop(session);
    world.restart().await;
    let mut watch = world.watch().await;
    for (endpoint, url) in made.iter().zip(&forced) {
        assert_eq!(get(&world, &endpoint.id).await.url, *url);
        world.publish_to(endpoint, b"{}").await;
        let attempt = next_attempt(&mut watch, &endpoint.id).await;
        assert_eq!(attempt.error_class(), pb::ErrorClass::BlockedAddress, "{url}: {attempt:?}");
        assert_eq!(attempt.peer_address, "");
    }
    for trap in traps {
        trap.set_nonblocking(true).expect("set");
        let error = trap.accept().expect_err("nobody came");
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    }
    assert!(receiver.seen().is_empty());
}
