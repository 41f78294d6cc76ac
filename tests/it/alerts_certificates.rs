//! Client certificates that end soon are warned of at 30, 7 and 1 days, each once, however many nodes look.

use std::collections::BTreeMap;
use std::time::Duration;

use hawser::domain::clock::Timestamp;
use hawser_client::pb;
use rcgen::{CertificateParams, KeyPair};

use crate::support::mail::Mail;
use crate::support::pki::{Authority, Issued};
use crate::support::told::{Channels, all_sent, counts};
use crate::support::{Database, on_both, pass_time};

on_both!(an_end_is_warned_of_once_at_each_time);

const DAY: i64 = 24 * 3600;

/// A certificate that ends so many seconds from now.
fn ending(authority: &Authority, seconds: i64) -> Issued {
    let key = KeyPair::generate().expect("a key");
    let change = |params: &mut CertificateParams| {
        let end = Timestamp::now().as_secs() + seconds;
        params.not_after = time::OffsetDateTime::from_unix_timestamp(end).expect("a time");
    };
    authority.issue("client", &key, change)
}

fn with(channels: &Channels, own: &Issued) -> pb::Endpoint {
    pb::Endpoint {
        url: "https://example.com/hook".to_owned(),
        mtls_client_cert: Some(pb::MtlsClientCert {
            certificate_chain: own.chain.clone(),
            private_key: own.key.clone(),
            ..Default::default()
        }),
        alerts: Some(pb::Alerts {
            on: vec!["endpoint.certificate_expiring".to_owned()],
            ..channels.alerts()
        }),
        ..Default::default()
    }
}

async fn an_end_is_warned_of_once_at_each_time(database: Database) {
    let is_shared = database.url().is_some();
    let channels = Channels::open(Duration::ZERO).await;
    let (world, _) = channels.world(database, &[]).await;
    let mut nodes = Vec::new();
    if is_shared {
        nodes.extend([world.server.join().await, world.server.join().await]);
    }
    let authority = Authority::new("clients");
    let (soon, _) = world.create(with(&channels, &ending(&authority, 20 * DAY)), &["*"]).await;
    world.create(with(&channels, &ending(&authority, 40 * DAY)), &["*"]).await;
    // It is past the first time already; the second one comes in a moment.
    world.create(with(&channels, &ending(&authority, 7 * DAY + 12)), &["*"]).await;
    channels.mail.wait_for_count(3).await;
    // So that whoever would warn once more has looked.
    let rounds = Duration::from_secs(11);
    pass_time(rounds).await;
    assert_eq!(all_sent(&world).await, 3 * 4 + 3);
    for told in &channels.told()[..3] {
        assert_eq!(counts(told), BTreeMap::from([("endpoint.certificate_expiring", 3)]));
    }
    let bodies: Vec<String> = channels.mail.mails().iter().map(Mail::body).collect();
    assert_eq!(bodies.iter().filter(|body| body.contains(&soon.id)).count(), 1, "{bodies:?}");
    assert!(bodies.iter().all(|body| body.contains("(CN=client) ends at ")), "{bodies:?}");

    // Another certificate has an end of its own.
    let renewed = with(&channels, &ending(&authority, 25 * DAY));
    let change = pb::Endpoint {
        id: soon.id.clone(),
        mtls_client_cert: renewed.mtls_client_cert,
        ..Default::default()
    };
    let request = pb::UpdateEndpointRequest { endpoint: Some(change), ..Default::default() };
    world.client.endpoints().update_endpoint(request).await.expect("updated");
    channels.mail.wait_for_count(4).await;
    drop(nodes);
}
