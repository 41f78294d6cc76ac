//! A server with a project and a key, and short ways to do what most tests do.

use hawser_client::pb::{self, publish_event_request::Target};
use hawser_client::{Client, Key, WatchStream};
use tonic::Status;

use super::{Database, PATIENCE, Server};

/// A running server and a client that may do everything in one project.
pub struct World {
    pub server: Server,
    pub operator: Client,
    pub client: Client,
    pub key: String,
    pub project: String,
}

impl World {
    pub async fn new(database: Database) -> Self {
        Self::on(Server::start(database).await, pb::PausedPolicy::Discard).await
    }

    pub async fn on(mut server: Server, policy: pb::PausedPolicy) -> Self {
        let operator = Key::new(server.operator_key().await);
        let operator = Client::connect(server.address(), operator).await.expect("connected");
        let (project, key) = project(&operator, policy).await;
        let client = operator.with_key(&Key::new(key.clone())).expect("a key");
        Self { server, operator, client, key, project }
    }

    /// Starts the server again and connects to it.
    pub async fn restart(&mut self) {
        self.server.spawn().await;
        let address = self.server.address();
        self.client = Client::connect(address.clone(), Key::new(self.key.clone())).await.expect("connected");
        let operator = Key::new(self.server.operator_key().await);
        self.operator = Client::connect(address, operator).await.expect("connected");
    }

    /// A client of another node with this world's key.
    pub async fn client_of(&self, node: &Server) -> Client {
        Client::connect(node.address(), Key::new(self.key.clone())).await.expect("connected")
    }

    /// An endpoint of `owner`; returns it with its secret.
    pub async fn endpoint(&self, url: &str, owner: &str) -> (pb::Endpoint, String) {
        let endpoint = pb::Endpoint {
            url: url.to_owned(),
            owner_id: owner.to_owned(),
            retry_policy: Some(quick_retries(5)),
            ..pb::Endpoint::default()
        };
        self.create(endpoint, &["*"]).await
    }

    pub async fn create(&self, endpoint: pb::Endpoint, event_types: &[&str]) -> (pb::Endpoint, String) {
        let request = pb::CreateEndpointRequest {
            endpoint: Some(endpoint),
            event_types: event_types.iter().map(|text| (*text).to_owned()).collect(),
            ..pb::CreateEndpointRequest::default()
        };
        let reply = self.client.endpoints().create_endpoint(request).await.expect("created").into_inner();
        (reply.endpoint.expect("an endpoint"), reply.secret)
    }

    pub async fn publish(&self, target: Target, payload: &[u8]) -> pb::PublishEventResponse {
        publish(&self.client, target, payload, "").await.expect("published")
    }

    pub async fn publish_to(&self, endpoint: &pb::Endpoint, payload: &[u8]) -> pb::PublishEventResponse {
        self.publish(Target::EndpointId(endpoint.id.clone()), payload).await
    }

    pub async fn watch(&self) -> WatchStream {
        let mut stream = self.client.watch(pb::WatchRequest::default()).await.expect("watching");
        // The first message is a bookmark: from here on nothing is missed.
        next(&mut stream).await;
        stream
    }

    pub async fn deliveries_of(&self, event: &str) -> Vec<pb::Delivery> {
        let request =
            pb::ListDeliveriesRequest { event_id: event.to_owned(), ..pb::ListDeliveriesRequest::default() };
        self.client.deliveries().list_deliveries(request).await.expect("listed").into_inner().deliveries
    }

    /// The deliveries of an event once all of them have ended.
    pub async fn settled_deliveries_of(&self, event: &str) -> Vec<pb::Delivery> {
        let settled = async {
            loop {
                let deliveries = self.deliveries_of(event).await;
                if deliveries.iter().all(|delivery| delivery.end_time.is_some()) {
                    return deliveries;
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, settled).await.expect("the deliveries end")
    }

    pub async fn attempts_of(&self, delivery: &str) -> Vec<pb::Attempt> {
        let request = pb::ListAttemptsRequest { delivery_id: delivery.to_owned(), ..Default::default() };
        self.client.deliveries().list_attempts(request).await.expect("listed").into_inner().attempts
    }
}

/// A new project and a key for everything in it.
pub async fn project(operator: &Client, policy: pb::PausedPolicy) -> (String, String) {
    let project = pb::Project { name: "test".to_owned(), paused_policy: policy.into(), ..Default::default() };
    let request = pb::CreateProjectRequest { project: Some(project) };
    let project = operator.projects().create_project(request).await.expect("created").into_inner().project;
    let project = project.expect("a project").id;
    let key = key(operator, &project, &(1..=9).collect::<Vec<_>>()).await;
    (project, key)
}

pub async fn key(operator: &Client, project: &str, scopes: &[i32]) -> String {
    let api_key = pb::ApiKey {
        project_id: project.to_owned(),
        name: "test".to_owned(),
        scopes: scopes.to_vec(),
        ..pb::ApiKey::default()
    };
    let request = pb::CreateApiKeyRequest { api_key: Some(api_key) };
    operator.projects().create_api_key(request).await.expect("created").into_inner().secret
}

pub async fn publish(
    client: &Client,
    target: Target,
    payload: &[u8],
    idempotency_key: &str,
) -> Result<pb::PublishEventResponse, Status> {
    let request = pb::PublishEventRequest {
        event_type: "test.event".to_owned(),
        target: Some(target),
        payload: payload.to_vec().into(),
        idempotency_key: idempotency_key.to_owned(),
        ..pb::PublishEventRequest::default()
    };
    Ok(client.events().publish_event(request).await?.into_inner())
}

/// Retries after 20 ms and 40 ms, so that tests need not wait.
pub fn quick_retries(max_attempts: i32) -> pb::RetryPolicy {
    let wait = |millis: i32| prost_types::Duration { seconds: 0, nanos: millis * 1_000_000 };
    let backoff =
        pb::ExponentialBackoff { base: Some(wait(20)), factor: 2.0, cap: Some(wait(40)), jitter: Some(0.0) };
    pb::RetryPolicy { strategy: Some(pb::retry_policy::Strategy::Exponential(backoff)), max_attempts }
}

pub async fn next(stream: &mut WatchStream) -> pb::WatchResponse {
    let message = tokio::time::timeout(PATIENCE, stream.message()).await.expect("a message in time");
    message.expect("the stream goes on")
}

/// Reads the stream until a delivery is in that status, and returns it.
pub async fn until(stream: &mut WatchStream, event: &str, status: pb::DeliveryStatus) -> pb::Delivery {
    loop {
        if let Some(pb::watch_response::Change::DeliveryChange(change)) = next(stream).await.change {
            let delivery = change.delivery.expect("a delivery");
            if delivery.event_id == event && delivery.status() == status {
                return delivery;
            }
        }
    }
}
