//! `hawser import` of many rows: bad ones are named, the others made; again changes nothing; cut short goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;

use hawser_client::pb;

use crate::support::import::{Road, command, file, finish, import, results, until_results};
use crate::support::{Database, World, on_both};

on_both!(
    ten_thousand_rows_with_bad_ones,
    a_killed_import_goes_on_when_it_is_run_again,
    an_import_outlives_its_server,
);

const ROWS: usize = 10_000;
const BAD: usize = 37;

/// A file, and the field of each bad row by its number.
fn rows() -> (String, BTreeMap<usize, &'static str>) {
    let mut text = "url,owner_id,uid,labels.tier,event_types,http_timeout,max_in_flight\n".to_owned();
    let mut bad = BTreeMap::new();
    for index in 0..ROWS {
        // The names are row 1.
        let number = index + 2;
        let (mut url, mut types) = (format!("https://hooks.example.com/{index}"), "invoice.*;order.paid");
        let (mut timeout, mut most) = ("10s", "4");
        let uid = if index % 2 == 0 { format!("shop-{index}") } else { String::new() };
        if index % (ROWS / BAD) == 100 && bad.len() < BAD {
            let field = match bad.len() % 6 {
                0 => {
                    url = "https://10.0.0.1/".to_owned();
                    "endpoint.url"
                }
                1 => {
                    url = "ftp://example.com/".to_owned();
                    "endpoint.url"
                }
                2 => {
                    types = "invoice.*;no good";
                    "event_types[1]"
                }
                // Never gets as far as the server.
                3 => {
                    timeout = "soon";
                    "endpoint.http_timeout"
                }
                4 => {
                    timeout = "61s";
                    "endpoint.http_timeout"
                }
                _ => {
                    most = "1001";
                    "endpoint.max_in_flight"
                }
            };
            bad.insert(number, field);
        }
        text.push_str(&format!("{url},owner-{},{uid},gold,{types},{timeout},{most}\n", index % 100));
    }
    assert_eq!(bad.len(), BAD);
    (text, bad)
}

/// Everything that an import could write leaves another footprint.
async fn footprint(world: &World) -> Vec<i64> {
    let mut sql = world.server.sql().await;
    let mut numbers = Vec::new();
    for table in ["endpoints", "secrets", "subscriptions", "audit_events", "changes"] {
        numbers.push(sql.count(table).await);
    }
    numbers.extend(sql.numbers("SELECT routing_version FROM projects").await);
    numbers.extend(sql.numbers("SELECT version FROM endpoints ORDER BY id").await);
    numbers
}

async fn ten_thousand_rows_with_bad_ones(database: Database) {
    let world = World::new(database).await;
    let (text, bad) = rows();
    let path = file(&world, "endpoints.csv", &text);
    let path = path.to_str().expect("text");
    let kept = world.server.data().join("results.jsonl");
    let kept_path = kept.to_str().expect("text").to_owned();
    let named = |said: &str| -> BTreeMap<usize, String> {
        let lines = said.lines().filter_map(|line| line.strip_prefix("row "));
        let parts = lines.map(|line| line.split(": ").collect::<Vec<_>>());
        parts.map(|parts| (parts[0].parse().expect("a number"), parts[1].to_owned())).collect()
    };
    let expected: BTreeMap<usize, String> =
        bad.iter().map(|(number, field)| (*number, (*field).to_owned())).collect();

    let before = footprint(&world).await;
    let dry = import(&world, &[path, "--dry-run"]).await;
    assert_eq!(dry.code, Some(4), "{}", dry.said);
    assert_eq!(named(&dry.said), expected);
    assert!(dry.said.contains("10000 rows: 9963 would be created"), "{}", dry.said);
    assert_eq!(footprint(&world).await, before, "a dry run writes nothing");

    let real = import(&world, &[path, "--results", &kept_path]).await;
    assert_eq!(real.code, Some(4), "{}", real.said);
    assert_eq!(named(&real.said), expected);
    assert!(
        real.said.contains("10000 rows: 9963 created, 0 updated, 0 unchanged, 37 refused"),
        "{}",
        real.said
    );
    assert!(!real.said.contains("whsec_") && real.out.is_empty());
    let results = results(&kept);
    let secrets: BTreeSet<&str> = results.iter().filter_map(|line| line["secret"].as_str()).collect();
    assert_eq!((results.len(), secrets.len()), (ROWS, ROWS - BAD));
    let refused: BTreeMap<usize, String> = results
        .iter()
        .filter(|line| line["outcome"] == "REFUSED")
        .map(|line| (line["row"].as_u64().expect("a number"), &line["problems"][0]["field"]))
        .map(|(row, field)| (usize::try_from(row).expect("small"), field.as_str().expect("text").to_owned()))
        .collect();
    assert_eq!(refused, expected);

    let before = footprint(&world).await;
    let again = import(&world, &[path]).await;
    assert!(
        again.said.contains("10000 rows: 0 created, 0 updated, 9963 unchanged, 37 refused"),
        "{}",
        again.said
    );
    assert_eq!(footprint(&world).await, before, "a second run writes nothing");
}

/// What must be there after all: each good row once, and each secret in the results its endpoint's.
async fn is_complete(world: &World, kept: &std::path::Path) {
    let mut sql = world.server.sql().await;
    for table in ["endpoints", "secrets", "subscriptions"] {
        assert_eq!(sql.count(table).await, (ROWS - BAD) as i64, "{table}");
    }
    let made: Vec<_> = results(kept).into_iter().filter(|line| line["secret"].is_string()).collect();
    let ids: BTreeSet<&str> = made.iter().filter_map(|line| line["endpoint_id"].as_str()).collect();
    assert_eq!(ids.len(), made.len(), "no endpoint was made twice");
    for line in made.iter().step_by(500) {
        let list = pb::ListSecretsRequest {
            endpoint_id: line["endpoint_id"].as_str().expect("an id").to_owned(),
            ..Default::default()
        };
        let secrets = world.client.secrets().list_secrets(list).await.expect("listed").into_inner().secrets;
        let reveal = pb::RevealSecretRequest { secret_id: secrets[0].id.clone(), ..Default::default() };
        let value = world.client.secrets().reveal_secret(reveal).await.expect("revealed").into_inner().value;
        assert_eq!(line["secret"], value);
    }
}

async fn a_killed_import_goes_on_when_it_is_run_again(database: Database) {
    let world = World::new(database).await;
    let path = file(&world, "endpoints.csv", &rows().0);
    let kept = world.server.data().join("results.jsonl");
    let arguments = [path.to_str().expect("text"), "--results", kept.to_str().expect("text")];
    let mut first =
        command(&world, &world.server.address(), &arguments).stderr(Stdio::null()).spawn().expect("started");
    until_results(&kept, 3000).await;
    first.kill().await.expect("killed");
    let before = results(&kept).len();
    assert!(before < ROWS, "it was not cut short");
    // What was being written may end in half a line.
    let text = std::fs::read_to_string(&kept).expect("results");
    assert!(text.ends_with('\n'), "each line is written in one piece");

    let second = import(&world, &arguments).await;
    assert_eq!(second.code, Some(4), "{}", second.said);
    assert!(second.said.contains(" 0 updated"), "{}", second.said);
    is_complete(&world, &kept).await;
}

async fn an_import_outlives_its_server(database: Database) {
    let mut world = World::new(database).await;
    let path = file(&world, "endpoints.csv", &rows().0);
    let kept = world.server.data().join("results.jsonl");
    let arguments = [path.to_str().expect("text"), "--results", kept.to_str().expect("text")];
    let road = Road::to(world.server.authority()).await;
    let running = command(&world, &road.address, &arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    until_results(&kept, 3000).await;
    world.server.kill().await;
    assert!(results(&kept).len() < ROWS, "it was not cut short");
    world.restart().await;
    road.lead_to(world.server.authority());
    let done = finish(running).await;
    assert_eq!(done.code, Some(4), "{}", done.said);
    assert!(done.said.contains("going on") && done.said.contains("10000 rows"), "{}", done.said);
    is_complete(&world, &kept).await;
}
