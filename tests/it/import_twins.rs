//! Two rows of one file for the same endpoint are refused, whichever connection they go by.

use std::collections::BTreeMap;
use std::process::Stdio;

use crate::support::import::{Road, command, file, finish, results, until_results};
use crate::support::{Database, World, on_both};

on_both!(twins_are_refused_though_the_server_restarts_between_them);

const ROWS: usize = 4000;

/// A file whose first two rows have twins all through it; and the field that each twin is refused by.
fn rows() -> (String, BTreeMap<u64, &'static str>) {
    let (mut text, mut twins) = (String::new(), BTreeMap::new());
    for number in 1..=ROWS as u64 {
        let line = match number {
            1 => r#"{"uid": "one", "owner_id": "acme", "url": "https://hooks.example.com/one"}"#.to_owned(),
            2 => r#"{"owner_id": "acme", "url": "https://hooks.example.com/two"}"#.to_owned(),
            _ if number % 100 == 0 => {
                twins.insert(number, "endpoint.uid");
                let url = "https://hooks.example.com/one";
                format!(r#"{{"uid": "one", "url": "{url}", "name": "the twin in row {number}"}}"#)
            }
            _ if number % 100 == 1 => {
                twins.insert(number, "endpoint.url");
                // Another spelling of the same.
                let url = "https://HOOKS.example.com.:443/two";
                format!(r#"{{"owner_id": "acme", "url": "{url}", "name": "the twin in row {number}"}}"#)
            }
            _ => format!(r#"{{"uid": "shop-{number}", "url": "https://hooks.example.com/{number}"}}"#),
        };
        text.push_str(&line);
        text.push('\n');
    }
    (text, twins)
}

async fn twins_are_refused_though_the_server_restarts_between_them(database: Database) {
    let mut world = World::new(database).await;
    let (text, twins) = rows();
    let path = file(&world, "endpoints.jsonl", &text);
    let kept = world.server.data().join("results.jsonl");
    let arguments = [path.to_str().expect("text"), "--results", kept.to_str().expect("text")];
    let road = Road::to(world.server.authority()).await;
    let running = command(&world, &road.address, &arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    until_results(&kept, 500).await;
    world.server.kill().await;
    let before = results(&kept).len();
    assert!(before < ROWS - 1500, "more than what waits for an answer is still to be sent");
    world.restart().await;
    road.lead_to(world.server.authority());
    let done = finish(running).await;
    assert_eq!(done.code, Some(4), "{}", done.said);
    assert!(done.said.contains("going on") && done.said.contains(" 0 updated"), "{}", done.said);

    let results = results(&kept);
    let refused: BTreeMap<u64, &str> = results
        .iter()
        .filter(|line| line["outcome"] == "REFUSED")
        .map(|line| {
            let problem = &line["problems"][0];
            let first = if problem["field"] == "endpoint.uid" { "of row 1" } else { "of row 2;" };
            assert!(problem["description"].as_str().expect("text").contains(first), "{line}");
            (line["row"].as_u64().expect("a number"), problem["field"].as_str().expect("text"))
        })
        .collect();
    assert_eq!(refused, twins);
    let numbers: Vec<u64> = results.iter().map(|line| line["row"].as_u64().expect("a number")).collect();
    assert_eq!(numbers, (1..=ROWS as u64).collect::<Vec<_>>(), "each row is told once, in order");
    let mut sql = world.server.sql().await;
    assert_eq!(sql.count("endpoints").await, (ROWS - twins.len()) as i64);
    assert_eq!(sql.count("endpoints WHERE name LIKE 'the twin%'").await, 0);
}
