//! A project's sealed values that do not open hide nothing else of it, and nothing of other projects.

use hawser_client::{field_violations, pb};

use crate::support::failing::world_with;
use crate::support::told::{set_webhook, update_project};
use crate::support::{Database, World, on_both};

on_both!(a_project_whose_alerts_do_not_open_is_shown_changed_and_healed);

fn alerts() -> pb::Alerts {
    pb::Alerts { slack_webhook_url: "http://127.0.0.1:9/".to_owned(), ..Default::default() }
}

/// Gives it what was sealed for another column, which is damage like any other.
async fn damage(world: &World, column: &str, by: &str) {
    let sql = format!("UPDATE projects SET {column} = {by} WHERE {by} IS NOT NULL");
    world.server.sql().await.run(&sql).await;
}

async fn get(world: &World) -> pb::Project {
    let get = pb::GetProjectRequest { project_id: world.project.clone() };
    let reply = world.operator.projects().get_project(get).await.expect("shown").into_inner();
    reply.project.expect("a project")
}

async fn update(world: &World, project: pb::Project, path: &str) -> pb::Project {
    update_project(world, project, &[path]).await.project.expect("a project")
}

async fn a_project_whose_alerts_do_not_open_is_shown_changed_and_healed(database: Database) {
    let world = world_with(database, pb::PausedPolicy::Discard, &[]).await;
    set_webhook(&world, "https://example.com/operational", &[]).await;
    let whole = update(&world, pb::Project { alerts: Some(alerts()), ..Default::default() }, "alerts").await;
    assert_eq!((whole.unreadable_fields.len(), whole.alerts.is_some()), (0, true));
    damage(&world, "alerts_sealed", "operational_secrets_sealed").await;

    let shown = get(&world).await;
    assert_eq!(
        (shown.unreadable_fields.as_slice(), &shown.alerts),
        (["alerts".to_owned()].as_slice(), &None)
    );
    let list = pb::ListProjectsRequest::default();
    let listed = world.operator.projects().list_projects(list).await.expect("listed").into_inner().projects;
    assert!(listed.contains(&shown), "{listed:?}");

    // A change of something else keeps it as it is stored.
    let renamed =
        update(&world, pb::Project { name: "renamed".to_owned(), ..Default::default() }, "name").await;
    assert_eq!((renamed.name.as_str(), renamed.unreadable_fields.len()), ("renamed", 1));
    assert_eq!(world.server.sql().await.count("projects WHERE alerts_sealed IS NOT NULL").await, 1);
    // What was shown before it was damaged is not there to be kept.
    let back = pb::Project { id: world.project.clone(), alerts: whole.alerts.clone(), ..Default::default() };
    let request = pb::UpdateProjectRequest { project: Some(back), ..Default::default() };
    let refused = world.operator.projects().update_project(request).await.expect_err("not stored");
    assert_eq!(field_violations(&refused)[0].field, "project.alerts.slack_webhook_url", "{refused}");

    // Set again it is there again; cleared it is gone.
    let healed = update(&world, pb::Project { alerts: Some(alerts()), ..Default::default() }, "alerts").await;
    assert_eq!((healed.unreadable_fields.len(), &healed.alerts), (0, &whole.alerts));
    assert_eq!(healed, get(&world).await);
    damage(&world, "alerts_sealed", "operational_secrets_sealed").await;
    let cleared = update(&world, pb::Project::default(), "alerts").await;
    assert_eq!((cleared.unreadable_fields.len(), &cleared.alerts), (0, &None));
    assert_ne!(cleared.etag, healed.etag);

    // Nor do secrets that do not open keep the rest from being changed; a webhook anew has one anew.
    update(&world, pb::Project { alerts: Some(alerts()), ..Default::default() }, "alerts").await;
    damage(&world, "operational_secrets_sealed", "alerts_sealed").await;
    update(&world, pb::Project { name: "again".to_owned(), ..Default::default() }, "name").await;
    update(&world, pb::Project::default(), "operational_webhook").await;
    assert!(set_webhook(&world, "https://example.com/operational", &[]).await.starts_with("whsec_"));
}
