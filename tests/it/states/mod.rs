//! The states of endpoints against a small model of them: random calls and answers, step by step, and after each
//! step the server must show what the model says, no more and no less.

mod model;

use std::collections::HashMap;
use std::sync::Arc;

use hawser_client::pb::{self, watch_response::Change};
use hawser_client::{Client, Key, WatchStream, reason};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tonic::Status;

use crate::support::desk::Held;
use crate::support::failing::{NO_BREAKER, disable, linear, millis, world_with};
use crate::support::world::{next, project, publish};
use crate::support::{Answer, Database, Desk, World, on_both, tier};
use model::{ATTEMPTS, FAILURES, Model, Place, Shows};

on_both!(random_calls_do_what_the_model_does);

/// On each database, 10,000 steps; each run has a project of its own.
const RUNS: usize = 100;
const STEPS: usize = 100;
/// Few, so that a run is over long before a request that it holds back would time out.
const AT_ONCE: usize = 8;
/// One run more in detail: its seed.
const SEED: &str = "HAWSER_STATES_SEED";

async fn random_calls_do_what_the_model_does(database: Database) {
    let world = Arc::new(world_with(database, pb::PausedPolicy::Discard, &NO_BREAKER).await);
    let desk = Arc::new(Desk::open().await);
    let seeds: Vec<u64> = match std::env::var(SEED) {
        Ok(seed) => vec![seed.parse().expect("a number")],
        Err(_) => (0..(RUNS * tier(1, 5)) as u64).collect(),
    };
    let mut runs = tokio::task::JoinSet::new();
    for seed in seeds {
        if runs.len() == AT_ONCE {
            settle(runs.join_next().await);
        }
        let (world, desk) = (world.clone(), desk.clone());
        runs.spawn(async move {
            // Says which run it was, if it ends early.
            let named = Named(seed);
            Run::new(&world, desk, seed).await.through().await;
            drop(named);
        });
    }
    while !runs.is_empty() {
        settle(runs.join_next().await);
    }
    let mut sql = world.server.sql().await;
    assert_eq!(sql.count("queue").await, 0, "nothing rests in PROCESSING");
    assert_eq!(sql.count("endpoints WHERE status = 4").await, 0, "nothing rests in PENDING");
}

fn settle(ended: Option<Result<(), tokio::task::JoinError>>) {
    if let Some(Err(failed)) = ended {
        std::panic::resume_unwind(failed.into_panic());
    }
}

struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("diverged; once more, alone: {SEED}={}", self.0);
        }
    }
}

/// One run against a project of its own.
struct Run {
    random: StdRng,
    desk: Arc<Desk>,
    client: Client,
    watch: WatchStream,
    model: Model,
    endpoints: Vec<String>,
    deliveries: Vec<String>,
    /// Requests that the receiver has, by delivery.
    held: HashMap<usize, Held>,
    /// The steps so far.
    steps: Vec<String>,
    /// Attempts time out quickly, so that one is made at a time and answered at once, or never.
    hasty: bool,
}

impl Run {
    async fn new(world: &World, desk: Arc<Desk>, seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let holds = random.random_bool(0.5);
        let policy = if holds { pb::PausedPolicy::Hold } else { pb::PausedPolicy::Discard };
        let (_, key) = project(&world.operator, policy).await;
        let client = world.operator.with_key(&Key::new(key)).expect("a key");
        let kinds = vec![pb::ChangeKind::Endpoint.into(), pb::ChangeKind::Delivery.into()];
        let request = pb::WatchRequest { kinds, ..Default::default() };
        let mut watch = client.watch(request).await.expect("watching");
        next(&mut watch).await;
        let model = Model { holds, endpoints: Vec::new(), deliveries: Vec::new() };
        let (endpoints, deliveries) = (Vec::new(), Vec::new());
        let hasty = random.random_bool(0.1);
        let (held, steps) = (HashMap::new(), Vec::new());
        Self { random, desk, client, watch, model, endpoints, deliveries, held, steps, hasty }
    }

    async fn through(mut self) {
        self.create().await;
        self.create().await;
        // What the dice ask for is not always possible; only what was done counts.
        while self.steps.len() < STEPS {
            self.step().await;
        }
        self.finish().await;
    }

    async fn step(&mut self) {
        if self.hasty
            && let Some(id) = self.held.keys().min().copied()
        {
            return self.answer(id).await;
        }
        let endpoint = self.random.random_range(0..self.endpoints.len());
        match self.random.random_range(if self.held.len() < 8 { 0 } else { 25 }..100) {
            0..25 => self.publish(endpoint).await,
            25..55 => match self.any_held() {
                Some(id) => self.answer(id).await,
                None => self.publish(endpoint).await,
            },
            55..70 if !self.deliveries.is_empty() => self.retry().await,
            70..78 => self.call("pause", endpoint).await,
            78..86 => self.call("resume", endpoint).await,
            86..95 => self.call("activate", endpoint).await,
            95..97 => self.call("delete", endpoint).await,
            _ => self.create().await,
        }
    }

    fn any_held(&mut self) -> Option<usize> {
        let mut ids: Vec<usize> = self.held.keys().copied().collect();
        ids.sort_unstable();
        (!ids.is_empty()).then(|| ids[self.random.random_range(0..ids.len())])
    }

    async fn create(&mut self) {
        if self.model.endpoints.iter().filter(|endpoint| endpoint.state.is_some()).count() >= 3 {
            return;
        }
        let endpoint = pb::Endpoint {
            url: self.desk.url("/hook"),
            retry_policy: Some(linear(1, ATTEMPTS)),
            disable_policy: Some(disable(FAILURES, 0)),
            // No step waits for another to make room.
            max_in_flight: 256,
            http_timeout: Some(millis(if self.hasty { 3_000 } else { 60_000 })),
            ..Default::default()
        };
        let request = pb::CreateEndpointRequest { endpoint: Some(endpoint), ..Default::default() };
        let reply = self.client.endpoints().create_endpoint(request).await.expect("created").into_inner();
        self.endpoints.push(reply.endpoint.expect("an endpoint").id);
        self.model.create();
        let created = (self.endpoints.len() - 1, "CREATED", pb::EndpointStatus::Active);
        self.saw("create", Shows { endpoint: vec![created], ..Shows::default() }).await;
    }

    /// Nothing is under way and nothing waits to be.
    fn is_idle(&self) -> bool {
        self.model.deliveries.iter().all(|delivery| matches!(delivery.place, Place::Ended(_)))
    }

    async fn publish(&mut self, endpoint: usize) {
        if self.hasty && !self.is_idle() {
            return;
        }
        let target = pb::publish_event_request::Target::EndpointId(self.endpoints[endpoint].clone());
        let reply = publish(&self.client, target, b"{}", "").await;
        if self.model.endpoints[endpoint].state.is_none() {
            let refused = reply.expect_err("the endpoint was deleted");
            assert_eq!(reason(&refused).as_deref(), Some("NOT_FOUND"), "{}", self.story());
            return;
        }
        let event = reply.expect("published").event_id;
        // Its id is known from here on.
        let delivery = loop {
            if let Some(Change::DeliveryChange(change)) = next(&mut self.watch).await.change {
                assert_eq!(change.r#type(), pb::DeliveryChangeType::Created, "{}", self.story());
                break change.delivery.expect("a delivery");
            }
        };
        assert_eq!(delivery.event_id, event);
        let (status, shows) = self.model.publish(endpoint);
        assert_eq!(delivery.status(), status, "{}", self.story());
        self.deliveries.push(delivery.id);
        self.saw(&format!("publish to {endpoint}: {status:?}"), shows).await;
    }

    async fn answer(&mut self, id: usize) {
        let answer = match self.random.random_range(0..100) {
            0..40 => Answer::Status(200),
            40..75 => Answer::Status(500),
            75..83 => Answer::Status(410),
            83..93 => Answer::HangUp,
            // Costs the time of the timeout.
            _ if self.hasty => Answer::Nothing,
            _ => Answer::Status(302),
        };
        self.held.remove(&id).expect("it is held").answer(answer);
        let shows = self.model.answer(id, answer);
        self.saw(&format!("{id} is answered {answer:?}"), shows).await;
        let endpoint = self.model.deliveries[id].endpoint;
        if self.model.endpoints[endpoint].state.is_some() {
            let request = pb::GetEndpointRequest {
                endpoint_id: self.endpoints[endpoint].clone(),
                ..Default::default()
            };
            let read = self.client.endpoints().get_endpoint(request).await.expect("found").into_inner();
            let read = read.endpoint.expect("an endpoint");
            let seen = (Some(read.status()), read.consecutive_failures);
            let model = &self.model.endpoints[endpoint];
            assert_eq!(seen, (model.state, model.failures), "{}", self.story());
        }
    }

    async fn retry(&mut self) {
        if self.hasty && !self.is_idle() {
            return;
        }
        let id = self.random.random_range(0..self.deliveries.len());
        let request =
            pb::RetryDeliveryRequest { delivery_id: self.deliveries[id].clone(), ..Default::default() };
        let reply = self.client.deliveries().retry_delivery(request).await;
        let expected = self.model.retry(id);
        self.agree(&format!("retry of {id}"), reply.map(|_| ()), expected).await;
    }

    async fn call(&mut self, name: &str, endpoint: usize) {
        let endpoint_id = self.endpoints[endpoint].clone();
        let mut endpoints = self.client.endpoints();
        let (reply, expected) = match name {
            "pause" => {
                let request = pb::PauseEndpointRequest { endpoint_id, ..Default::default() };
                (endpoints.pause_endpoint(request).await.map(|_| ()), self.model.pause(endpoint))
            }
            "resume" => {
                let request = pb::ResumeEndpointRequest { endpoint_id, ..Default::default() };
                (endpoints.resume_endpoint(request).await.map(|_| ()), self.model.resume(endpoint))
            }
            "activate" => {
                let request = pb::ActivateEndpointRequest { endpoint_id, ..Default::default() };
                (endpoints.activate_endpoint(request).await.map(|_| ()), self.model.activate(endpoint))
            }
            _ => {
                let request = pb::DeleteEndpointRequest { endpoint_id, ..Default::default() };
                (endpoints.delete_endpoint(request).await.map(|_| ()), self.model.delete(endpoint))
            }
        };
        self.agree(&format!("{name} {endpoint}"), reply, expected).await;
    }

    /// The call was answered as the model says, and led to what it says.
    async fn agree(&mut self, step: &str, reply: Result<(), Status>, expected: Result<Shows, &'static str>) {
        let told = reply.as_ref().err().map(|status| reason(status).unwrap_or_else(|| status.to_string()));
        let refused = expected.as_ref().err().map(|reason| (*reason).to_owned());
        assert_eq!(told, refused, "{step}, after{}", self.story());
        match expected {
            Ok(shows) => self.saw(step, shows).await,
            Err(reason) => self.steps.push(format!("{step}: {reason}")),
        }
    }

    /// Awaits exactly what the model says: changes in any order, then requests.
    async fn saw(&mut self, step: &str, shows: Shows) {
        self.steps.push(format!("{step}: {shows:?}"));
        let endpoint = |(id, kind, state): (usize, &str, pb::EndpointStatus)| {
            format!("{} ENDPOINT_CHANGE_TYPE_{kind} {state:?}", self.endpoints[id])
        };
        let delivery = |(id, kind, status, attempts): (usize, &str, pb::DeliveryStatus, i32)| {
            format!("{} DELIVERY_CHANGE_TYPE_{kind} {status:?} {attempts}", self.deliveries[id])
        };
        let mut missing: Vec<String> = shows.endpoint.into_iter().map(endpoint).collect();
        missing.extend(shows.deliveries.into_iter().map(delivery));
        while !missing.is_empty() {
            let Some(told) = told(next(&mut self.watch).await) else { continue };
            match missing.iter().position(|one| *one == told) {
                Some(place) => drop(missing.swap_remove(place)),
                None => panic!("Watch told {told} in place of {missing:#?}, after{}", self.story()),
            }
        }
        for id in shows.requests {
            let request = self.desk.request(&self.deliveries[id]).await;
            assert_eq!(request.attempt, self.model.deliveries[id].attempts + 1, "{}", self.story());
            self.held.insert(id, request);
        }
    }

    /// Ends what is open, and compares all of it.
    async fn finish(&mut self) {
        for endpoint in 0..self.endpoints.len() {
            if self.model.endpoints[endpoint].state == Some(pb::EndpointStatus::Paused) {
                self.call("resume", endpoint).await;
            }
        }
        while let Some(id) = self.held.keys().min().copied() {
            self.held.remove(&id).expect("it is held").answer(Answer::Status(200));
            let shows = self.model.answer(id, Answer::Status(200));
            self.saw(&format!("{id} is answered at last"), shows).await;
        }
        let request = pb::ListDeliveriesRequest { page_size: 1000, ..Default::default() };
        let listed = self.client.deliveries().list_deliveries(request).await.expect("listed").into_inner();
        let seen: HashMap<_, _> = listed.deliveries.into_iter().map(|one| (one.id.clone(), one)).collect();
        assert_eq!(seen.len(), self.deliveries.len());
        for (id, model) in self.deliveries.iter().zip(&self.model.deliveries) {
            let (status, attempts) = (seen[id].status(), seen[id].attempt_count);
            assert_eq!(
                (Place::Ended(status), attempts),
                (model.place, model.attempts),
                "{id}{}",
                self.story()
            );
            assert!(!self.desk.has_more(id), "{id} was sent once too often{}", self.story());
        }
        // All deliveries have ended, so no endpoint waits for a probe: each is as the model has it, and none PENDING.
        let request = pb::ListEndpointsRequest { page_size: 1000, ..Default::default() };
        let listed = self.client.endpoints().list_endpoints(request).await.expect("listed").into_inner();
        let seen: HashMap<_, _> = listed.endpoints.iter().map(|one| (&one.id, one.status())).collect();
        for (id, model) in self.endpoints.iter().zip(&self.model.endpoints) {
            assert_ne!(model.state, Some(pb::EndpointStatus::Pending), "{id}{}", self.story());
            assert_eq!(seen.get(id).copied(), model.state, "{id}{}", self.story());
        }
    }

    fn story(&self) -> String {
        let named = |list: &[String]| list.join(", ");
        let (endpoints, deliveries) = (named(&self.endpoints), named(&self.deliveries));
        let steps = self.steps.join("\n  ");
        format!("\n  endpoints {endpoints}\n  deliveries {deliveries}\n  {steps}")
    }
}

/// A change in one line; none for bookmarks.
fn told(message: pb::WatchResponse) -> Option<String> {
    match message.change? {
        Change::EndpointChange(change) => {
            let kind = change.r#type().as_str_name();
            let endpoint = change.endpoint?;
            Some(format!("{} {kind} {:?}", endpoint.id, endpoint.status()))
        }
        Change::DeliveryChange(change) => {
            let kind = change.r#type().as_str_name();
            let delivery = change.delivery?;
            Some(format!("{} {kind} {:?} {}", delivery.id, delivery.status(), delivery.attempt_count))
        }
        _ => None,
    }
}
