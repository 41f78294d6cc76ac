//! A caller's list that takes too long is broken off, and meanwhile keeps the server from nothing.

use hawser_client::pb;
use tokio::task::JoinSet;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::support::{Database, Receiver, World, on_both, web};

on_both!(lists_that_do_not_end_keep_nobody_from_publishing);

/// More than there are connections for callers' reads.
const LISTS: usize = 12;
const READ_CONNECTIONS: usize = 8;

async fn lists_that_do_not_end_keep_nobody_from_publishing(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::ok().await;
    let (endpoint, _) = world.endpoint(&receiver.url("/hook"), "").await;
    world.server.sql().await.make_endless("audit_events").await;
    let mut lists = JoinSet::new();
    for _ in 0..LISTS {
        let operator = world.operator.clone();
        lists.spawn(async move {
            let request = pb::ListAuditEventsRequest::default();
            operator.audit().list_audit_events(request).await.expect_err("it does not end")
        });
    }
    // The key is read again every second, and the database is asked for a sign of life.
    let publishing = async {
        loop {
            let event = world.publish_to(&endpoint, b"{}").await.event_id;
            receiver.wait_for("the event", |seen| seen.iter().any(|one| one.event() == event)).await;
            assert_eq!(web::get(world.server.admin(), "/healthz").await.0, 200);
        }
    };
    let ended: Vec<Status> = tokio::select! {
        ended = lists.join_all() => ended,
        () = publishing => unreachable!("it goes on"),
    };
    let (broken_off, waited): (Vec<_>, Vec<_>) =
        ended.iter().partition(|status| status.code() == Code::DeadlineExceeded);
    assert!(broken_off.len() >= READ_CONNECTIONS, "{ended:?}");
    for status in broken_off {
        let details = status.get_error_details();
        let info = details.error_info().expect("a reason");
        assert_eq!(info.reason, "LIST_TOO_LONG");
        assert_eq!(info.metadata["list"], "audit events");
        assert_eq!(info.metadata["narrow_by"], "start_time or end_time");
    }
    // No connection was free for them in time.
    assert!(waited.iter().all(|status| status.code() == Code::Unavailable), "{ended:?}");
}
