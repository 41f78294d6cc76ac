//! What the demo does, and what must have come of it.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::Context;
use hawser_client::pb::watch_response::Change;
use hawser_client::pb::{self, publish_event_request::Target};
use hawser_client::{Client, Key};

use super::ensure;
use super::receiver::{Arrival, Receiver};
use crate::cli::connect::explain;
use crate::cli::watch;

const OWNER: &str = "acme";
const STEADY: [&str; 2] = ["/acme/billing", "/acme/audit"];
const SHAKY: &str = "/shaky";
const FAILURES: u32 = 2;
/// Lines of the live table; what comes after is counted only.
const LINES: usize = 200;

/// A project with its endpoints, ready to publish to.
pub struct Scenario {
    client: Client,
    project: String,
    shaky: String,
    events: u32,
}

/// What came of it.
pub struct Summary {
    events: usize,
    arrivals: usize,
    failures: usize,
    attempts: usize,
    took: Duration,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} events published, {} deliveries arrived exactly as published, every signature verified;\n\
             {} answers were failures and retried; {} attempts watched live; {:.2} s in all.",
            self.events,
            self.arrivals,
            self.failures,
            self.attempts,
            self.took.as_secs_f64()
        )
    }
}

impl Scenario {
    pub async fn prepare(operator: &Client, receiver: &Receiver, events: u32) -> anyhow::Result<Self> {
        let project = pb::Project { name: "demo".to_owned(), ..pb::Project::default() };
        let request = pb::CreateProjectRequest { project: Some(project) };
        let reply = operator.projects().create_project(request).await.map_err(|status| explain(&status))?;
        let project = reply.into_inner().project.context("the reply has no project")?.id;

        let api_key = pb::ApiKey {
            project_id: project.clone(),
            name: "demo".to_owned(),
            scopes: (1..=7).collect(),
            ..pb::ApiKey::default()
        };
        let request = pb::CreateApiKeyRequest { api_key: Some(api_key) };
        let reply = operator.projects().create_api_key(request).await.map_err(|status| explain(&status))?;
        let client = operator.with_key(&Key::new(reply.into_inner().secret))?;

        // The first endpoint takes invoices only, and gets a second subscription for refunds.
        let billing = create(&client, receiver, STEADY[0], OWNER, &["invoice.*"], 0).await?;
        let subscription = pb::Subscription {
            endpoint_id: billing,
            event_types: vec!["refund.created".to_owned()],
            ..pb::Subscription::default()
        };
        let request = pb::CreateSubscriptionRequest {
            subscription: Some(subscription),
            ..pb::CreateSubscriptionRequest::default()
        };
        client.subscriptions().create_subscription(request).await.map_err(|status| explain(&status))?;
        create(&client, receiver, STEADY[1], OWNER, &["*"], 0).await?;
        let shaky = create(&client, receiver, SHAKY, "", &["*"], FAILURES).await?;
        Ok(Self { client, project, shaky, events })
    }

    pub fn project(&self) -> &str {
        &self.project
    }

    /// Publishes, shows what Watch tells until all deliveries ended, and checks what the receiver saw.
    pub async fn play(&self, receiver: &Receiver) -> anyhow::Result<Summary> {
        let started = Instant::now();
        let mut changes =
            self.client.watch(pb::WatchRequest::default()).await.map_err(|status| explain(&status))?;
        let mut published: HashMap<String, Vec<u8>> = HashMap::new();
        let mut deliveries = 0;
        for number in 0..self.events {
            let (event_type, payload) = example(number);
            let reply = self.publish(event_type, Target::OwnerId(OWNER.to_owned()), &payload).await?;
            deliveries += usize::try_from(reply.delivery_count)?;
            published.insert(reply.event_id, payload);
        }
        let payload = br#"{"to":"a receiver that fails twice"}"#.to_vec();
        let reply = self.publish("invoice.paid", Target::EndpointId(self.shaky.clone()), &payload).await?;
        deliveries += usize::try_from(reply.delivery_count)?;
        published.insert(reply.event_id, payload);

        let attempts = show(&mut changes, deliveries, deliveries + FAILURES as usize).await?;
        let arrivals = receiver.accepted(deliveries).await;
        check(&arrivals, &published, deliveries)?;
        Ok(Summary {
            events: published.len(),
            arrivals: deliveries,
            failures: arrivals.iter().filter(|one| !one.answered.is_success()).count(),
            attempts,
            took: started.elapsed(),
        })
    }

    async fn publish(
        &self,
        event_type: &str,
        target: Target,
        payload: &[u8],
    ) -> anyhow::Result<pb::PublishEventResponse> {
        let request = pb::PublishEventRequest {
            event_type: event_type.to_owned(),
            target: Some(target),
            payload: payload.to_vec().into(),
            ..pb::PublishEventRequest::default()
        };
        let reply = self.client.events().publish_event(request).await.map_err(|status| explain(&status))?;
        Ok(reply.into_inner())
    }
}

async fn create(
    client: &Client,
    receiver: &Receiver,
    path: &str,
    owner: &str,
    event_types: &[&str],
    failures: u32,
) -> anyhow::Result<String> {
    let wait = |millis: i32| prost_types::Duration { seconds: 0, nanos: millis * 1_000_000 };
    let backoff = pb::ExponentialBackoff {
        base: Some(wait(200)),
        factor: 2.0,
        cap: Some(wait(800)),
        jitter: Some(0.2),
    };
    let endpoint = pb::Endpoint {
        name: path.trim_start_matches('/').to_owned(),
        url: receiver.url(path),
        owner_id: owner.to_owned(),
        retry_policy: Some(pb::RetryPolicy {
            strategy: Some(pb::retry_policy::Strategy::Exponential(backoff)),
            max_attempts: 8,
        }),
        ..pb::Endpoint::default()
    };
    let request = pb::CreateEndpointRequest {
        endpoint: Some(endpoint),
        event_types: event_types.iter().map(|text| (*text).to_owned()).collect(),
        ..pb::CreateEndpointRequest::default()
    };
    let reply =
        client.endpoints().create_endpoint(request).await.map_err(|status| explain(&status))?.into_inner();
    receiver.expect(path, &reply.secret, failures)?;
    Ok(reply.endpoint.context("the reply has no endpoint")?.id)
}

/// Events of several types, with bodies that a careless sender would change.
fn example(number: u32) -> (&'static str, Vec<u8>) {
    match number % 4 {
        0 => (
            "invoice.paid",
            format!("{{\"invoice\": {number}, \"total\" : 1152921504606846976}}").into_bytes(),
        ),
        1 => ("refund.created", format!("{{\"a\":1,\"a\":2,\"n\":{number}}}\r\n").into_bytes()),
        2 => ("user.renamed", format!("  {{ \"name\": \"Zoë {number}\" }}").into_bytes()),
        _ => ("invoice.voided", [b"not json \xff\xfe ".as_slice(), number.to_string().as_bytes()].concat()),
    }
}

/// Prints changes until so many deliveries ended well after so many attempts; returns the attempts seen.
async fn show(
    changes: &mut hawser_client::WatchStream,
    deliveries: usize,
    due: usize,
) -> anyhow::Result<usize> {
    let (mut ended, mut attempts, mut lines) = (HashSet::new(), 0, 0);
    while ended.len() < deliveries || attempts < due {
        let message = changes.message().await.map_err(|status| explain(&status))?;
        if let Some(line) = watch::line(&message) {
            lines += 1;
            if lines <= LINES {
                println!("{line}");
            }
            if lines == LINES {
                println!("… and so on");
            }
        }
        match message.change {
            Some(Change::DeliveryChange(change)) => {
                let delivery = change.delivery.unwrap_or_default();
                match delivery.status() {
                    pb::DeliveryStatus::Success => {
                        ended.insert(delivery.id);
                    }
                    pb::DeliveryStatus::Failed | pb::DeliveryStatus::Discarded => {
                        anyhow::bail!("{} ended without success", delivery.id);
                    }
                    _ => {}
                }
            }
            Some(Change::Attempt(_)) => attempts += 1,
            _ => {}
        }
    }
    Ok(attempts)
}

/// Everything arrived, as often as it should, byte for byte, with good signatures.
fn check(
    arrivals: &[Arrival],
    published: &HashMap<String, Vec<u8>>,
    deliveries: usize,
) -> anyhow::Result<()> {
    for one in arrivals {
        if let Some(problem) = &one.problem {
            anyhow::bail!("a delivery of {} to {} was not acceptable: {problem}", one.event, one.path);
        }
        let expected =
            published.get(&one.event).with_context(|| format!("{} was never published", one.event))?;
        ensure(*expected == one.body, || format!("the body of {} arrived changed", one.event))?;
    }
    let accepted: Vec<_> = arrivals.iter().filter(|one| one.answered.is_success()).collect();
    let distinct: HashSet<_> = accepted.iter().map(|one| (&one.path, &one.event)).collect();
    ensure(accepted.len() == deliveries && distinct.len() == deliveries, || {
        format!(
            "{} deliveries arrived, {} of them different, and {deliveries} were due",
            accepted.len(),
            distinct.len()
        )
    })?;
    let failed = arrivals.iter().filter(|one| one.path == SHAKY && !one.answered.is_success()).count();
    ensure(failed == FAILURES as usize, || format!("the failing receiver was tried {failed} times in vain"))
}
