//! What was there before a step of the schema fits in after it.

use hawser_client::pb;

use crate::support::failing::{get, millis};
use crate::support::{Database, World, on_both};

on_both!(endpoints_of_before_have_labels_and_follow_their_project);

async fn endpoints_of_before_have_labels_and_follow_their_project(database: Database) {
    let mut world = World::new(database).await;
    let labels = [("team", "it's \"ours\""), ("beta", "")];
    let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let mut made = Vec::new();
    for timeout in [15_000, 3_000] {
        let endpoint = pb::Endpoint {
            url: "https://example.com/".to_owned(),
            http_timeout: Some(millis(timeout)),
            labels: labels.clone().into(),
            ..Default::default()
        };
        made.push(world.create(endpoint, &["*"]).await.0);
    }
    // Back to before the step.
    world.server.terminate().await;
    let mut session = world.server.sql().await;
    session.run("DROP TABLE endpoint_labels").await;
    session.run("ALTER TABLE projects DROP COLUMN http_timeout_ms").await;
    session.run("DELETE FROM seaql_migrations WHERE version = 'm0023_labels'").await;
    drop(session);
    world.restart().await;

    for (name, value) in labels {
        let request = pb::ListEndpointsRequest { labels: [(name, value)].into(), ..Default::default() };
        let listed = world.client.endpoints().list_endpoints(request).await.expect("listed").into_inner();
        let ids: Vec<&String> = listed.endpoints.iter().map(|endpoint| &endpoint.id).collect();
        assert_eq!(ids, [&made[0].id, &made[1].id]);
    }
    assert_eq!(get(&world, &made[0].id).await.http_timeout, None, "it had the default");
    assert_eq!(get(&world, &made[1].id).await.http_timeout, Some(millis(3_000)));
}
