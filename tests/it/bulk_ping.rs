//! Pings of bulk calls: what they decide, when there are none, and how many there are at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hawser_client::pb::{self, BulkOutcome, BulkPing};
use hawser_client::{error_of, reason};
use tokio::sync::Semaphore;

use crate::support::bulk::{bulk, outcomes, row};
use crate::support::import::{file, import};
use crate::support::{Database, Receiver, Reply, Server, World, on_both};

on_both!(
    pings_are_reported_or_required,
    unchanged_rows_are_not_pinged,
    pings_have_their_own_bound,
    a_server_that_skips_pings_says_so,
);

async fn world(database: Database) -> World {
    let arguments = ["--allow-http", "--allow-net", "127.0.0.0/8"];
    World::on(Server::start_pinging(database, &arguments).await, pb::PausedPolicy::Discard).await
}

fn with(ping: BulkPing, dry_run: bool) -> pb::BulkOptions {
    pb::BulkOptions { ping: ping.into(), dry_run, ..Default::default() }
}

async fn count(world: &World) -> usize {
    let request = pb::ListEndpointsRequest { page_size: 1000, ..Default::default() };
    world.client.endpoints().list_endpoints(request).await.expect("listed").into_inner().endpoints.len()
}

async fn pings_are_reported_or_required(database: Database) {
    let world = world(database).await;
    let good = Receiver::ok().await;
    let bad = Receiver::scripted(|_, _| Reply::status(404)).await;
    let rows = || vec![row(1, &good.url("/good"), "acme"), row(2, &bad.url("/bad"), "acme")];
    use BulkOutcome::{Created, Refused, Unchanged, WouldCreate};

    let answers = bulk(&world.client, with(BulkPing::Require, true), rows()).await.expect("done");
    assert_eq!(outcomes(&answers), [WouldCreate, Refused], "a dry run pings, and says what would be refused");
    assert_eq!(count(&world).await, 0);

    let answers = bulk(&world.client, with(BulkPing::Require, false), rows()).await.expect("done");
    assert_eq!(outcomes(&answers), [Created, Refused]);
    let error = error_of(answers[1].error.as_ref().expect("an error"));
    assert_eq!(reason(&error).as_deref(), Some("PING_FAILED"));
    assert!(error.message().contains("POST answered 404"), "{error}");
    let pings: Vec<_> = answers.iter().map(|answer| answer.ping.clone().expect("a ping")).collect();
    assert!(pings[0].accepted && !pings[1].accepted);
    assert_eq!(pings[1].tries.len(), 3);

    let answers = bulk(&world.client, with(BulkPing::Report, false), rows()).await.expect("done");
    assert_eq!(outcomes(&answers), [Unchanged, Created]);
    assert!(!answers[1].ping.as_ref().expect("a ping").accepted);
    assert_eq!(count(&world).await, 2);
}

async fn unchanged_rows_are_not_pinged(database: Database) {
    let world = world(database).await;
    let receiver = Receiver::ok().await;
    let named = |name: &str, path: &str| {
        let mut row = row(1, &receiver.url(path), "acme");
        let endpoint = row.endpoint.as_mut().expect("an endpoint");
        (endpoint.uid, endpoint.name) = ("one".to_owned(), name.to_owned());
        row
    };
    let mut pings = Vec::new();
    for (ping, row) in [
        (BulkPing::Off, named("a", "/first")),
        (BulkPing::Require, named("a", "/first")),
        // What a ping would tell is the same.
        (BulkPing::Require, named("b", "/first")),
        (BulkPing::Require, named("b", "/second")),
    ] {
        let answers = bulk(&world.client, with(ping, false), vec![row]).await.expect("done");
        assert_ne!(answers[0].outcome(), BulkOutcome::Refused);
        pings.push(receiver.seen().len());
    }
    assert_eq!(pings, [0, 0, 0, 1]);
}

/// A receiver that holds what comes until so many are there at once.
async fn holding(until: usize) -> (String, Arc<AtomicUsize>) {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let gate = Arc::new(Semaphore::new(0));
    let seen = most.clone();
    let hold = move || {
        let (now, most, gate) = (now.clone(), seen.clone(), gate.clone());
        async move {
            let here = now.fetch_add(1, Ordering::SeqCst) + 1;
            most.fetch_max(here, Ordering::SeqCst);
            if here == until {
                gate.add_permits(Semaphore::MAX_PERMITS / 2);
            }
            let _open = gate.acquire().await.expect("never closed");
            now.fetch_sub(1, Ordering::SeqCst);
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    tokio::spawn(async move {
        axum::serve(listener, axum::Router::new().fallback(hold)).await.expect("served");
    });
    (url, most)
}

/// 64 at once over all calls, and not 10 a minute as for single ones.
async fn pings_have_their_own_bound(database: Database) {
    let world = world(database).await;
    let (url, most) = holding(64).await;
    let rows = |owner: &str| -> Vec<pb::BulkRow> {
        (0..100).map(|number| row(number, &format!("{url}/{number}"), owner)).collect()
    };
    let options = || with(BulkPing::Require, false);
    let (one, other) = tokio::join!(
        bulk(&world.client, options(), rows("one")),
        bulk(&world.client, options(), rows("other"))
    );
    for answers in [one, other] {
        assert_eq!(outcomes(&answers.expect("done")), vec![BulkOutcome::Created; 100]);
    }
    assert_eq!(most.load(Ordering::SeqCst), 64);
}

async fn a_server_that_skips_pings_says_so(database: Database) {
    let world = World::new(database).await;
    let bad = Receiver::scripted(|_, _| Reply::status(404)).await;
    let rows = vec![row(1, &bad.url("/one"), "acme")];
    let answers = bulk(&world.client, with(BulkPing::Require, false), rows).await.expect("done");
    assert_eq!((outcomes(&answers), &answers[0].ping), (vec![BulkOutcome::Created], &None));

    let lines: String =
        (2..5).map(|number| format!("{{\"url\": \"{}\"}}\n", bad.url(&format!("/{number}")))).collect();
    let path = file(&world, "rows.jsonl", &lines);
    for (ping, times) in [("off", 0), ("require", 1), ("report", 1)] {
        let done = import(&world, &[path.to_str().expect("text"), "--dry-run", "--ping", ping]).await;
        assert_eq!(done.code, Some(0), "{}", done.said);
        assert!(done.said.contains("3 rows: 3 would be created"), "{}", done.said);
        assert_eq!(done.said.matches("the server makes no pings").count(), times, "{}", done.said);
    }
    assert!(bad.seen().is_empty());
}
