//! What the rows put on the server: endpoints, and events with a time in them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context;
use hawser_client::{Client, Key, pb};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

use crate::receiver::{self, Receiver};
use crate::server::Server;

/// The size of every payload.
const PAYLOAD: usize = 512;
/// The owner of the endpoints that are measured.
pub const OWNER: &str = "bench";

/// A project: a client with a key for everything in it, and the key.
pub async fn project(server: &Server) -> anyhow::Result<(Client, Key)> {
    let operator =
        Client::connect(format!("http://{}", server.address()), Key::new(server.operator_key())).await?;
    let project = pb::Project { name: "bench".to_owned(), ..pb::Project::default() };
    let reply =
        operator.projects().create_project(pb::CreateProjectRequest { project: Some(project) }).await?;
    let project = reply.into_inner().project.context("no project")?.id;
    let api_key = pb::ApiKey {
        project_id: project,
        name: "bench".to_owned(),
        scopes: (1..=7).collect(),
        ..pb::ApiKey::default()
    };
    let reply =
        operator.projects().create_api_key(pb::CreateApiKeyRequest { api_key: Some(api_key) }).await?;
    let key = Key::new(reply.into_inner().secret);
    Ok((operator.with_key(&key)?, key))
}

/// An endpoint at this URL; returns its secret.
pub async fn endpoint(client: &Client, url: String, owner: &str) -> anyhow::Result<String> {
    Ok(created(client, url, owner).await?.secret)
}

/// The same, with all that the reply says.
pub async fn created(
    client: &Client,
    url: String,
    owner: &str,
) -> anyhow::Result<pb::CreateEndpointResponse> {
    let endpoint = pb::Endpoint { url, owner_id: owner.to_owned(), ..pb::Endpoint::default() };
    let request =
        pb::CreateEndpointRequest { endpoint: Some(endpoint), ..pb::CreateEndpointRequest::default() };
    Ok(client.endpoints().create_endpoint(request).await?.into_inner())
}

/// So many endpoints of the measured owner at the receiver, which then verifies their signatures.
pub async fn endpoints(client: &Client, receiver: &Receiver, count: u32) -> anyhow::Result<()> {
    for number in 0..count {
        let secret = endpoint(client, receiver.url(number), OWNER).await?;
        receiver.expect(number, &secret)?;
    }
    Ok(())
}

/// 512 bytes of JSON that begin with the time at which it was to be sent.
fn payload(sent_us: u64) -> Vec<u8> {
    let mut text = format!("{{\"sent_us\":{sent_us},\"fill\":\"");
    while text.len() < PAYLOAD - 2 {
        text.push('x');
    }
    text.push_str("\"}");
    text.into_bytes()
}

fn event(owner: &str, sent_us: u64) -> pb::PublishEventRequest {
    pb::PublishEventRequest {
        event_type: "bench.event".to_owned(),
        target: Some(pb::publish_event_request::Target::OwnerId(owner.to_owned())),
        payload: payload(sent_us).into(),
        ..pb::PublishEventRequest::default()
    }
}

/// Publishes one event to all endpoints of an owner.
pub async fn publish(client: &Client, owner: &str) -> anyhow::Result<()> {
    publish_due(client, owner, Instant::now()).await?;
    Ok(())
}

/// Timers are no finer; so much of being late is no one's fault.
const TIMER: Duration = Duration::from_millis(1);

/// The same for one that was to be sent at this time: what made it late counts too. Returns its id, and since when it counts.
pub async fn publish_due(client: &Client, owner: &str, due: Instant) -> anyhow::Result<(String, Instant)> {
    let late = due.elapsed().saturating_sub(TIMER);
    let began = Instant::now() - late;
    let sent_us = receiver::now_us().saturating_sub(u64::try_from(late.as_micros()).unwrap_or_default());
    let reply = client.events().publish_event(event(owner, sent_us)).await?.into_inner();
    Ok((reply.event_id, began))
}

/// A publisher's stream: one event after the other, each acknowledged before the next.
async fn publish_streamed(client: Client, owner: String, left: Arc<AtomicU32>) -> anyhow::Result<()> {
    let (events, incoming) = mpsc::channel(1);
    let mut acknowledged =
        client.events().stream_publish_events(ReceiverStream::new(incoming)).await?.into_inner();
    while take(&left) {
        let event = Some(event(&owner, receiver::now_us()));
        events.send(pb::StreamPublishEventsRequest { request_number: 0, event }).await?;
        let answer = acknowledged.message().await?.context("the stream ended")?.result;
        let is_receipt = matches!(answer, Some(pb::stream_publish_events_response::Result::Receipt(_)));
        anyhow::ensure!(is_receipt, "an event was refused: {answer:?}");
    }
    Ok(())
}

fn take(left: &AtomicU32) -> bool {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
}

/// How publishers hand their events over.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By one call each.
    Calls,
    /// On a stream of each publisher's own.
    Streams,
}

/// Publishes so many events with so many publishers, each waiting for its answer.
pub async fn publish_all(client: &Client, owner: &str, events: u32, publishers: u32) -> anyhow::Result<()> {
    publish_by(Way::Calls, client, owner, events, publishers).await
}

/// The same, in either way.
pub async fn publish_by(
    way: Way,
    client: &Client,
    owner: &str,
    events: u32,
    publishers: u32,
) -> anyhow::Result<()> {
    let left = Arc::new(AtomicU32::new(events));
    let mut tasks = JoinSet::new();
    for _ in 0..publishers {
        let (client, left, owner) = (client.clone(), left.clone(), owner.to_owned());
        if way == Way::Streams {
            tasks.spawn(publish_streamed(client, owner, left));
            continue;
        }
        tasks.spawn(async move {
            while take(&left) {
                publish(&client, &owner).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

/// An event of the open loop: its id, since when it counts, and how long its answer took.
pub type Sent = (String, Instant, Duration);

/// Open loop: each event is sent at its time, however long the ones before take. Each goes to the next of these owners.
pub async fn publish_at(
    client: &Client,
    owners: &[String],
    rate: u32,
    seconds: u32,
) -> anyhow::Result<Vec<Sent>> {
    let mut tick = tokio::time::interval(Duration::from_secs(1) / rate);
    let mut tasks = JoinSet::new();
    for owner in owners.iter().cycle().take((rate * seconds) as usize) {
        let due = tick.tick().await;
        let (client, owner) = (client.clone(), owner.clone());
        tasks.spawn(async move {
            let (event, began) = publish_due(&client, &owner, due).await?;
            anyhow::Ok((event, began, began.elapsed()))
        });
    }
    let mut sent = Vec::with_capacity(tasks.len());
    while let Some(ended) = tasks.join_next().await {
        sent.push(ended??);
    }
    Ok(sent)
}
