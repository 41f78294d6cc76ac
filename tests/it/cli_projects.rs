//! `hawser projects`: what a command does, as the API sees it.

use hawser_client::pb;
use serde_json::json;

use crate::support::cli::{Said, hawser, hawser_as};
use crate::support::failing::{linear, millis};
use crate::support::secrets::seconds;
use crate::support::{Database, World};

async fn get(world: &World, id: &str) -> pb::Project {
    let request = pb::GetProjectRequest { project_id: id.to_owned() };
    world.operator.projects().get_project(request).await.expect("found").into_inner().project.expect("there")
}

/// Runs it with an operator's key and this standard input.
async fn projects(world: &World, key: &str, arguments: &[&str], input: &str) -> Said {
    hawser_as(world, key, &[&["projects"], arguments].concat(), input).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_is_made_listed_and_changed() {
    let mut world = World::new(Database::sqlite()).await;
    let key = world.server.operator_key().await;
    // By the names of JSON, with a secret that is in no list of processes; flags come over it.
    let file = json!({
        "name": "before", "pausedPolicy": "PAUSED_POLICY_HOLD", "http_timeout": "5s",
        "retry_policy": { "linear": { "wait": "0.05s" }, "max_attempts": 3 },
        "alerts": { "slack_webhook_url": "https://hooks.slack.com/services/canary" },
        "operational_webhook": { "url": "https://example.com/told", "on": ["endpoint.created"] },
    });
    let made = projects(&world, &key, &["create", "--file", "-", "--name", "acme"], &file.to_string()).await;
    assert_eq!(made.code, 0, "{made:?}");
    let (id, secret) = made.out.split_once('\n').expect("two lines");
    let before = get(&world, id).await;
    assert_eq!((before.name.as_str(), before.paused_policy()), ("acme", pb::PausedPolicy::Hold));
    assert_eq!((before.http_timeout, before.retry_policy), (Some(seconds(5)), Some(linear(50, 3))));

    let listed = projects(&world, &key, &["list"], "").await.out;
    assert!(listed.contains(id) && listed.contains("acme") && listed.contains(&world.project), "{listed}");
    let shown = projects(&world, &key, &["get", id], "").await.out;
    assert!(shown.contains("retry_policy.linear.wait") && !shown.contains("canary"), "{shown}");

    // What get prints, changed and given back; what was shown redacted stays.
    let mut one = projects(&world, &key, &["get", id, "--json"], "").await.json().remove(0);
    one["http_timeout"] = json!("7s");
    one["retry_policy"] = json!(null);
    let one = one.to_string();
    let changed = projects(&world, &key, &["update", id, "--file", "-"], &one).await;
    assert_eq!((changed.code, changed.out.as_str()), (0, ""), "{changed:?}");
    let after = get(&world, id).await;
    assert_eq!((after.http_timeout, after.retry_policy), (Some(millis(7000)), None));
    assert_eq!((after.alerts, after.operational_webhook), (before.alerts, before.operational_webhook));
    // Somebody changed it in between.
    let stale = projects(&world, &key, &["update", id, "--file", "-"], &one).await;
    assert!(stale.code == 1 && stale.err.contains("Aborted"), "{stale:?}");
    let cleared = projects(&world, &key, &["update", id, "--clear", "alerts", "--name", "zoo"], "").await;
    assert_eq!(cleared.code, 0, "{cleared:?}");
    let after = get(&world, id).await;
    assert_eq!((after.name.as_str(), after.alerts), ("zoo", None));

    assert_eq!(projects(&world, &key, &["reveal-secret", id], "").await.out, secret);
    let rotated = projects(&world, &key, &["rotate-secret", id, "--grace", "1h"], "").await.out;
    assert!(rotated.starts_with("whsec_") && rotated != secret, "{rotated}");
    assert_eq!(projects(&world, &key, &["reveal-secret", id], "").await.out, rotated);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_named_and_no_value_is_quoted() {
    let mut world = World::new(Database::sqlite()).await;
    let key = world.server.operator_key().await;
    let id = world.project.clone();
    for (file, said) in [
        ("canary", "- is not an object of JSON"),
        (r#"{"alert": "canary"}"#, "alert: is not a field of Project"),
        (r#"{"name": "x", "alerts": "canary"}"#, "alerts: is not what the contract has there"),
        (r#"{"alerts": {"slack_webhook_url": "ftp://canary/"}}"#, "project.alerts.slack_webhook_url"),
        (r#"{"id": "prj_x", "create_time": "2030-01-31T12:00:00Z"}"#, "nothing to change"),
    ] {
        let refused = projects(&world, &key, &["update", &id, "--file", "-"], file).await;
        assert!(refused.code == 1 && refused.err.contains(said), "{said}: {refused:?}");
        assert!(!refused.err.contains("canary"), "{refused:?}");
    }
    let denied = hawser(&world, &["projects", "get", &id]).await;
    assert!(denied.code == 1 && denied.err.contains("PermissionDenied"), "{denied:?}");
}
