//! How bulk calls end before their time, and that the same rows sent again go on.

use std::collections::BTreeSet;

use hawser_client::pb::bulk_create_endpoints_request::Message as Body;
use hawser_client::pb::{self, BulkOutcome, BulkPing};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::support::bulk::{bulk, row};
use crate::support::feed::eventually;
use crate::support::{Database, PATIENCE, Receiver, Reply, Server, World, on_both};

on_both!(
    a_stopping_server_answers_what_it_wrote,
    a_hanging_ping_holds_up_no_stop,
    an_aged_connection_ends_the_call,
);

const LOOPBACK: [&str; 3] = ["--allow-http", "--allow-net", "127.0.0.0/8"];

fn endpoint(number: i64) -> pb::BulkRow {
    row(number, &format!("https://example.com/{number}"), "acme")
}

type Answers = Streaming<pb::BulkCreateEndpointsResponse>;

/// The client's side of a call, and its answers.
async fn open(
    world: &World,
    options: pb::BulkOptions,
) -> (mpsc::Sender<pb::BulkCreateEndpointsRequest>, Answers) {
    // A call that meets the very end of a connection is cut with it.
    eventually("a call", || async {
        let (sender, receiver) = mpsc::channel(16);
        sender.send(message(Body::Options(options.clone()))).await.expect("room");
        let call = world.client.endpoints().bulk_create_endpoints(ReceiverStream::new(receiver)).await?;
        Ok::<_, Status>((sender, call.into_inner()))
    })
    .await
}

fn message(body: Body) -> pb::BulkCreateEndpointsRequest {
    pb::BulkCreateEndpointsRequest { message: Some(body) }
}

async fn next(answers: &mut Answers) -> Result<Option<pb::BulkCreateEndpointsResponse>, Status> {
    tokio::time::timeout(PATIENCE, answers.message()).await.expect("in time")
}

async fn urls(world: &World) -> Vec<String> {
    let mut request = pb::ListEndpointsRequest { page_size: 1000, ..Default::default() };
    let mut urls = Vec::new();
    loop {
        let list = || async { world.client.endpoints().list_endpoints(request.clone()).await };
        let page = eventually("a list", list).await.into_inner();
        urls.extend(page.endpoints.into_iter().map(|one| one.url));
        if page.next_page_token.is_empty() {
            return urls;
        }
        request.page_token = page.next_page_token;
    }
}

async fn a_stopping_server_answers_what_it_wrote(database: Database) {
    let mut world = World::new(database).await;
    let (sender, mut answers) = open(&world, pb::BulkOptions::default()).await;
    // The call stays open after them.
    const SENT: i64 = 3000;
    let sending = tokio::spawn(async move {
        for number in 0..SENT {
            if sender.send(message(Body::Row(endpoint(number)))).await.is_err() {
                return;
            }
        }
        sender.closed().await;
    });
    let mut answered = BTreeSet::new();
    for _ in 0..200 {
        answered.insert(next(&mut answers).await.expect("goes on").expect("an answer").row_number);
    }
    let reading = async {
        loop {
            match next(&mut answers).await {
                Ok(Some(answer)) => {
                    assert_eq!(answer.outcome(), BulkOutcome::Created);
                    answered.insert(answer.row_number);
                }
                Ok(None) => panic!("the call ended as if the client had ended it"),
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
    let there: BTreeSet<String> = urls(&world).await.into_iter().collect();
    assert!(answered.iter().all(|number| there.contains(&format!("https://example.com/{number}"))));

    let again = bulk(&world.client, pb::BulkOptions::default(), (0..SENT).map(endpoint).collect()).await;
    for answer in again.expect("done") {
        let was_there = there.contains(&format!("https://example.com/{}", answer.row_number));
        let expected = if was_there { BulkOutcome::Unchanged } else { BulkOutcome::Created };
        assert_eq!(answer.outcome(), expected, "row {}", answer.row_number);
    }
    assert_eq!(urls(&world).await.len(), usize::try_from(SENT).expect("few"));
}

async fn a_hanging_ping_holds_up_no_stop(database: Database) {
    let server = Server::start_pinging(database, &LOOPBACK).await;
    let mut world = World::on(server, pb::PausedPolicy::Discard).await;
    let silent = Receiver::scripted(|_, _| Reply::after(PATIENCE)).await;
    let options = pb::BulkOptions { ping: BulkPing::Report.into(), ..Default::default() };
    let (sender, mut answers) = open(&world, options).await;
    sender.send(message(Body::Row(row(1, &silent.url("/"), "acme")))).await.expect("sent");
    silent.wait_for_count(1).await;
    let (ended, answer) = tokio::join!(world.server.terminate(), next(&mut answers));
    assert!(ended.success());
    assert_eq!(answer.expect_err("no answer").code(), Code::Unavailable);
    world.restart().await;
    assert!(urls(&world).await.is_empty());
}

async fn an_aged_connection_ends_the_call(database: Database) {
    let arguments = [&LOOPBACK[..], &["--connection-age", "1"]].concat();
    let world = World::on(Server::start_with(database, &arguments).await, pb::PausedPolicy::Discard).await;
    let (sender, mut answers) = open(&world, pb::BulkOptions::default()).await;
    let mut answered = 0;
    let end = loop {
        if sender.send(message(Body::Row(endpoint(answered)))).await.is_err() {
            break next(&mut answers).await.expect_err("it ended");
        }
        match next(&mut answers).await {
            Ok(answer) => answered = answer.expect("an answer").row_number + 1,
            Err(status) => break status,
        }
    };
    assert_eq!(end.code(), Code::Unavailable, "{end}");
    let there = urls(&world).await.len();
    assert!(there == usize::try_from(answered).expect("few"), "{there} were made, {answered} answered");
}
