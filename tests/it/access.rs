//! Who may call what: every RPC of the contract, without a key, with a foreign project's, without the scope.

use std::collections::BTreeSet;

use hawser_client::pb::publish_event_request::Target;
use hawser_client::{Client, Key, pb};
use prost::Message;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use crate::support::single::{bulk_about, first_of_batch, first_of_stream};
use crate::support::world::{key, project, until};
use crate::support::{Database, Receiver, World, on_both};

on_both!(every_call_needs_a_key, another_projects_ids_are_not_found, scopes_are_enforced, revoked_keys_end);

/// `/package.Service/Method` of every RPC in the contract.
fn every_rpc() -> BTreeSet<String> {
    let set =
        prost_types::FileDescriptorSet::decode(hawser::grpc::pb::FILE_DESCRIPTOR_SET).expect("the contract");
    let mut paths = BTreeSet::new();
    for file in set.file {
        for service in file.service.iter().filter(|_| file.package() == "hawser.v1") {
            for method in &service.method {
                paths.insert(format!("/hawser.v1.{}/{}", service.name(), method.name()));
            }
        }
    }
    paths
}

/// Calls with an empty message; unary calls answer a stream of one.
async fn call(address: &str, path: &str, bearer: Option<&str>) -> Status {
    let channel = tonic::transport::Endpoint::from_shared(address.to_owned())
        .expect("a URL")
        .connect()
        .await
        .expect("connected");
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.expect("ready");
    let mut request = Request::new(());
    if let Some(bearer) = bearer {
        request.metadata_mut().insert("authorization", bearer.parse().expect("ASCII"));
    }
    let path = path.parse().expect("a path");
    let codec = ProstCodec::<(), ()>::default();
    match grpc.server_streaming(request, path, codec).await {
        Ok(reply) => reply.into_inner().message().await.err().unwrap_or_else(|| Status::ok("")),
        Err(status) => status,
    }
}

async fn every_call_needs_a_key(database: Database) {
    let world = World::new(database).await;
    let address = world.server.address();
    let mut paths = every_rpc();
    assert!(paths.len() >= 26, "{paths:?}");
    paths.insert("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo".to_owned());
    paths.insert("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo".to_owned());
    let unknown = hawser::service::generate_operator_key();
    let unknown = format!("Bearer {}", unknown.reveal());
    for path in &paths {
        for bearer in [None, Some("Bearer nonsense"), Some("Basic dTpw"), Some(unknown.as_str())] {
            let status = call(&address, path, bearer).await;
            assert_eq!(status.code(), Code::Unauthenticated, "{path} with {bearer:?}: {status}");
        }
    }
    let health = call(&address, "/grpc.health.v1.Health/Check", None).await;
    assert_eq!(health.code(), Code::Ok, "{health}");
}

async fn another_projects_ids_are_not_found(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::ok().await;
    let (endpoint, _) = world.endpoint(&receiver.url("/hook"), "acme").await;
    let list = pb::ListSubscriptionsRequest::default();
    let listed = world.client.subscriptions().list_subscriptions(list).await.expect("listed").into_inner();
    let subscription = listed.subscriptions[0].clone();
    let mut watch = world.watch().await;
    let event = world.publish_to(&endpoint, b"{}").await.event_id;
    let delivery = until(&mut watch, &event, pb::DeliveryStatus::Success).await.id;

    let list = pb::ListSecretsRequest { endpoint_id: endpoint.id.clone(), ..Default::default() };
    let secrets = world.client.secrets().list_secrets(list).await.expect("listed").into_inner().secrets;
    let secret = secrets[0].id.clone();

    let (foreign_project, foreign) = project(&world.operator, pb::PausedPolicy::Discard).await;
    let foreign = world.client.with_key(&Key::new(foreign)).expect("a key");
    // With its own project implied, and with the other one named.
    for named in ["", world.project.as_str()] {
        for (path, status) in
            attempts(&foreign, named, &endpoint, &subscription, &event, &delivery, &secret).await
        {
            let listing =
                path.contains("/Watch") || (path.contains("/List") && !path.ends_with("/ListSecrets"));
            if named.is_empty() && listing {
                continue;
            }
            assert_eq!(status.code(), Code::NotFound, "{path} naming {named:?}: {status}");
        }
    }
    // Nothing changed, and nothing of it shows in the other project's lists.
    let get = pb::GetEndpointRequest { endpoint_id: endpoint.id.clone(), ..Default::default() };
    let now = world.client.endpoints().get_endpoint(get).await.expect("found").into_inner().endpoint;
    assert_eq!(now.expect("one").etag, endpoint.etag);
    let all = pb::ListDeliveriesRequest { project_id: foreign_project, ..Default::default() };
    assert!(
        foreign.deliveries().list_deliveries(all).await.expect("listed").into_inner().deliveries.is_empty()
    );
}

/// One call of every project-scoped RPC about another project's things.
async fn attempts(
    client: &Client,
    named: &str,
    endpoint: &pb::Endpoint,
    subscription: &pb::Subscription,
    event: &str,
    delivery: &str,
    secret_id: &str,
) -> Vec<(&'static str, Status)> {
    let (project_id, endpoint_id) = (named.to_owned(), endpoint.id.clone());
    let (event_id, delivery_id) = (event.to_owned(), delivery.to_owned());
    let subscription_id = subscription.id.clone();
    let mut results: Vec<(&'static str, Status)> = Vec::new();
    macro_rules! call {
        ($path:literal, $service:ident, $method:ident, $request:expr) => {
            let status = match client.$service().$method($request).await {
                Ok(_) => Status::ok(""),
                Err(status) => status,
            };
            results.push(($path, status));
        };
    }
    use pb::*;
    if !named.is_empty() {
        let new = Endpoint { url: "https://example.com/".to_owned(), ..Default::default() };
        call!(
            "/hawser.v1.EndpointService/CreateEndpoint",
            endpoints,
            create_endpoint,
            CreateEndpointRequest {
                project_id: project_id.clone(),
                endpoint: Some(new),
                ..Default::default()
            }
        );
        let bulk = bulk_about(client, &project_id, endpoint).await;
        results.push(("/hawser.v1.EndpointService/BulkCreateEndpoints", bulk));
    } else {
        // Without a name a create is the caller's own.
        results.push(("/hawser.v1.EndpointService/CreateEndpoint", hawser_not_found()));
        results.push(("/hawser.v1.EndpointService/BulkCreateEndpoints", hawser_not_found()));
    }
    call!(
        "/hawser.v1.EndpointService/GetEndpoint",
        endpoints,
        get_endpoint,
        GetEndpointRequest { project_id: project_id.clone(), endpoint_id: endpoint_id.clone() }
    );
    call!(
        "/hawser.v1.EndpointService/ListEndpoints",
        endpoints,
        list_endpoints,
        ListEndpointsRequest { project_id: project_id.clone(), ..Default::default() }
    );
    call!(
        "/hawser.v1.EndpointService/UpdateEndpoint",
        endpoints,
        update_endpoint,
        UpdateEndpointRequest {
            project_id: project_id.clone(),
            endpoint: Some(endpoint.clone()),
            ..Default::default()
        }
    );
    call!(
        "/hawser.v1.EndpointService/DeleteEndpoint",
        endpoints,
        delete_endpoint,
        DeleteEndpointRequest {
            project_id: project_id.clone(),
            endpoint_id: endpoint_id.clone(),
            etag: String::new()
        }
    );
    call!(
        "/hawser.v1.EndpointService/PauseEndpoint",
        endpoints,
        pause_endpoint,
        PauseEndpointRequest {
            project_id: project_id.clone(),
            endpoint_id: endpoint_id.clone(),
            reason: String::new()
        }
    );
    call!(
        "/hawser.v1.EndpointService/ResumeEndpoint",
        endpoints,
        resume_endpoint,
        ResumeEndpointRequest { project_id: project_id.clone(), endpoint_id: endpoint_id.clone() }
    );
    call!(
        "/hawser.v1.EndpointService/ActivateEndpoint",
        endpoints,
        activate_endpoint,
        ActivateEndpointRequest { project_id: project_id.clone(), endpoint_id: endpoint_id.clone() }
    );
    call!(
        "/hawser.v1.EndpointService/PingEndpoint",
        endpoints,
        ping_endpoint,
        PingEndpointRequest { project_id: project_id.clone(), endpoint_id: endpoint_id.clone() }
    );
    let subject = Some(test_o_auth2_request::Subject::EndpointId(endpoint_id.clone()));
    call!(
        "/hawser.v1.EndpointService/TestOAuth2",
        endpoints,
        test_o_auth2,
        TestOAuth2Request { project_id: project_id.clone(), subject }
    );
    call!(
        "/hawser.v1.SubscriptionService/CreateSubscription",
        subscriptions,
        create_subscription,
        CreateSubscriptionRequest {
            project_id: project_id.clone(),
            subscription: Some(subscription.clone())
        }
    );
    call!(
        "/hawser.v1.SubscriptionService/GetSubscription",
        subscriptions,
        get_subscription,
        GetSubscriptionRequest { project_id: project_id.clone(), subscription_id: subscription_id.clone() }
    );
    call!(
        "/hawser.v1.SubscriptionService/ListSubscriptions",
        subscriptions,
        list_subscriptions,
        ListSubscriptionsRequest { project_id: project_id.clone(), ..Default::default() }
    );
    call!(
        "/hawser.v1.SubscriptionService/UpdateSubscription",
        subscriptions,
        update_subscription,
        UpdateSubscriptionRequest {
            project_id: project_id.clone(),
            subscription: Some(subscription.clone()),
            update_mask: None
        }
    );
    call!(
        "/hawser.v1.SubscriptionService/DeleteSubscription",
        subscriptions,
        delete_subscription,
        DeleteSubscriptionRequest { project_id: project_id.clone(), subscription_id, etag: String::new() }
    );
    call!(
        "/hawser.v1.EventService/PublishEvent",
        events,
        publish_event,
        PublishEventRequest {
            project_id: project_id.clone(),
            event_type: "a".to_owned(),
            target: Some(Target::EndpointId(endpoint_id.clone())),
            ..Default::default()
        }
    );
    let event = PublishEventRequest {
        event_type: "a".to_owned(),
        target: Some(Target::EndpointId(endpoint_id.clone())),
        ..Default::default()
    };
    let batch = BatchPublishEventsRequest { project_id: project_id.clone(), requests: vec![event.clone()] };
    results.push(("/hawser.v1.EventService/BatchPublishEvents", first_of_batch(client, batch).await));
    let event = PublishEventRequest { project_id: project_id.clone(), ..event };
    results.push(("/hawser.v1.EventService/StreamPublishEvents", first_of_stream(client, event).await));
    call!(
        "/hawser.v1.EventService/GetEvent",
        events,
        get_event,
        GetEventRequest { project_id: project_id.clone(), event_id: event_id.clone() }
    );
    call!(
        "/hawser.v1.EventService/ListEvents",
        events,
        list_events,
        ListEventsRequest { project_id: project_id.clone(), ..Default::default() }
    );
    call!(
        "/hawser.v1.DeliveryService/GetDelivery",
        deliveries,
        get_delivery,
        GetDeliveryRequest { project_id: project_id.clone(), delivery_id: delivery_id.clone() }
    );
    call!(
        "/hawser.v1.DeliveryService/ListDeliveries",
        deliveries,
        list_deliveries,
        ListDeliveriesRequest { project_id: project_id.clone(), event_id, ..Default::default() }
    );
    call!(
        "/hawser.v1.DeliveryService/ListAttempts",
        deliveries,
        list_attempts,
        ListAttemptsRequest {
            project_id: project_id.clone(),
            delivery_id: delivery_id.clone(),
            ..Default::default()
        }
    );
    call!(
        "/hawser.v1.DeliveryService/RetryDelivery",
        deliveries,
        retry_delivery,
        RetryDeliveryRequest { project_id: project_id.clone(), delivery_id }
    );
    call!(
        "/hawser.v1.SecretService/RotateSecret",
        secrets,
        rotate_secret,
        RotateSecretRequest {
            project_id: project_id.clone(),
            endpoint_id: endpoint_id.clone(),
            ..Default::default()
        }
    );
    call!(
        "/hawser.v1.SecretService/ListSecrets",
        secrets,
        list_secrets,
        ListSecretsRequest {
            project_id: project_id.clone(),
            endpoint_id: endpoint_id.clone(),
            ..Default::default()
        }
    );
    call!(
        "/hawser.v1.SecretService/RevealSecret",
        secrets,
        reveal_secret,
        RevealSecretRequest { project_id: project_id.clone(), secret_id: secret_id.to_owned() }
    );
    call!(
        "/hawser.v1.SecretService/ExpireSecret",
        secrets,
        expire_secret,
        ExpireSecretRequest { project_id: project_id.clone(), secret_id: secret_id.to_owned() }
    );
    call!(
        "/hawser.v1.AuditService/ListAuditEvents",
        audit,
        list_audit_events,
        ListAuditEventsRequest { project_id: project_id.clone(), ..Default::default() }
    );
    call!("/hawser.v1.WatchService/Watch", watches, watch, WatchRequest { project_id, ..Default::default() });
    let covered: BTreeSet<String> = results.iter().map(|(path, _)| (*path).to_owned()).collect();
    let expected: BTreeSet<String> =
        every_rpc().into_iter().filter(|path| !path.contains("ProjectService")).collect();
    assert_eq!(covered, expected, "an RPC of the contract is not tried here");
    results
}

fn hawser_not_found() -> Status {
    hawser::domain::error::Error::not_found("project", "").into()
}

async fn scopes_are_enforced(database: Database) {
    let world = World::new(database).await;
    let client = |secret: String| world.client.with_key(&Key::new(secret)).expect("a key");
    let publisher = client(key(&world.operator, &world.project, &[pb::Scope::EventsPublish.into()]).await);
    let publish = pb::PublishEventRequest {
        event_type: "a".to_owned(),
        target: Some(Target::OwnerId("acme".to_owned())),
        ..Default::default()
    };
    publisher.events().publish_event(publish.clone()).await.expect("its scope");
    let denied = [
        publisher.events().list_events(pb::ListEventsRequest::default()).await.err(),
        publisher.endpoints().list_endpoints(pb::ListEndpointsRequest::default()).await.err(),
        publisher.deliveries().list_deliveries(pb::ListDeliveriesRequest::default()).await.err(),
        publisher.watches().watch(pb::WatchRequest::default()).await.err(),
        publisher.projects().list_projects(pb::ListProjectsRequest::default()).await.err(),
        world.client.projects().list_projects(pb::ListProjectsRequest::default()).await.err(),
    ];
    for (index, status) in denied.into_iter().enumerate() {
        assert_eq!(status.expect("denied").code(), Code::PermissionDenied, "call {index}");
    }
    let reader = client(key(&world.operator, &world.project, &[pb::Scope::EndpointsRead.into()]).await);
    assert_eq!(
        reader.events().publish_event(publish).await.expect_err("denied").code(),
        Code::PermissionDenied
    );
}

async fn revoked_keys_end(database: Database) {
    let world = World::new(database).await;
    let list = pb::ListApiKeysRequest { project_id: world.project.clone(), ..Default::default() };
    let keys = world.operator.projects().list_api_keys(list).await.expect("listed").into_inner().api_keys;
    world.client.endpoints().list_endpoints(pb::ListEndpointsRequest::default()).await.expect("valid");
    let revoke = pb::RevokeApiKeyRequest { api_key_id: keys[0].id.clone() };
    let revoked = world.operator.projects().revoke_api_key(revoke).await.expect("revoked").into_inner();
    assert!(revoked.api_key.expect("a key").revoke_time.is_some());
    let status = world
        .client
        .endpoints()
        .list_endpoints(pb::ListEndpointsRequest::default())
        .await
        .expect_err("revoked");
    assert_eq!(status.code(), Code::Unauthenticated);
}
