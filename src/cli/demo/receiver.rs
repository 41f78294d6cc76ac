//! The demo's receiver: a real HTTP server that checks each signature by itself, apart from the code that made
//! it, and remembers what came.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// One request that came in.
#[derive(Clone, Debug)]
pub struct Arrival {
    pub path: String,
    pub event: String,
    pub body: Bytes,
    /// None, or why the signature is not accepted.
    pub problem: Option<String>,
    pub answered: StatusCode,
}

#[derive(Default)]
struct State {
    /// The secret's bytes for each path.
    secrets: HashMap<String, Vec<u8>>,
    /// Failures still to be answered on each path.
    failures: HashMap<String, u32>,
    arrivals: Vec<Arrival>,
}

/// A running receiver; it ends when dropped.
pub struct Receiver {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    changed: watch::Sender<()>,
    _accepting: AbortOnDropHandle<()>,
}

/// No body that Hawser sends is larger.
const BODY_MAX: usize = 1024 * 1024;

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Receiver {
    pub async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let state = Arc::<Mutex<State>>::default();
        let changed = watch::Sender::new(());
        let accepting = tokio::spawn(accept(listener, state.clone(), changed.clone()));
        Ok(Self { address, state, changed, _accepting: AbortOnDropHandle::new(accepting) })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Checks what comes to this path with this secret, and answers 503 so many times first.
    pub fn expect(&self, path: &str, secret: &str, failures: u32) -> anyhow::Result<()> {
        let secret = STANDARD.decode(secret.trim_start_matches("whsec_"))?;
        let mut state = lock(&self.state);
        state.secrets.insert(path.to_owned(), secret);
        state.failures.insert(path.to_owned(), failures);
        Ok(())
    }

    /// Waits until so many requests were answered 2xx.
    pub async fn accepted(&self, count: usize) -> Vec<Arrival> {
        let mut changed = self.changed.subscribe();
        loop {
            changed.mark_unchanged();
            let arrivals = lock(&self.state).arrivals.clone();
            if arrivals.iter().filter(|one| one.answered.is_success()).count() >= count {
                return arrivals;
            }
            // The sender lives as long as this receiver.
            let _alive = changed.changed().await;
        }
    }
}

async fn accept(listener: TcpListener, state: Arc<Mutex<State>>, changed: watch::Sender<()>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let (state, changed) = (state.clone(), changed.clone());
        let service = service_fn(move |request| receive(state.clone(), changed.clone(), request));
        tokio::spawn(async move {
            // A connection that breaks is the sender's to try again.
            let _broken = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn receive(
    state: Arc<Mutex<State>>,
    changed: watch::Sender<()>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    // A ping asks whether anyone is there.
    if request.method() == http::Method::HEAD {
        return Ok(answer(StatusCode::NO_CONTENT));
    }
    let path = request.uri().path().to_owned();
    let header = |name: &str| {
        request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    };
    let (id, timestamp, signature) =
        (header("webhook-id"), header("webhook-timestamp"), header("webhook-signature"));
    let Ok(body) = Limited::new(request.into_body(), BODY_MAX).collect().await else {
        return Ok(answer(StatusCode::PAYLOAD_TOO_LARGE));
    };
    let body = body.to_bytes();
    let mut state = lock(&state);
    let problem = match state.secrets.get(&path) {
        Some(secret) => verify(secret, &id, &timestamp, &signature, &body).err(),
        None => Some("nothing is expected on this path".to_owned()),
    };
    let failing = state.failures.get_mut(&path).filter(|left| **left > 0);
    let answered = match (&problem, failing) {
        (Some(_), _) => StatusCode::UNAUTHORIZED,
        (None, Some(left)) => {
            *left -= 1;
            StatusCode::SERVICE_UNAVAILABLE
        }
        (None, None) => StatusCode::NO_CONTENT,
    };
    state.arrivals.push(Arrival { path, event: id, body, problem, answered });
    drop(state);
    changed.send_replace(());
    Ok(answer(answered))
}

fn answer(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

/// Standard Webhooks as a receiver reads it: any one `v1` signature of the list must fit, compared in constant
/// time, over `id.timestamp.body` exactly as they came.
fn verify(secret: &[u8], id: &str, timestamp: &str, signatures: &str, body: &[u8]) -> Result<(), String> {
    let sent: i64 = timestamp.parse().map_err(|_| "the timestamp is not a number".to_owned())?;
    let now = crate::domain::clock::Timestamp::now().as_secs();
    if (now - sent).abs() > 300 {
        return Err("the timestamp is more than five minutes away".to_owned());
    }
    for one in signatures.split(' ').filter_map(|one| one.strip_prefix("v1,")) {
        let Ok(tag) = STANDARD.decode(one) else { continue };
        let mut mac = Hmac::<sha2::Sha256>::new_from_slice(secret).map_err(|error| error.to_string())?;
        mac.update(id.as_bytes());
        mac.update(b".");
        mac.update(timestamp.as_bytes());
        mac.update(b".");
        mac.update(body);
        if mac.verify_slice(&tag).is_ok() {
            return Ok(());
        }
    }
    Err("no signature fits".to_owned())
}
