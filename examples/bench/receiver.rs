//! The benchmark's receiver: answers 204, counts distinct deliveries, verifies a sample of signatures with the
//! official library, and notes how long each event was on its way.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::watch;

#[derive(Default)]
struct State {
    verifiers: HashMap<u32, Arc<standardwebhooks::Webhook>>,
    seen: HashSet<(u32, String)>,
    repeats: u64,
    refused: u64,
    latencies_us: Vec<u64>,
}

/// A running receiver.
pub struct Receiver {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    count: watch::Sender<u64>,
}

/// One of so many signatures is verified.
const SAMPLE: u64 = 50;
const LONGEST: Duration = Duration::from_secs(300);

/// Microseconds since 1970.
#[expect(clippy::disallowed_methods, reason = "finer than the product's clock")]
pub fn now_us() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

fn lock(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Receiver {
    pub async fn start(delay: Duration) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (state, count) = (Arc::<Mutex<State>>::default(), watch::Sender::new(0));
        tokio::spawn(accept(listener, state.clone(), count.clone(), delay));
        Ok(Self { address, state, count })
    }

    pub fn url(&self, endpoint: u32) -> String {
        format!("http://{}/{endpoint}", self.address)
    }

    pub fn expect(&self, endpoint: u32, secret: &str) -> anyhow::Result<()> {
        let verifier = standardwebhooks::Webhook::new(secret).map_err(|error| anyhow::anyhow!("{error}"))?;
        lock(&self.state).verifiers.insert(endpoint, Arc::new(verifier));
        Ok(())
    }

    /// Waits for so many distinct deliveries; fails if a signature was bad or they do not come.
    pub async fn wait_for(&self, deliveries: u64) -> anyhow::Result<()> {
        let mut count = self.count.subscribe();
        tokio::time::timeout(LONGEST, count.wait_for(|seen| *seen >= deliveries))
            .await
            .with_context(|| format!("{} of {deliveries} deliveries came", *self.count.borrow()))??;
        match lock(&self.state).refused {
            0 => Ok(()),
            refused => bail!("{refused} signatures were not accepted"),
        }
    }

    pub fn reset(&self) {
        let mut state = lock(&self.state);
        state.seen.clear();
        state.repeats = 0;
        state.latencies_us.clear();
        self.count.send_replace(0);
    }

    pub fn repeats(&self) -> u64 {
        lock(&self.state).repeats
    }

    pub fn latencies_us(&self) -> Vec<u64> {
        lock(&self.state).latencies_us.clone()
    }
}

async fn accept(listener: TcpListener, state: Arc<Mutex<State>>, count: watch::Sender<u64>, delay: Duration) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let (state, count) = (state.clone(), count.clone());
        let service = service_fn(move |request| receive(state.clone(), count.clone(), delay, request));
        tokio::spawn(async move {
            let _nodelay = stream.set_nodelay(true);
            let _ended = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn receive(
    state: Arc<Mutex<State>>,
    count: watch::Sender<u64>,
    delay: Duration,
    request: Request<Incoming>,
) -> Result<Response<Empty<Bytes>>, Infallible> {
    let arrived = now_us();
    let endpoint: u32 = request.uri().path().trim_start_matches('/').parse().unwrap_or_default();
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let id = head.headers.get("webhook-id").and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned();
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    note(&state, &count, endpoint, id, arrived, &head.headers, &body);
    let mut response = Response::new(Empty::new());
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}

fn note(
    state: &Mutex<State>,
    count: &watch::Sender<u64>,
    endpoint: u32,
    id: String,
    arrived: u64,
    headers: &http::HeaderMap,
    body: &[u8],
) {
    let mut state = lock(state);
    if !state.seen.insert((endpoint, id)) {
        state.repeats += 1;
        return;
    }
    let seen = state.seen.len() as u64;
    if let Some(sent) = sent_us(body) {
        state.latencies_us.push(arrived.saturating_sub(sent));
    }
    let verifier = state.verifiers.get(&endpoint).filter(|_| seen.is_multiple_of(SAMPLE)).cloned();
    if verifier.is_some_and(|verifier| verifier.verify(body, headers).is_err()) {
        state.refused += 1;
    }
    drop(state);
    count.send_replace(seen);
}

/// The time of sending, which the body begins with.
fn sent_us(body: &[u8]) -> Option<u64> {
    let digits = body.strip_prefix(b"{\"sent_us\":")?;
    let end = digits.iter().position(|byte| !byte.is_ascii_digit())?;
    std::str::from_utf8(&digits[..end]).ok()?.parse().ok()
}
