//! API keys and HTTP Basic: sent with every attempt, shown nowhere.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hawser_client::pb::authentication::Method;
use hawser_client::{field_violations, pb};
use tonic::Code;

use crate::support::{Database, Receiver, World, on_both, world};

on_both!(
    each_method_is_sent_and_shown_redacted,
    a_changed_credential_is_used_by_the_next_delivery,
    what_comes_back_redacted_is_kept,
    bad_credentials_are_refused_by_field,
);

fn api_key(name: &str, value: &str) -> pb::Authentication {
    let key = pb::ApiKeyAuth { header_name: name.to_owned(), header_value: value.to_owned() };
    pb::Authentication { method: Some(Method::ApiKey(key)) }
}

fn basic(username: &str, password: &str) -> pb::Authentication {
    let basic = pb::BasicAuth { username: username.to_owned(), password: password.to_owned() };
    pb::Authentication { method: Some(Method::BasicAuth(basic)) }
}

fn endpoint(url: String, authentication: pb::Authentication) -> pb::Endpoint {
    pb::Endpoint {
        url,
        authentication: Some(authentication),
        retry_policy: Some(world::quick_retries(2)),
        ..Default::default()
    }
}

async fn update(
    world: &World,
    endpoint: pb::Endpoint,
    paths: &[&str],
) -> Result<pb::Endpoint, tonic::Status> {
    let paths = paths.iter().map(|path| (*path).to_owned()).collect();
    let request = pb::UpdateEndpointRequest {
        endpoint: Some(endpoint),
        update_mask: Some(prost_types::FieldMask { paths }),
        ..Default::default()
    };
    let reply = world.client.endpoints().update_endpoint(request).await?.into_inner();
    Ok(reply.endpoint.expect("an endpoint"))
}

async fn each_method_is_sent_and_shown_redacted(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::ok().await;
    let password = "pass:wörd";
    let expected = format!("Basic {}", STANDARD.encode(format!("me:{password}")));
    for (given, name, value, shown) in [
        (api_key("X-Api-Key", "k 1"), "x-api-key", "k 1", api_key("x-api-key", "[redacted]")),
        (
            api_key("Authorization", "Token 2"),
            "authorization",
            "Token 2",
            api_key("authorization", "[redacted]"),
        ),
        (basic("me", password), "authorization", expected.as_str(), basic("me", "[redacted]")),
    ] {
        let (made, _) = world.create(endpoint(receiver.url("/"), given), &["*"]).await;
        assert_eq!(made.authentication.as_ref(), Some(&shown));
        let before = receiver.seen().len();
        let event = world.publish_to(&made, b"{}").await.event_id;
        let seen = receiver.wait_for_count(before + 1).await;
        assert_eq!(seen[before].method, http::Method::POST);
        assert_eq!(seen[before].headers.get(name).expect(name).as_bytes(), value.as_bytes());

        let delivery = &world.settled_deliveries_of(&event).await[0];
        let attempt = &world.attempts_of(&delivery.id).await[0];
        let header = attempt.request_headers.iter().find(|header| header.name == name).expect(name);
        assert_eq!(header.value, "[redacted]");
    }
}

async fn a_changed_credential_is_used_by_the_next_delivery(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::ok().await;
    let (made, _) = world.create(endpoint(receiver.url("/"), api_key("x-key", "old")), &["*"]).await;
    world.publish_to(&made, b"{}").await;
    receiver.wait_for_count(1).await;
    let changed = pb::Endpoint { authentication: Some(api_key("x-key", "new")), ..made.clone() };
    let changed = update(&world, pb::Endpoint { etag: String::new(), ..changed }, &["authentication"])
        .await
        .expect("updated");
    assert_ne!(changed.etag, made.etag);
    world.publish_to(&made, b"{}").await;
    let gone = pb::Endpoint { id: made.id.clone(), ..Default::default() };
    receiver.wait_for_count(2).await;
    assert_eq!(update(&world, gone, &["authentication"]).await.expect("updated").authentication, None);
    world.publish_to(&made, b"{}").await;
    let seen = receiver.wait_for_count(3).await;
    let keys: Vec<_> = seen.iter().map(|one| one.header("x-key")).collect();
    assert_eq!(keys, ["old", "new", ""]);
}

async fn what_comes_back_redacted_is_kept(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::ok().await;
    let (made, _) = world.create(endpoint(receiver.url("/"), api_key("x-key", "kept")), &["*"]).await;
    // Read, changed in part, written as a whole; and the header's name alone.
    let whole = pb::Endpoint { name: "new name".to_owned(), ..made.clone() };
    let whole = update(&world, whole, &["*"]).await.expect("updated");
    let renamed = pb::Endpoint { authentication: Some(api_key("x-other", "[redacted]")), ..whole };
    update(&world, renamed, &["authentication"]).await.expect("updated");
    world.publish_to(&made, b"{}").await;
    let seen = receiver.wait_for_count(1).await;
    assert_eq!((seen[0].header("x-key"), seen[0].header("x-other")), (String::new(), "kept".to_owned()));

    // Nothing of that method is stored, so there is nothing to keep.
    let other = pb::Endpoint {
        id: made.id.clone(),
        authentication: Some(basic("me", "[redacted]")),
        ..Default::default()
    };
    let status = update(&world, other, &["authentication"]).await.expect_err("nothing to keep");
    assert_eq!(field_violations(&status)[0].field, "endpoint.authentication.basic_auth.password");
}

async fn bad_credentials_are_refused_by_field(database: Database) {
    let world = World::new(database).await;
    let long = "v".repeat(4097);
    for (authentication, field) in [
        (pb::Authentication { method: None }, "endpoint.authentication"),
        (api_key("", "v"), "endpoint.authentication.api_key.header_name"),
        (api_key("X Y", "v"), "endpoint.authentication.api_key.header_name"),
        (api_key("Host", "v"), "endpoint.authentication.api_key.header_name"),
        (api_key("webhook-id", "v"), "endpoint.authentication.api_key.header_name"),
        (api_key("x", "a\r\nb"), "endpoint.authentication.api_key.header_value"),
        (api_key("x", &long), "endpoint.authentication.api_key.header_value"),
        (api_key("x", ""), "endpoint.authentication.api_key.header_value"),
        (api_key("x", "[redacted]"), "endpoint.authentication.api_key.header_value"),
        (api_key("x-own", "v"), "endpoint.headers[\"x-own\"]"),
        (basic("", "p"), "endpoint.authentication.basic_auth.username"),
        (basic("a:b", "p"), "endpoint.authentication.basic_auth.username"),
        (basic("a\nb", "p"), "endpoint.authentication.basic_auth.username"),
        (basic("a", "p\0"), "endpoint.authentication.basic_auth.password"),
    ] {
        let headers = vec![pb::Header { name: "x-own".to_owned(), value: "v".to_owned() }];
        let wanted = pb::Endpoint { headers, ..endpoint("https://example.com/".to_owned(), authentication) };
        let request = pb::CreateEndpointRequest { endpoint: Some(wanted), ..Default::default() };
        let status = world.client.endpoints().create_endpoint(request).await.expect_err(field);
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert_eq!(field_violations(&status)[0].field, field, "{status}");
    }
}
