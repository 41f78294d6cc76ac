//! Secrets of alerts are found nowhere: not in logs at their finest, not in the database or a dump of it, not in metrics,
//! Watch, replies, the audit log, or the alerts themselves. And sealed ones open only where they were put.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hawser_client::pb;

use crate::canary::stored;
use crate::support::leaks::letters;
use crate::support::mail::{MailServer, Manner};
use crate::support::told::{Channels, all_sent, set_webhook, update_project, world_with_mail};
use crate::support::world::next;
use crate::support::{Database, Receiver, Reply, on_both, web};

on_both!(secrets_of_alerts_are_found_nowhere, sealed_urls_open_only_in_their_row);

async fn secrets_of_alerts_are_found_nowhere(database: Database) {
    let channels = Channels::open(Duration::ZERO).await;
    let arguments = ["--smtp-user", "shown", "--smtp-password", "canary-smtp-password", "--log", "trace"];
    let (mut world, secret) =
        channels.world(database, &[&arguments[..], &["--alert-backoff", "1"]].concat()).await;
    let mut watch = world.watch().await;
    // One that fails, since errors might tell too much.
    let failing = Receiver::scripted(|_, before| Reply::status([500, 200][before.min(1)])).await;
    let alerts = pb::Alerts {
        emails: vec!["shown@example.com".to_owned()],
        slack_webhook_url: failing.url("/services/canary-slack"),
        teams_webhook_url: channels.teams.url("/workflows?sig=canary-teams"),
        on: vec!["*".to_owned()],
    };
    let mut replies = Vec::new();
    let project = pb::Project { alerts: Some(alerts.clone()), ..Default::default() };
    replies.push(format!("{:?}", update_project(&world, project, &[]).await));
    let endpoint = pb::Endpoint {
        url: "https://example.com/hook".to_owned(),
        alerts: Some(alerts.clone()),
        ..Default::default()
    };
    let (made, _) = world.create(endpoint, &["*"]).await;
    let bad = pb::Endpoint {
        id: made.id.clone(),
        name: "x".repeat(200),
        alerts: Some(alerts),
        ..Default::default()
    };
    let request = pb::UpdateEndpointRequest { endpoint: Some(bad), ..Default::default() };
    replies.push(format!(
        "{:?}",
        world.client.endpoints().update_endpoint(request).await.expect_err("too long")
    ));
    replies.push(format!("{made:?}"));
    let listed = world.client.endpoints().list_endpoints(pb::ListEndpointsRequest::default()).await;
    replies.push(format!("{:?}", listed.expect("listed").into_inner()));
    let listed = world.operator.projects().list_projects(pb::ListProjectsRequest::default()).await;
    replies.push(format!("{:?}", listed.expect("listed").into_inner()));
    let listed = world.operator.audit().list_audit_events(pb::ListAuditEventsRequest::default()).await;
    replies.push(format!("{:?}", listed.expect("listed").into_inner()));
    replies.push(format!("{:?}", next(&mut watch).await));
    // While they wait, and when they are over.
    failing.wait_for_count(1).await;
    let waiting = stored(&world).await;
    assert_eq!(all_sent(&world).await, 4);
    let over = stored(&world).await;
    let bodies: Vec<String> = [&channels.teams, &channels.operational, &failing]
        .into_iter()
        .flat_map(Receiver::seen)
        .map(|seen| String::from_utf8_lossy(&seen.body).into_owned())
        .chain(channels.mail.mails().into_iter().map(|mail| mail.text))
        .collect();
    assert_eq!(bodies.len(), 5);
    assert!(channels.mail.mails()[0].login.as_deref() == Some("shown:canary-smtp-password"));
    let (_, metrics) = web::get(world.server.admin(), "/metrics").await;
    world.server.terminate().await;
    let log = world.server.log();
    assert!(log.contains("TRACE"), "it logged all it could");

    let bare = secret.strip_prefix("whsec_").expect("a secret");
    let bytes = STANDARD.decode(bare).expect("base64");
    let login = STANDARD.encode("\0shown\0canary-smtp-password");
    let secrets = ["canary-slack", "canary-teams", "canary-smtp-password", &login, bare];
    let texts = [("log", &log), ("metrics", &metrics), ("database", &waiting), ("database", &over)];
    let more = replies.iter().map(|reply| ("reply", reply)).chain(bodies.iter().map(|body| ("alert", body)));
    for (place, text) in texts.into_iter().chain(more) {
        for secret in secrets {
            let around = text.find(secret).map(|at| {
                let before: Vec<char> = text[..at].chars().rev().take(300).collect();
                before.into_iter().rev().collect::<String>()
            });
            assert_eq!(around, None, "{secret} is in the {place}");
        }
    }
    assert!(!waiting.contains(&letters(&bytes)));
}

async fn sealed_urls_open_only_in_their_row(database: Database) {
    let mail = MailServer::with(Manner::default()).await;
    let mut world = world_with_mail(database, &mail, &[]).await;
    set_webhook(&world, "https://example.com/operational", &["endpoint.deleted"]).await;
    let one = |uid: &str| pb::Endpoint {
        uid: uid.to_owned(),
        url: "https://example.com/hook".to_owned(),
        alerts: Some(pb::Alerts {
            slack_webhook_url: format!("https://hooks.slack.com/services/{uid}"),
            ..Default::default()
        }),
        ..Default::default()
    };
    let (a, _) = world.create(one("a"), &["*"]).await;
    let (b, _) = world.create(one("b"), &["*"]).await;
    world.server.terminate().await;
    let mut session = world.server.sql().await;
    session
        .run(
            "UPDATE endpoints SET alerts_sealed = \
             (SELECT o.alerts_sealed FROM endpoints o WHERE o.uid = 'a') WHERE uid = 'b'",
        )
        .await;
    // A project's in another column of its own.
    session.run("UPDATE projects SET alerts_sealed = operational_secrets_sealed").await;
    drop(session);
    world.restart().await;
    let get = |id: &str| pb::GetEndpointRequest { endpoint_id: id.to_owned(), ..Default::default() };
    world.client.endpoints().get_endpoint(get(&a.id)).await.expect("where it was put");
    let moved = world.client.endpoints().get_endpoint(get(&b.id)).await.expect("shown without them");
    let moved = moved.into_inner().endpoint.expect("an endpoint");
    assert_eq!((moved.unreadable_fields, moved.alerts), (vec!["alerts".to_owned()], None));
    let get = pb::GetProjectRequest { project_id: world.project.clone() };
    let moved = world.operator.projects().get_project(get).await.expect("shown").into_inner().project;
    assert_eq!(moved.expect("a project").unreadable_fields, ["alerts"]);
    // Nobody is told by them, and endpoints can be changed all the same.
    world.create(pb::Endpoint { alerts: None, ..one("c") }, &["*"]).await;
    assert!(world.server.log().contains("nobody is told by the project's alerts"));
}
