//! A Watch that resumes: it keeps the last token, and connects again when the server or the way to it goes.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use tonic::{Code, Status, Streaming};

use crate::client::Channel;
use crate::pb;
use crate::pb::watch_request::Start;
use crate::pb::watch_service_client::WatchServiceClient;

const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Tries in a row without a single message, after which the error is the caller's.
const TRIES: u32 = 30;

/// A stream of changes. Each is seen once, in order, across reconnects.
pub struct WatchStream {
    client: WatchServiceClient<Channel>,
    request: pb::WatchRequest,
    stream: Option<Streaming<pb::WatchResponse>>,
    tries: u32,
}

impl WatchStream {
    pub(crate) async fn open(
        mut client: WatchServiceClient<Channel>,
        request: pb::WatchRequest,
    ) -> Result<Self, Status> {
        let stream = client.watch(request.clone()).await?.into_inner();
        Ok(Self { client, request, stream: Some(stream), tries: 0 })
    }

    /// The token of the last message, to resume with later.
    pub fn resume_token(&self) -> Option<&str> {
        match &self.request.start {
            Some(Start::ResumeToken(token)) => Some(token),
            _ => None,
        }
    }

    /// The next change or bookmark. An error is final: the server refused, or stayed away too long.
    pub async fn message(&mut self) -> Result<pb::WatchResponse, Status> {
        loop {
            let ended = match &mut self.stream {
                Some(stream) => match stream.message().await {
                    Ok(Some(message)) => {
                        self.tries = 0;
                        self.request.start = Some(Start::ResumeToken(message.resume_token.clone()));
                        return Ok(message);
                    }
                    Ok(None) => Status::unavailable("the stream ended"),
                    Err(status) => status,
                },
                None => match self.client.watch(self.request.clone()).await {
                    Ok(response) => {
                        self.stream = Some(response.into_inner());
                        continue;
                    }
                    Err(status) => status,
                },
            };
            self.stream = None;
            if !passes(ended.code()) || self.tries >= TRIES {
                return Err(ended);
            }
            tokio::time::sleep(self.wait()).await;
            self.tries += 1;
        }
    }

    /// Grows to five seconds, with half of it left to chance so that clients do not return together.
    fn wait(&self) -> Duration {
        let grown = FIRST_WAIT.saturating_mul(1 << self.tries.min(10)).min(LONGEST_WAIT);
        // A fresh hasher's keys are random, which is chance enough here.
        let chance = RandomState::new().build_hasher().finish() % 1000;
        grown.mul_f64(0.5 + f64::from(u16::try_from(chance).unwrap_or_default()) / 2000.0)
    }
}

/// Whether resuming may help. Transport failures come as UNKNOWN or CANCELLED where a stream was cut;
/// RESOURCE_EXHAUSTED where this side was too slow, or the stream that it replaces still counts.
const fn passes(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::Unknown | Code::Cancelled | Code::ResourceExhausted)
}
