//! Forms: what a receiver gets of a JSON object, signed as it is sent, and what becomes of what is none.

use hawser_client::pb::publish_event_request::Target;
use hawser_client::{pb, reason};
use tonic::Code;

use crate::support::failing::get;
use crate::support::world::{publish, until};
use crate::support::{Database, Receiver, World, on_both};

on_both!(
    an_object_is_sent_as_a_form_and_signed_so,
    what_is_no_object_fails_at_once,
    the_content_type_can_be_changed
);

const PAYLOAD: &[u8] = br#"{"b": [1, 2], "a": "x y", "n": 1.50, "z": null, "a": true}"#;
const FORM: &str = "b=%5B1%2C2%5D&a=x+y&n=1.50&z=&a=true";

async fn endpoint(
    world: &World,
    receiver: &Receiver,
    content_type: pb::ContentType,
) -> (pb::Endpoint, String) {
    let endpoint = pb::Endpoint {
        url: receiver.url("/hook"),
        content_type: content_type.into(),
        ..pb::Endpoint::default()
    };
    world.create(endpoint, &["*"]).await
}

async fn an_object_is_sent_as_a_form_and_signed_so(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::ok().await;
    let (endpoint, secret) = endpoint(&world, &receiver, pb::ContentType::Form).await;
    assert_eq!(get(&world, &endpoint.id).await.content_type(), pb::ContentType::Form);
    let event = world.publish_to(&endpoint, PAYLOAD).await.event_id;
    let seen = receiver.wait_for_count(1).await.remove(0);
    assert_eq!(seen.header("content-type"), "application/x-www-form-urlencoded");
    assert_eq!(seen.body, FORM);
    let webhook = standardwebhooks::Webhook::new(&secret).expect("a secret");
    webhook.verify(&seen.body, &seen.headers).expect("the signature is of the form");
    let stored = pb::GetEventRequest { event_id: event, ..Default::default() };
    let stored = world.client.events().get_event(stored).await.expect("found").into_inner().event;
    assert_eq!(stored.expect("an event").payload, PAYLOAD, "kept as it was published");
}

async fn what_is_no_object_fails_at_once(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::ok().await;
    let (form, _) = endpoint(&world, &receiver, pb::ContentType::Form).await;
    let (json, _) = endpoint(&world, &receiver, pb::ContentType::Json).await;
    let alone = publish(&world.client, Target::EndpointId(form.id.clone()), b"[1]", "").await;
    let refused = alone.expect_err("to such an endpoint alone");
    assert_eq!((refused.code(), reason(&refused).as_deref()), (Code::InvalidArgument, Some("INVALID_FIELD")));
    assert!(refused.message().contains("not a JSON object"), "{refused}");
    assert_eq!(world.publish_to(&json, b"[1]").await.delivery_count, 1);

    let mut watch = world.watch().await;
    let all = Target::Broadcast(pb::Broadcast {});
    let event = world.publish(all, b"not JSON").await.event_id;
    let failed = until(&mut watch, &event, pb::DeliveryStatus::Failed).await;
    assert_eq!((failed.endpoint_id.as_str(), failed.attempt_count), (form.id.as_str(), 1));
    assert_eq!(failed.last_error_class(), pb::ErrorClass::Cancelled);
    let attempts = world.attempts_of(&failed.id).await;
    assert_eq!(attempts.len(), 1);
    assert_eq!(attempts[0].error_detail, "the payload cannot be sent as a form: it is not JSON");
    // The endpoint is not to blame.
    let read = get(&world, &form.id).await;
    assert_eq!((read.status(), read.consecutive_failures), (pb::EndpointStatus::Active, 0));
    let seen = receiver.wait_for_count(2).await;
    assert!(seen.iter().all(|one| one.header("content-type") == "application/json"));
}

async fn the_content_type_can_be_changed(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::ok().await;
    let (json, _) = endpoint(&world, &receiver, pb::ContentType::Unspecified).await;
    assert_eq!(json.content_type(), pb::ContentType::Json);
    let change = pb::Endpoint {
        id: json.id.clone(),
        content_type: pb::ContentType::Form.into(),
        ..pb::Endpoint::default()
    };
    let request = pb::UpdateEndpointRequest { endpoint: Some(change), ..Default::default() };
    let changed = world.client.endpoints().update_endpoint(request).await.expect("changed").into_inner();
    let changed = changed.endpoint.expect("an endpoint");
    assert_eq!((changed.content_type(), changed.url), (pb::ContentType::Form, json.url.clone()));
    world.publish_to(&json, PAYLOAD).await;
    assert_eq!(receiver.wait_for_count(1).await[0].body, FORM);
    let unknown = pb::Endpoint { url: receiver.url("/"), content_type: 9, ..Default::default() };
    let request = pb::CreateEndpointRequest { endpoint: Some(unknown), ..Default::default() };
    let refused = world.client.endpoints().create_endpoint(request).await.expect_err("unknown");
    assert_eq!(refused.code(), Code::InvalidArgument);
}
