//! Endpoints and subscriptions: creating, reading, changing, deleting.

use hawser_client::{field_violations, pb, reason};
use tonic::Code;

use crate::support::{Database, World, on_both};

on_both!(
    an_endpoint_lives_and_dies,
    forbidden_urls_are_refused_by_field,
    updates_honour_mask_and_etag,
    uids_are_unique_in_a_project,
    subscriptions_are_changed_and_checked,
);

fn url(path: &str) -> String {
    format!("https://hooks.example.com/{path}")
}

async fn get(world: &World, id: &str) -> Result<pb::Endpoint, tonic::Status> {
    let request = pb::GetEndpointRequest { endpoint_id: id.to_owned(), ..Default::default() };
    Ok(world.client.endpoints().get_endpoint(request).await?.into_inner().endpoint.expect("an endpoint"))
}

async fn an_endpoint_lives_and_dies(database: Database) {
    let world = World::new(database).await;
    let wanted = pb::Endpoint {
        uid: "their-id".to_owned(),
        name: "Billing".to_owned(),
        url: "HTTPS://Hooks.Example.COM:443/x".to_owned(),
        description: "what it is".to_owned(),
        owner_id: "acme".to_owned(),
        labels: [("team".to_owned(), "a".to_owned())].into(),
        http_timeout: Some(prost_types::Duration { seconds: 3, nanos: 0 }),
        headers: vec![pb::Header { name: "X-Plain".to_owned(), value: "shown".to_owned() }],
        ..pb::Endpoint::default()
    };
    let (made, secret) = world.create(wanted, &["invoice.*", "refund.created"]).await;
    assert!(secret.starts_with("whsec_"));
    assert_eq!((made.url.as_str(), made.status()), (url("x").as_str(), pb::EndpointStatus::Active));
    assert_eq!(made.headers, [pb::Header { name: "x-plain".to_owned(), value: "shown".to_owned() }]);
    let read = get(&world, &made.id).await.expect("found");
    assert_eq!(read, made);

    let list = pb::ListSubscriptionsRequest { endpoint_id: made.id.clone(), ..Default::default() };
    let listed = world.client.subscriptions().list_subscriptions(list).await.expect("listed").into_inner();
    assert_eq!(listed.subscriptions[0].event_types, ["invoice.*", "refund.created"]);

    let delete = pb::DeleteEndpointRequest { endpoint_id: made.id.clone(), ..Default::default() };
    world.client.endpoints().delete_endpoint(delete.clone()).await.expect("deleted");
    assert_eq!(get(&world, &made.id).await.expect_err("gone").code(), Code::NotFound);
    assert_eq!(
        world.client.endpoints().delete_endpoint(delete).await.expect_err("gone").code(),
        Code::NotFound
    );
}

async fn forbidden_urls_are_refused_by_field(database: Database) {
    let server = crate::support::Server::start_with(database, &[]).await;
    let world = World::on(server, pb::PausedPolicy::Discard).await;
    for url in [
        "",
        "nonsense",
        "ftp://example.com/",
        "http://example.com/",
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://169.254.169.254/",
        "https://localhost/",
        "https://user:pass@example.com/",
        "https://0x7f.1/",
        "https://example.com/#x",
        "https://exa mple.com/",
        "https://example.com:22/",
        "https://10.0.0.1/",
    ] {
        let request = pb::CreateEndpointRequest {
            endpoint: Some(pb::Endpoint { url: url.to_owned(), ..Default::default() }),
            ..Default::default()
        };
        let status = world.client.endpoints().create_endpoint(request).await.expect_err(url);
        assert_eq!(status.code(), Code::InvalidArgument, "{url}: {status}");
        assert_eq!(field_violations(&status)[0].field, "endpoint.url", "{url}");
    }
    let listed =
        world.client.endpoints().list_endpoints(pb::ListEndpointsRequest::default()).await.expect("listed");
    assert!(listed.into_inner().endpoints.is_empty());
}

async fn updates_honour_mask_and_etag(database: Database) {
    let world = World::new(database).await;
    let secret_header = pb::Header { name: "x-api-key".to_owned(), value: "hidden".to_owned() };
    let endpoint = pb::Endpoint {
        url: url("a"),
        name: "before".to_owned(),
        owner_id: "acme".to_owned(),
        headers: vec![secret_header],
        ..Default::default()
    };
    let (made, _) = world.create(endpoint, &["*"]).await;
    let update = |endpoint: pb::Endpoint, paths: &[&str]| {
        let paths = paths.iter().map(|path| (*path).to_owned()).collect();
        let update_mask = Some(prost_types::FieldMask { paths });
        let request =
            pb::UpdateEndpointRequest { endpoint: Some(endpoint), update_mask, ..Default::default() };
        let mut endpoints = world.client.endpoints();
        async move {
            endpoints.update_endpoint(request).await.map(|reply| reply.into_inner().endpoint.expect("one"))
        }
    };
    // Only what the mask names changes; an empty value clears.
    let changed =
        pb::Endpoint { id: made.id.clone(), name: "after".to_owned(), url: url("b"), ..Default::default() };
    let named = update(changed.clone(), &["name", "owner_id"]).await.expect("updated");
    assert_eq!(
        (named.name.as_str(), named.url.as_str(), named.owner_id.as_str()),
        ("after", url("a").as_str(), "")
    );
    assert_ne!(named.etag, made.etag);

    let stale = update(pb::Endpoint { etag: made.etag.clone(), ..changed.clone() }, &["url"])
        .await
        .expect_err("stale");
    assert_eq!((stale.code(), reason(&stale).as_deref()), (Code::Aborted, Some("ETAG_MISMATCH")));
    let fresh =
        update(pb::Endpoint { etag: named.etag.clone(), ..changed.clone() }, &["url"]).await.expect("fresh");
    assert_eq!(fresh.url, url("b"));
    // Without a mask, what is set; a redacted value sent back keeps the stored one.
    let whole =
        update(pb::Endpoint { description: "new".to_owned(), ..fresh.clone() }, &[]).await.expect("updated");
    assert_eq!((whole.description.as_str(), whole.headers[0].value.as_str()), ("new", "[redacted]"));

    let unknown = update(changed.clone(), &["status"]).await.expect_err("not a field");
    assert_eq!(field_violations(&unknown)[0].field, "update_mask");
    let bad = pb::Endpoint { url: "https://10.0.0.1/".to_owned(), ..changed };
    let bad = update(bad, &["url"]).await.expect_err("forbidden");
    assert_eq!(field_violations(&bad)[0].field, "endpoint.url");
    assert_eq!(get(&world, &made.id).await.expect("found"), whole, "a refused update changes nothing");
}

async fn uids_are_unique_in_a_project(database: Database) {
    let world = World::new(database).await;
    let endpoint = || pb::Endpoint { uid: "one".to_owned(), url: url("a"), ..Default::default() };
    world.create(endpoint(), &["*"]).await;
    let request = pb::CreateEndpointRequest { endpoint: Some(endpoint()), ..Default::default() };
    let taken = world.client.endpoints().create_endpoint(request.clone()).await.expect_err("taken");
    assert_eq!((taken.code(), reason(&taken).as_deref()), (Code::AlreadyExists, Some("UID_TAKEN")));
    let (project, _) = crate::support::world::project(&world.operator, pb::PausedPolicy::Discard).await;
    let elsewhere = pb::CreateEndpointRequest { project_id: project, ..request };
    world.operator.endpoints().create_endpoint(elsewhere).await.expect("another project");
}

async fn subscriptions_are_changed_and_checked(database: Database) {
    let world = World::new(database).await;
    let (endpoint, _) = world.create(pb::Endpoint { url: url("a"), ..Default::default() }, &["a.b"]).await;
    let create = |event_types: &[&str]| {
        let event_types = event_types.iter().map(|text| (*text).to_owned()).collect();
        let subscription =
            pb::Subscription { endpoint_id: endpoint.id.clone(), event_types, ..Default::default() };
        let request =
            pb::CreateSubscriptionRequest { subscription: Some(subscription), ..Default::default() };
        let mut subscriptions = world.client.subscriptions();
        async move { subscriptions.create_subscription(request).await }
    };
    for bad in [&[][..], &["a..b"], &["*.x"], &["ok", "not ok"]] {
        let status = create(bad).await.expect_err("bad pattern");
        assert!(field_violations(&status)[0].field.starts_with("subscription.event_types"), "{status}");
    }
    let made = create(&["c.*"]).await.expect("created").into_inner().subscription.expect("one");
    assert_eq!(made.enabled, Some(true));
    let change = pb::Subscription {
        id: made.id.clone(),
        enabled: Some(false),
        etag: made.etag.clone(),
        ..Default::default()
    };
    let request = pb::UpdateSubscriptionRequest { subscription: Some(change), ..Default::default() };
    let changed = world
        .client
        .subscriptions()
        .update_subscription(request.clone())
        .await
        .expect("updated")
        .into_inner();
    let changed = changed.subscription.expect("one");
    assert_eq!((changed.enabled, changed.event_types.as_slice()), (Some(false), made.event_types.as_slice()));
    let stale = world.client.subscriptions().update_subscription(request).await.expect_err("stale");
    assert_eq!(stale.code(), Code::Aborted);
}
