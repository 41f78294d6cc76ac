//! Retry policies: strategies, what a project says for its endpoints, what a receiver may ask for.

use hawser_client::pb::retry_policy::Strategy;
use hawser_client::{field_violations, pb, reason};
use tonic::{Code, Status};

use crate::support::failing::{NO_BREAKER, get, linear, millis, world_with};
use crate::support::world::{quick_retries, until};
use crate::support::{Database, Receiver, Reply, World, on_both};

on_both!(
    endpoints_follow_their_project_or_their_own_policy,
    projects_are_changed_under_mask_and_etag,
    policies_out_of_bounds_are_refused_by_field,
    retry_after_lengthens_the_wait_of_a_503_only,
);

fn schedule(waits: &[i64], max_attempts: i32) -> pb::RetryPolicy {
    let waits = waits.iter().map(|wait| millis(*wait)).collect();
    let strategy = Some(Strategy::Schedule(pb::RetrySchedule { waits }));
    pb::RetryPolicy { strategy, max_attempts }
}

async fn update(world: &World, project: pb::Project, paths: &[&str]) -> Result<pb::Project, Status> {
    let project = pb::Project { id: world.project.clone(), ..project };
    let paths = paths.iter().map(|path| (*path).to_owned()).collect();
    let update_mask = Some(prost_types::FieldMask { paths });
    let request = pb::UpdateProjectRequest { project: Some(project), update_mask };
    let reply = world.operator.projects().update_project(request).await?;
    Ok(reply.into_inner().project.expect("a project"))
}

async fn endpoints_follow_their_project_or_their_own_policy(database: Database) {
    let world = world_with(database, pb::PausedPolicy::Discard, &NO_BREAKER).await;
    let receiver = Receiver::scripted(|_, _| Reply::status(500)).await;
    // Three waits are four attempts.
    let policy = Some(schedule(&[10, 20, 10], 0));
    let project = pb::Project { retry_policy: policy.clone(), ..Default::default() };
    let project = update(&world, project, &["retry_policy"]).await.expect("updated");
    assert_eq!(project.retry_policy.expect("a policy").max_attempts, 4);
    let (plain, _) =
        world.create(pb::Endpoint { url: receiver.url("/plain"), ..Default::default() }, &["*"]).await;
    assert_eq!(get(&world, &plain.id).await.retry_policy, None, "its project's is not its own");
    let own =
        pb::Endpoint { url: receiver.url("/own"), retry_policy: Some(linear(10, 2)), ..Default::default() };
    let (own, _) = world.create(own, &["*"]).await;
    assert_eq!(get(&world, &own.id).await.retry_policy, Some(linear(10, 2)));

    let mut watch = world.watch().await;
    for (endpoint, attempts) in [(&plain, 4), (&own, 2)] {
        let event = world.publish_to(endpoint, b"{}").await.event_id;
        let failed = until(&mut watch, &event, pb::DeliveryStatus::Failed).await;
        assert_eq!(failed.attempt_count, attempts);
        let made = world.attempts_of(&failed.id).await;
        let starts: Vec<_> = made.iter().map(|one| one.start_time.expect("a time")).collect();
        let gap = |at: usize| {
            (starts[at].seconds - starts[at - 1].seconds) * 1000
                + i64::from(starts[at].nanos - starts[at - 1].nanos) / 1_000_000
        };
        assert!(gap(1) >= 9, "{starts:?}");
        if attempts == 4 {
            assert!(gap(2) >= 19, "{starts:?}");
        }
    }

    // A change is in force when it is acknowledged; a schedule may be cut short.
    let cut = pb::Project { retry_policy: Some(schedule(&[10, 20, 10], 3)), ..Default::default() };
    update(&world, cut, &["retry_policy"]).await.expect("updated");
    let event = world.publish_to(&plain, b"{}").await.event_id;
    assert_eq!(until(&mut watch, &event, pb::DeliveryStatus::Failed).await.attempt_count, 3);
}

async fn projects_are_changed_under_mask_and_etag(database: Database) {
    let world = World::new(database).await;
    let request = pb::GetProjectRequest { project_id: world.project.clone() };
    let before = world.operator.projects().get_project(request.clone()).await.expect("found").into_inner();
    let before = before.project.expect("a project");

    let change = pb::Project {
        name: "ignored".to_owned(),
        paused_policy: pb::PausedPolicy::Hold.into(),
        disable_policy: Some(pb::DisablePolicy { failures: 7, ..Default::default() }),
        etag: before.etag.clone(),
        ..Default::default()
    };
    let changed =
        update(&world, change.clone(), &["paused_policy", "disable_policy"]).await.expect("updated");
    assert_eq!((changed.name.as_str(), changed.paused_policy()), ("test", pb::PausedPolicy::Hold));
    let hour = Some(prost_types::Duration { seconds: 3600, nanos: 0 });
    assert_eq!(changed.disable_policy, Some(pb::DisablePolicy { failures: 7, span: hour, off: false }));
    assert_ne!(changed.etag, before.etag);

    let stale = update(&world, change, &["name"]).await.expect_err("an old etag");
    assert_eq!((stale.code(), reason(&stale).as_deref()), (Code::Aborted, Some("ETAG_MISMATCH")));
    let unknown = update(&world, pb::Project::default(), &["create_time"]).await.expect_err("no field");
    assert_eq!(field_violations(&unknown)[0].field, "update_mask");
    let nameless = update(&world, pb::Project::default(), &["name"]).await.expect_err("no name");
    assert_eq!(field_violations(&nameless)[0].field, "project.name");
    let read = world.operator.projects().get_project(request).await.expect("found").into_inner();
    assert_eq!(read.project, Some(changed), "what was refused changed nothing");

    let mine = pb::UpdateProjectRequest { project: read_project(&world), ..Default::default() };
    let refused = world.client.projects().update_project(mine).await.expect_err("a project key");
    assert_eq!(refused.code(), Code::PermissionDenied);
    let missing = pb::Project { id: "prj_01h455vb4pex5vsknk084sn02q".to_owned(), ..Default::default() };
    let missing = pb::UpdateProjectRequest { project: Some(missing), ..Default::default() };
    let missing = world.operator.projects().update_project(missing).await.expect_err("no such project");
    assert_eq!(missing.code(), Code::NotFound);
}

fn read_project(world: &World) -> Option<pb::Project> {
    Some(pb::Project { id: world.project.clone(), name: "mine".to_owned(), ..Default::default() })
}

async fn policies_out_of_bounds_are_refused_by_field(database: Database) {
    let world = World::new(database).await;
    let no_wait = Some(Strategy::Linear(pb::LinearBackoff { wait: None }));
    let retries = [
        (schedule(&[], 0), "schedule.waits"),
        (schedule(&[10; 100], 0), "schedule.waits"),
        (schedule(&[10, 0], 0), "schedule.waits[1]"),
        (linear(86_400_001, 3), "linear.wait"),
        (pb::RetryPolicy { strategy: no_wait, max_attempts: 3 }, "linear.wait"),
        (pb::RetryPolicy { max_attempts: 101, ..quick_retries(1) }, "max_attempts"),
    ];
    for (policy, field) in retries {
        let project = pb::Project { retry_policy: Some(policy), ..Default::default() };
        let refused = update(&world, project, &["retry_policy"]).await.expect_err(field);
        assert_eq!(field_violations(&refused)[0].field, format!("project.retry_policy.{field}"));
    }
    let month = Some(prost_types::Duration { seconds: 30 * 86_400 + 1, nanos: 0 });
    for (policy, field) in [
        (pb::DisablePolicy { failures: 1001, ..Default::default() }, "failures"),
        (pb::DisablePolicy { failures: -1, ..Default::default() }, "failures"),
        (pb::DisablePolicy { span: month, ..Default::default() }, "span"),
    ] {
        let project = pb::Project { disable_policy: Some(policy), ..Default::default() };
        let refused = update(&world, project, &["disable_policy"]).await.expect_err(field);
        assert_eq!(field_violations(&refused)[0].field, format!("project.disable_policy.{field}"));
    }
}

async fn retry_after_lengthens_the_wait_of_a_503_only(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::scripted(|one, before| {
        let status = match (before, one.path.as_str()) {
            (0, "/busy") => 503,
            (0, _) => 500,
            _ => 200,
        };
        let asked = if one.path == "/busy" { "1" } else { "3600" };
        Reply { headers: vec![("retry-after", asked.to_owned())], ..Reply::status(status) }
    })
    .await;
    let mut watch = world.watch().await;
    for (path, at_least) in [("/busy", 1000), ("/broken", 20)] {
        let (endpoint, _) = world.endpoint(&receiver.url(path), "").await;
        let event = world.publish_to(&endpoint, b"{}").await.event_id;
        let retry = until(&mut watch, &event, pb::DeliveryStatus::Retry).await;
        let (next, made) = (retry.next_attempt_time.expect("a retry"), retry.create_time.expect("a time"));
        let wait = (next.seconds - made.seconds) * 1000 + i64::from(next.nanos - made.nanos) / 1_000_000;
        assert!(wait >= at_least, "{path}: {wait} ms");
        // An hour would not end in time.
        until(&mut watch, &event, pb::DeliveryStatus::Success).await;
    }
}
