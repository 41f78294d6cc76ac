//! StreamPublishEvents: an acknowledgement each, in order; what was acknowledged is delivered.

use std::collections::HashSet;

use hawser_client::pb::publish_event_request::Target;
use hawser_client::pb::stream_publish_events_response::Result as Told;
use hawser_client::{Client, error_of, pb, reason};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::support::failing::world_with;
use crate::support::world::publish;
use crate::support::{Database, PATIENCE, Receiver, World, on_both};

on_both!(
    each_event_is_acknowledged_in_order,
    a_refused_event_does_not_end_the_stream,
    unacknowledged_events_are_bounded,
    a_stopping_server_acknowledges_what_it_read,
    an_aged_connection_acknowledges_what_was_read,
    open_streams_are_bounded,
);

fn event(number: i64, owner: &str) -> pb::StreamPublishEventsRequest {
    let event = pb::PublishEventRequest {
        event_type: "invoice.paid".to_owned(),
        target: Some(Target::OwnerId(owner.to_owned())),
        payload: number.to_string().into(),
        ..Default::default()
    };
    pb::StreamPublishEventsRequest { request_number: number, event: Some(event) }
}

/// The client's side of a stream, and the acknowledgements.
async fn open(
    client: &Client,
) -> (mpsc::Sender<pb::StreamPublishEventsRequest>, Streaming<pb::StreamPublishEventsResponse>) {
    let (sender, receiver) = mpsc::channel(16);
    let stream = client.events().stream_publish_events(ReceiverStream::new(receiver)).await;
    (sender, stream.expect("a stream").into_inner())
}

async fn next(
    acks: &mut Streaming<pb::StreamPublishEventsResponse>,
) -> Result<Option<(i64, Result<pb::PublishEventResponse, Status>)>, Status> {
    let ack = tokio::time::timeout(PATIENCE, acks.message()).await.expect("in time")?;
    Ok(ack.map(|ack| match ack.result.expect("a result") {
        Told::Receipt(receipt) => (ack.request_number, Ok(receipt)),
        Told::Error(error) => (ack.request_number, Err(error_of(&error))),
    }))
}

async fn each_event_is_acknowledged_in_order(database: Database) {
    let world = World::new(database).await;
    let receiver = Receiver::ok().await;
    world.endpoint(&receiver.url("/hook"), "acme").await;
    let (sender, mut acks) = open(&world.client).await;
    // One is acknowledged while the stream goes on.
    sender.send(event(-1, "acme")).await.expect("sent");
    let (number, result) = next(&mut acks).await.expect("goes on").expect("an acknowledgement");
    assert_eq!((number, result.expect("accepted").delivery_count), (-1, 1));
    let sending = tokio::spawn(async move {
        for number in 0..2000 {
            sender.send(event(number, "acme")).await.expect("sent");
        }
    });
    let mut ids = HashSet::new();
    for expected in 0..2000 {
        let (number, result) = next(&mut acks).await.expect("goes on").expect("an acknowledgement");
        assert_eq!(number, expected);
        ids.insert(result.expect("accepted").event_id);
    }
    assert!(next(&mut acks).await.expect("a good end").is_none(), "it ends after the last acknowledgement");
    sending.await.expect("sent");
    assert_eq!(ids.len(), 2000);
    let seen = receiver.wait_for_count(2001).await;
    let arrived: HashSet<_> = seen.iter().map(|one| one.event()).collect();
    assert!(seen.len() == 2001 && ids.is_subset(&arrived));
}

async fn a_refused_event_does_not_end_the_stream(database: Database) {
    let world = World::new(database).await;
    let (sender, mut acks) = open(&world.client).await;
    let mut keyed = event(3, "acme");
    keyed.event.as_mut().expect("an event").idempotency_key = "key".to_owned();
    let mut other = keyed.clone();
    other.request_number = 4;
    other.event.as_mut().expect("an event").payload = "other".into();
    let requests = [
        event(1, ""),
        pb::StreamPublishEventsRequest { request_number: 2, event: None },
        keyed.clone(),
        other,
        pb::StreamPublishEventsRequest { request_number: 5, ..keyed },
        event(6, "acme"),
    ];
    for request in requests {
        sender.send(request).await.expect("sent");
    }
    drop(sender);
    let mut got = Vec::new();
    while let Some((number, result)) = next(&mut acks).await.expect("a good end") {
        let told = match result {
            Ok(receipt) => receipt.duplicate.to_string(),
            Err(status) => reason(&status).expect("a reason"),
        };
        got.push((number, told));
    }
    let got: Vec<_> = got.iter().map(|(number, told)| (*number, told.as_str())).collect();
    let expected = [
        (1, "INVALID_FIELD"),
        (2, "INVALID_FIELD"),
        (3, "false"),
        (4, "IDEMPOTENCY_KEY_REUSED"),
        (5, "true"),
        (6, "false"),
    ];
    assert_eq!(got, expected);
}

/// While the database takes nothing, nothing is acknowledged, and so the server must stop reading.
async fn unacknowledged_events_are_bounded(database: Database) {
    let world = World::new(database).await;
    let (sender, mut acks) = open(&world.client).await;
    // Large events, so that the connection's own buffers hold few of them.
    let large = |number| {
        let mut request = event(number, "nobody");
        request.event.as_mut().expect("an event").payload = vec![b'x'; 256 * 1024].into();
        request
    };
    let held = world.server.hold_writes().await;
    let mut sent = 0;
    // Until no more goes out; 8 MiB are 32 of these events.
    while sent < 400 {
        match tokio::time::timeout(std::time::Duration::from_secs(1), sender.send(large(sent))).await {
            Ok(told) => told.expect("the stream goes on"),
            Err(_) => break,
        }
        sent += 1;
    }
    println!("{sent} events went out before any was acknowledged");
    assert!(sent < 400, "the server reads on without bound");
    held.release().await;
    drop(sender);
    let mut acknowledged = 0;
    while let Some((number, result)) = next(&mut acks).await.expect("a good end") {
        assert_eq!(number, acknowledged);
        result.expect("accepted");
        acknowledged += 1;
    }
    assert_eq!(acknowledged, sent);
}

async fn a_stopping_server_acknowledges_what_it_read(database: Database) {
    let mut world = World::new(database).await;
    let receiver = Receiver::ok().await;
    world.endpoint(&receiver.url("/hook"), "acme").await;
    let (sender, mut acks) = open(&world.client).await;
    let sending = tokio::spawn(async move {
        for number in 0.. {
            if sender.send(event(number, "acme")).await.is_err() {
                return;
            }
        }
    });
    let mut acknowledged = HashSet::new();
    for _ in 0..200 {
        let (_, result) = next(&mut acks).await.expect("goes on").expect("an acknowledgement");
        acknowledged.insert(result.expect("accepted").event_id);
    }
    let reading = async {
        loop {
            match next(&mut acks).await {
                Ok(Some((_, result))) => {
                    acknowledged.insert(result.expect("accepted").event_id);
                }
                Ok(None) => panic!("the stream ended as if the client had ended it"),
                Err(status) => return status,
            }
        }
    };
    let (status, ended) = tokio::join!(reading, world.server.terminate());
    assert!(ended.success());
    // A client that goes on sending may see the connection break before it has read the reason.
    assert!(matches!(status.code(), Code::Unavailable | Code::Unknown), "{status}");
    sending.await.expect("ended");
    world.restart().await;
    receiver
        .wait_for("every acknowledged event", |seen| {
            let arrived: HashSet<_> = seen.iter().map(|one| one.event()).collect();
            acknowledged.is_subset(&arrived)
        })
        .await;
}

/// An aged connection asks the stream to go: what was read until then is acknowledged first, so that nothing is stored
/// that its publisher does not know of.
async fn an_aged_connection_acknowledges_what_was_read(database: Database) {
    let world = world_with(database, pb::PausedPolicy::Discard, &["--connection-age", "1"]).await;
    let mut stored = world.server.sql().await;
    let mut known = 0;
    loop {
        // Each time by a connection of its own: one that is about to close may take a call and never send it.
        let client = world.client_of(&world.server).await;
        let (sender, mut acks) = open(&client).await;
        let sending = tokio::spawn(async move {
            for number in 0.. {
                if sender.send(event(number, "acme")).await.is_err() {
                    return;
                }
            }
        });
        let status = loop {
            match next(&mut acks).await {
                Ok(Some((_, result))) => {
                    result.expect("accepted");
                    known += 1;
                }
                Ok(None) => panic!("the stream ended as if the client had ended it"),
                Err(status) => break status,
            }
        };
        sending.await.expect("ended");
        // What is published now is written after all that was read before it.
        let client = world.client_of(&world.server).await;
        publish(&client, Target::OwnerId("acme".to_owned()), b"{}", "").await.expect("published");
        known += 1;
        let count = stored.count("events").await;
        // A client that goes on sending may see the connection break before it has read the last acknowledgements.
        if status.code() == Code::Unavailable {
            assert!(known > 1, "something was acknowledged");
            assert_eq!(count, known, "each event that was read is acknowledged");
            return;
        }
        known = count;
    }
}

/// Each may hold a message that is not complete, so there are only so many; one that ends makes room.
async fn open_streams_are_bounded(database: Database) {
    let world = World::new(database).await;
    let mut streams = Vec::new();
    while streams.len() < 1024 {
        let client = world.client_of(&world.server).await;
        for _ in 0..200.min(1024 - streams.len()) {
            streams.push(open(&client).await);
        }
    }
    let client = world.client_of(&world.server).await;
    let (_sender, receiver) = mpsc::channel(1);
    let refused = client.events().stream_publish_events(ReceiverStream::new(receiver)).await;
    let refused = refused.expect_err("one too many");
    assert_eq!((refused.code(), reason(&refused).as_deref()), (Code::ResourceExhausted, Some("OVERLOADED")));
    let (sender, mut acks) = streams.pop().expect("a stream");
    drop(sender);
    assert!(next(&mut acks).await.expect("a good end").is_none());
    open(&client).await;
}
