//! `hawser deliveries`: listed, shown with their attempts, and retried.

use hawser_client::pb;
use serde_json::json;

use crate::support::cli::hawser;
use crate::support::world::quick_retries;
use crate::support::{Database, Receiver, Reply, World};

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_delivery_is_found_looked_into_and_retried() {
    let world = World::new(Database::sqlite()).await;
    let receiver = Receiver::scripted(|_, before| match before {
        0 => Reply { body: "no\u{1b}pe".into(), ..Reply::status(500) },
        _ => Reply::status(200),
    })
    .await;
    let endpoint = pb::Endpoint {
        url: receiver.url("/hook"),
        retry_policy: Some(quick_retries(1)),
        ..Default::default()
    };
    let (endpoint, _) = world.create(endpoint, &["*"]).await;
    let event = world.publish_to(&endpoint, b"{}").await.event_id;
    let delivery = world.settled_deliveries_of(&event).await.remove(0).id;
    let (id, endpoint) = (delivery.as_str(), endpoint.id.as_str());

    for (filter, found) in [
        (&["--event", event.as_str()][..], true),
        (&["--endpoint", endpoint, "--status", "failed", "--status", "discarded"], true),
        (&["--status", "success"], false),
        (&["--since", "1h"], true),
        (&["--until", "1h"], false),
    ] {
        let said = hawser(&world, &[&["deliveries", "list", "--json"], filter].concat()).await;
        let ids: Vec<_> = said.json().iter().map(|one| one["id"].clone()).collect();
        let expected = if found { vec![json!(id)] } else { Vec::new() };
        assert_eq!((said.code, ids), (0, expected), "{filter:?}");
    }
    let table = hawser(&world, &["deliveries", "list"]).await.out;
    let cells: Vec<&str> = table.lines().nth(1).expect("a row").split_whitespace().collect();
    assert_eq!(cells[..6], [id, "FAILED", "test.event", endpoint, "1", "500"]);
    let shown = hawser(&world, &["deliveries", "get", id]).await.out;
    assert!(shown.contains("FAILED") && shown.contains("HTTP_STATUS") && shown.contains(&event), "{shown}");
    assert_eq!(hawser(&world, &["deliveries", "get", id, "--json"]).await.json()[0]["last_status_code"], 500);

    let retried = hawser(&world, &["deliveries", "retry", id]).await;
    assert!(retried.code == 0 && retried.err.starts_with(&format!("{id} is ")), "{retried:?}");
    let after = world.settled_deliveries_of(&event).await.remove(0);
    assert_eq!(after.status(), pb::DeliveryStatus::Success);
    let again = hawser(&world, &["deliveries", "retry", id]).await;
    assert!(again.code == 1 && again.err.contains("FailedPrecondition"), "{again:?}");

    let table = hawser(&world, &["deliveries", "attempts", id]).await.out;
    let answers: Vec<Option<&str>> =
        table.lines().skip(1).map(|line| line.split_whitespace().nth(2)).collect();
    assert_eq!(answers, [Some("500"), Some("200")]);
    let attempts = hawser(&world, &["deliveries", "attempts", id, "--json"]).await.json();
    // Bytes are base64 in JSON.
    assert_eq!((attempts.len(), &attempts[0]["response_body"]), (2, &json!("bm8bcGU=")));
    let first = hawser(&world, &["deliveries", "attempts", id, "--json", "--limit", "1"]).await;
    assert!(first.json().len() == 1 && first.err.contains("more than these 1"), "{first:?}");
}
