//! BulkCreateEndpoints: rows in as they come, answers out in their order.
//!
//! As in StreamPublishEvents nothing runs but what the client's reading drives. A batch is whatever rows came while the
//! one before was written, within limits: nothing waits for a batch to fill.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::stream::{Stream, unfold};
use prost::Message;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::{Api, bulk, pb, status};
use crate::domain::error::{Error, Result};
use crate::domain::principal::Principal;
use crate::service::{BULK_ROWS, Bulk, BulkRow, Services};

/// Bytes of a batch's rows; a larger row is a batch alone.
const BATCH_BYTES: usize = 1024 * 1024;
/// How long a key that was revoked is not noticed.
const KEY_CHECKED_EVERY: Duration = Duration::from_secs(30);

/// The answers to all that comes in, until the server stops or the connection is `leaving`.
pub fn answer(
    api: Api,
    caller: Principal,
    leaving: CancellationToken,
    incoming: Streaming<pb::BulkCreateEndpointsRequest>,
) -> impl Stream<Item = Result<pb::BulkCreateEndpointsResponse, Status>> + Send {
    let answering = Answering {
        services: api.services,
        stop: api.stop,
        leaving,
        caller,
        key_checked: Instant::now(),
        incoming: Some(incoming),
        bulk: None,
        rows: 0,
        answers: VecDeque::new(),
        end: None,
    };
    unfold(answering, |mut answering| async move { Some((answering.next().await?, answering)) })
}

struct Answering {
    services: Services,
    stop: CancellationToken,
    leaving: CancellationToken,
    caller: Principal,
    key_checked: Instant,
    /// None once no more is read.
    incoming: Option<Streaming<pb::BulkCreateEndpointsRequest>>,
    /// None until the options came.
    bulk: Option<Bulk>,
    /// Rows so far.
    rows: usize,
    answers: VecDeque<pb::BulkCreateEndpointsResponse>,
    /// What the stream ends with, after the answers; none where all is well.
    end: Option<Status>,
}

type Rows = Vec<(i64, Result<BulkRow>)>;

impl Answering {
    async fn next(&mut self) -> Option<Result<pb::BulkCreateEndpointsResponse, Status>> {
        loop {
            if let Some(answer) = self.answers.pop_front() {
                return Some(Ok(answer));
            }
            if self.incoming.is_none() {
                return self.end.take().map(Err);
            }
            let rows = self.gather().await;
            if !rows.is_empty()
                && let Err(status) = self.run(rows).await
            {
                self.end_with(status);
            }
        }
    }

    /// Reads no more, and ends so after what was answered.
    fn end_with(&mut self, status: Status) {
        self.incoming = None;
        self.end.get_or_insert(status);
    }

    /// Waits for a message, and takes what else is there, as much as a batch holds.
    async fn gather(&mut self) -> Rows {
        let mut rows = Rows::new();
        let mut bytes = 0;
        let (stop, leaving) = (self.stop.clone(), self.leaving.clone());
        let first = tokio::select! {
            message = read(&mut self.incoming) => Some(message),
            () = stop.cancelled() => None,
            () = leaving.cancelled() => None,
        };
        let Some(mut next) = first else {
            self.end_with(interrupted());
            return rows;
        };
        loop {
            match next {
                Ok(Some(request)) => {
                    bytes += request.encoded_len();
                    if let Err(status) = self.take(request, &mut rows).await {
                        self.end_with(status);
                        return rows;
                    }
                }
                Ok(None) => {
                    self.incoming = None;
                    return rows;
                }
                Err(status) => {
                    self.end_with(status);
                    return rows;
                }
            }
            let most = self.bulk.as_ref().map_or(0, Bulk::batch);
            if rows.len() >= most || bytes >= BATCH_BYTES {
                return rows;
            }
            match read(&mut self.incoming).now_or_never() {
                Some(message) => next = message,
                None => return rows,
            }
        }
    }

    async fn take(&mut self, request: pb::BulkCreateEndpointsRequest, rows: &mut Rows) -> Result<(), Status> {
        use pb::bulk_create_endpoints_request::Message::{Options, Row};
        match (request.message, &self.bulk) {
            (Some(Options(options)), None) => {
                let bulk::Options { project, dry_run, ping } = bulk::read_options(options)?;
                self.bulk = Some(self.services.bulk(self.caller.clone(), project, dry_run, ping).await?);
                Ok(())
            }
            (Some(Row(row)), Some(_)) => {
                self.rows += 1;
                if self.rows > BULK_ROWS {
                    let rule = format!("are more than {BULK_ROWS}; send the rest by another call");
                    return Err(Error::invalid("row", rule).into());
                }
                rows.push(bulk::read_row(row));
                Ok(())
            }
            (_, None) => Err(Error::invalid("options", "must be the first message").into()),
            (_, Some(_)) => Err(Error::invalid("row", "must be in each message after the first").into()),
        }
    }

    async fn run(&mut self, rows: Rows) -> Result<(), Status> {
        if self.key_checked.elapsed() >= KEY_CHECKED_EVERY {
            if !self.services.is_still_valid(&self.caller).await? {
                return Err(status::unauthenticated("the key expired or was revoked"));
            }
            self.key_checked = Instant::now();
        }
        let Some(bulk) = &mut self.bulk else { return Ok(()) };
        // Pings may take long; what is planned only can be given up.
        let planned = tokio::select! {
            planned = bulk.plan(rows) => planned?,
            () = self.stop.cancelled() => return Err(interrupted()),
            () = self.leaving.cancelled() => return Err(interrupted()),
        };
        let results = bulk.carry_out(planned).await?;
        self.answers.extend(results.into_iter().map(bulk::message));
        Ok(())
    }
}

fn interrupted() -> Status {
    let message =
        "the server is stopping, or the connection has reached its age; send again what was not answered";
    Error::unavailable(message).into()
}

async fn read(
    incoming: &mut Option<Streaming<pb::BulkCreateEndpointsRequest>>,
) -> Result<Option<pb::BulkCreateEndpointsRequest>, Status> {
    match incoming {
        Some(incoming) => incoming.message().await,
        None => Ok(None),
    }
}
