//! Alerts that wait for a place hold up no others, and an alert that was sent is not sent again when the server stops in
//! good order, or when the database does not take what became of it.

use std::collections::HashSet;
use std::time::Duration;

use hawser_client::pb;

use crate::support::failing::world_with;
use crate::support::told::{Told, all_sent, of_slack, set_webhook, toggle, told_by_slack};
use crate::support::{Database, Receiver, Reply, on_both};

on_both!(
    a_dead_place_with_a_backlog_holds_up_no_other_of_its_channel,
    places_take_turns,
    a_slow_place_holds_up_no_other,
    a_stop_waits_for_what_is_being_sent,
    what_the_database_does_not_record_is_given_back,
);

async fn a_dead_place_with_a_backlog_holds_up_no_other_of_its_channel(database: Database) {
    let world = world_with(database, pb::PausedPolicy::Discard, &[]).await;
    // It takes requests and never answers.
    let dead = Receiver::scripted(|_, _| Reply::after(Duration::from_secs(3600))).await;
    let slack = Receiver::scripted(|_, _| Reply::status(200)).await;
    let endpoint = told_by_slack(&world, dead.url("/dead")).await;
    for _ in 0..10 {
        toggle(&world, &endpoint.id).await;
    }
    dead.wait_for_count(1).await;
    let other = told_by_slack(&world, slack.url("/services")).await;
    toggle(&world, &other.id).await;
    slack.wait_for_count(3).await;
    let mut session = world.server.sql().await;
    session.until_numbers("SELECT COUNT(*) FROM alerts WHERE status = 1", &[21]).await;
    let held =
        session.numbers("SELECT COUNT(*) FROM alerts WHERE claimed_by IS NOT NULL AND status = 1").await;
    assert!(held[0] <= 2, "{held:?} are held for one place");
}

/// Of those that count as slow, too: two that are dead do not have all slots until their backlogs are tried.
async fn places_take_turns(database: Database) {
    let world = world_with(database, pb::PausedPolicy::Discard, &[]).await;
    let dead = Receiver::scripted(|_, _| Reply::after(Duration::from_secs(3600))).await;
    let late = Receiver::scripted(|_, before| {
        let delay = Duration::from_millis(if before == 0 { 1500 } else { 0 });
        Reply { status: 200, ..Reply::after(delay) }
    })
    .await;
    let other = told_by_slack(&world, late.url("/late")).await;
    assert_eq!(all_sent(&world).await, 1);
    for path in ["/a", "/b"] {
        let endpoint = told_by_slack(&world, dead.url(path)).await;
        for _ in 0..5 {
            toggle(&world, &endpoint.id).await;
        }
    }
    dead.wait_for_count(4).await;
    toggle(&world, &other.id).await;
    late.wait_for_count(3).await;
    let tried = dead.seen().len();
    assert!(tried < 22, "the others were all tried before");
}

async fn a_slow_place_holds_up_no_other(database: Database) {
    let world = world_with(database, pb::PausedPolicy::Discard, &[]).await;
    // Well above a turn, and well below the time of an attempt.
    let slow = Receiver::scripted(|_, _| Reply::after(Duration::from_secs(6))).await;
    let operational = Receiver::ok().await;
    set_webhook(&world, &operational.url("/operational"), &[]).await;
    let mut session = world.server.sql().await;
    told_by_slack(&world, slow.url("/slow")).await;
    slow.wait_for_count(1).await;
    let url = "https://example.com/hook".to_owned();
    world.create(pb::Endpoint { url, ..Default::default() }, &["*"]).await;
    // Of both creations; the second can only come after the slow one lost its turn, or before it had one.
    operational.wait_for_count(2).await;
    // 1 is waiting: its answer has not come.
    assert_eq!(session.numbers("SELECT CAST(status AS BIGINT) FROM alerts WHERE channel = 2").await, [1]);
    assert_eq!(all_sent(&world).await, 3);
    assert_eq!(slow.seen().len(), 1);
}

async fn a_stop_waits_for_what_is_being_sent(database: Database) {
    let mut world = world_with(database, pb::PausedPolicy::Discard, &[]).await;
    // The first takes longer than the writing of what is left at the end may.
    let slack = Receiver::scripted(|_, before| {
        let delay = Duration::from_secs(if before == 0 { 7 } else { 0 });
        Reply { status: 200, ..Reply::after(delay) }
    })
    .await;
    let endpoint = told_by_slack(&world, slack.url("/services")).await;
    for _ in 0..3 {
        toggle(&world, &endpoint.id).await;
    }
    slack.wait_for_count(1).await;
    assert!(world.server.terminate().await.success(), "{}", world.server.log());
    world.restart().await;
    assert_eq!(all_sent(&world).await, 7);
    let told: Vec<Told> = slack.seen().iter().map(of_slack).collect();
    let ids: HashSet<&str> = told.iter().map(|(_, id)| id.as_str()).collect();
    assert_eq!((told.len(), ids.len()), (7, 7), "{told:?}");
}

async fn what_the_database_does_not_record_is_given_back(database: Database) {
    let mut world = world_with(database, pb::PausedPolicy::Discard, &[]).await;
    let mut session = world.server.sql().await;
    // 2 is sent.
    session.refuse_change("alerts", "NEW.status = 2", "no_end").await;
    let slack = Receiver::scripted(|_, _| Reply::status(200)).await;
    told_by_slack(&world, slack.url("/services")).await;
    let given_back = "SELECT COUNT(*) FROM alerts WHERE status = 1 AND claimed_by IS NULL AND attempts = 1";
    session.until_numbers(given_back, &[1]).await;
    session.allow("alerts", "no_end").await;
    // Its time has come.
    session.run("UPDATE alerts SET due_at = 0").await;
    assert_eq!(all_sent(&world).await, 1);
    let told: Vec<Told> = slack.seen().iter().map(of_slack).collect();
    assert_eq!((told.len(), &told[0]), (2, &told[1]), "under the same id");
    world.server.terminate().await;
    assert!(world.server.log().contains("the database refused to record how an alert went"));
}
