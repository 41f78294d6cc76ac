//! The audit log: every call that changes something is in it, and no secret is.

use std::collections::BTreeSet;

use hawser_client::pb::publish_event_request::Target;
use hawser_client::{Key, pb};
use prost::Message;
use tonic::Code;

use crate::support::secrets::{expire, list, reveal, rotate};
use crate::support::told::set_webhook;
use crate::support::world::{key, project};
use crate::support::{Database, Receiver, World, on_both};

on_both!(every_change_is_written_down, entries_are_filtered_paged_and_kept_apart);

/// Events are kept themselves, with all that an entry would say; watching changes nothing.
const NOT_AUDITED: [&str; 7] = [
    "PublishEvent",
    "BatchPublishEvents",
    "StreamPublishEvents",
    "Watch",
    // Each of its rows has an entry as if it had been created or updated alone.
    "BulkCreateEndpoints",
    // They ask others and change nothing here.
    "PingEndpoint",
    "TestOAuth2",
];

/// Every RPC that the contract does not call free of side effects.
fn changing_calls() -> BTreeSet<String> {
    let set =
        prost_types::FileDescriptorSet::decode(hawser::grpc::pb::FILE_DESCRIPTOR_SET).expect("the contract");
    let services =
        set.file.iter().filter(|file| file.package() == "hawser.v1").flat_map(|file| &file.service);
    let methods = services.flat_map(|service| &service.method);
    let changing = methods.filter(|method| {
        let level = method.options.as_ref().map(|options| options.idempotency_level());
        level != Some(prost_types::method_options::IdempotencyLevel::NoSideEffects)
    });
    changing
        .map(|method| method.name().to_owned())
        .filter(|name| !NOT_AUDITED.contains(&name.as_str()))
        .collect()
}

async fn entries(world: &World, request: pb::ListAuditEventsRequest) -> Vec<pb::AuditEvent> {
    world.operator.audit().list_audit_events(request).await.expect("listed").into_inner().audit_events
}

async fn every_change_is_written_down(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::ok().await;
    let changes = do_everything(&world, &receiver.url("/hook")).await;
    let all = entries(&world, pb::ListAuditEventsRequest { page_size: 1000, ..Default::default() }).await;
    let written: BTreeSet<String> = all.iter().map(|event| event.action.clone()).collect();
    let missing: Vec<_> = changing_calls().difference(&written).cloned().collect();
    assert!(missing.is_empty(), "no entry of {missing:?}: write one, and call it here");

    for event in &all {
        let shown = format!("{} {}", event.before, event.after);
        assert!(!shown.contains("canary"), "{event:?}");
        for secret in &changes.secrets {
            assert!(!shown.contains(secret.as_str()), "{event:?}");
        }
        // The first operator key was made by no call.
        assert!(event.origin.starts_with("127.0.0.1") || event.origin.is_empty(), "{event:?}");
        assert!(event.create_time.is_some() && !event.resource.is_empty(), "{event:?}");
    }
    let of = |action: &str| all.iter().find(|event| event.action == action).expect("an entry").clone();
    let update = of("UpdateEndpoint");
    assert_eq!((update.api_key_name.as_str(), update.project_id.as_str()), ("test", world.project.as_str()));
    let before: serde_json::Value = serde_json::from_str(&update.before).expect("JSON");
    let after: serde_json::Value = serde_json::from_str(&update.after).expect("JSON");
    assert_eq!((before["name"].as_str(), after["name"].as_str()), (Some(""), Some("renamed")));
    assert_eq!(of("RevealSecret").resource, changes.revealed);

    // What is refused leaves nothing.
    let count = all.len();
    let bad = pb::Endpoint { url: "https://10.0.0.1/".to_owned(), ..Default::default() };
    let request = pb::CreateEndpointRequest { endpoint: Some(bad), ..Default::default() };
    world.client.endpoints().create_endpoint(request).await.expect_err("refused");
    reveal(&world.client, "sec_01h2e8kqvbfwea724h75qc655w").await.expect_err("not there");
    let all = entries(&world, pb::ListAuditEventsRequest { page_size: 1000, ..Default::default() }).await;
    assert_eq!(all.len(), count);
}

struct Changes {
    secrets: Vec<String>,
    revealed: String,
}

/// Every changing call of the contract once, with success.
async fn do_everything(world: &World, url: &str) -> Changes {
    let (client, operator) = (&world.client, &world.operator);
    let renamed = pb::Project { id: world.project.clone(), name: "renamed".to_owned(), ..Default::default() };
    let request = pb::UpdateProjectRequest { project: Some(renamed), update_mask: None };
    operator.projects().update_project(request).await.expect("updated");
    set_webhook(world, url, &["delivery.exhausted"]).await;
    let request = pb::RotateOperationalSecretRequest { project_id: world.project.clone(), grace: None };
    operator.projects().rotate_operational_secret(request).await.expect("rotated");
    let request = pb::RevealOperationalSecretRequest { project_id: world.project.clone() };
    operator.projects().reveal_operational_secret(request).await.expect("shown");
    key(operator, &world.project, &[1]).await;
    let keys = pb::ListApiKeysRequest { project_id: world.project.clone(), ..Default::default() };
    let keys = operator.projects().list_api_keys(keys).await.expect("listed").into_inner().api_keys;
    let revoke = pb::RevokeApiKeyRequest { api_key_id: keys[1].id.clone() };
    operator.projects().revoke_api_key(revoke).await.expect("revoked");

    let header = pb::Header { name: "x-token".to_owned(), value: "canary".to_owned() };
    let endpoint = pb::Endpoint { url: url.to_owned(), headers: vec![header], ..Default::default() };
    let (endpoint, first) = world.create(endpoint, &["*"]).await;
    let id = endpoint.id.clone();
    let renamed = pb::Endpoint { id: id.clone(), name: "renamed".to_owned(), ..Default::default() };
    let request = pb::UpdateEndpointRequest { endpoint: Some(renamed), ..Default::default() };
    client.endpoints().update_endpoint(request).await.expect("updated");

    let subscription =
        pb::Subscription { endpoint_id: id.clone(), event_types: vec!["a".to_owned()], ..Default::default() };
    let request =
        pb::CreateSubscriptionRequest { subscription: Some(subscription.clone()), ..Default::default() };
    let made = client.subscriptions().create_subscription(request).await.expect("created").into_inner();
    let made = made.subscription.expect("one").id;
    let changed = pb::Subscription { id: made.clone(), enabled: Some(false), ..Default::default() };
    let request = pb::UpdateSubscriptionRequest { subscription: Some(changed), ..Default::default() };
    client.subscriptions().update_subscription(request).await.expect("updated");
    let request = pb::DeleteSubscriptionRequest { subscription_id: made, ..Default::default() };
    client.subscriptions().delete_subscription(request).await.expect("deleted");

    let rotated = rotate(client, &id, 3600).await.expect("rotated");
    let secrets = list(client, &id).await.secrets;
    reveal(client, &secrets[0].id).await.expect("shown");
    expire(client, &secrets[1].id).await.expect("expired");

    let endpoint_id = id.clone();
    let pause = pb::PauseEndpointRequest { endpoint_id: endpoint_id.clone(), ..Default::default() };
    client.endpoints().pause_endpoint(pause.clone()).await.expect("paused");
    // Published while it is paused, it is there to be retried.
    let event = world.publish(Target::EndpointId(id.clone()), b"{}").await.event_id;
    let delivery = world.deliveries_of(&event).await.remove(0).id;
    let resume = pb::ResumeEndpointRequest { endpoint_id: endpoint_id.clone(), ..Default::default() };
    client.endpoints().resume_endpoint(resume).await.expect("resumed");
    let retry = pb::RetryDeliveryRequest { delivery_id: delivery, ..Default::default() };
    client.deliveries().retry_delivery(retry).await.expect("retried");
    client.endpoints().pause_endpoint(pause).await.expect("paused");
    let activate = pb::ActivateEndpointRequest { endpoint_id: endpoint_id.clone(), ..Default::default() };
    client.endpoints().activate_endpoint(activate).await.expect("activated");
    let delete = pb::DeleteEndpointRequest { endpoint_id, ..Default::default() };
    client.endpoints().delete_endpoint(delete).await.expect("deleted");
    let bare = |secret: &str| secret.trim_start_matches("whsec_").to_owned();
    Changes { secrets: vec![bare(&first), bare(&rotated.value)], revealed: secrets[0].id.clone() }
}

async fn entries_are_filtered_paged_and_kept_apart(database: Database) {
    let world = World::new(database).await;
    let (endpoint, _) = world.endpoint("https://example.com/a", "").await;
    let (other, _) = world.endpoint("https://example.com/b", "").await;
    rotate(&world.client, &endpoint.id, 60).await.expect("rotated");
    rotate(&world.client, &other.id, 60).await.expect("rotated");
    let mine = |request: pb::ListAuditEventsRequest| {
        let mut audit = world.client.audit();
        async move { audit.list_audit_events(request).await.expect("listed").into_inner() }
    };
    let actions = |events: &[pb::AuditEvent]| -> Vec<String> {
        events.iter().map(|event| event.action.clone()).collect()
    };
    let resource = endpoint.id.clone();
    let of_one = mine(pb::ListAuditEventsRequest { resource, ..Default::default() }).await.audit_events;
    assert_eq!(actions(&of_one), ["RotateSecret", "CreateEndpoint"], "newest first");
    let action = "RotateSecret".to_owned();
    let rotations = mine(pb::ListAuditEventsRequest { action, ..Default::default() }).await.audit_events;
    assert_eq!(rotations.len(), 2);
    let start_time = rotations[0].create_time;
    let newest = mine(pb::ListAuditEventsRequest { start_time, ..Default::default() }).await.audit_events;
    assert!(newest.contains(&rotations[0]) && !newest.contains(&of_one[1]));
    let older =
        mine(pb::ListAuditEventsRequest { end_time: start_time, ..Default::default() }).await.audit_events;
    assert!(!older.contains(&rotations[0]) && older.contains(&of_one[1]));

    // Page by page it is the same.
    let all = mine(pb::ListAuditEventsRequest::default()).await.audit_events;
    let mut paged = Vec::new();
    let mut request = pb::ListAuditEventsRequest { page_size: 2, ..Default::default() };
    loop {
        let page = mine(request.clone()).await;
        assert!(page.audit_events.len() <= 2);
        paged.extend(page.audit_events);
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(paged, all);

    // A project sees its own; an operator all, those of no project among them; and it needs its scope.
    let (_, foreign) = project(&world.operator, pb::PausedPolicy::Discard).await;
    let foreign = world.client.with_key(&Key::new(foreign)).expect("a key");
    let theirs =
        foreign.audit().list_audit_events(pb::ListAuditEventsRequest::default()).await.expect("listed");
    assert!(theirs.into_inner().audit_events.iter().all(|event| event.project_id != world.project));
    let everything =
        entries(&world, pb::ListAuditEventsRequest { page_size: 1000, ..Default::default() }).await;
    assert!(all.iter().all(|event| everything.contains(event)));
    assert!(everything.iter().any(|event| event.project_id.is_empty()), "the first operator key");
    let scopes: Vec<i32> = (1..=9).filter(|scope| *scope != i32::from(pb::Scope::AuditRead)).collect();
    let others = key(&world.operator, &world.project, &scopes).await;
    let others = world.client.with_key(&Key::new(others)).expect("a key");
    let refused = others.audit().list_audit_events(pb::ListAuditEventsRequest::default()).await;
    assert_eq!(refused.expect_err("its scope").code(), Code::PermissionDenied);
}
