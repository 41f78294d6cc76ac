//! BatchPublishEvents: a result each, in order; one bad event refuses only itself.

use std::collections::HashSet;

use hawser_client::pb::publish_event_request::Target;
use hawser_client::pb::publish_result::Result as Told;
use hawser_client::{Key, error_of, field_violations, pb, reason};
use tonic::{Code, Status};

use crate::support::world::project;
use crate::support::{Database, Receiver, World, on_both};

on_both!(
    a_batch_has_a_result_each_in_order,
    a_bad_event_refuses_only_itself,
    of_two_events_with_one_key_the_first_counts,
    what_concerns_the_whole_batch_refuses_it,
    a_batch_of_the_largest_size_is_taken,
);

fn event(target: Target, payload: impl Into<bytes::Bytes>) -> pb::PublishEventRequest {
    pb::PublishEventRequest {
        event_type: "invoice.paid".to_owned(),
        target: Some(target),
        payload: payload.into(),
        ..Default::default()
    }
}

fn to_owner(payload: impl Into<bytes::Bytes>) -> pb::PublishEventRequest {
    event(Target::OwnerId("acme".to_owned()), payload)
}

async fn send(
    world: &World,
    requests: Vec<pb::PublishEventRequest>,
) -> Result<Vec<Result<pb::PublishEventResponse, Status>>, Status> {
    let request = pb::BatchPublishEventsRequest { requests, ..Default::default() };
    let results = world.client.events().batch_publish_events(request).await?.into_inner().results;
    let told = |result: pb::PublishResult| match result.result.expect("a result") {
        Told::Receipt(receipt) => Ok(receipt),
        Told::Error(error) => Err(error_of(&error)),
    };
    Ok(results.into_iter().map(told).collect())
}

async fn a_batch_has_a_result_each_in_order(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::ok().await;
    world.endpoint(&receiver.url("/hook"), "acme").await;
    let requests = (0..1000).map(|number: u32| to_owner(number.to_string())).collect();
    let receipts: Vec<_> =
        send(&world, requests).await.expect("taken").into_iter().map(|one| one.expect("accepted")).collect();
    assert!(receipts.iter().all(|one| one.delivery_count == 1 && !one.duplicate));
    let seen = receiver.wait_for_count(1000).await;
    assert_eq!(seen.len(), 1000);
    for one in &seen {
        let number: usize = std::str::from_utf8(&one.body).expect("text").parse().expect("a number");
        assert_eq!(one.event(), receipts[number].event_id, "each result is at its event's place");
    }
}

async fn a_bad_event_refuses_only_itself(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::ok().await;
    let (endpoint, _) = world.endpoint(&receiver.url("/hook"), "acme").await;
    let missing = hawser::domain::id::EndpointId::new().to_string();
    let (_, foreign_key) = project(&world.operator, pb::PausedPolicy::Discard).await;
    let foreign = world.client.with_key(&Key::new(foreign_key)).expect("a key");
    let elsewhere = pb::Endpoint { url: receiver.url("/foreign"), ..Default::default() };
    let elsewhere = pb::CreateEndpointRequest { endpoint: Some(elsewhere), ..Default::default() };
    let elsewhere = foreign.endpoints().create_endpoint(elsewhere).await.expect("created").into_inner();
    let elsewhere = elsewhere.endpoint.expect("an endpoint").id;

    let good = || event(Target::EndpointId(endpoint.id.clone()), "good");
    let requests = vec![
        good(),
        pb::PublishEventRequest { event_type: "a b".to_owned(), ..good() },
        event(Target::EndpointId(missing), "missing"),
        event(Target::EndpointId(elsewhere), "another project's"),
        pb::PublishEventRequest { target: None, ..good() },
        to_owner(vec![b'x'; 1024 * 1024 + 1]),
        pb::PublishEventRequest { headers: [("host".to_owned(), "x".to_owned())].into(), ..good() },
        pb::PublishEventRequest { project_id: "prj_00000000000000000000000000".to_owned(), ..good() },
        pb::PublishEventRequest { project_id: world.project.clone(), ..good() },
        good(),
    ];
    let expected = [
        None,
        Some((Code::InvalidArgument, "event_type")),
        Some((Code::NotFound, "")),
        Some((Code::NotFound, "")),
        Some((Code::InvalidArgument, "target")),
        Some((Code::InvalidArgument, "payload")),
        Some((Code::InvalidArgument, "headers[\"host\"]")),
        Some((Code::InvalidArgument, "project_id")),
        Some((Code::InvalidArgument, "project_id")),
        None,
    ];
    let results = send(&world, requests).await.expect("taken");
    assert_eq!(results.len(), expected.len());
    for (place, (result, expected)) in results.iter().zip(expected).enumerate() {
        match (result, expected) {
            (Ok(receipt), None) => assert_eq!(receipt.delivery_count, 1),
            (Err(status), Some((code, field))) => {
                assert_eq!(status.code(), code, "{place}: {status}");
                let fields: Vec<_> = field_violations(status).into_iter().map(|one| one.field).collect();
                assert_eq!(fields.concat(), field, "{place}");
                assert!(reason(status).is_some(), "{place}: the details come along");
            }
            (result, _) => panic!("{place}: {result:?}"),
        }
    }
    let seen = receiver.wait_for_count(2).await;
    assert!(seen.iter().all(|one| one.body == "good"));
    let listed = world.client.events().list_events(pb::ListEventsRequest::default()).await.expect("listed");
    assert_eq!(listed.into_inner().events.len(), 2, "nothing of a refused event is kept");
}

async fn of_two_events_with_one_key_the_first_counts(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::ok().await;
    world.endpoint(&receiver.url("/hook"), "acme").await;
    let keyed = |key: &str, payload: &str| pb::PublishEventRequest {
        idempotency_key: key.to_owned(),
        ..to_owner(payload.to_owned())
    };
    let before = send(&world, vec![keyed("old", "0")]).await.expect("taken").remove(0).expect("accepted");
    let mut requests =
        vec![keyed("new", "1"), keyed("new", "1"), keyed("new", "2"), keyed("old", "0"), keyed("old", "3")];
    // Many repeats must not take a turn each.
    requests.extend((0..900).map(|_| keyed("new", "1")));
    let results = send(&world, requests).await.expect("taken");
    let first = results[0].as_ref().expect("accepted");
    assert!(!first.duplicate && first.event_id != before.event_id);
    for repeat in results[1..2].iter().chain(&results[5..]) {
        let repeat = repeat.as_ref().expect("a repeat");
        assert_eq!((repeat.event_id.as_str(), repeat.duplicate), (first.event_id.as_str(), true));
        assert_eq!(repeat.delivery_count, 1);
    }
    for reused in [&results[2], &results[4]] {
        let status = reused.as_ref().expect_err("other content");
        assert_eq!(reason(status).as_deref(), Some("IDEMPOTENCY_KEY_REUSED"));
    }
    let old = results[3].as_ref().expect("a repeat");
    assert_eq!((old.event_id.as_str(), old.duplicate), (before.event_id.as_str(), true));
    assert_eq!(receiver.wait_for_count(2).await.len(), 2);
}

async fn what_concerns_the_whole_batch_refuses_it(database: Database) {
    let world = World::new(database).await;
    for (requests, field) in [
        (Vec::new(), "requests"),
        (vec![to_owner("x"); 1001], "requests"),
        (vec![to_owner(vec![b'x'; 1000 * 1000]); 17], "requests"),
    ] {
        let status = send(&world, requests).await.expect_err("refused");
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert_eq!(field_violations(&status)[0].field, field);
    }
    let key =
        crate::support::world::key(&world.operator, &world.project, &[pb::Scope::EventsRead.into()]).await;
    let reader = world.client.with_key(&Key::new(key)).expect("a key");
    let request = pb::BatchPublishEventsRequest { requests: vec![to_owner("x")], ..Default::default() };
    let status = reader.events().batch_publish_events(request.clone()).await.expect_err("no scope");
    assert_eq!(status.code(), Code::PermissionDenied);
    let status = world.operator.events().batch_publish_events(request).await.expect_err("no project");
    assert_eq!(field_violations(&status)[0].field, "project_id");
    let listed = world.client.events().list_events(pb::ListEventsRequest::default()).await.expect("listed");
    assert!(listed.into_inner().events.is_empty());
}

async fn a_batch_of_the_largest_size_is_taken(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::ok().await;
    world.endpoint(&receiver.url("/hook"), "acme").await;
    // Twice what a turn takes.
    let requests = vec![to_owner(vec![b'x'; 1024 * 1024 - 64]); 16];
    let results = send(&world, requests).await.expect("taken");
    let ids: HashSet<_> = results.into_iter().map(|one| one.expect("accepted").event_id).collect();
    let seen = receiver.wait_for_count(16).await;
    assert_eq!(seen.iter().map(|one| one.event()).collect::<HashSet<_>>(), ids);
}
