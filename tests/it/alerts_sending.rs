//! How alerts are sent: repeats are few and have the same id, dead channels hold up nothing, what fails is tried again and
//! given up, and mail goes by the operator's server.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use hawser_client::{Client, Key, pb};

use crate::support::mail::{Encryption, MailServer, Manner};
use crate::support::pki::Authority;
use crate::support::told::{Channels, Told, all_sent, counts, of_slack, toggle};
use crate::support::{Database, Receiver, Reply, Server, World, on_both, pass_time};

on_both!(
    kills_repeat_one_alert_at_most_each,
    a_dead_channel_delays_neither_deliveries_nor_the_others,
    what_fails_is_tried_again_and_given_up_once,
);

const KILLS: usize = 10;

async fn kills_repeat_one_alert_at_most_each(database: Database) {
    // Each is answered some time after it came, so that most kills meet one that came and is not recorded.
    let channels = Channels::open(Duration::from_millis(30)).await;
    let (mut world, _) = channels.world(database, &["--lease", "10"]).await;
    let endpoint = pb::Endpoint {
        url: "https://example.com/hook".to_owned(),
        alerts: Some(channels.alerts()),
        ..Default::default()
    };
    let (endpoint, _) = world.create(endpoint, &["*"]).await;
    let came = || channels.told().iter().map(Vec::len).sum::<usize>();
    let (mut repeats, mut kills) = (Vec::new(), 0);
    // A machine so slow that a place took longer than its turn shows nothing: what goes aside may repeat.
    while repeats.len() < KILLS && kills < 3 * KILLS {
        let before = repeats_of(&channels.told());
        let (came_before, wanted) = (came(), rand::random_range(1..=5));
        toggle(&world, &endpoint.id).await;
        // Of the eight that are due, one to five have come.
        while came() < came_before + wanted {
            pass_time(Duration::from_millis(2)).await;
        }
        world.server.kill().await;
        kills += 1;
        let went_aside = world.server.log().contains("alerts to it go aside");
        world.restart().await;
        all_sent(&world).await;
        if !went_aside {
            repeats.push(repeats_of(&channels.told()) - before);
        }
    }
    assert_eq!(all_sent(&world).await, 1 + 8 * kills as i64);
    println!("{kills} kills, repeats after those in time: {repeats:?}");
    assert_eq!(repeats.len(), KILLS, "kills that show something");
    assert!(repeats.iter().all(|repeats| *repeats <= 1), "{repeats:?}");
    assert!(repeats.contains(&1), "no kill met an alert that came and was not recorded");
    for (channel, told) in channels.told().iter().enumerate() {
        let ids: HashSet<&str> = told.iter().map(|(_, id)| id.as_str()).collect();
        assert_eq!(ids.len(), 2 * kills + usize::from(channel == 3), "none is lost, and none has two ids");
    }
}

/// How many came once more than once. A repeat tells the same, under the same id.
fn repeats_of(told: &[Vec<Told>; 4]) -> usize {
    let mut repeats = 0;
    for told in told {
        let mut events: HashMap<&str, &str> = HashMap::new();
        for (event, id) in told {
            if let Some(before) = events.insert(id, event) {
                assert_eq!(before, event);
                repeats += 1;
            }
        }
    }
    repeats
}

async fn a_dead_channel_delays_neither_deliveries_nor_the_others(database: Database) {
    let channels = Channels::open(Duration::ZERO).await;
    let (world, _) = channels.world(database, &[]).await;
    // It takes the request and never answers.
    let dead = Receiver::scripted(|_, _| Reply::after(Duration::from_secs(3600))).await;
    let receiver = Receiver::ok().await;
    let endpoint = pb::Endpoint {
        url: receiver.url("/hook"),
        alerts: Some(pb::Alerts { slack_webhook_url: dead.url("/dead"), ..channels.alerts() }),
        ..Default::default()
    };
    let (endpoint, _) = world.create(endpoint, &["*"]).await;
    toggle(&world, &endpoint.id).await;
    dead.wait_for_count(1).await;
    for _ in 0..50 {
        let event = world.publish_to(&endpoint, b"{}").await.event_id;
        world.settled_deliveries_of(&event).await;
    }
    assert_eq!(receiver.seen().len(), 50);
    // The others are told while that one is still waited for, or tried again.
    channels.mail.wait_for_count(2).await;
    channels.teams.wait_for_count(2).await;
    channels.operational.wait_for_count(3).await;
    let mut session = world.server.sql().await;
    let waiting = session.numbers("SELECT COUNT(*) FROM alerts WHERE status = 1 AND channel = 2").await;
    assert_eq!(waiting, [2]);
}

async fn what_fails_is_tried_again_and_given_up_once(database: Database) {
    let arguments =
        ["--allow-http", "--allow-net", "127.0.0.0/8", "--alert-attempts", "2", "--alert-backoff", "1"];
    let mut world =
        World::on(Server::start_with(database, &arguments).await, pb::PausedPolicy::Discard).await;
    // Slack fails once, Teams always, by an answer and by none.
    let slack = Receiver::scripted(|_, before| Reply::status(if before == 0 { 500 } else { 200 })).await;
    let teams = Receiver::scripted(|_, _| Reply { hang_up: true, ..Reply::status(200) }).await;
    let alerts = pb::Alerts {
        slack_webhook_url: slack.url("/slack"),
        teams_webhook_url: teams.url("/teams"),
        on: vec!["endpoint.created".to_owned()],
        ..Default::default()
    };
    let url = "https://example.com/hook".to_owned();
    world.create(pb::Endpoint { url, alerts: Some(alerts), ..Default::default() }, &["*"]).await;
    assert_eq!(all_sent(&world).await, 2);
    let told: Vec<Told> = slack.seen().iter().map(of_slack).collect();
    assert_eq!(counts(&told), BTreeMap::from([("endpoint.created", 2)]));
    assert_eq!(told[0], told[1], "tried again under the same id");
    assert_eq!(teams.seen().len(), 2);
    let mut session = world.server.sql().await;
    // 2 is sent, 3 is failed; where they went is forgotten.
    let status = "SELECT CAST(status AS BIGINT) FROM alerts ORDER BY channel";
    assert_eq!(session.numbers(status).await, [2, 3]);
    let kept = "SELECT COUNT(*) FROM alerts WHERE target_sealed IS NOT NULL OR attempts <> 2";
    assert_eq!(session.numbers(kept).await, [0]);
    drop(session);
    let (_, metrics) = crate::support::web::get(world.server.admin(), "/metrics").await;
    for line in [
        r#"hawser_alerts_total{channel="slack",result="sent"} 1"#,
        r#"hawser_alerts_total{channel="slack",result="retry"} 1"#,
        r#"hawser_alerts_total{channel="teams",result="failed"} 1"#,
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    world.server.terminate().await;
    assert_eq!(world.server.log().matches("alerts could not be sent, and are given up").count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_goes_encrypted_and_with_a_login() {
    let authority = Authority::new("mail");
    let folder = tempfile::tempdir().expect("a folder");
    let roots = folder.path().join("roots.pem");
    std::fs::write(&roots, authority.pem()).expect("written");
    for (mode, tls) in [
        ("starttls", Encryption::Starttls(authority.server(None))),
        ("tls", Encryption::Tls(authority.server(None))),
    ] {
        let refused = vec!["nobody@example.com".to_owned()];
        let mail = MailServer::with(Manner { tls, refused, ..Manner::default() }).await;
        let mut arguments = mail.arguments(mode);
        arguments.extend(
            [
                "--smtp-user",
                "hawser",
                "--smtp-password",
                "s:ecret",
                "--ca-file",
                roots.to_str().expect("text"),
            ]
            .map(str::to_owned),
        );
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let server = Server::start_with(Database::sqlite(), &arguments).await;
        let world = World::on(server, pb::PausedPolicy::Discard).await;
        // The one that is refused does not keep the others from theirs.
        let emails = ["a@example.com", "nobody@example.com", "b@example.com"].map(str::to_owned).into();
        let alerts = pb::Alerts { emails, on: vec!["*".to_owned()], ..Default::default() };
        let url = "https://example.com/hook".to_owned();
        world.create(pb::Endpoint { url, alerts: Some(alerts), ..Default::default() }, &["*"]).await;
        let mails = mail.wait_for_count(2).await;
        let mut to: Vec<String> = mails.iter().flat_map(|mail| mail.to.clone()).collect();
        to.sort();
        assert_eq!(to, ["a@example.com", "b@example.com"]);
        for mail in mails {
            assert_eq!((mail.login.as_deref(), mail.encrypted), (Some("hawser:s:ecret"), true));
            assert_eq!(mail.header("to"), mail.to[0]);
            assert_eq!(
                (mail.hello.as_str(), mail.header("auto-submitted").as_str()),
                ("example.com", "auto-generated")
            );
        }
    }
}

/// A server whose certificate nobody vouches for gets no mail, and no password.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mail_server_that_is_not_trusted_gets_nothing() {
    let authority = Authority::new("mail");
    let tls = Encryption::Starttls(authority.server(None));
    let mail = MailServer::with(Manner { tls, ..Manner::default() }).await;
    let mut arguments = mail.arguments("starttls");
    arguments.extend(["--alert-attempts", "1"].map(str::to_owned));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let server = Server::start_with(Database::sqlite(), &arguments).await;
    let world = World::on(server, pb::PausedPolicy::Discard).await;
    let alerts = pb::Alerts {
        emails: vec!["a@example.com".to_owned()],
        on: vec!["*".to_owned()],
        ..Default::default()
    };
    let url = "https://example.com/hook".to_owned();
    world.create(pb::Endpoint { url, alerts: Some(alerts), ..Default::default() }, &["*"]).await;
    assert_eq!(all_sent(&world).await, 1);
    assert!(mail.mails().is_empty());
    let mut session = world.server.sql().await;
    assert_eq!(session.numbers("SELECT COUNT(*) FROM alerts WHERE status = 3").await, [1]);
}

/// Whichever of the nodes does it: each alert is sent once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_share_the_work() {
    let channels = Channels::open(Duration::ZERO).await;
    let (world, _) = channels.world(Database::postgres().await, &[]).await;
    let nodes = [world.server.join().await, world.server.join().await];
    let endpoint = pb::Endpoint {
        url: "https://example.com/hook".to_owned(),
        alerts: Some(channels.alerts()),
        ..Default::default()
    };
    let (endpoint, _) = world.create(endpoint, &["*"]).await;
    for number in 0..10 {
        let node = &nodes[number % 2];
        let client = Client::connect(node.address(), Key::new(world.key.clone())).await.expect("connected");
        let pause = pb::PauseEndpointRequest { endpoint_id: endpoint.id.clone(), ..Default::default() };
        client.endpoints().pause_endpoint(pause).await.expect("paused");
        let resume = pb::ResumeEndpointRequest { endpoint_id: endpoint.id.clone(), ..Default::default() };
        client.endpoints().resume_endpoint(resume).await.expect("resumed");
    }
    assert_eq!(all_sent(&world).await, 81);
    let told = channels.told();
    assert!(told.iter().all(|told| counts(told)["endpoint.paused"] == 10));
    assert_eq!(told.map(|told| told.len()), [20, 20, 20, 21]);
}
