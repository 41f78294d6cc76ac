//! The end of a stream that its handler does not decide: the client's deadline passed, or the connection is
//! to go. The status comes as trailers after whole messages, as gRPC ends a stream.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body as HttpBody, Frame};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::Status;
use tonic::body::Body;

use super::status;
use crate::metrics::Open;

/// A reply's body that ends early at its deadline or with its connection.
pub struct StreamEnd {
    body: Body,
    deadline: Option<(Pin<Box<Sleep>>, Duration)>,
    leaving: Pin<Box<WaitForCancellationFutureOwned>>,
    ended: bool,
    call: Open,
    /// Its place among those of its kind.
    place: Option<OwnedSemaphorePermit>,
}

impl StreamEnd {
    pub fn new(
        body: Body,
        deadline: Option<(Instant, Duration)>,
        leaving: WaitForCancellationFutureOwned,
        call: Open,
        place: Option<OwnedSemaphorePermit>,
    ) -> Self {
        let deadline = deadline.map(|(at, limit)| (Box::pin(tokio::time::sleep_until(at)), limit));
        Self { body, deadline, leaving: Box::pin(leaving), ended: false, call, place }
    }

    /// The status to end with now, if any.
    fn end(&mut self, context: &mut Context<'_>) -> Option<Status> {
        if let Some((sleep, limit)) = &mut self.deadline
            && sleep.as_mut().poll(context).is_ready()
        {
            return Some(status::deadline_exceeded(*limit));
        }
        self.leaving.as_mut().poll(context).is_ready().then(status::connection_aged)
    }
}

impl HttpBody for StreamEnd {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Some(status) = self.end(context) {
            self.ended = true;
            // What the handler holds is let go now, not when the connection is done with the body.
            self.body = Body::empty();
            self.place = None;
            self.call.code(status.code().into());
            let mut trailers = HeaderMap::new();
            return Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))));
        }
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(trailers) = frame.trailers_ref()
        {
            let code = trailers.get("grpc-status").and_then(|code| code.to_str().ok()?.parse().ok());
            self.call.code(code.unwrap_or(tonic::Code::Unknown.into()));
            self.place = None;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}
