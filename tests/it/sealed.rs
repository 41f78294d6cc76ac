//! A sealed value that does not open stops its endpoint alone: its attempts fail and say so, and others go on.

use hawser_client::pb;
use hawser_client::pb::authentication::Method;
use hawser_client::pb::publish_event_request::Target;

use crate::support::world::quick_retries;
use crate::support::{Database, Receiver, World, on_both};

on_both!(a_value_that_does_not_open_stops_its_endpoint_alone);

const OWNER: &str = "acme";

fn endpoint(receiver: &Receiver, uid: &str) -> pb::Endpoint {
    let basic = pb::BasicAuth { username: uid.to_owned(), password: "secret".to_owned() };
    pb::Endpoint {
        url: receiver.url(&format!("/{uid}")),
        uid: uid.to_owned(),
        owner_id: OWNER.to_owned(),
        headers: vec![pb::Header { name: "x-key".to_owned(), value: uid.to_owned() }],
        authentication: Some(pb::Authentication { method: Some(Method::BasicAuth(basic)) }),
        retry_policy: Some(quick_retries(2)),
        ..Default::default()
    }
}

async fn a_value_that_does_not_open_stops_its_endpoint_alone(database: Database) {
    let mut world = World::new(database).await;
    let receiver = Receiver::ok().await;
    let mut ids = Vec::new();
    for uid in ["whole", "headers", "authentication", "secret"] {
        ids.push(world.create(endpoint(&receiver, uid), &["*"]).await.0.id);
    }
    world.server.terminate().await;
    // Each gets what was sealed for another.
    let mut sql = world.server.sql().await;
    for (table, column, key, uid) in [
        ("endpoints", "headers_sealed", "id", "headers"),
        ("endpoints", "authentication_sealed", "id", "authentication"),
        ("secrets", "sealed", "endpoint_id", "secret"),
    ] {
        let id = |uid: &str| format!("(SELECT e.id FROM endpoints e WHERE e.uid = '{uid}')");
        sql.run(&format!(
            "UPDATE {table} SET {column} = (SELECT o.{column} FROM {table} o WHERE o.{key} = {}) WHERE {key} = {}",
            id("whole"),
            id(uid)
        ))
        .await;
    }
    drop(sql);
    world.restart().await;

    for round in 1..=2 {
        let event = world.publish(Target::OwnerId(OWNER.to_owned()), b"{}").await;
        assert_eq!(event.delivery_count, 4);
        for delivery in world.settled_deliveries_of(&event.event_id).await {
            let attempts = world.attempts_of(&delivery.id).await;
            if delivery.endpoint_id == ids[0] {
                assert_eq!(delivery.status(), pb::DeliveryStatus::Success, "{attempts:?}");
                continue;
            }
            assert_eq!((delivery.status(), attempts.len()), (pb::DeliveryStatus::Failed, 2), "{attempts:?}");
            for attempt in attempts {
                assert_eq!(attempt.error_class(), pb::ErrorClass::Cancelled);
                assert_eq!(attempt.error_detail, "a stored secret of the endpoint cannot be opened");
            }
        }
        let paths: Vec<_> = receiver.seen().into_iter().map(|seen| seen.path).collect();
        assert_eq!(paths, vec!["/whole"; round], "nothing went to the others");
        // The routes are read again.
        world.create(endpoint(&receiver, &format!("more-{round}")), &["never"]).await;
    }
    let told = |id: &String| world.server.log().matches(&format!("endpoint={id}")).count();
    assert_eq!(ids.iter().map(told).collect::<Vec<_>>(), [0, 1, 1, 1], "{}", world.server.log());
}
