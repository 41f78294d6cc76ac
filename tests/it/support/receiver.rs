//! A real HTTP receiver that records what comes and answers as it is told.

use std::collections::{HashMap, HashSet};
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
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

use super::PATIENCE;

/// One request.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: http::Method,
    pub path: String,
    /// Which connection it came on, counted from 0.
    pub connection: usize,
    /// The client's certificate, where there is one.
    pub certificate: Option<CertificateDer<'static>>,
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
    scheme: &'static str,
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
        Self::listen("127.0.0.1:0", None, script).await
    }

    /// Speaks TLS, as the acceptor says.
    pub async fn tls(
        acceptor: TlsAcceptor,
        script: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::listen("127.0.0.1:0", Some(acceptor), script).await
    }

    pub async fn listen(
        address: &str,
        acceptor: Option<TlsAcceptor>,
        script: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let scheme = if acceptor.is_some() { "https" } else { "http" };
        let (seen, count) = (Arc::<Mutex<Vec<Seen>>>::default(), watch::Sender::new(0));
        let inbox = Inbox {
            seen: seen.clone(),
            paths: Arc::default(),
            count: count.clone(),
            script: Arc::new(script),
        };
        let accepting = tokio::spawn(accept(listener, acceptor, inbox));
        Self { address, scheme, seen, count, _accepting: AbortOnDropHandle::new(accepting) }
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}://{}{path}", self.scheme, self.address)
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("unpoisoned").clone()
    }

    /// Waits until the condition holds over all requests so far, and returns them.
    pub async fn wait_for(&self, what: &str, mut condition: impl FnMut(&[Seen]) -> bool) -> Vec<Seen> {
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

    /// Waits until each of these events has come, and returns all requests.
    pub async fn wait_for_events<'a>(&self, ids: impl IntoIterator<Item = &'a String>) -> Vec<Seen> {
        let mut missing: HashSet<String> = ids.into_iter().cloned().collect();
        let mut looked_at = 0;
        let all_came = |seen: &[Seen]| {
            for one in &seen[looked_at..] {
                missing.remove(&one.event());
            }
            looked_at = seen.len();
            missing.is_empty()
        };
        self.wait_for("every event", all_came).await
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

/// Where requests go.
#[derive(Clone)]
struct Inbox {
    seen: Arc<Mutex<Vec<Seen>>>,
    /// How many came to each path.
    paths: Arc<Mutex<HashMap<String, usize>>>,
    count: watch::Sender<usize>,
    script: Arc<Script>,
}

async fn accept(listener: TcpListener, acceptor: Option<TlsAcceptor>, inbox: Inbox) {
    for connection in 0.. {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let (acceptor, inbox) = (acceptor.clone(), inbox.clone());
        tokio::spawn(async move {
            let Some(acceptor) = acceptor else { return serve(stream, connection, None, inbox).await };
            // Who shows no good certificate never gets as far as a request.
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let shown = stream.get_ref().1.peer_certificates();
            let certificate = shown.and_then(|chain| chain.first()).map(|leaf| leaf.clone().into_owned());
            serve(stream, connection, certificate, inbox).await;
        });
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    connection: usize,
    certificate: Option<CertificateDer<'static>>,
    inbox: Inbox,
) {
    let service = service_fn(move |request| receive(inbox.clone(), connection, certificate.clone(), request));
    let server = hyper::server::conn::http1::Builder::new();
    let _ended = server.serve_connection(TokioIo::new(stream), service).await;
}

async fn receive(
    inbox: Inbox,
    connection: usize,
    certificate: Option<CertificateDer<'static>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, std::io::Error> {
    let Inbox { seen, paths, count, script } = inbox;
    let (head, body) = request.into_parts();
    let Ok(body) = body.collect().await else { return Err(std::io::Error::other("the sender left")) };
    let one = Seen {
        method: head.method,
        path: head.uri.path().to_owned(),
        connection,
        certificate,
        headers: head.headers,
        body: body.to_bytes(),
    };
    let reply = {
        let mut seen = seen.lock().expect("unpoisoned");
        let mut paths = paths.lock().expect("unpoisoned");
        let came = paths.entry(one.path.clone()).or_default();
        let reply = script(&one, *came);
        *came += 1;
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
