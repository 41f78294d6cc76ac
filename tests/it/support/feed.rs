//! Following a Watch stream as a client without comforts would: by tokens, on any node.

use std::future::Future;
use std::time::Duration;

use hawser_client::pb::watch_request::Start;
use hawser_client::pb::watch_response::Change;
use hawser_client::{Client, Key, pb};
use tonic::{Status, Streaming};

use super::PATIENCE;

/// A message without its token, which differs between filters, or none for bookmarks.
pub fn told(message: &pb::WatchResponse) -> Option<String> {
    match message.change.as_ref()? {
        Change::Bookmark(_) => None,
        Change::DeliveryChange(change) => {
            let delivery = change.delivery.as_ref()?;
            let (status, count) = (delivery.status(), delivery.attempt_count);
            Some(format!("{} {:?} {status:?} {count}", delivery.id, change.r#type()))
        }
        Change::Attempt(attempt) => {
            Some(format!("{} attempt {} {}", attempt.delivery_id, attempt.number, attempt.id))
        }
        Change::EndpointChange(change) => {
            let endpoint = change.endpoint.as_ref()?;
            Some(format!("{} {:?} {} {}", endpoint.id, change.r#type(), endpoint.revision, endpoint.name))
        }
    }
}

pub fn from(start: Start) -> pb::WatchRequest {
    pb::WatchRequest { start: Some(start), ..Default::default() }
}

/// One stream on a connection of its own, which does not resume by itself.
pub async fn open(
    address: &str,
    key: &str,
    request: pb::WatchRequest,
) -> Result<Streaming<pb::WatchResponse>, Status> {
    let client = Client::connect(address, Key::new(key)).await;
    let client = client.map_err(|error| Status::unavailable(error.to_string()))?;
    Ok(client.watches().watch(request).await?.into_inner())
}

/// The next message, which must come.
pub async fn message(stream: &mut Streaming<pb::WatchResponse>) -> pb::WatchResponse {
    let message = tokio::time::timeout(PATIENCE, stream.message()).await.expect("a message in time");
    message.expect("the stream goes on").expect("it does not end")
}

/// The next message that is no bookmark.
pub async fn change(stream: &mut Streaming<pb::WatchResponse>) -> pb::WatchResponse {
    loop {
        let message = message(stream).await;
        if told(&message).is_some() {
            return message;
        }
    }
}

/// Reads to the stream's end: what it told, the last token, and why it ended.
pub async fn to_the_end(stream: &mut Streaming<pb::WatchResponse>) -> (Vec<String>, String, Status) {
    let (mut seen, mut token) = (Vec::new(), String::new());
    let reading = async {
        loop {
            match stream.message().await {
                Ok(Some(message)) => {
                    token.clone_from(&message.resume_token);
                    seen.extend(told(&message));
                }
                Ok(None) => panic!("a stream ends with a status"),
                Err(status) => break status,
            }
        }
    };
    let status = tokio::time::timeout(PATIENCE, reading).await.expect("the stream ends in time");
    (seen, token, status)
}

/// Tries again until it succeeds, where the server gives no signal to await.
pub async fn eventually<T, E: std::fmt::Debug, F>(what: &str, mut attempt: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, E>>,
{
    let end = tokio::time::Instant::now() + PATIENCE;
    loop {
        match attempt().await {
            Ok(value) => return value,
            Err(error) if tokio::time::Instant::now() > end => panic!("{what}: not in time: {error:?}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}
