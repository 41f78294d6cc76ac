//! Client certificates, and endpoints that only their own authority vouches for.

use std::collections::HashSet;

use hawser::domain::clock::Timestamp;
use hawser_client::{field_violations, pb};
use rcgen::{ExtendedKeyUsagePurpose, KeyPair, date_time_ymd};
use tonic::Code;

use crate::support::pki::{Authority, Issued};
use crate::support::receiver::Seen;
use crate::support::world::quick_retries;
use crate::support::{Database, Receiver, Reply, World, on_both};

on_both!(
    a_client_certificate_is_shown_and_replaced,
    authorities_are_trusted_for_their_endpoint_alone,
    an_expired_certificate_fails_without_dialling,
    bad_certificates_are_refused_by_field,
);

fn endpoint(receiver: &Receiver, own: Option<&Issued>, trusted: Option<&Authority>) -> pb::Endpoint {
    pb::Endpoint {
        url: receiver.url("/"),
        mtls_client_cert: own.map(certificate),
        ca_certificate: trusted.map(Authority::pem).unwrap_or_default(),
        retry_policy: Some(quick_retries(2)),
        ..Default::default()
    }
}

fn certificate(issued: &Issued) -> pb::MtlsClientCert {
    pb::MtlsClientCert {
        certificate_chain: issued.chain.clone(),
        private_key: issued.key.clone(),
        ..Default::default()
    }
}

async fn update(world: &World, endpoint: pb::Endpoint, path: &str) -> Result<pb::Endpoint, tonic::Status> {
    let update_mask = Some(prost_types::FieldMask { paths: vec![path.to_owned()] });
    let request = pb::UpdateEndpointRequest { endpoint: Some(endpoint), update_mask, ..Default::default() };
    let reply = world.client.endpoints().update_endpoint(request).await?.into_inner();
    Ok(reply.endpoint.expect("an endpoint"))
}

/// The error class and detail of an event's only delivery's last attempt.
async fn failure(world: &World, endpoint: &pb::Endpoint) -> pb::Attempt {
    let event = world.publish_to(endpoint, b"{}").await.event_id;
    let deliveries = world.settled_deliveries_of(&event).await;
    assert_eq!(deliveries[0].status(), pb::DeliveryStatus::Failed);
    let mut attempts = world.attempts_of(&deliveries[0].id).await;
    assert_eq!(attempts.len(), 2, "it is retried");
    attempts.pop().expect("an attempt")
}

/// Deliveries before the change.
const BEFORE: usize = 8;

async fn a_client_certificate_is_shown_and_replaced(database: Database) {
    let world = World::new(database).await;
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let acceptor = servers.server(Some(&clients));
    let receiver = Receiver::tls(acceptor, |_, _| Reply::status(204)).await;

    let first = clients.client("first");
    let (made, _) = world.create(endpoint(&receiver, Some(&first), Some(&servers)), &["*"]).await;
    let shown = made.mtls_client_cert.clone().expect("shown");
    assert_eq!((shown.subject.as_str(), shown.issuer.as_str()), ("CN=first", "CN=clients"));
    assert_eq!((shown.certificate_chain.as_str(), shown.private_key.as_str()), ("", ""));
    assert_eq!(shown.sha256_fingerprint.len(), 64);
    assert!(shown.not_after_time.is_some());

    // A connection is free again a moment after the answer: the next delivery may be faster, but not each time.
    for _ in 0..BEFORE {
        let event = world.publish_to(&made, b"{}").await.event_id;
        world.settled_deliveries_of(&event).await;
    }
    // As it was read, it is kept.
    let again = update(&world, made.clone(), "*").await.expect("updated");
    assert_eq!(again.mtls_client_cert, Some(shown));

    let second =
        clients.issue("second", &KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key"), |_| {});
    let changed = pb::Endpoint {
        id: made.id.clone(),
        mtls_client_cert: Some(certificate(&second)),
        ..Default::default()
    };
    update(&world, changed, "mtls_client_cert").await.expect("updated");
    world.publish_to(&made, b"{}").await;
    let seen = receiver.wait_for_count(BEFORE + 1).await;
    let certificate = |one: &Seen| one.certificate.clone().expect("shown");
    assert!(seen[..BEFORE].iter().all(|one| certificate(one) == first.der));
    assert_eq!(certificate(&seen[BEFORE]), second.der);
    let connections: HashSet<usize> = seen[..BEFORE].iter().map(|one| one.connection).collect();
    assert!(connections.len() < BEFORE, "connections are kept");
    assert!(!connections.contains(&seen[BEFORE].connection), "and not beyond a change");

    // Without one, the receiver ends the handshake; in TLS 1.3 after the client's part of it, so that the end of the
    // connection may come before the alert that says why.
    let none = pb::Endpoint { id: made.id.clone(), ..Default::default() };
    let none = update(&world, none, "mtls_client_cert").await.expect("updated");
    assert_eq!(none.mtls_client_cert, None);
    let class = failure(&world, &none).await.error_class();
    assert!(matches!(class, pb::ErrorClass::Tls | pb::ErrorClass::Reset), "{class:?}");
    assert_eq!(receiver.seen().len(), BEFORE + 1);
}

async fn authorities_are_trusted_for_their_endpoint_alone(database: Database) {
    let world = World::new(database).await;
    let (ours, others) = (Authority::new("ours"), Authority::new("others"));
    let receiver = Receiver::tls(ours.server(None), |_, _| Reply::status(204)).await;
    let (made, _) = world.create(endpoint(&receiver, None, Some(&ours)), &["*"]).await;
    assert_eq!(made.ca_certificate, ours.pem());
    world.publish_to(&made, b"{}").await;
    receiver.wait_for_count(1).await;

    for trusted in [None, Some(&others)] {
        let (stranger, _) = world.create(endpoint(&receiver, None, trusted), &["*"]).await;
        let attempt = failure(&world, &stranger).await;
        assert_eq!(attempt.error_class(), pb::ErrorClass::Tls);
        assert_eq!(attempt.error_detail, "certificate is not issued by a trusted authority");
    }
    assert_eq!(receiver.seen().len(), 1);
}

async fn an_expired_certificate_fails_without_dialling(database: Database) {
    let world = World::new(database).await;
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let connections = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let counted = connections.clone();
    let accepting = tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        }
    });
    // One that ends in a moment can be set, and has ended when its turn comes.
    let soon = Timestamp::from_millis((Timestamp::now().as_secs() + 8) * 1000);
    let ends = time::OffsetDateTime::from_unix_timestamp(soon.as_secs()).expect("a time");
    let brief =
        clients.issue("brief", &KeyPair::generate().expect("a key"), |params| params.not_after = ends);
    let wanted = pb::Endpoint {
        url: format!("https://{address}/"),
        mtls_client_cert: Some(certificate(&brief)),
        ca_certificate: servers.pem(),
        retry_policy: Some(quick_retries(2)),
        ..Default::default()
    };
    let (made, _) = world.create(wanted, &["*"]).await;
    crate::support::pass_time(soon.since(Timestamp::now())).await;
    let attempt = failure(&world, &made).await;
    assert_eq!(attempt.error_class(), pb::ErrorClass::Certificate);
    assert_eq!(attempt.error_detail, "the client certificate has expired");
    assert_eq!(attempt.peer_address, "");
    assert_eq!(connections.load(std::sync::atomic::Ordering::SeqCst), 0);
    // Other settings can be changed all the same.
    let renamed = pb::Endpoint { id: made.id.clone(), name: "renamed".to_owned(), ..Default::default() };
    update(&world, renamed, "name").await.expect("updated");
    accepting.abort();
}

async fn bad_certificates_are_refused_by_field(database: Database) {
    let world = World::new(database).await;
    let clients = Authority::new("clients");
    let key = || KeyPair::generate().expect("a key");
    let (good, other) = (clients.client("good"), clients.client("other"));
    let expired = clients.issue("old", &key(), |params| params.not_after = date_time_ymd(2001, 1, 1));
    let future = clients.issue("new", &key(), |params| params.not_before = date_time_ymd(4000, 1, 1));
    let server = clients.issue("server", &key(), |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    let odd_curve =
        clients.issue("p521", &KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).expect("a key"), |_| {});
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let (chain, private) =
        ("endpoint.mtls_client_cert.certificate_chain", "endpoint.mtls_client_cert.private_key");
    for (certificate_chain, private_key, field) in [
        (good.chain.as_str(), other.key.as_str(), private),
        (&good.chain, "", private),
        (&good.chain, "canary", private),
        (&good.chain, encrypted, private),
        (&good.chain, &good.chain, private),
        ("", &good.key, chain),
        ("", "", chain),
        ("canary", &good.key, chain),
        (&format!("{}{}", good.chain, good.key), &good.key, chain),
        (&good.chain.repeat(11), &good.key, chain),
        (&good.chain.repeat(200), &good.key, chain),
        (&expired.chain, &expired.key, chain),
        (&future.chain, &future.key, chain),
        (&server.chain, &server.key, chain),
        (&odd_curve.chain, &odd_curve.key, chain),
    ] {
        let own = pb::MtlsClientCert {
            certificate_chain: certificate_chain.to_owned(),
            private_key: private_key.to_owned(),
            ..Default::default()
        };
        let wanted = pb::Endpoint { mtls_client_cert: Some(own), ..a_public_one() };
        refused(&world, wanted, field).await;
    }
    let cut = good.chain.replace("MII", "MIJ");
    for pem in [good.chain.as_str(), &clients.client("x").key, "canary", &clients.pem().repeat(11), &cut] {
        refused(
            &world,
            pb::Endpoint { ca_certificate: pem.to_owned(), ..a_public_one() },
            "endpoint.ca_certificate",
        )
        .await;
    }
}

fn a_public_one() -> pb::Endpoint {
    pb::Endpoint { url: "https://example.com/".to_owned(), ..Default::default() }
}

/// The field is named, and nothing of what was given is said.
async fn refused(world: &World, endpoint: pb::Endpoint, field: &str) {
    let request = pb::CreateEndpointRequest { endpoint: Some(endpoint), ..Default::default() };
    let status = world.client.endpoints().create_endpoint(request).await.expect_err(field);
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert_eq!(field_violations(&status)[0].field, field, "{status}");
    assert!(!format!("{status:?}").contains("canary"), "{status:?}");
}
