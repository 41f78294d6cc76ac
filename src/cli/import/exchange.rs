//! The call itself: rows out, answers in; and again, from the first row without an answer, where it broke.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::bail;
use hawser_client::pb::bulk_create_endpoints_request::Message as Body;
use hawser_client::{Client, pb};
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::super::connect::explain;
use super::fields::Problem;
use super::report::Report;
use super::source::Row;
use super::twins::Twins;

/// Rows that wait for their answer, and their bytes; a larger one waits alone.
const WAITING: usize = 1024;
const WAITING_BYTES: usize = 8 * 1024 * 1024;
/// Calls that break one after the other without an answer between them, before it is given up; and the wait between.
const TRIES: u32 = 30;
const AGAIN: Duration = Duration::from_secs(1);

/// An import on its way.
pub struct Exchange {
    client: Client,
    options: pb::BulkOptions,
    /// What was not sent yet.
    rows: mpsc::Receiver<anyhow::Result<Row>>,
    at_end: bool,
    /// What is not told yet, in order, and the bytes of what was sent.
    waiting: VecDeque<Waiting>,
    bytes: usize,
    twins: Twins,
}

/// A row that waits for its turn to be told.
enum Waiting {
    /// For the server's answer.
    Sent { row: Box<pb::BulkRow>, end: u64, size: usize },
    /// For the rows before it only: it is not sent.
    Refused { number: i64, end: u64, problems: Vec<Problem> },
}

/// How a call ended.
enum End {
    Done,
    Broken(Status),
}

impl Exchange {
    pub fn new(client: Client, options: pb::BulkOptions, rows: mpsc::Receiver<anyhow::Result<Row>>) -> Self {
        let (waiting, twins) = (VecDeque::new(), Twins::default());
        Self { client, options, rows, at_end: false, waiting, bytes: 0, twins }
    }

    pub async fn run(mut self, report: &mut Report) -> anyhow::Result<()> {
        let mut tries = 0;
        loop {
            let status = match self.call(report, &mut tries).await? {
                End::Done => return Ok(()),
                End::Broken(status) => status,
            };
            if !passes(status.code()) {
                return Err(explain(&status));
            }
            tries += 1;
            if tries >= TRIES {
                let error = explain(&status);
                return Err(
                    error.context("the same command again goes on with the rows that are not made yet")
                );
            }
            report.say(&format!("the call ended ({}); going on in a second", status.message()));
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// One call, until all rows are answered or it breaks. An answer makes the count of broken calls begin anew.
    async fn call(&mut self, report: &mut Report, tries: &mut u32) -> anyhow::Result<End> {
        // Never full, because no more than these wait for answers.
        let (sender, requests) = mpsc::channel(WAITING + 1);
        let mut sender = Some(sender);
        send(&sender, Body::Options(self.options.clone()));
        self.refuse_twins();
        self.tell_refused(report)?;
        for one in &self.waiting {
            if let Waiting::Sent { row, .. } = one {
                send(&sender, Body::Row(row.as_ref().clone()));
            }
        }
        let call = self.client.endpoints().bulk_create_endpoints(ReceiverStream::new(requests)).await;
        let mut answers = match call {
            Ok(answers) => answers.into_inner(),
            Err(status) => return Ok(End::Broken(status)),
        };
        loop {
            if self.at_end {
                // Its end, after which the server ends too.
                sender = None;
            }
            let may_send = !self.at_end && self.waiting.len() < WAITING && self.bytes < WAITING_BYTES;
            tokio::select! {
                row = self.rows.recv(), if may_send => match row.transpose()? {
                    Some(row) => self.take(row, &sender, report)?,
                    None => self.at_end = true,
                },
                answer = next(&mut answers) => match answer {
                    Ok(Some(answer)) => {
                        *tries = 0;
                        self.answered(&answer, report)?;
                    }
                    Ok(None) if self.at_end && self.waiting.is_empty() => return Ok(End::Done),
                    Ok(None) => bail!("the server ended the call without an answer to every row"),
                    Err(status) => return Ok(End::Broken(status)),
                },
            }
        }
    }

    fn take(
        &mut self,
        row: Row,
        sender: &Option<mpsc::Sender<pb::BulkCreateEndpointsRequest>>,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        let Row { number, end, row } = row;
        match row.and_then(|row| self.twins.check(&row).map(|()| row)) {
            Ok(row) => {
                let row = Box::new(pb::BulkRow { row_number: number, ..row });
                send(sender, Body::Row(row.as_ref().clone()));
                let size = row.encoded_len();
                self.bytes += size;
                self.waiting.push_back(Waiting::Sent { row, end, size });
            }
            Err(problems) => self.waiting.push_back(Waiting::Refused { number, end, problems }),
        }
        self.tell_refused(report)
    }

    fn answered(
        &mut self,
        answer: &pb::BulkCreateEndpointsResponse,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        match self.waiting.pop_front() {
            Some(Waiting::Sent { row, end, size }) if row.row_number == answer.row_number => {
                self.bytes -= size;
                report.answered(&row, end, answer)?;
                self.twins.answered(&row, answer);
                self.tell_refused(report)
            }
            _ => bail!("the server answered a row out of turn"),
        }
    }

    /// A new call knows nothing of the rows that the one before it answered.
    fn refuse_twins(&mut self) {
        for one in &mut self.waiting {
            if let Waiting::Sent { row, end, size } = one
                && let Err(problems) = self.twins.check(row)
            {
                self.bytes -= *size;
                *one = Waiting::Refused { number: row.row_number, end: *end, problems };
            }
        }
    }

    /// Tells of rows that were not sent, whose turn it is.
    fn tell_refused(&mut self, report: &mut Report) -> anyhow::Result<()> {
        while let Some(Waiting::Refused { number, end, problems }) = self.waiting.front() {
            report.refused(*number, *end, problems)?;
            self.waiting.pop_front();
        }
        Ok(())
    }
}

/// A call that has broken takes nothing more; its answers say so.
fn send(sender: &Option<mpsc::Sender<pb::BulkCreateEndpointsRequest>>, message: Body) {
    if let Some(sender) = sender {
        drop(sender.try_send(pb::BulkCreateEndpointsRequest { message: Some(message) }));
    }
}

async fn next(
    answers: &mut Streaming<pb::BulkCreateEndpointsResponse>,
) -> Result<Option<pb::BulkCreateEndpointsResponse>, Status> {
    answers.message().await
}

/// Whether another call may go on. A connection that is cut comes as UNKNOWN or CANCELLED.
fn passes(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::Unknown | Code::Cancelled)
}
