//! A real HTTP receiver that records what comes and answers as it is told.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::PATIENCE;

/// One request.
#[derive(Clone, Debug)]
pub struct Seen {
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Seen {
    pub fn header(&self, name: &str) -> String {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    }

    pub fn event(&self) -> String {
        self.header("webhook-id")
    }
}

/// What to answer.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Bytes,
    /// Before answering; such pauses live only here.
    pub delay: Duration,
    /// Close the connection instead of answering.
    pub hang_up: bool,
}

impl Reply {
    pub fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Bytes::new(), delay: Duration::ZERO, hang_up: false }
    }

    pub fn after(delay: Duration) -> Self {
        Self { delay, ..Self::status(204) }
    }
}

/// Decides by the request and how many came to the same path before it.
type Script = dyn Fn(&Seen, usize) -> Reply + Send + Sync;

/// A running receiver; ends when dropped.
pub struct Receiver {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    count: watch::Sender<usize>,
    _accepting: AbortOnDropHandle<()>,
}

impl Receiver {
    /// Answers 204 to everything.
    pub async fn ok() -> Self {
        Self::scripted(|_, _| Reply::status(204)).await
    }

    pub async fn scripted(script: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (seen, count) = (Arc::<Mutex<Vec<Seen>>>::default(), watch::Sender::new(0));
        let accepting = tokio::spawn(accept(listener, seen.clone(), count.clone(), Arc::new(script)));
        Self { address, seen, count, _accepting: AbortOnDropHandle::new(accepting) }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("unpoisoned").clone()
    }

    /// Waits until the condition holds over all requests so far, and returns them.
    pub async fn wait_for(&self, what: &str, condition: impl Fn(&[Seen]) -> bool) -> Vec<Seen> {
        let mut count = self.count.subscribe();
        let waiting = async {
            loop {
                count.mark_unchanged();
                if condition(&self.seen.lock().expect("unpoisoned")) {
                    return self.seen();
                }
                count.changed().await.expect("the receiver lives");
            }
        };
        match tokio::time::timeout(PATIENCE, waiting).await {
            Ok(seen) => seen,
            Err(_) => panic!("{what}: not in time; {} requests came", self.seen().len()),
        }
    }

    /// Waits until nothing has come for so long, and returns what came.
    pub async fn quiet_for(&self, silence: Duration) -> Vec<Seen> {
        let mut count = self.count.subscribe();
        let waiting = async {
            loop {
                count.mark_unchanged();
                if tokio::time::timeout(silence, count.changed()).await.is_err() {
                    return self.seen();
                }
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("requests end in time")
    }

    pub async fn wait_for_count(&self, count: usize) -> Vec<Seen> {
        self.wait_for(&format!("{count} requests"), |seen| seen.len() >= count).await
    }
}

async fn accept(
    listener: TcpListener,
    seen: Arc<Mutex<Vec<Seen>>>,
    count: watch::Sender<usize>,
    script: Arc<Script>,
) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let (seen, count, script) = (seen.clone(), count.clone(), script.clone());
        tokio::spawn(async move {
            let service =
                service_fn(move |request| receive(seen.clone(), count.clone(), script.clone(), request));
            let server = hyper::server::conn::http1::Builder::new();
            let _ended = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn receive(
    seen: Arc<Mutex<Vec<Seen>>>,
    count: watch::Sender<usize>,
    script: Arc<Script>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, std::io::Error> {
    let (head, body) = request.into_parts();
    let Ok(body) = body.collect().await else { return Err(std::io::Error::other("the sender left")) };
    let one = Seen { path: head.uri.path().to_owned(), headers: head.headers, body: body.to_bytes() };
    let reply = {
        let mut seen = seen.lock().expect("unpoisoned");
        let before = seen.iter().filter(|other| other.path == one.path).count();
        let reply = script(&one, before);
        seen.push(one);
        count.send_replace(seen.len());
        reply
    };
    if !reply.delay.is_zero() {
        tokio::time::sleep(reply.delay).await;
    }
    if reply.hang_up {
        return Err(std::io::Error::other("hung up as told"));
    }
    let mut response = Response::new(Full::new(reply.body));
    *response.status_mut() = StatusCode::from_u16(reply.status).expect("a status");
    for (name, value) in reply.headers {
        response.headers_mut().insert(name, value.parse().expect("a value"));
    }
    Ok(response)
}
