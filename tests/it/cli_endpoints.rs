//! `hawser endpoints`: what a command does, as the API sees it.

use hawser_client::pb;
use serde_json::json;
use tonic::Code;

use crate::support::cli::{hawser, hawser_as, hawser_reading};
use crate::support::secrets::{list, reveal, seconds};
use crate::support::token_server::TokenServer;
use crate::support::{Database, Receiver, Reply, Server, World};

async fn get(world: &World, id: &str) -> Result<pb::Endpoint, tonic::Status> {
    let request = pb::GetEndpointRequest { endpoint_id: id.to_owned(), ..Default::default() };
    Ok(world.client.endpoints().get_endpoint(request).await?.into_inner().endpoint.expect("an endpoint"))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_is_made_shown_and_deleted() {
    let mut world = World::new(Database::sqlite()).await;
    let file = world.server.data().join("token");
    std::fs::write(&file, "canary\n").expect("written");
    let token = format!("x-token={}", file.display());
    let mut arguments = vec!["endpoints", "create", "--url", "https://example.com/hook", "--owner", "acme"];
    arguments.extend([
        "--uid",
        "u-1",
        "--label",
        "team=a=b",
        "--header",
        "x-shop=eu",
        "--header-file",
        &token,
    ]);
    arguments.extend(["--rate", "20/1m", "--burst", "5", "--timeout", "5s", "--name", "Billing"]);
    arguments.extend(["--event-type", "invoice.*", "--event-type", "refund.created"]);
    let made = hawser(&world, &arguments).await;
    let (id, secret) = made.out.split_once('\n').expect("two lines");
    assert_eq!(made.code, 0, "{made:?}");

    let endpoint = get(&world, id).await.expect("made");
    assert_eq!(
        (endpoint.url.as_str(), endpoint.owner_id.as_str(), endpoint.uid.as_str(), endpoint.name.as_str()),
        ("https://example.com/hook", "acme", "u-1", "Billing")
    );
    assert_eq!(endpoint.labels["team"], "a=b");
    let shown: Vec<(&str, &str)> =
        endpoint.headers.iter().map(|header| (header.name.as_str(), header.value.as_str())).collect();
    assert_eq!(shown, [("x-shop", "eu"), ("x-token", "[redacted]")]);
    let limit = pb::RateLimit { requests: 20, per: Some(seconds(60)), burst: 5 };
    assert_eq!((endpoint.rate_limit, endpoint.http_timeout), (Some(limit), Some(seconds(5))));
    let secrets = list(&world.client, id).await.secrets;
    assert_eq!(reveal(&world.client, &secrets[0].id).await.expect("shown"), secret);
    let request = pb::ListSubscriptionsRequest { endpoint_id: id.to_owned(), ..Default::default() };
    let wants = world.client.subscriptions().list_subscriptions(request).await.expect("listed").into_inner();
    assert_eq!(wants.subscriptions[0].event_types, ["invoice.*", "refund.created"]);

    let shown = hawser(&world, &["endpoints", "get", id]).await.out;
    for part in ["labels.team", "a=b", "headers.x-shop", "ACTIVE", "rate_limit.requests", "[redacted]"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert!(!shown.contains("canary") && !shown.contains(secret), "{shown}");
    // An operator's key needs a project.
    let operator = world.server.operator_key().await;
    let nowhere = hawser_as(&world, &operator, &["endpoints", "get", id, "--json"], "").await;
    assert!(nowhere.code == 1 && nowhere.err.contains("project_id"), "{nowhere:?}");
    let arguments = ["endpoints", "get", id, "--json", "--project", &world.project];
    let shown = hawser_as(&world, &operator, &arguments, "").await.json().remove(0);
    assert_eq!((&shown["id"], &shown["status"]), (&json!(id), &json!("ENDPOINT_STATUS_ACTIVE")));
    assert_eq!(shown["rate_limit"], json!({ "requests": 20, "per": "60s", "burst": 5 }));

    let stale = hawser(&world, &["endpoints", "delete", id, "--etag", "other"]).await;
    assert!(stale.code == 1 && get(&world, id).await.is_ok(), "{stale:?}");
    let gone = hawser(&world, &["endpoints", "delete", id]).await;
    assert_eq!((gone.code, gone.out.as_str(), gone.err.contains(id)), (0, "", true), "{gone:?}");
    assert_eq!(get(&world, id).await.expect_err("gone").code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_changes_what_it_is_given() {
    let world = World::new(Database::sqlite()).await;
    // By the names of JSON, with a secret that is in no list of processes; flags come over it.
    let file = json!({
        "url": "https://example.com/hook", "ownerId": "acme", "labels": { "a": "1" }, "description": "before",
        "maxInFlight": 3, "authentication": { "basic_auth": { "username": "u", "password": "canary" } },
        "eventTypes": ["a.*"],
    });
    let arguments = ["endpoints", "create", "--file", "-", "--owner", "zoo", "--json"];
    let made = hawser_reading(&world, &arguments, &file.to_string()).await;
    assert_eq!(made.code, 0, "{made:?}");
    let made = made.json().remove(0);
    assert!(made["secret"].as_str().is_some_and(|secret| secret.starts_with("whsec_")));
    assert_eq!(made["subscription"]["event_types"], json!(["a.*"]));
    let id = made["endpoint"]["id"].as_str().expect("an id");
    let before = get(&world, id).await.expect("made");
    assert_eq!((before.owner_id.as_str(), before.max_in_flight), ("zoo", 3));

    let arguments =
        ["endpoints", "update", id, "--name", "new", "--description", "", "--clear", "labels", "--rate", "7"];
    let changed = hawser(&world, &arguments).await;
    assert_eq!(changed.code, 0, "{changed:?}");
    let after = get(&world, id).await.expect("there");
    assert_eq!((after.name.as_str(), after.description.as_str()), ("new", ""));
    assert!(after.labels.is_empty());
    assert_eq!(after.rate_limit.as_ref().map(|limit| limit.requests), Some(7));
    let kept = |endpoint: &pb::Endpoint| {
        (
            endpoint.url.clone(),
            endpoint.owner_id.clone(),
            endpoint.max_in_flight,
            endpoint.authentication.clone(),
        )
    };
    assert_eq!(kept(&after), kept(&before));

    // What get prints, changed and given back.
    let mut one = hawser(&world, &["endpoints", "get", id, "--json"]).await.json().remove(0);
    one["max_in_flight"] = json!(9);
    one["rate_limit"] = json!(null);
    let one = one.to_string();
    let arguments = ["endpoints", "update", id, "--file", "-"];
    let changed = hawser_reading(&world, &arguments, &one).await;
    assert_eq!(changed.code, 0, "{changed:?}");
    let after = get(&world, id).await.expect("there");
    assert_eq!((after.max_in_flight, after.rate_limit.is_none(), after.name.as_str()), (9, true, "new"));
    assert_eq!(after.authentication, before.authentication);
    // Once more it would undo what another one changed: its etag is old.
    let again = hawser_reading(&world, &arguments, &one).await;
    assert!(again.code == 1 && again.err.contains("Aborted"), "{again:?}");
    let arguments = ["endpoints", "update", id, "--name", "newer", "--etag", &after.etag];
    assert_eq!(hawser(&world, &arguments).await.code, 0);
    assert_eq!(hawser(&world, &arguments).await.code, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn states_follow_the_commands() {
    let world = World::new(Database::sqlite()).await;
    let (endpoint, _) = world.endpoint("https://example.com/hook", "").await;
    let id = endpoint.id.as_str();
    for (command, status) in [
        (&["pause", id, "--reason", "they move house"][..], pb::EndpointStatus::Paused),
        (&["resume", id], pb::EndpointStatus::Active),
        (&["pause", id], pb::EndpointStatus::Paused),
        (&["activate", id], pb::EndpointStatus::Active),
    ] {
        let said = hawser(&world, &[&["endpoints"], command].concat()).await;
        let name = status.as_str_name().trim_start_matches("ENDPOINT_STATUS_");
        assert_eq!((said.code, said.err), (0, format!("{id} is {name}")));
        let endpoint = get(&world, id).await.expect("there");
        assert_eq!(endpoint.status(), status);
        assert_eq!(endpoint.status_reason == "they move house", command.len() > 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pings_and_token_tests_say_what_came_back() {
    let server = Server::start_pinging(Database::sqlite(), &["--allow-http", "--allow-net", "127.0.0.0/8"]);
    let world = World::on(server.await, pb::PausedPolicy::Discard).await;
    let posts =
        Receiver::scripted(|seen, _| Reply::status(if seen.method == "POST" { 200 } else { 405 })).await;
    let url = posts.url("/hook");
    let tokens = TokenServer::granting(json!(600)).await;
    let file = json!({ "url": url, "authentication": { "oauth2": {
        "token_url": tokens.url(), "client_id": "me", "shared_secret": { "client_secret": "canary" } } } });
    let made = hawser_reading(&world, &["endpoints", "create", "--file", "-"], &file.to_string()).await;
    assert_eq!(made.code, 0, "{made:?}");
    let id = made.out.lines().next().expect("an id");

    let ping = hawser(&world, &["endpoints", "ping", id]).await;
    assert_eq!(ping.code, 0, "{ping:?}");
    let tries: Vec<Vec<&str>> =
        ping.out.lines().skip(1).map(|line| line.split_whitespace().take(2).collect()).collect();
    assert_eq!(tries, [["HEAD", "405"], ["GET", "405"], ["POST", "200"]]);
    let test = hawser(&world, &["endpoints", "test-oauth2", id, "--json"]).await;
    assert_eq!(test.code, 0, "{test:?}");
    assert_eq!(test.json()[0]["token_life"], json!("600s"));

    tokens.fail(true);
    let test = hawser(&world, &["endpoints", "test-oauth2", id]).await;
    assert!(test.code == 1 && test.out.contains("503") && test.err.contains("503"), "{test:?}");
    assert!(!format!("{test:?}").contains("canary"), "{test:?}");

    let closed = Receiver::scripted(|_, _| Reply::status(500)).await;
    let url = closed.url("/hook");
    let refused = hawser(&world, &["endpoints", "create", "--url", &url]).await;
    assert!(
        refused.code == 1 && refused.out.is_empty() && refused.err.contains("HEAD answered 500"),
        "{refused:?}"
    );
    let made = hawser(&world, &["endpoints", "create", "--url", &url, "--skip-ping"]).await;
    let id = made.out.lines().next().expect("an id");
    let ping = hawser(&world, &["endpoints", "ping", id, "--json"]).await;
    assert!(ping.code == 1 && ping.err.contains("did not accept"), "{ping:?}");
    assert_eq!(ping.json()[0]["tries"].as_array().map(Vec::len), Some(3));
}
