//! What files `hawser import` reads, what it says, and what it keeps.

use std::os::unix::fs::PermissionsExt;

use hawser_client::pb;
use tokio::io::AsyncWriteExt;

use crate::support::import::{command, file, finish, import, results};
use crate::support::{Database, Receiver, Reply, Server, World};

async fn endpoints(world: &World) -> Vec<pb::Endpoint> {
    let request = pb::ListEndpointsRequest::default();
    world.client.endpoints().list_endpoints(request).await.expect("listed").into_inner().endpoints
}

#[tokio::test(flavor = "multi_thread")]
async fn csv_and_json_say_the_same() {
    let world = World::new(Database::sqlite()).await;
    // As spreadsheets write it: a mark in front, a delimiter of their own, empty rows behind.
    let csv = "\u{feff}url;owner_id;uid;name;labels.tier;headers.x-shop;http_timeout;content_type;rate_limit.requests;\
               authentication.basic_auth.username;authentication.basic_auth.password;signature.scheme;event_types\n\
               https://example.com/a;acme;one;\"Acme; Inc.\";gold;7;5s;form;20;hawser;canary;advanced;invoice.*|order.paid\n\
               ;;;;;;;;;;;;\n";
    let path = file(&world, "a.csv", csv);
    let arguments = [path.to_str().expect("text"), "--delimiter", ";", "--list-separator", "|"];
    let done = import(&world, &arguments).await;
    assert_eq!(done.code, Some(0), "{}", done.said);
    assert!(done.said.contains("1 rows: 1 created") && !done.said.contains("canary"), "{}", done.said);
    let one = endpoints(&world).await.remove(0);
    assert_eq!(
        (one.name.as_str(), one.owner_id.as_str(), one.labels["tier"].as_str()),
        ("Acme; Inc.", "acme", "gold")
    );
    assert_eq!((one.content_type(), one.headers[0].name.as_str()), (pb::ContentType::Form, "x-shop"));
    assert_eq!(one.signature.expect("settings").scheme(), pb::SignatureScheme::Advanced);
    assert_eq!(one.rate_limit.expect("a limit").requests, 20);

    let json = r#"
{"url": "https://example.com/a", "ownerId": "acme", "uid": "one", "name": "Acme; Inc.", "labels": {"tier": "gold"}, "headers": [{"name": "x-shop", "value": "7"}], "http_timeout": "5s", "content_type": "CONTENT_TYPE_FORM", "rate_limit": {"requests": 20}, "authentication": {"basic_auth": {"username": "hawser", "password": "canary"}}, "signature": {"scheme": "SIGNATURE_SCHEME_ADVANCED"}, "event_types": ["invoice.*", "order.paid"]}

{"url": "https://example.com/b", "http_timeout": 5}
{"url": "https://example.com/b", "password": "canary"}
canary
{"url": "https://example.com/b"}
"#;
    let mut command = command(&world, &world.server.address(), &["-", "--format", "jsonl", "--results", "-"]);
    command.stdin(std::process::Stdio::piped());
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut child = command.spawn().expect("started");
    child.stdin.take().expect("a pipe").write_all(json.as_bytes()).await.expect("written");
    let done = finish(child).await;
    assert_eq!(done.code, Some(4));
    assert!(!done.said.contains("canary"), "{}", done.said);
    for line in [
        "row 4: endpoint.http_timeout: must be a time in seconds, such as 15s or 0.5s",
        "row 5: endpoint.password: is not a field",
        "row 6: is not an object of JSON (column 1)",
        "5 rows: 1 created, 0 updated, 1 unchanged, 3 refused",
    ] {
        assert!(done.said.lines().any(|said| said == line), "{line:?} is missing in\n{}", done.said);
    }
    let outcomes: Vec<_> = done.out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let outcomes: Vec<&str> =
        outcomes.iter().map(|line: &serde_json::Value| line["outcome"].as_str().expect("text")).collect();
    assert_eq!(outcomes, ["UNCHANGED", "REFUSED", "REFUSED", "REFUSED", "CREATED"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_make_no_sense_are_refused_whole() {
    let world = World::new(Database::sqlite()).await;
    for (name, text, why) in [
        ("a.csv", "url,ulr\nhttps://example.com/,x\n", "\"ulr\" is not a field of Endpoint"),
        ("b.csv", "url,url\nhttps://example.com/,x\n", "\"url\" is there twice"),
        ("c.csv", "url,labels\nhttps://example.com/,x\n", "labels.NAME"),
        ("d.txt", "url\nhttps://example.com/\n", "--format"),
    ] {
        let path = file(&world, name, text);
        let done = import(&world, &[path.to_str().expect("text")]).await;
        assert_eq!(done.code, Some(1), "{}", done.said);
        assert!(done.said.contains(why), "{}", done.said);
    }
    // Empty rows count, as they do in a spreadsheet.
    let rows = "url,uid\n\n,\nhttps://example.com/\nhttps://example.com/e,e\n\n\"a\nb\"";
    let returns = rows.replace('\n', "\r\n");
    let path = world.server.data().join("e.csv");
    for (rows, wrong) in [
        (format!("\n{rows}\n"), [5, 8]),
        (format!("\r\n{returns}\r\n"), [5, 8]),
        (returns, [4, 7]),
        (rows.to_owned(), [4, 7]),
    ] {
        std::fs::write(&path, &rows).expect("written");
        let done = import(&world, &[path.to_str().expect("text")]).await;
        assert_eq!(done.code, Some(4), "{rows:?}");
        for row in wrong {
            let said = format!("row {row}: has 1 cells, and there are 2 columns");
            assert!(done.said.contains(&said), "{rows:?}\n{}", done.said);
        }
    }
    assert_eq!(endpoints(&world).await.len(), 1);
    let elsewhere = ["--project", "prj_01h2xcejqtf2nbrexx3vqjhp41", path.to_str().expect("text")];
    let done = import(&world, &elsewhere).await;
    assert!(done.code == Some(1) && done.said.contains("NotFound"), "{}", done.said);
}

#[tokio::test(flavor = "multi_thread")]
async fn results_are_private_and_only_added_to() {
    let world = World::new(Database::sqlite()).await;
    let path = file(&world, "a.jsonl", "{\"url\": \"https://example.com/\"}\n");
    let kept = file(&world, "results.jsonl", "{\"row\": 0}\n");
    std::fs::set_permissions(&kept, std::fs::Permissions::from_mode(0o644)).expect("set");
    let arguments = [path.to_str().expect("text"), "--results", kept.to_str().expect("text")];
    for _ in 0..2 {
        assert_eq!(import(&world, &arguments).await.code, Some(0));
    }
    let lines = results(&kept);
    let outcomes: Vec<_> = lines[1..].iter().map(|line| line["outcome"].as_str().expect("text")).collect();
    assert_eq!(outcomes, ["CREATED", "UNCHANGED"]);
    assert!(lines[1]["secret"].as_str().is_some_and(|secret| secret.starts_with("whsec_")));
    assert_eq!(lines[1]["url"], "https://example.com/");
    let mode = std::fs::metadata(&kept).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    // Without a file for them, nobody was told the secrets, and that is said.
    let path = file(&world, "b.jsonl", "{\"url\": \"https://example.com/b\"}\n");
    let done = import(&world, &[path.to_str().expect("text")]).await;
    assert!(done.said.contains("1 new signing secrets were not shown"), "{}", done.said);
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_pings_are_told() {
    let arguments = ["--allow-http", "--allow-net", "127.0.0.0/8"];
    let server = Server::start_pinging(Database::sqlite(), &arguments).await;
    let world = World::on(server, pb::PausedPolicy::Discard).await;
    let receiver = Receiver::scripted(|_, _| Reply::status(500)).await;
    let path = file(&world, "a.jsonl", &format!("{{\"url\": \"{}\"}}\n", receiver.url("/")));
    let path = path.to_str().expect("text");
    let done = import(&world, &[path, "--ping", "require"]).await;
    assert_eq!(done.code, Some(4));
    assert!(
        done.said.contains("row 1: the endpoint did not accept a ping: HEAD answered 500"),
        "{}",
        done.said
    );
    let done = import(&world, &[path, "--ping", "report"]).await;
    assert_eq!(done.code, Some(0));
    assert!(done.said.contains("row 1: made, but its ping failed: HEAD answered 500"), "{}", done.said);
}
