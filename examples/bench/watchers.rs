//! Many Watch streams of which few have something to see: what an idle one takes, and how soon an event is told.

use std::time::Duration;

use anyhow::Context;
use hawser_client::{Client, Key, pb};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::receiver::Receiver;
use crate::server::Server;
use crate::told::{self, Told};

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

impl Watchers {
    /// Memory of a stream that has nothing to see, and how soon those see an event that have.
    pub async fn run(&self, server: &Server, receiver: &Receiver) -> anyhow::Result<String> {
        let address = format!("http://{}", server.address());
        let operator = Client::connect(address.clone(), Key::new(server.operator_key())).await?;
        let mut projects = Vec::new();
        for _ in 0..self.streams.div_ceil(PER_PROJECT) {
            projects.push(project(&operator, &receiver.url(0)).await?);
        }
        let told = Told::new();
        let (mut readers, mut opening) = (JoinSet::new(), None);
        let before = server.memory_kib()?;
        for number in 0..self.streams {
            if number % self.per_connection == 0 {
                opening = Some(Client::connect(address.clone(), Key::new("")).await?);
            }
            let (key, owner) = (&projects[number / PER_PROJECT].0, number % PER_PROJECT);
            let client = opening.as_ref().context("a connection")?.with_key(&Key::new(key.clone()))?;
            let request = pb::WatchRequest { owner_id: format!("owner-{owner}"), ..Default::default() };
            readers.spawn(told.follow(&client, request).await?);
        }
        let taken = server.memory_kib()?.saturating_sub(before);

        let mut publishing = JoinSet::new();
        let mut pace = tokio::time::interval(Duration::from_secs(1) / self.rate);
        for number in 0..self.events {
            pace.tick().await;
            let (_, client, endpoints) = &projects[number % projects.len()];
            let endpoint = endpoints[number / projects.len() % endpoints.len()].clone();
            let client = client.clone();
            publishing.spawn(async move {
                let request = pb::PublishEventRequest {
                    event_type: "bench.event".to_owned(),
                    target: Some(pb::publish_event_request::Target::EndpointId(endpoint)),
                    payload: vec![b'x'; 512].into(),
                    ..Default::default()
                };
                let began = Instant::now();
                let reply = client.events().publish_event(request).await?.into_inner();
                Ok::<_, tonic::Status>((reply.event_id, began, began.elapsed()))
            });
        }
        let (mut sent, mut replies) = (Vec::new(), Vec::new());
        while let Some(done) = publishing.join_next().await {
            let (event, began, took) = done??;
            sent.push((event, began));
            replies.push(took);
        }
        replies.sort_unstable();
        let delays = told.delays(&sent).await;
        Ok(format!(
            "{} Watch streams, {} a connection | {:.1} KiB a stream | at {}/s event to watcher p50 {:.1} ms, p99 {:.1} ms \
             ({} of {} told) | publish p50 {:.1} ms, p99 {:.1} ms",
            self.streams,
            self.per_connection,
            taken as f64 / self.streams as f64,
            self.rate,
            told::at(&delays, 0.5),
            told::at(&delays, 0.99),
            delays.len(),
            self.events,
            told::at(&replies, 0.5),
            told::at(&replies, 0.99),
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
