//! What bounds a project: its endpoints, and how fast it publishes.

use std::time::Duration;

use hawser_client::pb::publish_event_request::Target;
use hawser_client::pb::publish_result::Result as Told;
use hawser_client::{Key, error_of, field_violations, pb};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::support::world::{project, publish};
use crate::support::{Database, Receiver, Server, World, in_time, on_both};

on_both!(
    a_project_has_no_more_endpoints_than_it_may,
    endpoints_that_are_created_at_once_are_counted,
    a_project_publishes_no_faster_than_it_may,
);

async fn world(database: Database, arguments: &[&str]) -> World {
    let arguments = [&["--allow-http", "--allow-net", "127.0.0.0/8"], arguments].concat();
    World::on(Server::start_with(database, &arguments).await, pb::PausedPolicy::Discard).await
}

async fn create(client: &hawser_client::Client, uid: &str) -> Result<pb::Endpoint, Status> {
    let endpoint =
        pb::Endpoint { url: "http://127.0.0.1:9/".to_owned(), uid: uid.to_owned(), ..Default::default() };
    let request = pb::CreateEndpointRequest { endpoint: Some(endpoint), ..Default::default() };
    let reply = client.endpoints().create_endpoint(request).await?.into_inner();
    Ok(reply.endpoint.expect("an endpoint"))
}

/// It is refused for a limit of this project's, and told when to try again.
fn assert_quota(refused: &Status, reason: &str, project: &str) {
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    let details = refused.get_error_details();
    assert_eq!(details.error_info().expect("a reason").reason, reason);
    assert_eq!(details.quota_failure().expect("a quota").violations[0].subject, project);
    assert!(retry_delay(refused) > Duration::ZERO);
}

fn retry_delay(refused: &Status) -> Duration {
    refused.get_error_details().retry_info().and_then(|info| info.retry_delay).expect("when to try again")
}

async fn a_project_has_no_more_endpoints_than_it_may(database: Database) {
    let world = world(database, &["--endpoints-max", "2"]).await;
    let first = create(&world.client, "one").await.expect("created");
    // What is refused for another reason takes no place.
    assert_eq!(create(&world.client, "one").await.expect_err("taken").code(), Code::AlreadyExists);
    create(&world.client, "two").await.expect("created");
    let refused = create(&world.client, "three").await.expect_err("as many as it may");
    assert_quota(&refused, "ENDPOINTS", &world.project);
    let listed = pb::ListEndpointsRequest::default();
    let listed = world.client.endpoints().list_endpoints(listed).await.expect("listed").into_inner();
    assert_eq!(listed.endpoints.len(), 2, "nothing was written");
    // Each project has its own places, and a deleted endpoint's comes free.
    let (_, key) = project(&world.operator, pb::PausedPolicy::Discard).await;
    let other = world.client.with_key(&Key::new(key)).expect("a key");
    create(&other, "one").await.expect("created");
    let delete = pb::DeleteEndpointRequest { endpoint_id: first.id, ..Default::default() };
    world.client.endpoints().delete_endpoint(delete).await.expect("deleted");
    create(&world.client, "three").await.expect("created");
    assert_quota(&create(&world.client, "four").await.expect_err("full"), "ENDPOINTS", &world.project);
}

async fn endpoints_that_are_created_at_once_are_counted(database: Database) {
    let world = world(database, &["--endpoints-max", "5"]).await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..20 {
        let client = world.client.clone();
        tasks.spawn(async move { create(&client, &number.to_string()).await });
    }
    let created = tasks.join_all().await.into_iter().filter(Result::is_ok).count();
    assert_eq!(created, 5);
}

async fn limit(world: &World, publishes_per_second: i32) -> Result<pb::Project, Status> {
    let project = pb::Project { id: world.project.clone(), publishes_per_second, ..Default::default() };
    let mask = prost_types::FieldMask { paths: vec!["publishes_per_second".to_owned()] };
    let request = pb::UpdateProjectRequest { project: Some(project), update_mask: Some(mask) };
    let reply = world.operator.projects().update_project(request).await?.into_inner();
    Ok(reply.project.expect("a project"))
}

/// Publishes so many events at once.
async fn burst(world: &World, events: usize) -> Vec<Result<pb::PublishEventResponse, Status>> {
    let one = pb::PublishEventRequest {
        event_type: "test.event".to_owned(),
        target: Some(Target::OwnerId("acme".to_owned())),
        payload: b"{}".to_vec().into(),
        ..Default::default()
    };
    let request = pb::BatchPublishEventsRequest { requests: vec![one; events], ..Default::default() };
    let reply = world.client.events().batch_publish_events(request).await.expect("taken").into_inner();
    let told = |result: pb::PublishResult| match result.result.expect("a result") {
        Told::Receipt(receipt) => Ok(receipt),
        Told::Error(error) => Err(error_of(&error)),
    };
    reply.results.into_iter().map(told).collect()
}

async fn a_project_publishes_no_faster_than_it_may(database: Database) {
    let world = world(database, &[]).await;
    let receiver = Receiver::ok().await;
    world.endpoint(&receiver.url("/hook"), "acme").await;
    assert!(burst(&world, 20).await.iter().all(Result::is_ok), "there is no limit unless one is set");
    for bad in [-1, 1_000_001] {
        let refused = limit(&world, bad).await.expect_err("out of range");
        assert_eq!(field_violations(&refused)[0].field, "project.publishes_per_second");
    }
    assert_eq!(limit(&world, 1).await.expect("changed").publishes_per_second, 1);
    let results = burst(&world, 20).await;
    let refused: Vec<_> = results.iter().filter_map(|one| one.as_ref().err()).collect();
    assert!(results[0].is_ok() && !refused.is_empty(), "{results:?}");
    for one in &refused {
        assert_quota(one, "PUBLISHES_PER_SECOND", &world.project);
        assert!(retry_delay(one) <= Duration::from_secs(1), "there is room each second: {one:?}");
    }
    // Of what was refused nothing is stored, and another project does not notice.
    let mut accepted = 20 + results.len() - refused.len();
    let (_, key) = project(&world.operator, pb::PausedPolicy::Discard).await;
    let other = world.client.with_key(&Key::new(key)).expect("a key");
    for _ in 0..3 {
        publish(&other, Target::OwnerId("acme".to_owned()), b"{}", "").await.expect("published");
    }
    let target = || Target::OwnerId("acme".to_owned());
    // Whoever waits as told gets through.
    let waited = async {
        loop {
            match publish(&world.client, target(), b"{}", "").await {
                Ok(_) => break,
                Err(status) => crate::support::pass_time(retry_delay(&status)).await,
            }
        }
    };
    tokio::time::timeout(crate::support::PATIENCE, waited).await.expect("there is room again");
    accepted += 1;
    assert_eq!(world.server.sql().await.count("events").await, i64::try_from(accepted + 3).expect("small"));
    assert_eq!(receiver.wait_for_count(accepted).await.len(), accepted);
    limit(&world, 0).await.expect("changed");
    assert!(burst(&world, 20).await.iter().all(Result::is_ok), "the limit is gone");
}

/// A limit that was set on one node is in force on the other, which counts for itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_node_counts_for_itself() {
    in_time(async {
        let world = world(Database::postgres().await, &[]).await;
        let node = world.server.join().await;
        let there = world.client_of(&node).await;
        // From now on it knows the project as one without a limit.
        publish(&there, Target::OwnerId("acme".to_owned()), b"{}", "").await.expect("published");
        limit(&world, 1).await.expect("changed");
        for client in [&world.client, &there] {
            let mut tasks = tokio::task::JoinSet::new();
            for _ in 0..20 {
                let client = client.clone();
                tasks.spawn(
                    async move { publish(&client, Target::OwnerId("acme".to_owned()), b"{}", "").await },
                );
            }
            let results = tasks.join_all().await;
            let refused: Vec<_> = results.iter().filter_map(|one| one.as_ref().err()).collect();
            assert!(!refused.is_empty() && refused.len() < results.len(), "{results:?}");
            refused.iter().for_each(|one| assert_quota(one, "PUBLISHES_PER_SECOND", &world.project));
        }
    })
    .await;
}
