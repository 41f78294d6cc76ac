//! Client certificates that end soon are warned of at 30, 7 and 1 days, each once, however many nodes look.

use std::collections::BTreeMap;
use std::time::Duration;

use hawser::domain::clock::Timestamp;
use hawser_client::pb;
use rcgen::{CertificateParams, KeyPair};

use crate::support::mail::Mail;
use crate::support::pki::{Authority, Issued};
use crate::support::told::{Channels, all_sent, counts};
use crate::support::{Database, World, on_both};

on_both!(an_end_is_warned_of_once_at_each_time, one_that_does_not_open_is_looked_at_once);

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

/// Warned of once each, whoever looks: one more endpoint is told only after another look at all of them.
async fn look_again(world: &World, channels: &Channels, authority: &Authority) {
    let before = channels.mail.mails().len();
    world.create(with(channels, &ending(authority, 29 * DAY)), &["*"]).await;
    channels.mail.wait_for_count(before + 1).await;
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
    channels.mail.wait_for_count(1).await;
    look_again(&world, &channels, &authority).await;
    // Thirteen days later the second time has come.
    let later = format!(
        "UPDATE endpoints SET certificate_ends_at = certificate_ends_at - {days}, \
         certificate_warned_of = certificate_warned_of - {days}, certificate_warned_at = certificate_warned_at - {days} \
         WHERE id = (SELECT id FROM endpoints WHERE certificate_warned_of IS NOT NULL ORDER BY id LIMIT 1)",
        days = 13 * DAY * 1000 + 1000
    );
    world.server.sql().await.run(&later).await;
    channels.mail.wait_for_count(3).await;
    look_again(&world, &channels, &authority).await;
    look_again(&world, &channels, &authority).await;
    // To mail, Slack, Teams and the webhook; and the creations.
    assert_eq!(all_sent(&world).await, 5 * 4 + 5);
    for told in &channels.told()[..3] {
        assert_eq!(counts(told), BTreeMap::from([("endpoint.certificate_expiring", 5)]));
    }
    let bodies: Vec<String> = channels.mail.mails().iter().map(Mail::body).collect();
    assert_eq!(bodies.iter().filter(|body| body.contains(&soon.id)).count(), 2, "{bodies:?}");
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
    channels.mail.wait_for_count(6).await;
    drop(nodes);
}

async fn one_that_does_not_open_is_looked_at_once(database: Database) {
    let channels = Channels::open(Duration::ZERO).await;
    let (world, _) = channels.world(database, &[]).await;
    let authority = Authority::new("clients");
    let (whole, _) = world.create(with(&channels, &ending(&authority, 50 * DAY)), &["*"]).await;
    world.create(with(&channels, &ending(&authority, 40 * DAY)), &["*"]).await;
    let mut session = world.server.sql().await;
    // The one that ends first gets what was sealed for the other.
    session
        .run(
            "UPDATE endpoints SET client_certificate_sealed = (SELECT o.client_certificate_sealed FROM endpoints o \
             ORDER BY o.certificate_ends_at DESC LIMIT 1)",
        )
        .await;
    let later =
        format!("UPDATE endpoints SET certificate_ends_at = certificate_ends_at - {}", 30 * DAY * 1000);
    session.run(&later).await;
    let noted = "SELECT COUNT(*) FROM endpoints WHERE certificate_warned_of = certificate_ends_at";
    session.until_numbers(noted, &[2]).await;
    let mails = channels.mail.wait_for_count(1).await;
    assert!(mails[0].body().contains(&whole.id));
    assert_eq!(all_sent(&world).await, 4 + 2);
}
