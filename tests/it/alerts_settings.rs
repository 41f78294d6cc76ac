//! Whom alerts go to, as it is set and shown; and the operational webhook's secret.

use std::collections::BTreeSet;

use hawser_client::pb::o_auth2::Client;
use hawser_client::{field_violations, pb, reason};
use tonic::{Code, Status};

use crate::oauth2::{endpoint, oauth2, shared};
use crate::support::failing::{get, until_endpoint};
use crate::support::mail::MailServer;
use crate::support::secrets::{accepts, seconds};
use crate::support::token_server::ClientKey;
use crate::support::told::{all_sent, set_webhook, update_project, world_with_mail};
use crate::support::{Database, Receiver, Reply, World, on_both};

on_both!(
    urls_are_shown_redacted_and_kept_when_they_come_back_so,
    what_cannot_be_is_refused_by_its_field,
    what_is_stored_is_not_checked_again,
    the_operational_secret_is_shown_once_revealed_and_rotated,
);

const SLACK: &str = "https://hooks.slack.com/services/T0/B0/canary";
const TEAMS: &str = "https://prod-1.westeurope.logic.azure.com/workflows/canary?sig=canary";

fn alerts() -> pb::Alerts {
    pb::Alerts {
        emails: vec!["ops@example.com".to_owned()],
        slack_webhook_url: SLACK.to_owned(),
        teams_webhook_url: TEAMS.to_owned(),
        on: vec!["endpoint.disabled".to_owned(), "delivery.*".to_owned()],
    }
}

fn redacted() -> pb::Alerts {
    let hidden = "[redacted]".to_owned();
    pb::Alerts { slack_webhook_url: hidden.clone(), teams_webhook_url: hidden, ..alerts() }
}

async fn update(world: &World, endpoint: pb::Endpoint, mask: &[&str]) -> Result<pb::Endpoint, Status> {
    let paths = mask.iter().map(|path| (*path).to_owned()).collect();
    let request = pb::UpdateEndpointRequest {
        endpoint: Some(endpoint),
        update_mask: Some(prost_types::FieldMask { paths }),
        ..Default::default()
    };
    let reply = world.client.endpoints().update_endpoint(request).await?;
    Ok(reply.into_inner().endpoint.expect("an endpoint"))
}

async fn urls_are_shown_redacted_and_kept_when_they_come_back_so(database: Database) {
    let mail = MailServer::start().await;
    let receiver = Receiver::scripted(|_, _| Reply::status(200)).await;
    let world = world_with_mail(database, &mail, &[]).await;
    let mut watch = world.watch().await;
    let new = pb::Endpoint {
        url: "https://example.com/hook".to_owned(),
        alerts: Some(pb::Alerts {
            slack_webhook_url: receiver.url("/slack"),
            teams_webhook_url: receiver.url("/teams"),
            ..alerts()
        }),
        ..Default::default()
    };
    let (made, _) = world.create(new, &["*"]).await;
    assert_eq!(made.alerts, Some(redacted()));
    assert_eq!(get(&world, &made.id).await, made);
    let told = until_endpoint(&mut watch, &made.id, pb::EndpointChangeType::Created).await;
    assert_eq!(told.alerts, Some(redacted()));

    // Read, changed and sent back as a whole: the URLs are the stored ones.
    let on = vec!["endpoint.updated".to_owned()];
    let back = pb::Endpoint { alerts: Some(pb::Alerts { on, ..redacted() }), ..made.clone() };
    let changed = update(&world, back.clone(), &["alerts"]).await.expect("updated");
    assert_ne!(changed.etag, made.etag);
    let seen = receiver.wait_for_count(2).await;
    let paths: BTreeSet<&str> = seen.iter().map(|seen| seen.path.as_str()).collect();
    assert_eq!(paths, BTreeSet::from(["/slack", "/teams"]));
    // The same once more changes nothing.
    let back = pb::Endpoint { etag: String::new(), ..back };
    assert_eq!(update(&world, back, &["alerts"]).await.expect("updated").etag, changed.etag);

    // Taken out, they are gone; without any, the project's count.
    let alerts = Some(pb::Alerts { slack_webhook_url: String::new(), ..redacted() });
    let fewer =
        update(&world, pb::Endpoint { id: made.id.clone(), alerts, ..Default::default() }, &["alerts"]);
    let fewer = fewer.await.expect("updated").alerts.expect("some");
    assert_eq!((fewer.slack_webhook_url.as_str(), fewer.teams_webhook_url.as_str()), ("", "[redacted]"));
    let none = pb::Endpoint { id: made.id.clone(), ..Default::default() };
    assert_eq!(update(&world, none, &["alerts"]).await.expect("updated").alerts, None);

    let project = pb::Project { alerts: Some(self::alerts()), ..Default::default() };
    let project = update_project(&world, project, &[]).await.project.expect("a project");
    assert_eq!(project.alerts, Some(redacted()));
    let same =
        update_project(&world, pb::Project { alerts: Some(redacted()), ..Default::default() }, &[]).await;
    assert_eq!(same.project.expect("a project").etag, project.etag);
}

async fn what_cannot_be_is_refused_by_its_field(database: Database) {
    let world = World::new(database).await;
    let with = |change: fn(&mut pb::Alerts)| {
        let mut alerts = pb::Alerts::default();
        change(&mut alerts);
        alerts
    };
    for (alerts, field) in [
        // This server has no mail server.
        (with(|alerts| alerts.emails = vec!["a@example.com".to_owned()]), "emails"),
        (with(|alerts| alerts.emails = vec!["a@example.com".to_owned(); 11]), "emails"),
        (with(|alerts| alerts.slack_webhook_url = "http://10.0.0.1/canary".to_owned()), "slack_webhook_url"),
        (with(|alerts| alerts.slack_webhook_url = "[redacted]".to_owned()), "slack_webhook_url"),
        (
            with(|alerts| alerts.teams_webhook_url = "ftp://example.com/canary".to_owned()),
            "teams_webhook_url",
        ),
        (with(|alerts| alerts.on = vec!["endpoint.paused".to_owned(), "endpoint.gone".to_owned()]), "on[1]"),
        (with(|alerts| alerts.on = vec!["not a name".to_owned()]), "on[0]"),
        (with(|alerts| alerts.on = vec!["*".to_owned(); 21]), "on"),
    ] {
        let url = "https://example.com/hook".to_owned();
        let endpoint = pb::Endpoint { url, alerts: Some(alerts.clone()), ..Default::default() };
        let request = pb::CreateEndpointRequest { endpoint: Some(endpoint), ..Default::default() };
        let refused = world.client.endpoints().create_endpoint(request).await.expect_err("refused");
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert_eq!(field_violations(&refused)[0].field, format!("endpoint.alerts.{field}"), "{refused}");
        assert!(!format!("{refused:?}").contains("canary"), "{refused:?}");

        let project = pb::Project { id: world.project.clone(), alerts: Some(alerts), ..Default::default() };
        let request = pb::UpdateProjectRequest { project: Some(project), ..Default::default() };
        let refused = world.operator.projects().update_project(request).await.expect_err("refused");
        assert_eq!(field_violations(&refused)[0].field, format!("project.alerts.{field}"), "{refused}");
    }
    let webhook = pb::OperationalWebhook { url: "https://localhost/".to_owned(), ..Default::default() };
    let project =
        pb::Project { id: world.project.clone(), operational_webhook: Some(webhook), ..Default::default() };
    let request = pb::UpdateProjectRequest { project: Some(project), ..Default::default() };
    let refused = world.operator.projects().update_project(request).await.expect_err("refused");
    assert_eq!(field_violations(&refused)[0].field, "project.operational_webhook.url");

    let mail = MailServer::start().await;
    let world = world_with_mail(Database::sqlite(), &mail, &[]).await;
    for (emails, field) in [
        (vec!["nobody"], "endpoint.alerts.emails[0]"),
        (vec!["a@example.com", "b@example.com\r\nBcc: c@example.com"], "endpoint.alerts.emails[1]"),
        (vec!["a@example.com", "A@Example.com"], "endpoint.alerts.emails[1]"),
        (vec!["a@example.com", "ä@example.com"], "endpoint.alerts.emails[1]"),
        (vec!["a@bücher.example", "a@xn--bcher-kva.example"], "endpoint.alerts.emails[1]"),
    ] {
        let emails = emails.into_iter().map(str::to_owned).collect();
        let endpoint = pb::Endpoint {
            url: "https://example.com/hook".to_owned(),
            alerts: Some(pb::Alerts { emails, ..Default::default() }),
            ..Default::default()
        };
        let request = pb::CreateEndpointRequest { endpoint: Some(endpoint), ..Default::default() };
        let refused = world.client.endpoints().create_endpoint(request).await.expect_err("refused");
        assert_eq!(field_violations(&refused)[0].field, field, "{refused}");
    }
}

async fn what_is_stored_is_not_checked_again(database: Database) {
    let mail = MailServer::start().await;
    let mut world = world_with_mail(database, &mail, &[]).await;
    let alerts = pb::Alerts {
        emails: vec!["ops@bücher.example".to_owned()],
        slack_webhook_url: "http://127.0.0.1:9/slack".to_owned(),
        on: vec!["endpoint.deleted".to_owned()],
        ..Default::default()
    };
    let url = "http://127.0.0.1:9/hook".to_owned();
    let token = oauth2("http://127.0.0.1:9/token".to_owned(), shared("secret", false));
    let (made, _) =
        world.create(pb::Endpoint { alerts: Some(alerts), ..endpoint(url, token.clone()) }, &["*"]).await;
    let private_jwk = ClientKey::new("kid").jwk.to_string();
    let assertion = Client::ClientAssertion(pb::ClientAssertion { private_jwk, ..Default::default() });
    let asserts = oauth2("http://127.0.0.1:9/token".to_owned(), assertion);
    let (asserting, _) = world.create(endpoint("http://127.0.0.1:9/hook".to_owned(), asserts), &["*"]).await;
    set_webhook(&world, "http://127.0.0.1:9/operational", &["endpoint.created"]).await;
    let stored = made.alerts.expect("some");
    assert_eq!(stored.emails, ["ops@xn--bcher-kva.example"], "as every mail server takes it");
    // From now on it allows no such URL, and has no mail server.
    world.server.terminate().await;
    world.server.set_arguments(&["--skip-ping"]);
    world.restart().await;
    let with =
        |alerts: pb::Alerts| pb::Endpoint { id: made.id.clone(), alerts: Some(alerts), ..Default::default() };
    let on = vec!["endpoint.paused".to_owned()];
    let changed = update(&world, with(pb::Alerts { on: on.clone(), ..stored.clone() }), &["alerts"]).await;
    assert_eq!(changed.expect("updated").alerts, Some(pb::Alerts { on, ..stored.clone() }));
    let more = [stored.emails.clone(), vec!["b@example.com".to_owned()]].concat();
    let slack = "http://127.0.0.1:9/other".to_owned();
    for (alerts, field) in [
        (pb::Alerts { emails: more, ..stored.clone() }, "endpoint.alerts.emails"),
        (pb::Alerts { slack_webhook_url: slack, ..stored.clone() }, "endpoint.alerts.slack_webhook_url"),
    ] {
        let refused = update(&world, with(alerts), &["alerts"]).await.expect_err("new");
        assert_eq!(field_violations(&refused)[0].field, field, "{refused}");
    }
    // Nor do its other URLs keep anyone from changing the rest.
    let named = pb::Endpoint { id: made.id.clone(), name: "renamed".to_owned(), ..Default::default() };
    assert_eq!(update(&world, named, &["name"]).await.expect("updated").name, "renamed");
    // As it is shown, its key redacted.
    let renamed = pb::Endpoint { name: "renamed".to_owned(), etag: String::new(), ..asserting.clone() };
    let renamed = update(&world, renamed, &["name", "url", "authentication"]).await.expect("updated");
    assert_eq!(renamed.authentication, asserting.authentication);
    let project = pb::Project { name: "renamed".to_owned(), ..Default::default() };
    update_project(&world, project, &["name"]).await;
    let moved = endpoint("http://127.0.0.1:9/moved".to_owned(), token.clone());
    let asks_elsewhere = oauth2("http://127.0.0.1:9/other".to_owned(), shared("secret", false));
    let asks_elsewhere = endpoint(made.url.clone(), asks_elsewhere);
    for (changed, path, field) in [
        (moved, "url", "endpoint.url"),
        (asks_elsewhere, "authentication", "endpoint.authentication.oauth2.token_url"),
    ] {
        let changed = pb::Endpoint { id: made.id.clone(), ..changed };
        let refused = update(&world, changed, &[path]).await.expect_err("new");
        assert_eq!(field_violations(&refused)[0].field, field, "{refused}");
    }
}

async fn the_operational_secret_is_shown_once_revealed_and_rotated(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::scripted(|_, _| Reply::status(200)).await;
    let secret = set_webhook(&world, &receiver.url("/operational"), &["endpoint.created"]).await;
    assert!(secret.starts_with("whsec_"), "{secret}");
    // Another URL, or the same: no new secret, and none is shown.
    assert_eq!(set_webhook(&world, &receiver.url("/moved"), &["endpoint.created"]).await, "");
    let reveal = pb::RevealOperationalSecretRequest { project_id: world.project.clone() };
    let shown = world.operator.projects().reveal_operational_secret(reveal.clone()).await.expect("shown");
    assert_eq!(shown.into_inner().secret, secret);
    let refused =
        world.client.projects().reveal_operational_secret(reveal.clone()).await.expect_err("a project key");
    assert_eq!(refused.code(), Code::PermissionDenied);

    let rotate = |grace: Option<i64>| pb::RotateOperationalSecretRequest {
        project_id: world.project.clone(),
        grace: grace.map(seconds),
    };
    let rotated = world.operator.projects().rotate_operational_secret(rotate(None)).await.expect("rotated");
    let rotated = rotated.into_inner().secret;
    world.create(pb::Endpoint { url: "https://example.com/".to_owned(), ..Default::default() }, &["*"]).await;
    let first = receiver.wait_for_count(1).await.remove(0);
    assert_eq!(first.path, "/moved");
    assert!(accepts(&secret, &first) && accepts(&rotated, &first), "both sign during the grace");
    let last = world.operator.projects().rotate_operational_secret(rotate(Some(0))).await.expect("rotated");
    let last = last.into_inner().secret;
    world.create(pb::Endpoint { url: "https://example.com/".to_owned(), ..Default::default() }, &["*"]).await;
    let second = receiver.wait_for_count(2).await.remove(1);
    assert!(accepts(&last, &second) && accepts(&secret, &second) && !accepts(&rotated, &second));
    for _ in 0..3 {
        world.operator.projects().rotate_operational_secret(rotate(None)).await.expect("rotated");
    }
    let refused =
        world.operator.projects().rotate_operational_secret(rotate(None)).await.expect_err("a sixth");
    assert_eq!(reason(&refused).as_deref(), Some("TOO_MANY_SECRETS"));
    assert_eq!(refused.code(), Code::FailedPrecondition);

    let list = pb::ListAuditEventsRequest { resource: world.project.clone(), ..Default::default() };
    let audit =
        world.operator.audit().list_audit_events(list).await.expect("listed").into_inner().audit_events;
    let actions: BTreeSet<&str> = audit.iter().map(|event| event.action.as_str()).collect();
    assert!(actions.is_superset(&BTreeSet::from(["RevealOperationalSecret", "RotateOperationalSecret"])));
    assert!(!format!("{audit:?}").contains("whsec_"));

    // Without a webhook there is no secret; with another one, another secret.
    update_project(&world, pb::Project::default(), &["operational_webhook"]).await;
    let refused = world.operator.projects().reveal_operational_secret(reveal).await.expect_err("gone");
    assert_eq!(reason(&refused).as_deref(), Some("NO_OPERATIONAL_WEBHOOK"));
    world.create(pb::Endpoint { url: "https://example.com/".to_owned(), ..Default::default() }, &["*"]).await;
    assert_eq!(all_sent(&world).await, 2);
    let again = set_webhook(&world, &receiver.url("/again"), &[]).await;
    assert!(again.starts_with("whsec_") && again != secret);
}
