//! Many Watch streams of which few have something to see: what an idle one takes, and how soon an event is told.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use hawser_client::pb::watch_response::Change;
use hawser_client::{Client, Key, pb};
use tokio::task::JoinSet;

use crate::receiver::Receiver;
use crate::server::Server;

/// What the row puts on.
#[derive(clap::Args)]
pub struct Watchers {
    /// Watch streams, a thousand to a project
    #[arg(long, default_value_t = 10_000)]
    streams: usize,
    /// Streams on a connection
    #[arg(long, default_value_t = 200)]
    per_connection: usize,
    /// Events to publish
    #[arg(long, default_value_t = 4_000)]
    events: usize,
    /// Events a second
    #[arg(long, default_value_t = 200)]
    rate: u32,
}

/// As many streams as a project may have.
const PER_PROJECT: usize = 1000;
/// Owners of a project that have an endpoint: what a stream watches is its owner, and most see nothing.
const BUSY_OWNERS: usize = 20;

type Times = Arc<Mutex<HashMap<String, Instant>>>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watchers {
    /// Memory of a stream that has nothing to see, and how soon those see an event that have.
    pub async fn run(&self, server: &Server, receiver: &Receiver) -> anyhow::Result<String> {
        let address = format!("http://{}", server.address());
        let operator = Client::connect(address.clone(), Key::new(server.operator_key())).await?;
        let mut projects = Vec::new();
        for _ in 0..self.streams.div_ceil(PER_PROJECT) {
            projects.push(project(&operator, &receiver.url(0)).await?);
        }
        let (told, seen): (Times, Times) = (Arc::default(), Arc::default());
        let (mut readers, mut opening) = (JoinSet::new(), None);
        let before = server.memory_kib()?;
        for number in 0..self.streams {
            if number % self.per_connection == 0 {
                opening = Some(Client::connect(address.clone(), Key::new("")).await?);
            }
            let (key, owner) = (&projects[number / PER_PROJECT].0, number % PER_PROJECT);
            let client = opening.as_ref().context("a connection")?.with_key(&Key::new(key.clone()))?;
            let request = pb::WatchRequest { owner_id: format!("owner-{owner}"), ..Default::default() };
            let mut stream = client.watches().watch(request).await?.into_inner();
            stream.message().await?.context("a bookmark")?;
            let told = told.clone();
            readers.spawn(async move {
                while let Ok(Some(message)) = stream.message().await {
                    if let Some(Change::DeliveryChange(change)) = message.change
                        && change.r#type() == pb::DeliveryChangeType::Created
                    {
                        let event = change.delivery.unwrap_or_default().event_id;
                        lock(&told).insert(event, Instant::now());
                    }
                }
            });
        }
        let taken = server.memory_kib()?.saturating_sub(before);

        let mut publishing = JoinSet::new();
        let mut pace = tokio::time::interval(Duration::from_secs(1) / self.rate);
        let replies = Arc::new(Mutex::new(Vec::with_capacity(self.events)));
        for number in 0..self.events {
            pace.tick().await;
            let (_, client, endpoints) = &projects[number % projects.len()];
            let endpoint = endpoints[number / projects.len() % endpoints.len()].clone();
            let (client, seen, replies) = (client.clone(), seen.clone(), replies.clone());
            publishing.spawn(async move {
                let request = pb::PublishEventRequest {
                    event_type: "bench.event".to_owned(),
                    target: Some(pb::publish_event_request::Target::EndpointId(endpoint)),
                    payload: vec![b'x'; 512].into(),
                    ..Default::default()
                };
                let began = Instant::now();
                let reply = client.events().publish_event(request).await?.into_inner();
                lock(&replies).push(began.elapsed());
                lock(&seen).insert(reply.event_id, began);
                Ok::<_, tonic::Status>(())
            });
        }
        while let Some(done) = publishing.join_next().await {
            done??;
        }
        let deadline = Instant::now() + Duration::from_secs(30);
        while lock(&told).len() < self.events && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let (told, began) = (lock(&told), lock(&seen));
        let mut delays: Vec<Duration> =
            began.iter().filter_map(|(event, began)| Some(told.get(event)?.duration_since(*began))).collect();
        let mut replies = lock(&replies).clone();
        delays.sort_unstable();
        replies.sort_unstable();
        let at = |sorted: &[Duration], part: f64| {
            let index = ((sorted.len() as f64 * part) as usize).min(sorted.len().saturating_sub(1));
            sorted.get(index).map_or(f64::NAN, |delay| delay.as_secs_f64() * 1e3)
        };
        Ok(format!(
            "{} Watch streams, {} a connection | {:.1} KiB a stream | at {}/s event to watcher p50 {:.1} ms, p99 {:.1} ms \
             ({} of {} told) | publish p50 {:.1} ms, p99 {:.1} ms",
            self.streams,
            self.per_connection,
            taken as f64 / self.streams as f64,
            self.rate,
            at(&delays, 0.5),
            at(&delays, 0.99),
            delays.len(),
            self.events,
            at(&replies, 0.5),
            at(&replies, 0.99),
        ))
    }
}

/// A project with a key, a client and the endpoints of its busy owners.
async fn project(operator: &Client, url: &str) -> anyhow::Result<(String, Client, Vec<String>)> {
    let project = pb::Project { name: "watchers".to_owned(), ..Default::default() };
    let request = pb::CreateProjectRequest { project: Some(project) };
    let project =
        operator.projects().create_project(request).await?.into_inner().project.context("a project")?.id;
    let api_key = pb::ApiKey {
        project_id: project,
        name: "watchers".to_owned(),
        scopes: (1..=7).collect(),
        ..Default::default()
    };
    let request = pb::CreateApiKeyRequest { api_key: Some(api_key) };
    let key = operator.projects().create_api_key(request).await?.into_inner().secret;
    let client = operator.with_key(&Key::new(key.clone()))?;
    let mut endpoints = Vec::new();
    for owner in 0..BUSY_OWNERS {
        let endpoint =
            pb::Endpoint { url: url.to_owned(), owner_id: format!("owner-{owner}"), ..Default::default() };
        let request = pb::CreateEndpointRequest { endpoint: Some(endpoint), ..Default::default() };
        let reply = client.endpoints().create_endpoint(request).await?.into_inner();
        endpoints.push(reply.endpoint.context("an endpoint")?.id);
    }
    Ok((key, client, endpoints))
}
