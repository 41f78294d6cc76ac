//! What tests of alerts share: receivers of every channel, and what came to them, as pairs of event and alert id.

use std::collections::BTreeMap;
use std::time::Duration;

use hawser_client::pb;
use serde_json::Value;

use super::mail::{Mail, MailServer};
use super::receiver::Seen;
use super::{Database, Receiver, Reply, Server, World};

/// The event's name and the alert's id.
pub type Told = (String, String);

/// A receiver for each channel.
pub struct Channels {
    pub mail: MailServer,
    pub slack: Receiver,
    pub teams: Receiver,
    pub operational: Receiver,
}

impl Channels {
    /// Which take everything, after that time.
    pub async fn open(delay: Duration) -> Self {
        let receiver = || Receiver::scripted(move |_, _| Reply { status: 200, ..Reply::after(delay) });
        let manner = super::mail::Manner { delay, ..Default::default() };
        Self {
            mail: MailServer::with(manner).await,
            slack: receiver().await,
            teams: receiver().await,
            operational: receiver().await,
        }
    }

    /// A world whose mail goes here, and whose project has an operational webhook; with that webhook's secret.
    pub async fn world(&self, database: Database, arguments: &[&str]) -> (World, String) {
        let world = world_with_mail(database, &self.mail, arguments).await;
        let secret = set_webhook(&world, &self.operational.url("/operational"), &[]).await;
        (world, secret)
    }

    /// All channels but the operational one.
    pub fn alerts(&self) -> pb::Alerts {
        pb::Alerts {
            emails: vec!["ops@example.com".to_owned()],
            slack_webhook_url: self.slack.url("/services/T0/B0/canary-slack"),
            teams_webhook_url: self.teams.url("/workflows/canary-teams?sig=canary-teams"),
            on: Vec::new(),
        }
    }

    /// What came to each, in this order: mail, Slack, Teams, operational.
    pub fn told(&self) -> [Vec<Told>; 4] {
        [
            self.mail.mails().iter().map(of_mail).collect(),
            self.slack.seen().iter().map(of_slack).collect(),
            self.teams.seen().iter().map(of_teams).collect(),
            self.operational.seen().iter().map(of_operational).collect(),
        ]
    }
}

pub async fn world_with_mail(database: Database, mail: &MailServer, arguments: &[&str]) -> World {
    let own = mail.arguments("none");
    let own: Vec<&str> = own.iter().map(String::as_str).collect();
    let usual = ["--allow-http", "--allow-net", "127.0.0.0/8"];
    let server = Server::start_with(database, &[&usual, own.as_slice(), arguments].concat()).await;
    World::on(server, pb::PausedPolicy::Discard).await
}

/// Tells twice: that it is paused, and that it is active.
pub async fn toggle(world: &World, id: &str) {
    let pause = pb::PauseEndpointRequest { endpoint_id: id.to_owned(), ..Default::default() };
    world.client.endpoints().pause_endpoint(pause).await.expect("paused");
    let resume = pb::ResumeEndpointRequest { endpoint_id: id.to_owned(), ..Default::default() };
    world.client.endpoints().resume_endpoint(resume).await.expect("resumed");
}

/// Makes an endpoint of which Slack alone is told, by this URL.
pub async fn told_by_slack(world: &World, slack: String) -> pb::Endpoint {
    let alerts = pb::Alerts { slack_webhook_url: slack, on: vec!["*".to_owned()], ..Default::default() };
    let url = "https://example.com/hook".to_owned();
    world.create(pb::Endpoint { url, alerts: Some(alerts), ..Default::default() }, &["*"]).await.0
}

/// Gives the world's project an operational webhook; returns its secret.
pub async fn set_webhook(world: &World, url: &str, on: &[&str]) -> String {
    let webhook = pb::OperationalWebhook {
        url: url.to_owned(),
        on: on.iter().map(|text| (*text).to_owned()).collect(),
    };
    let project = pb::Project { operational_webhook: Some(webhook), ..Default::default() };
    update_project(world, project, &[]).await.operational_secret
}

pub async fn update_project(world: &World, project: pb::Project, mask: &[&str]) -> pb::UpdateProjectResponse {
    let project = pb::Project { id: world.project.clone(), ..project };
    let paths = mask.iter().map(|path| (*path).to_owned()).collect();
    let request = pb::UpdateProjectRequest {
        project: Some(project),
        update_mask: Some(prost_types::FieldMask { paths }),
    };
    world.operator.projects().update_project(request).await.expect("updated").into_inner()
}

/// Waits until no alert waits to be sent, and says how many were made.
pub async fn all_sent(world: &World) -> i64 {
    let mut session = world.server.sql().await;
    session.until_numbers("SELECT COUNT(*) FROM alerts WHERE status = 1", &[0]).await;
    session.count("alerts").await
}

/// How often each was told.
pub fn counts(told: &[Told]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for (event, _) in told {
        *counts.entry(event.as_str()).or_default() += 1;
    }
    counts
}

pub fn of_mail(mail: &Mail) -> Told {
    let id = mail.header("message-id");
    let id = id.strip_prefix('<').and_then(|id| id.split_once('@')).expect("an id").0.to_owned();
    let last = mail.body().trim_end().lines().last().expect("a line").to_owned();
    (named(&last, &id), id)
}

pub fn of_slack(seen: &Seen) -> Told {
    let json: Value = serde_json::from_slice(&seen.body).expect("JSON");
    assert!(json["text"].as_str().is_some_and(|text| text.starts_with("Endpoint ")), "{json}");
    let blocks = json["blocks"].as_array().expect("blocks");
    both(blocks.last().expect("one")["elements"][0]["text"].as_str().expect("text"))
}

pub fn of_teams(seen: &Seen) -> Told {
    let json: Value = serde_json::from_slice(&seen.body).expect("JSON");
    assert_eq!(json["type"], "message");
    let card = &json["attachments"][0];
    assert_eq!(card["contentType"], "application/vnd.microsoft.card.adaptive");
    assert_eq!(card["content"]["type"], "AdaptiveCard");
    let body = card["content"]["body"].as_array().expect("a body");
    both(body.last().expect("one")["inlines"][0]["text"].as_str().expect("text"))
}

pub fn of_operational(seen: &Seen) -> Told {
    let json: Value = serde_json::from_slice(&seen.body).expect("JSON");
    (json["type"].as_str().expect("a type").to_owned(), seen.event())
}

/// Reads `endpoint.paused (alr_…)`.
fn both(text: &str) -> Told {
    let (event, id) = text.strip_suffix(')').and_then(|text| text.split_once(" (")).expect("both");
    assert!(id.starts_with("alr_"), "{text}");
    (event.to_owned(), id.to_owned())
}

fn named(line: &str, id: &str) -> String {
    let (event, told) = both(line);
    assert_eq!(told, id);
    event
}
