//! Publishing: what is refused, idempotency keys, reading events back.

use hawser_client::pb::publish_event_request::Target;
use hawser_client::{field_violations, pb, reason};
use tonic::Code;

use crate::support::world::{publish, until};
use crate::support::{Database, Receiver, World, on_both};

on_both!(
    bad_events_are_refused_by_field,
    an_idempotency_key_makes_publishing_again_harmless,
    concurrent_uses_of_a_key_make_one_event,
    events_read_back,
    a_publish_sees_every_change_acknowledged_before,
);

fn request(target: Target) -> pb::PublishEventRequest {
    pb::PublishEventRequest {
        event_type: "invoice.paid".to_owned(),
        target: Some(target),
        payload: b"{}".as_slice().into(),
        ..pb::PublishEventRequest::default()
    }
}

async fn bad_events_are_refused_by_field(database: Database) {
    let world = World::new(database).await;
    let owner = || Target::OwnerId("acme".to_owned());
    let header = |name: &str, value: &str| [(name.to_owned(), value.to_owned())].into();
    let cases = [
        ("event_type", pb::PublishEventRequest { event_type: String::new(), ..request(owner()) }),
        ("event_type", pb::PublishEventRequest { event_type: "a b".to_owned(), ..request(owner()) }),
        ("event_type", pb::PublishEventRequest { event_type: "a\r\nb".to_owned(), ..request(owner()) }),
        ("event_type", pb::PublishEventRequest { event_type: "x".repeat(129), ..request(owner()) }),
        ("target", pb::PublishEventRequest { target: None, ..request(owner()) }),
        ("owner_id", request(Target::OwnerId(String::new()))),
        ("owner_id", request(Target::OwnerId("a\0b".to_owned()))),
        ("endpoint_id", request(Target::EndpointId("nonsense".to_owned()))),
        (
            "payload",
            pb::PublishEventRequest { payload: vec![b'x'; 1024 * 1024 + 1].into(), ..request(owner()) },
        ),
        ("headers[\"host\"]", pb::PublishEventRequest { headers: header("host", "x"), ..request(owner()) }),
        ("headers[\"x\"]", pb::PublishEventRequest { headers: header("x", "a\r\nb"), ..request(owner()) }),
        ("idempotency_key", pb::PublishEventRequest { idempotency_key: "k".repeat(129), ..request(owner()) }),
    ];
    for (field, request) in cases {
        let status = world.client.events().publish_event(request).await.expect_err(field);
        assert_eq!(status.code(), Code::InvalidArgument, "{field}: {status}");
        let fields: Vec<_> = field_violations(&status).into_iter().map(|one| one.field).collect();
        assert_eq!(fields, [field]);
    }
    let missing = hawser::domain::id::EndpointId::new().to_string();
    let status =
        world.client.events().publish_event(request(Target::EndpointId(missing))).await.expect_err("none");
    assert_eq!(status.code(), Code::NotFound);
    let listed = world.client.events().list_events(pb::ListEventsRequest::default()).await.expect("listed");
    assert!(listed.into_inner().events.is_empty(), "nothing of a refused event is kept");
}

async fn an_idempotency_key_makes_publishing_again_harmless(database: Database) {
    let mut world = World::new(database).await;
    let receiver = Receiver::ok().await;
    let (endpoint, _) = world.endpoint(&receiver.url("/hook"), "acme").await;
    let target = || Target::EndpointId(endpoint.id.clone());
    let first = publish(&world.client, target(), b"1", "key").await.expect("published");
    let again = publish(&world.client, target(), b"1", "key").await.expect("published");
    assert_eq!((again.event_id.as_str(), again.duplicate), (first.event_id.as_str(), true));
    assert_eq!(again.delivery_count, 1);
    let other = publish(&world.client, target(), b"2", "key").await.expect_err("other content");
    assert_eq!(other.code(), Code::AlreadyExists);
    assert_eq!(reason(&other).as_deref(), Some("IDEMPOTENCY_KEY_REUSED"));

    // Another project's key is another key, and a restart forgets nothing.
    let (_, foreign) = crate::support::world::project(&world.operator, pb::PausedPolicy::Discard).await;
    let foreign = world.client.with_key(&hawser_client::Key::new(foreign)).expect("a key");
    let elsewhere =
        publish(&foreign, Target::OwnerId("acme".to_owned()), b"2", "key").await.expect("published");
    assert!(!elsewhere.duplicate);
    world.server.kill().await;
    world.restart().await;
    let later = publish(&world.client, target(), b"1", "key").await.expect("published");
    assert_eq!((later.event_id, later.duplicate), (first.event_id.clone(), true));

    // It was accepted, though it would not be now.
    let request = pb::DeleteEndpointRequest { endpoint_id: endpoint.id.clone(), ..Default::default() };
    world.client.endpoints().delete_endpoint(request).await.expect("deleted");
    let gone = publish(&world.client, target(), b"1", "key").await.expect("published before");
    assert_eq!((gone.event_id, gone.duplicate), (first.event_id, true));
    let other = publish(&world.client, target(), b"1", "another key").await.expect_err("no such endpoint");
    assert_eq!(other.code(), Code::NotFound);
}

async fn concurrent_uses_of_a_key_make_one_event(database: Database) {
    let world = World::new(database).await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..32 {
        let client = world.client.clone();
        tasks
            .spawn(async move { publish(&client, Target::OwnerId("acme".to_owned()), b"same", "one").await });
    }
    let replies: Vec<_> = tasks.join_all().await.into_iter().map(|reply| reply.expect("published")).collect();
    assert!(replies.iter().all(|reply| reply.event_id == replies[0].event_id));
    assert_eq!(replies.iter().filter(|reply| !reply.duplicate).count(), 1);
}

async fn events_read_back(database: Database) {
    let world = World::new(database).await;
    let mut published = request(Target::Broadcast(pb::Broadcast {}));
    published.payload = b"\xff\x00raw".as_slice().into();
    published.headers = [("X-Trace".to_owned(), "1".to_owned())].into();
    let id = world.client.events().publish_event(published).await.expect("published").into_inner().event_id;
    let get = pb::GetEventRequest { event_id: id.clone(), ..Default::default() };
    let event =
        world.client.events().get_event(get).await.expect("found").into_inner().event.expect("an event");
    assert_eq!(event.payload.as_ref(), b"\xff\x00raw");
    assert_eq!((event.event_type.as_str(), event.payload_size, event.delivery_count), ("invoice.paid", 5, 0));
    assert_eq!(event.headers.get("x-trace").map(String::as_str), Some("1"));
    assert!(matches!(event.target, Some(pb::event::Target::Broadcast(_))));
    let list = pb::ListEventsRequest { event_type: "invoice.paid".to_owned(), ..Default::default() };
    let listed = world.client.events().list_events(list).await.expect("listed").into_inner().events;
    assert_eq!((listed.len(), listed[0].id.as_str(), listed[0].payload.len()), (1, id.as_str(), 0));
}

/// Each publish starts after a subscription was acknowledged, and must honour it.
async fn a_publish_sees_every_change_acknowledged_before(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::ok().await;
    let endpoint =
        pb::Endpoint { url: receiver.url("/hook"), owner_id: "acme".to_owned(), ..Default::default() };
    let (endpoint, _) = world.create(endpoint, &["never.sent"]).await;
    for round in 0..50 {
        let event_type = format!("round.r{round}");
        let subscription = pb::Subscription {
            endpoint_id: endpoint.id.clone(),
            event_types: vec![event_type.clone()],
            ..Default::default()
        };
        let create = pb::CreateSubscriptionRequest { subscription: Some(subscription), ..Default::default() };
        let made =
            world.client.subscriptions().create_subscription(create).await.expect("created").into_inner();
        let published = || pb::PublishEventRequest {
            event_type: event_type.clone(),
            ..request(Target::OwnerId("acme".to_owned()))
        };
        let reply = world.client.events().publish_event(published()).await.expect("published").into_inner();
        assert_eq!(reply.delivery_count, 1, "round {round}");
        let subscription_id = made.subscription.expect("a subscription").id;
        let delete = pb::DeleteSubscriptionRequest { subscription_id, ..Default::default() };
        world.client.subscriptions().delete_subscription(delete).await.expect("deleted");
        let reply = world.client.events().publish_event(published()).await.expect("published").into_inner();
        assert_eq!(reply.delivery_count, 0, "round {round}");
    }
    let mut watch = world.watch().await;
    let (loud, _) = world.endpoint(&receiver.url("/loud"), "").await;
    let event = world.publish_to(&loud, b"{}").await.event_id;
    until(&mut watch, &event, pb::DeliveryStatus::Success).await;
    receiver.wait_for_count(51).await;
}
