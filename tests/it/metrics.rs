//! What `/metrics` tells: after known work the numbers are known, and no series names a tenant's thing.

use std::collections::HashSet;

use hawser_client::pb;
use tonic::{Code, Request};
use tonic_prost::ProstCodec;

use crate::support::failing::{linear, until_all, world_with};
use crate::support::scrape::{falls_below, passes, reaches, value};
use crate::support::secrets::seconds;
use crate::support::world::until;
use crate::support::{Answer, Database, Desk, PATIENCE, Receiver, Reply, World, in_time, on_both, web};

on_both!(
    known_work_gives_known_numbers,
    work_that_is_kept_is_counted_by_what_keeps_it,
    an_attempt_in_flight_waits_for_nothing,
    work_that_waits_for_room_grows_old,
    the_feed_says_how_far_it_is,
    invented_methods_make_one_series,
);

/// With one attempt in flight and no more than two beside it in memory, the rest is due and nobody's.
async fn work_that_waits_for_room_grows_old(database: Database) {
    const OLDEST: &str = "hawser_oldest_due_seconds";
    let world = world_with(database, pb::PausedPolicy::Hold, &[]).await;
    let desk = Desk::open().await;
    let narrow = pb::Endpoint {
        url: desk.url("/"),
        max_in_flight: 1,
        http_timeout: Some(seconds(60)),
        ..Default::default()
    };
    let (narrow, _) = world.create(narrow, &["*"]).await;
    let mut deliveries = Vec::new();
    for _ in 0..6 {
        let event = world.publish_to(&narrow, b"{}").await.event_id;
        deliveries.push(world.deliveries_of(&event).await.remove(0).id);
    }
    passes(&world, OLDEST, 1.0).await;
    let (_, text) = web::get(world.server.admin(), "/metrics").await;
    assert!(value(&text, "hawser_deliveries_waiting{state=\"due\"}").is_some_and(|due| due >= 1.0), "{text}");
    let desk = &desk;
    let answers =
        deliveries.iter().map(|id| async move { desk.request(id).await.answer(Answer::Status(204)) });
    futures_util::future::join_all(answers).await;
    reaches(&world, OLDEST, 0.0).await;
}

/// While the change log cannot be read, streams lack more every second; nothing that is counted when something is read
/// would show it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_feed_that_cannot_read_says_that_it_is_behind() {
    const BEHIND: &str = "hawser_feed_behind_seconds";
    in_time(async {
        let world = World::new(Database::postgres().await).await;
        let receiver = Receiver::ok().await;
        let (endpoint, _) = world.endpoint(&receiver.url("/"), "").await;
        let mut watch = world.watch().await;
        let event = world.publish_to(&endpoint, b"{}").await.event_id;
        // From here on the stream reads from memory, and outlasts the database's absence.
        until(&mut watch, &event, pb::DeliveryStatus::Success).await;
        world.server.database().set_reachable(false).await;
        passes(&world, BEHIND, 3.0).await;
        world.server.database().set_reachable(true).await;
        falls_below(&world, BEHIND, 2.0).await;
    })
    .await;
}

async fn the_feed_says_how_far_it_is(database: Database) {
    const READ: &str = "hawser_feed_lag_seconds_count";
    const LAG: &str = "hawser_feed_lag_seconds_sum";
    const POSITION: &str = "hawser_feed_position";
    let world = World::new(database).await;
    let receiver = Receiver::ok().await;
    let (endpoint, _) = world.endpoint(&receiver.url("/"), "acme").await;
    let mut watch = world.watch().await;
    let numbers = async || {
        let (_, text) = web::get(world.server.admin(), "/metrics").await;
        [READ, LAG, POSITION].map(|series| value(&text, series).unwrap_or_else(|| panic!("{series}\n{text}")))
    };
    let first = numbers().await;
    let (mut before, mut rounds) = (first, 0);
    // One that is read within a millisecond adds nothing.
    while rounds < 3 || before[1] <= first[1] {
        rounds += 1;
        let event = world.publish_to(&endpoint, b"{}").await.event_id;
        until(&mut watch, &event, pb::DeliveryStatus::Success).await;
        // What the stream had was read before; the publish and its outcome are two records.
        let after = numbers().await;
        assert!(after[0] >= before[0] + 2.0 && after[2] > before[2], "{before:?} {after:?}");
        let lag = (after[1] - before[1]) / (after[0] - before[0]);
        assert!(lag >= 0.0 && lag < PATIENCE.as_secs_f64(), "{lag} s: {before:?} {after:?}");
        before = after;
    }
}

async fn known_work_gives_known_numbers(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::scripted(|seen, before| match (seen.path.as_str(), before) {
        ("/flaky", 0) => Reply::status(500),
        _ => Reply::status(204),
    })
    .await;
    let (good, _) = world.endpoint(&receiver.url("/good"), "acme").await;
    let (flaky, _) = world.endpoint(&receiver.url("/flaky"), "acme").await;
    let mut watch = world.watch().await;
    let mut events = Vec::new();
    for _ in 0..5 {
        events.push(world.publish_to(&good, b"{}").await.event_id);
    }
    events.push(world.publish_to(&flaky, b"{}").await.event_id);
    until_all(&mut watch, &events, pb::DeliveryStatus::Success).await;
    reaches(&world, "hawser_deliveries_ended_total{status=\"SUCCESS\"}", 6.0).await;
    // What memory holds is read once a second.
    reaches(&world, "hawser_deliveries_waiting{state=\"in_flight\"}", 0.0).await;
    let text = reaches(&world, "hawser_deliveries_waiting{state=\"due\"}", 0.0).await;
    for (series, expected) in [
        ("hawser_events_total{result=\"accepted\"}", 6.0),
        ("hawser_attempts_total{class=\"success\"}", 6.0),
        ("hawser_attempts_total{class=\"HTTP_STATUS\"}", 1.0),
        ("hawser_attempt_seconds_count", 7.0),
        ("hawser_first_attempt_seconds_count", 6.0),
        ("hawser_publish_seconds_count", 6.0),
        (
            "hawser_grpc_calls_total{service=\"hawser.v1.EventService\",method=\"PublishEvent\",code=\"OK\"}",
            6.0,
        ),
        ("hawser_grpc_calls_open{service=\"hawser.v1.WatchService\",method=\"Watch\"}", 1.0),
        ("hawser_deliveries_waiting{state=\"in_flight\"}", 0.0),
        ("hawser_deliveries_waiting{state=\"due\"}", 0.0),
        ("hawser_egress_failing", 0.0),
    ] {
        assert_eq!(value(&text, series), Some(expected), "{series}\n{text}");
    }
    assert!(value(&text, "hawser_lease_seconds").is_some_and(|left| left > 0.0), "{text}");
    assert!(text.contains("hawser_build_info{version="), "{text}");
    // Labels are closed sets: nothing of a tenant's is among them.
    for one in [&world.project, &good.id, &flaky.id, &events[0], "acme", "test.event"] {
        assert!(!text.contains(one), "{one}\n{text}");
    }
    let names: HashSet<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let table = include_str!("../../docs/operations.md");
    for name in names {
        let name = name.strip_prefix("hawser_").expect("our prefix");
        assert!(table.contains(&format!("`{name}`")), "docs/operations.md lacks {name}");
    }
}

async fn work_that_is_kept_is_counted_by_what_keeps_it(database: Database) {
    let arguments = ["--breaker-failures", "2", "--breaker-pause", "3600"];
    let world = world_with(database, pb::PausedPolicy::Hold, &arguments).await;
    let receiver = Receiver::scripted(|_, _| Reply::status(500)).await;
    let endpoint = |path: &str| pb::Endpoint {
        url: receiver.url(path),
        retry_policy: Some(linear(10, 10)),
        ..Default::default()
    };
    let (failing, _) = world.create(endpoint("/failing"), &["*"]).await;
    let (paused, _) = world.create(endpoint("/paused"), &["*"]).await;
    let slow = pb::RateLimit { requests: 1, per: Some(seconds(3600)), ..Default::default() };
    let (limited, _) =
        world.create(pb::Endpoint { rate_limit: Some(slow), ..endpoint("/limited") }, &["*"]).await;
    let pause = pb::PauseEndpointRequest { endpoint_id: paused.id.clone(), ..Default::default() };
    world.client.endpoints().pause_endpoint(pause).await.expect("paused");
    reaches(&world, "hawser_breakers_open", 0.0).await;
    for _ in 0..3 {
        world.publish_to(&paused, b"{}").await;
        world.publish_to(&failing, b"{}").await;
    }
    // The first has a slot at once, and its retry waits for the next with the other two.
    for _ in 0..3 {
        world.publish_to(&limited, b"{}").await;
    }
    reaches(&world, "hawser_breakers_open", 1.0).await;
    for (state, expected) in [("paused", 3.0), ("breaker", 3.0), ("rate_limit", 3.0)] {
        reaches(&world, &format!("hawser_deliveries_waiting{{state=\"{state}\"}}"), expected).await;
    }
    for id in [&failing.id, &paused.id, &limited.id] {
        let delete = pb::DeleteEndpointRequest { endpoint_id: id.clone(), ..Default::default() };
        world.client.endpoints().delete_endpoint(delete).await.expect("deleted");
    }
    reaches(&world, "hawser_breakers_open", 0.0).await;
    for state in ["paused", "breaker", "rate_limit"] {
        reaches(&world, &format!("hawser_deliveries_waiting{{state=\"{state}\"}}"), 0.0).await;
    }
}

async fn an_attempt_in_flight_waits_for_nothing(database: Database) {
    let world = world_with(database, pb::PausedPolicy::Hold, &[]).await;
    let desk = Desk::open().await;
    let slow = pb::RateLimit { requests: 1, per: Some(seconds(40)), ..Default::default() };
    let limited = pb::Endpoint {
        url: desk.url("/"),
        rate_limit: Some(slow),
        http_timeout: Some(seconds(60)),
        ..Default::default()
    };
    let (limited, _) = world.create(limited, &["*"]).await;
    let first = world.publish_to(&limited, b"{}").await.event_id;
    let first = world.deliveries_of(&first).await.remove(0);
    let held = desk.request(&first.id).await;
    let event = pb::PublishEventRequest {
        event_type: "test.event".to_owned(),
        target: Some(pb::publish_event_request::Target::EndpointId(limited.id.clone())),
        payload: b"{}".to_vec().into(),
        ..Default::default()
    };
    let both = pb::BatchPublishEventsRequest { requests: vec![event; 2], ..Default::default() };
    world.client.events().batch_publish_events(both).await.expect("taken");
    reaches(&world, "hawser_deliveries_waiting{state=\"in_flight\"}", 1.0).await;
    // The two are written together: with the one in flight there would be three.
    reaches(&world, "hawser_deliveries_waiting{state=\"rate_limit\"}", 2.0).await;
    held.answer(Answer::Status(204));
    reaches(&world, "hawser_deliveries_waiting{state=\"in_flight\"}", 0.0).await;
}

/// Anyone who reaches the port may call what is not there, and must not make the page grow by it.
async fn invented_methods_make_one_series(database: Database) {
    const INVENTED: usize = 50;
    let world = World::new(database).await;
    let channel = tonic::transport::Endpoint::from_shared(world.server.address()).expect("a URL");
    let mut grpc = tonic::client::Grpc::new(channel.connect().await.expect("connected"));
    for number in 0..INVENTED {
        // Beside methods that are there, and of services that are not.
        let path = match number % 2 {
            0 => format!("/hawser.v1.EventService/Invented{number}"),
            _ => format!("/Invented{number}.Service/PublishEvent"),
        };
        grpc.ready().await.expect("ready");
        let codec = ProstCodec::<(), ()>::default();
        let called = grpc.unary(Request::new(()), path.parse().expect("a path"), codec).await;
        assert_eq!(called.expect_err("no such method").code(), Code::Unauthenticated, "{path}");
    }
    let (_, text) = web::get(world.server.admin(), "/metrics").await;
    for (series, expected) in [
        ("hawser_grpc_calls_total", INVENTED),
        ("hawser_grpc_call_seconds_count", INVENTED),
        ("hawser_grpc_calls_open", 0),
    ] {
        let unknown: Vec<&str> =
            text.lines().filter(|line| line.starts_with(series) && line.contains("\"unknown\"")).collect();
        assert_eq!(unknown.len(), 1, "{unknown:#?}");
        assert!(unknown[0].ends_with(&format!("}} {expected}")), "{unknown:?}");
    }
    assert!(!text.contains("Invented"), "{text}");
}
