//! The server never connects to itself or to its database, though loopback is allowed: neither for deliveries and pings
//! nor for token requests and alerts.

use hawser_client::{pb, reason};

use crate::egress::{UNREACHABLE, create, deliveries_are_blocked};
use crate::oauth2::{oauth2, shared};
use crate::support::names::NameServer;
use crate::support::told::{all_sent, set_webhook};
use crate::support::{Database, Receiver, Server, World, on_both};

on_both!(own_listeners_and_the_database_are_never_dialled);

async fn own_listeners_and_the_database_are_never_dialled(database: Database) {
    let stored_at = database.url().map(|url| {
        let authority = url.split("//").nth(1).and_then(|rest| rest.split('/').next()).expect("a URL");
        authority.rsplit('@').next().expect("a place").to_owned()
    });
    let name = "own.example.com";
    let names = NameServer::start([(name.to_owned(), vec!["127.0.0.1".parse().expect("one")])].into()).await;
    let name_server = names.address.to_string();
    let server = Server::start_pinging(
        database,
        &[
            &["--allow-http", "--allow-net", "127.0.0.0/8", "--nameserver", &name_server][..],
            &["--admin-listen", "0.0.0.0:0", "--alert-attempts", "1"],
        ]
        .concat(),
    )
    .await;
    let world = World::on(server, pb::PausedPolicy::Discard).await;
    let port = |place: &str| place.rsplit(':').next().expect("a port").to_owned();
    let (grpc, admin) = (port(world.server.authority()), port(world.server.admin()));
    let mut places = vec![
        world.server.authority().to_owned(),
        world.server.portal().to_owned(),
        format!("{name}:{grpc}"),
        // It listens on all addresses.
        format!("127.0.0.1:{admin}"),
        format!("127.0.0.2:{admin}"),
    ];
    places.extend(stored_at);

    let receiver = Receiver::ok().await;
    let mut made = Vec::new();
    for place in &places {
        let url = format!("http://{place}/");
        let status = create(&world, url.clone(), None, false).await.expect_err("pinged");
        assert_eq!(reason(&status).as_deref(), Some("PING_FAILED"), "{status}");
        assert!(status.message().contains(UNREACHABLE), "{place}: {status}");
        let endpoint = create(&world, url.clone(), None, true).await.expect("skipped");
        made.push((endpoint, pb::ErrorClass::BlockedAddress));

        let subject = pb::test_o_auth2_request::Subject::Oauth2(oauth2(url.clone(), shared("secret", false)));
        let request = pb::TestOAuth2Request { project_id: world.project.clone(), subject: Some(subject) };
        let test = world.operator.endpoints().test_o_auth2(request).await.expect("tested").into_inner();
        assert_eq!((test.granted, test.error_class()), (false, pb::ErrorClass::Dns), "{place}: {test:?}");
        let endpoint = create(&world, receiver.url("/"), Some(url.clone()), true).await.expect("skipped");
        made.push((endpoint, pb::ErrorClass::Auth));
    }
    deliveries_are_blocked(&world, made).await;
    assert!(receiver.seen().is_empty());

    for place in &places {
        set_webhook(&world, &format!("http://{place}/"), &["endpoint.created"]).await;
        create(&world, receiver.url("/"), None, true).await.expect("skipped");
    }
    let mut session = world.server.sql().await;
    assert_eq!(all_sent(&world).await, places.len() as i64);
    let blocked =
        "SELECT COUNT(*) FROM alerts WHERE status = 3 AND last_error = 'target address not allowed'";
    assert_eq!(session.numbers(blocked).await, [places.len() as i64]);

    // Another port of the same address is reached.
    create(&world, receiver.url("/"), None, false).await.expect("pinged");
    assert_eq!(receiver.seen().len(), 1);
    assert!(world.server.log().contains("a listener of ours, or our database"));
}
