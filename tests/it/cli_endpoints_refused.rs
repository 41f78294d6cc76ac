//! `hawser endpoints`: what is wrong is named, quotes no secret, and changes nothing.

use hawser_client::pb;
use serde_json::json;

use crate::support::cli::{hawser, hawser_reading};
use crate::support::{Database, World};

const URL: &str = "https://example.com/";

fn create<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    [&["endpoints", "create"], arguments].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_named_and_nothing_is_made() {
    let world = World::new(Database::sqlite()).await;
    for (arguments, code, named) in [
        (create(&[]), 1, "endpoint.url"),
        (create(&["--url", "https://10.0.0.1/"]), 1, "endpoint.url"),
        (create(&["--url", URL, "--rate", "20000/s"]), 1, "endpoint.rate_limit.requests"),
        (create(&["--url", URL, "--timeout", "2h"]), 1, "endpoint.http_timeout"),
        (create(&["--url", URL, "--event-type", "a b"]), 1, "event_types[0]"),
        (create(&["--url", URL, "--header", "x-api-key=canary"]), 1, "--header-file x-api-key=FILE"),
        (create(&["--url", URL, "--file", "/nowhere"]), 1, "/nowhere"),
        (create(&["--url", URL, "--secret-file", "-"]), 1, "is empty"),
        (create(&["--url", URL, "--rate", "5/w"]), 2, "--rate"),
        (create(&["--url", URL, "--label", "team"]), 2, "--label"),
        (vec!["endpoints", "list", "--status", "asleep"], 2, "inactive"),
        (vec!["endpoints", "list", "--limit", "0"], 2, "--limit"),
        (vec!["endpoints", "get", "nonsense"], 1, "endpoint_id"),
        (vec!["endpoints", "pause", "ep_01h2e8kqvbfwea724h75qc655w"], 1, "NotFound"),
    ] {
        let said = hawser(&world, &arguments).await;
        assert_eq!(said.code, code, "{arguments:?}: {said:?}");
        assert!(said.err.contains(named) && said.out.is_empty(), "{arguments:?}: {said:?}");
        assert!(!said.err.contains("canary"), "{said:?}");
    }
    let wrong = json!({ "url": URL, "http_timeout": "canary", "ulr": 1 }).to_string();
    for (input, named) in [
        (wrong.as_str(), ["endpoint.http_timeout", "endpoint.ulr"]),
        ("{\"secret\": canary}", ["not an object of JSON", ""]),
        ("{\"updateMask\": \"url\"}", ["update_mask", ""]),
    ] {
        let said = hawser_reading(&world, &["endpoints", "create", "--file", "-"], input).await;
        assert_eq!(said.code, 1, "{said:?}");
        assert!(named.iter().all(|one| said.err.contains(one)), "{said:?}");
        assert!(!said.err.contains("canary"), "{said:?}");
    }
    let request = pb::ListEndpointsRequest::default();
    let all = world.client.endpoints().list_endpoints(request).await.expect("listed").into_inner();
    assert!(all.endpoints.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_update_changes_nothing() {
    let world = World::new(Database::sqlite()).await;
    let (before, _) = world.endpoint("https://example.com/hook", "acme").await;
    let id = before.id.as_str();
    for (arguments, input, named) in [
        (&[][..], "", "nothing to change"),
        (&["--clear", "nonsense"], "", "update_mask"),
        (&["--clear", "url"], "", "endpoint.url"),
        (&["--url", "https://10.0.0.1/"], "", "endpoint.url"),
        (&["--file", "-"], "{\"secret\": \"canary\"}", "secret: an update does not change it"),
        (&["--file", "-"], "{\"eventTypes\": [\"a\"]}", "event_types: an update does not change it"),
        (&["--file", "-"], "{\"status\": \"ENDPOINT_STATUS_PAUSED\"}", "nothing to change"),
        (&["--file", "-"], "", "is empty"),
    ] {
        let said = hawser_reading(&world, &[&["endpoints", "update", id], arguments].concat(), input).await;
        assert!(said.code == 1 && said.err.contains(named), "{arguments:?}: {said:?}");
        assert!(!said.err.contains("canary"), "{said:?}");
    }
    let request = pb::GetEndpointRequest { endpoint_id: before.id.clone(), ..Default::default() };
    let after = world.client.endpoints().get_endpoint(request).await.expect("there").into_inner().endpoint;
    assert_eq!(after, Some(before));
}
