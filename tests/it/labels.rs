//! Endpoints are found by their labels, as they are now.

use hawser_client::{Key, field_violations, pb};

use crate::support::{Database, World, on_both};

on_both!(
    a_list_has_those_with_all_labels,
    a_list_follows_changes_and_stays_in_its_project,
    labels_out_of_bounds_are_refused_by_field,
);

type Labels<'a> = &'a [(&'a str, &'a str)];

fn map(labels: Labels<'_>) -> std::collections::HashMap<String, String> {
    labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

async fn make(world: &World, name: &str, labels: Labels<'_>) -> pb::Endpoint {
    let endpoint = pb::Endpoint {
        url: format!("https://example.com/{name}"),
        name: name.to_owned(),
        owner_id: if name < "c" { "acme" } else { "" }.to_owned(),
        labels: map(labels),
        ..Default::default()
    };
    world.create(endpoint, &["*"]).await.0
}

/// The names of those that are listed, page after page.
async fn listed(world: &World, request: pb::ListEndpointsRequest) -> Vec<String> {
    let mut request = pb::ListEndpointsRequest { page_size: 2, ..request };
    let mut names = Vec::new();
    loop {
        let reply = world.client.endpoints().list_endpoints(request.clone()).await.expect("listed");
        let reply = reply.into_inner();
        names.extend(reply.endpoints.into_iter().map(|endpoint| endpoint.name));
        if reply.next_page_token.is_empty() {
            return names;
        }
        request.page_token = reply.next_page_token;
    }
}

async fn with(world: &World, labels: Labels<'_>) -> Vec<String> {
    listed(world, pb::ListEndpointsRequest { labels: map(labels), ..Default::default() }).await
}

async fn a_list_has_those_with_all_labels(database: Database) {
    let world = World::new(database).await;
    for (name, labels) in [
        ("a", &[("team", "billing"), ("region", "eu")] as Labels<'_>),
        ("b", &[("team", "billing"), ("region", "us"), ("beta", "")]),
        ("c", &[("team", "search"), ("region", "eu")]),
        ("d", &[]),
        ("e", &[("region", "billing"), ("a\"b", "it's {\"x\": 1}")]),
        ("f", &[("team", "billing"), ("region", "eu"), ("beta", "yes")]),
    ] {
        make(&world, name, labels).await;
    }
    for (labels, names) in [
        (&[] as Labels<'_>, &["a", "b", "c", "d", "e", "f"] as &[&str]),
        (&[("team", "billing")], &["a", "b", "f"]),
        (&[("team", "billing"), ("region", "eu")], &["a", "f"]),
        (&[("beta", "")], &["b"]),
        (&[("a\"b", "it's {\"x\": 1}")], &["e"]),
        (&[("team", "eu")], &[]),
        (&[("team", "Billing")], &[]),
        (&[("teams", "billing")], &[]),
    ] {
        assert_eq!(with(&world, labels).await, names, "{labels:?}");
    }
    // Together with other filters, and with a token that is for these labels alone.
    let of_owner = pb::ListEndpointsRequest {
        owner_id: "acme".to_owned(),
        labels: map(&[("region", "eu")]),
        ..Default::default()
    };
    assert_eq!(listed(&world, of_owner).await, ["a"]);
    let first =
        pb::ListEndpointsRequest { page_size: 1, labels: map(&[("team", "billing")]), ..Default::default() };
    let reply = world.client.endpoints().list_endpoints(first.clone()).await.expect("listed").into_inner();
    let elsewhere = pb::ListEndpointsRequest {
        page_token: reply.next_page_token,
        labels: map(&[("team", "search")]),
        ..first
    };
    let refused = world.client.endpoints().list_endpoints(elsewhere).await.expect_err("another list's token");
    assert_eq!(field_violations(&refused)[0].field, "page_token");
}

async fn a_list_follows_changes_and_stays_in_its_project(database: Database) {
    let mut world = World::new(database).await;
    let made = make(&world, "a", &[("team", "billing"), ("region", "eu")]).await;
    let update = |endpoint: pb::Endpoint, path: &str| {
        let update_mask = Some(prost_types::FieldMask { paths: vec![path.to_owned()] });
        let endpoint = Some(pb::Endpoint { id: made.id.clone(), ..endpoint });
        let request = pb::UpdateEndpointRequest { endpoint, update_mask, ..Default::default() };
        let mut endpoints = world.client.endpoints();
        async move { endpoints.update_endpoint(request).await.expect("updated") }
    };
    let (old, new): (Labels<'_>, Labels<'_>) = (&[("team", "billing")], &[("team", "search")]);
    update(pb::Endpoint { name: "b".to_owned(), ..Default::default() }, "name").await;
    assert_eq!(with(&world, old).await, ["b"], "a change of something else");
    let pause = pb::PauseEndpointRequest { endpoint_id: made.id.clone(), ..Default::default() };
    world.client.endpoints().pause_endpoint(pause).await.expect("paused");
    assert_eq!(with(&world, old).await, ["b"], "a change of its state");
    update(pb::Endpoint { labels: map(new), ..Default::default() }, "labels").await;
    assert_eq!((with(&world, old).await.len(), with(&world, new).await.len()), (0, 1));
    assert!(with(&world, &[("region", "eu")]).await.is_empty(), "labels change as a whole");

    let (project, key) = crate::support::world::project(&world.operator, pb::PausedPolicy::Discard).await;
    let client = world.client.with_key(&Key::new(key)).expect("a key");
    let client = std::mem::replace(&mut world.client, client);
    assert!(with(&world, new).await.is_empty(), "another project's");
    make(&world, "z", new).await;
    world.client = client;
    assert_eq!(with(&world, new).await, ["b"]);

    let delete = pb::DeleteEndpointRequest { endpoint_id: made.id.clone(), ..Default::default() };
    world.client.endpoints().delete_endpoint(delete).await.expect("deleted");
    assert!(with(&world, new).await.is_empty());
    let theirs = pb::ListEndpointsRequest { project_id: project, labels: map(new), ..Default::default() };
    let theirs = world.operator.endpoints().list_endpoints(theirs).await.expect("listed").into_inner();
    assert_eq!(theirs.endpoints.len(), 1);
}

async fn labels_out_of_bounds_are_refused_by_field(database: Database) {
    let world = World::new(database).await;
    let (name, value) = ("n".repeat(64), "v".repeat(256));
    let many: Vec<String> = (0..33).map(|number| format!("label{number}")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|name| (name.as_str(), "")).collect();
    for (labels, at) in [
        (&[(name.as_str(), "")] as Labels<'_>, format!("labels[\"{name}\"]")),
        (&[("n", value.as_str())], "labels[\"n\"]".to_owned()),
        (&[("", "v")], "labels[\"\"]".to_owned()),
        (&[("n", "a\0b")], "labels[\"n\"]".to_owned()),
        (&many, "labels".to_owned()),
    ] {
        let list = pb::ListEndpointsRequest { labels: map(labels), ..Default::default() };
        let refused = world.client.endpoints().list_endpoints(list).await.expect_err(&at);
        assert_eq!(field_violations(&refused)[0].field, at);
        let endpoint = pb::Endpoint {
            url: "https://example.com/".to_owned(),
            labels: map(labels),
            ..Default::default()
        };
        let create = pb::CreateEndpointRequest { endpoint: Some(endpoint), ..Default::default() };
        let refused = world.client.endpoints().create_endpoint(create).await.expect_err(&at);
        assert_eq!(field_violations(&refused)[0].field, format!("endpoint.{at}"));
    }
    // As many and as long as may be.
    let (name, value) = ("n".repeat(63), "v".repeat(255));
    let most: Vec<(&str, &str)> =
        many[..31].iter().copied().chain([(name.as_str(), value.as_str())]).collect();
    make(&world, "most", &most).await;
    assert_eq!(with(&world, &most).await, ["most"]);
}
