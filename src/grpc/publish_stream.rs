//! StreamPublishEvents: events in as they come, acknowledgements out in their order.
//!
//! Nothing runs but what the client's reading drives: a client that does not take its acknowledgements is read no
//! further, and neither is one with enough events under way, nor any while as many bytes wait to be written as may. What
//! was handed to ingest is written either way.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::{BoxFuture, ready};
use futures_util::stream::{FuturesOrdered, Stream, StreamExt, unfold};
use prost::Message;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::{Api, pb, publish, status};
use crate::domain::error::{Error, Result};
use crate::domain::event::Receipt;
use crate::domain::principal::Principal;
use crate::service::Services;

/// Events of one stream that wait for their acknowledgement, and their bytes; a larger one waits alone.
const UNDER_WAY: usize = 256;
const UNDER_WAY_BYTES: usize = 8 * 1024 * 1024;
/// How long a key that was revoked is not noticed.
const KEY_CHECKED_EVERY: Duration = Duration::from_secs(30);

/// The acknowledgements of all that comes in, until the server stops or the connection is `leaving`.
pub fn acknowledge(
    api: Api,
    caller: Principal,
    leaving: CancellationToken,
    incoming: Streaming<pb::StreamPublishEventsRequest>,
) -> impl Stream<Item = Result<pb::StreamPublishEventsResponse, Status>> + Send {
    let publishing = Publishing {
        services: api.services,
        stop: api.stop,
        leaving,
        caller,
        key_checked: Instant::now(),
        incoming: Some(incoming),
        order: Arc::default(),
        under_way: FuturesOrdered::new(),
        bytes: 0,
        end: None,
    };
    unfold(publishing, |mut publishing| async move { Some((publishing.next().await?, publishing)) })
}

struct Publishing {
    services: Services,
    stop: CancellationToken,
    leaving: CancellationToken,
    caller: Principal,
    key_checked: Instant,
    /// None once no more is read.
    incoming: Option<Streaming<pb::StreamPublishEventsRequest>>,
    /// In which events are handed over, whatever each has to wait for before.
    order: Arc<Mutex<()>>,
    under_way: FuturesOrdered<BoxFuture<'static, Published>>,
    bytes: usize,
    /// What the stream ends with, after the acknowledgements; none where all is well.
    end: Option<Status>,
}

struct Published {
    number: i64,
    size: usize,
    result: Result<Receipt>,
}

impl Publishing {
    async fn next(&mut self) -> Option<Result<pb::StreamPublishEventsResponse, Status>> {
        loop {
            let may_read = self.under_way.len() < UNDER_WAY && self.bytes < UNDER_WAY_BYTES;
            tokio::select! {
                () = self.stop.cancelled(), if self.incoming.is_some() => {
                    let message = "the server is stopping; publish again what was not acknowledged, with its idempotency key";
                    self.end_with(Error::unavailable(message).into());
                }
                () = self.leaving.cancelled(), if self.incoming.is_some() => {
                    let message = "the connection has reached its age; publish again what was not acknowledged, with its idempotency key";
                    self.end_with(Error::unavailable(message).into());
                }
                Some(published) = self.under_way.next() => {
                    self.bytes -= published.size;
                    return Some(Ok(publish::acknowledgement(published.number, published.result)));
                }
                message = read(&self.services, &mut self.incoming), if may_read && self.incoming.is_some() => match message {
                    Ok(Some(request)) => self.take(request).await,
                    Ok(None) => self.incoming = None,
                    Err(status) => self.end_with(status),
                },
                else => return self.end.take().map(Err),
            }
        }
    }

    /// Reads no more, and ends so after what is under way.
    fn end_with(&mut self, status: Status) {
        self.incoming = None;
        self.end = Some(status);
    }

    async fn take(&mut self, request: pb::StreamPublishEventsRequest) {
        let (number, size) = (request.request_number, request.encoded_len());
        if self.key_checked.elapsed() >= KEY_CHECKED_EVERY {
            match self.services.is_still_valid(&self.caller).await {
                Ok(true) => self.key_checked = Instant::now(),
                Ok(false) => return self.end_with(status::unauthenticated("the key expired or was revoked")),
                Err(error) => return self.refuse(number, error),
            }
        }
        let Some(event) = request.event else {
            return self.refuse(number, Error::invalid("event", "is required"));
        };
        let (services, caller, order) = (self.services.clone(), self.caller.clone(), self.order.clone());
        self.bytes += size;
        self.under_way.push_back(Box::pin(async move {
            let result = match publish::read(event) {
                Ok((project, event)) => services.publish_in_turn(&caller, project, event, &order).await,
                Err(error) => Err(error),
            };
            Published { number, size, result }
        }));
    }

    fn refuse(&mut self, number: i64, error: Error) {
        self.under_way.push_back(Box::pin(ready(Published { number, size: 0, result: Err(error) })));
    }
}

async fn read(
    services: &Services,
    incoming: &mut Option<Streaming<pb::StreamPublishEventsRequest>>,
) -> Result<Option<pb::StreamPublishEventsRequest>, Status> {
    match incoming {
        Some(incoming) => {
            services.may_publish().await;
            incoming.message().await
        }
        None => Ok(None),
    }
}
