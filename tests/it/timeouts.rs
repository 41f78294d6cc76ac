//! How long an attempt may take: as its endpoint says, or else its project.

use std::time::Duration;

use hawser_client::{field_violations, pb};

use crate::support::failing::{get, millis, next_attempt, world_with};
use crate::support::world::{quick_retries, until};
use crate::support::{Database, Receiver, Reply, World, on_both};

on_both!(
    an_endpoint_has_its_own_time_or_its_projects,
    times_out_of_bounds_are_refused_by_field,
    the_server_says_how_long_connecting_takes,
);

async fn the_server_says_how_long_connecting_takes(database: Database) {
    let world = world_with(database, pb::PausedPolicy::Discard, &["--connect-timeout", "1"]).await;
    // It takes connections, and says nothing to them.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("https://{}/", silent.local_addr().expect("bound"));
    let (made, _) = world.create(pb::Endpoint { url, ..Default::default() }, &["*"]).await;
    let mut watch = world.watch().await;
    world.publish_to(&made, b"{}").await;
    let attempt = next_attempt(&mut watch, &made.id).await;
    assert_eq!(attempt.error_detail, "no TLS handshake within 1 s");
}

/// Changes the project's time; none: the default.
async fn project_says(world: &World, timeout: Option<prost_types::Duration>) -> pb::Project {
    let project = pb::Project { id: world.project.clone(), http_timeout: timeout, ..Default::default() };
    let update_mask = Some(prost_types::FieldMask { paths: vec!["http_timeout".to_owned()] });
    let request = pb::UpdateProjectRequest { project: Some(project), update_mask };
    let reply = world.operator.projects().update_project(request).await.expect("updated");
    reply.into_inner().project.expect("a project")
}

async fn an_endpoint_has_its_own_time_or_its_projects(database: Database) {
    let world = World::new(database).await;
    // More than the project will allow, less than all others.
    let receiver = Receiver::scripted(|_, _| Reply::after(Duration::from_millis(2500))).await;
    let endpoint = |timeout| pb::Endpoint {
        url: receiver.url("/slow"),
        retry_policy: Some(quick_retries(1)),
        http_timeout: timeout,
        ..Default::default()
    };
    let (plain, _) = world.create(endpoint(None), &["*"]).await;
    let (own, _) = world.create(endpoint(Some(millis(60_000))), &["*"]).await;
    assert_eq!(project_says(&world, Some(millis(1000))).await.http_timeout, Some(millis(1000)));
    assert_eq!(get(&world, &plain.id).await.http_timeout, None, "its project's is not its own");
    assert_eq!(get(&world, &own.id).await.http_timeout, Some(millis(60_000)));

    let mut watch = world.watch().await;
    let late = world.publish_to(&plain, b"{}").await.event_id;
    let in_time = world.publish_to(&own, b"{}").await.event_id;
    let failed = until(&mut watch, &late, pb::DeliveryStatus::Failed).await;
    assert_eq!(failed.last_error_class(), pb::ErrorClass::Timeout);
    let done = world.settled_deliveries_of(&in_time).await;
    assert_eq!(done[0].status(), pb::DeliveryStatus::Success);

    // A change is in force when it is acknowledged.
    assert_eq!(project_says(&world, None).await.http_timeout, None);
    let event = world.publish_to(&plain, b"{}").await.event_id;
    until(&mut watch, &event, pb::DeliveryStatus::Success).await;
    project_says(&world, Some(millis(60_000))).await;
    let change = pb::Endpoint { id: own.id.clone(), http_timeout: Some(millis(1000)), ..Default::default() };
    let request = pb::UpdateEndpointRequest { endpoint: Some(change), ..Default::default() };
    world.client.endpoints().update_endpoint(request).await.expect("updated");
    let event = world.publish_to(&own, b"{}").await.event_id;
    until(&mut watch, &event, pb::DeliveryStatus::Failed).await;
    // A mask without a value gives the endpoint its project's again.
    let update_mask = Some(prost_types::FieldMask { paths: vec!["http_timeout".to_owned()] });
    let change = Some(pb::Endpoint { id: own.id.clone(), ..Default::default() });
    let request = pb::UpdateEndpointRequest { endpoint: change, update_mask, ..Default::default() };
    world.client.endpoints().update_endpoint(request).await.expect("updated");
    assert_eq!(get(&world, &own.id).await.http_timeout, None);
    let event = world.publish_to(&own, b"{}").await.event_id;
    until(&mut watch, &event, pb::DeliveryStatus::Success).await;
}

async fn times_out_of_bounds_are_refused_by_field(database: Database) {
    let world = World::new(database).await;
    for wrong in [millis(0), millis(999), millis(60_001), prost_types::Duration { seconds: -5, nanos: 0 }] {
        let project = pb::Project { name: "p".to_owned(), http_timeout: Some(wrong), ..Default::default() };
        let request = pb::CreateProjectRequest { project: Some(project) };
        let refused = world.operator.projects().create_project(request).await.expect_err("refused");
        assert_eq!(field_violations(&refused)[0].field, "project.http_timeout");
        let endpoint = pb::Endpoint {
            url: "https://example.com/".to_owned(),
            http_timeout: Some(wrong),
            ..Default::default()
        };
        let request = pb::CreateEndpointRequest { endpoint: Some(endpoint), ..Default::default() };
        let refused = world.client.endpoints().create_endpoint(request).await.expect_err("refused");
        assert_eq!(field_violations(&refused)[0].field, "endpoint.http_timeout");
    }
    let bounds = [millis(1000), millis(60_000)];
    for right in bounds {
        assert_eq!(project_says(&world, Some(right)).await.http_timeout, Some(right));
    }
}
