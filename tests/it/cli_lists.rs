//! Lists of the `hawser` command: all pages up to a limit, and filters.

use std::collections::HashSet;

use hawser_client::pb;

use crate::support::cli::{Said, hawser};
use crate::support::{Database, World};

fn ids(said: &Said) -> HashSet<String> {
    said.json().iter().map(|one| one["id"].as_str().expect("an id").to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_has_all_pages_up_to_its_limit() {
    let world = World::new(Database::sqlite()).await;
    let mut made = HashSet::new();
    // More than a page, which has 100.
    for number in 0..105 {
        made.insert(world.endpoint(&format!("https://example.com/{number}"), "").await.0.id);
    }
    let whole = hawser(&world, &["endpoints", "list", "--json", "--limit", "1000"]).await;
    assert_eq!((whole.code, ids(&whole), whole.err.as_str()), (0, made, ""));
    let most = hawser(&world, &["endpoints", "list", "--json", "--limit", "103"]).await;
    assert_eq!((most.json().len(), ids(&most).len()), (103, 103));
    assert!(most.err.contains("more than these 103"), "{}", most.err);
    // Under its heading.
    let usual = hawser(&world, &["endpoints", "list"]).await;
    assert_eq!(usual.out.lines().count(), 101);
    assert!(usual.err.contains("more than these 100"), "{}", usual.err);
    let audit = hawser(&world, &["audit", "--action", "CreateEndpoint", "--json", "--limit", "105"]).await;
    assert_eq!((audit.json().len(), ids(&audit).len(), audit.err.as_str()), (105, 105, ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_are_listed_by_all_filters_that_are_given() {
    let world = World::new(Database::sqlite()).await;
    let make = async |owner: &str, uid: &str, labels: &[(&str, &str)]| {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let endpoint = pb::Endpoint {
            url: "https://example.com/".to_owned(),
            owner_id: owner.to_owned(),
            uid: uid.to_owned(),
            name: "one\nline".to_owned(),
            labels,
            ..Default::default()
        };
        world.create(endpoint, &["*"]).await.0.id
    };
    let one = make("acme", "u-1", &[("team", "a"), ("beta", "")]).await;
    let two = make("acme", "u-2", &[("team", "a")]).await;
    let three = make("zoo", "u-3", &[("team", "b")]).await;
    assert_eq!(hawser(&world, &["endpoints", "pause", &two]).await.code, 0);
    for (filter, expected) in [
        (&[][..], &[&one, &two, &three][..]),
        (&["--owner", "acme"], &[&one, &two]),
        (&["--owner", "acme", "--status", "PAUSED"], &[&two]),
        (&["--status", "active"], &[&one, &three]),
        (&["--uid", "u-3"], &[&three]),
        (&["--label", "team=a"], &[&one, &two]),
        (&["--label", "team=a", "--label", "beta="], &[&one]),
        (&["--owner", "zoo", "--label", "team=a"], &[]),
    ] {
        let said = hawser(&world, &[&["endpoints", "list", "--json"], filter].concat()).await;
        let expected: HashSet<String> = expected.iter().map(|id| (*id).clone()).collect();
        assert_eq!((said.code, ids(&said)), (0, expected), "{filter:?}");
    }
    let table = hawser(&world, &["endpoints", "list", "--uid", "u-2"]).await.out;
    let cells: Vec<&str> = table.lines().nth(1).expect("a row").split_whitespace().collect();
    assert_eq!(cells, [&two, "PAUSED", "acme", "u-2", "0", "https://example.com/"]);
    // Rows stay rows, whatever others wrote into them.
    let fields = hawser(&world, &["endpoints", "get", &one]).await.out;
    assert!(fields.contains("one line"), "{fields}");
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_entries_are_listed_by_all_filters_that_are_given() {
    let world = World::new(Database::sqlite()).await;
    let (endpoint, _) = world.endpoint("https://example.com/", "").await;
    let (other, _) = world.endpoint("https://example.com/", "").await;
    let (id, other) = (endpoint.id.as_str(), other.id.as_str());
    for id in [id, other] {
        assert_eq!(hawser(&world, &["endpoints", "pause", id]).await.code, 0);
    }
    let found = async |filter: &[&str]| {
        let said = hawser(&world, &[&["audit", "--json"], filter].concat()).await;
        assert_eq!(said.code, 0, "{said:?}");
        let one = |event: &serde_json::Value| {
            let text = |name: &str| event[name].as_str().expect(name).to_owned();
            (text("action"), text("resource"))
        };
        said.json().iter().map(one).collect::<Vec<_>>()
    };
    let entry = |action: &str, id: &str| (action.to_owned(), id.to_owned());
    let of_one = [entry("PauseEndpoint", id), entry("CreateEndpoint", id)];
    assert_eq!(found(&["--resource", id]).await, of_one);
    assert_eq!(found(&["--resource", id, "--since", "1h"]).await, of_one);
    assert_eq!(found(&["--resource", id, "--until", "1h"]).await, []);
    assert_eq!(found(&["--resource", id, "--since", "2999-01-01T00:00:00Z"]).await, []);
    let pauses = [entry("PauseEndpoint", other), entry("PauseEndpoint", id)];
    assert_eq!(found(&["--action", "PauseEndpoint"]).await, pauses);
    let table = hawser(&world, &["audit", "--resource", id, "--action", "PauseEndpoint"]).await.out;
    let row = table.lines().nth(1).expect("a row");
    assert!(row.contains("PauseEndpoint") && row.contains(id) && row.contains("test"), "{table}");
}
