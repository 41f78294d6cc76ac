//! A real HTTP receiver each of whose answers the test gives itself, when it wants to.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

use super::PATIENCE;

/// How a request ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Status(u16),
    /// The connection is closed.
    HangUp,
    /// Nothing ever comes.
    Nothing,
}

/// A request that waits for its answer.
pub struct Held {
    /// `hawser-attempt`.
    pub attempt: i32,
    reply: oneshot::Sender<Answer>,
}

impl Held {
    pub fn answer(self, answer: Answer) {
        // Whoever asked may have gone away.
        let _gone = self.reply.send(answer);
    }
}

/// Requests of one delivery that nobody took up yet.
const MOST: usize = 64;

/// The requests of one delivery.
struct Line {
    arrives: mpsc::Sender<Held>,
    /// Absent while someone waits on it.
    arrived: Option<mpsc::Receiver<Held>>,
}

impl Default for Line {
    fn default() -> Self {
        let (arrives, arrived) = mpsc::channel(MOST);
        Self { arrives, arrived: Some(arrived) }
    }
}

type Lines = Arc<Mutex<HashMap<String, Line>>>;

/// A running receiver; ends when dropped.
pub struct Desk {
    address: SocketAddr,
    lines: Lines,
    _accepting: AbortOnDropHandle<()>,
}

impl Desk {
    pub async fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let lines = Lines::default();
        let accepting = tokio::spawn(accept(listener, lines.clone()));
        Self { address, lines, _accepting: AbortOnDropHandle::new(accepting) }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The next request of this delivery, which must come.
    pub async fn request(&self, delivery: &str) -> Held {
        let mut arrived = {
            let mut lines = self.lines.lock().expect("unpoisoned");
            let line = lines.entry(delivery.to_owned()).or_default();
            line.arrived.take().expect("one waits at a time")
        };
        let held = tokio::time::timeout(PATIENCE, arrived.recv()).await;
        let held = held.unwrap_or_else(|_| panic!("{delivery} is sent in time")).expect("the desk is open");
        let mut lines = self.lines.lock().expect("unpoisoned");
        lines.entry(delivery.to_owned()).or_default().arrived = Some(arrived);
        held
    }

    /// Whether requests of this delivery wait that nobody took up.
    pub fn has_more(&self, delivery: &str) -> bool {
        let lines = self.lines.lock().expect("unpoisoned");
        let arrived = lines.get(delivery).and_then(|line| line.arrived.as_ref());
        arrived.is_some_and(|arrived| !arrived.is_empty())
    }
}

async fn accept(listener: TcpListener, lines: Lines) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let lines = lines.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| receive(lines.clone(), request));
            let server = hyper::server::conn::http1::Builder::new();
            let _ended = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn receive(lines: Lines, request: Request<Incoming>) -> Result<Response<Empty<Bytes>>, std::io::Error> {
    let (head, body) = request.into_parts();
    let Ok(_body) = body.collect().await else { return Err(std::io::Error::other("the sender left")) };
    let text = |name: &str| {
        head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    };
    let (reply, answer) = oneshot::channel();
    let held = Held { attempt: text("hawser-attempt").parse().expect("a number"), reply };
    {
        let mut lines = lines.lock().expect("unpoisoned");
        let line = lines.entry(text("hawser-delivery-id")).or_default();
        line.arrives.try_send(held).expect("requests are taken up");
    }
    let status = match answer.await {
        Ok(Answer::Status(status)) => status,
        Ok(Answer::HangUp) => return Err(std::io::Error::other("hung up as told")),
        Ok(Answer::Nothing) | Err(_) => std::future::pending().await,
    };
    // No connection is used twice, so that none is ever found stale.
    let response = Response::builder().status(status).header("connection", "close");
    Ok(response.body(Empty::new()).expect("a response"))
}
