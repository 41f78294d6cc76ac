//! The benchmark's receiver: answers 204, counts distinct deliveries, verifies a sample of signatures with the
//! official library, and notes how long each event was on its way.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Handle;
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
    shared: Arc<Shared>,
}

/// What its connections share.
struct Shared {
    delay: Duration,
    state: Mutex<State>,
    /// Distinct deliveries that are measured.
    count: watch::Sender<u64>,
    /// Requests to slow URLs.
    slow: watch::Sender<u64>,
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

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Receiver {
    /// Answers each request after this delay, on threads of its own.
    pub async fn start(runtime: &Handle, delay: Duration) -> anyhow::Result<Self> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            delay,
            state: Mutex::default(),
            count: watch::Sender::new(0),
            slow: watch::Sender::new(0),
        });
        let accepting = shared.clone();
        let (ready, started) = tokio::sync::oneshot::channel();
        runtime.spawn(async move {
            let _told =
                ready.send(TcpListener::from_std(listener).map(|listener| accept(listener, accepting)));
        });
        runtime.spawn(started.await??);
        Ok(Self { address, shared })
    }

    /// Where deliveries are measured.
    pub fn url(&self, endpoint: u32) -> String {
        format!("http://{}/{endpoint}", self.address)
    }

    /// Takes requests and never answers.
    pub fn silent_url(&self, number: u32) -> String {
        format!("http://{}/silent/{number}", self.address)
    }

    /// Answers after so many milliseconds; not measured.
    pub fn slow_url(&self, millis: u64) -> String {
        format!("http://{}/slow/{millis}", self.address)
    }

    /// Nobody listens there, and nobody else can while the socket lives.
    pub fn unreachable() -> anyhow::Result<(String, TcpSocket)> {
        let socket = TcpSocket::new_v4()?;
        socket.bind("127.0.0.1:0".parse()?)?;
        Ok((format!("http://{}/", socket.local_addr()?), socket))
    }

    pub fn expect(&self, endpoint: u32, secret: &str) -> anyhow::Result<()> {
        let verifier = standardwebhooks::Webhook::new(secret).map_err(|error| anyhow::anyhow!("{error}"))?;
        self.shared.state().verifiers.insert(endpoint, Arc::new(verifier));
        Ok(())
    }

    /// Waits for so many distinct deliveries; fails if a signature was bad or they do not come.
    pub async fn wait_for(&self, deliveries: u64) -> anyhow::Result<()> {
        wait(&self.shared.count, deliveries).await?;
        match self.shared.state().refused {
            0 => Ok(()),
            refused => bail!("{refused} signatures were not accepted"),
        }
    }

    /// Waits for so many requests to slow URLs.
    pub async fn wait_for_slow(&self, requests: u64) -> anyhow::Result<()> {
        wait(&self.shared.slow, requests).await
    }

    pub fn reset(&self) {
        let mut state = self.shared.state();
        state.seen.clear();
        state.repeats = 0;
        state.latencies_us.clear();
        self.shared.count.send_replace(0);
    }

    pub fn repeats(&self) -> u64 {
        self.shared.state().repeats
    }

    /// How long deliveries were on their way, at these parts of all of them.
    pub fn latency_ms<const N: usize>(&self, parts: [f64; N]) -> [f64; N] {
        let mut latencies = self.shared.state().latencies_us.clone();
        latencies.sort_unstable();
        let last = latencies.len().saturating_sub(1);
        parts.map(|part| latencies.get((last as f64 * part) as usize).map_or(0.0, |us| *us as f64 / 1000.0))
    }
}

async fn wait(count: &watch::Sender<u64>, wanted: u64) -> anyhow::Result<()> {
    let mut seen = count.subscribe();
    match tokio::time::timeout(LONGEST, seen.wait_for(|seen| *seen >= wanted)).await {
        Ok(waited) => waited.map(|_| ()).context("the receiver ended"),
        Err(_) => bail!("{} of {wanted} came", *count.borrow()),
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let shared = shared.clone();
        let service = service_fn(move |request| receive(shared.clone(), request));
        tokio::spawn(async move {
            let _nodelay = stream.set_nodelay(true);
            let _ended = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn receive(
    shared: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Empty<Bytes>>, Infallible> {
    let arrived = now_us();
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let path = head.uri.path().trim_start_matches('/');
    let mut delay = shared.delay;
    if path.starts_with("silent/") {
        std::future::pending::<()>().await;
    } else if let Some(millis) = path.strip_prefix("slow/") {
        shared.slow.send_modify(|count| *count += 1);
        delay = Duration::from_millis(millis.parse().unwrap_or_default());
    } else {
        note(&shared, path.parse().unwrap_or_default(), arrived, &head.headers, &body);
    }
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    let mut response = Response::new(Empty::new());
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}

fn note(shared: &Shared, endpoint: u32, arrived: u64, headers: &http::HeaderMap, body: &[u8]) {
    let id = headers.get("webhook-id").and_then(|id| id.to_str().ok()).unwrap_or_default();
    let mut state = shared.state();
    if !state.seen.insert((endpoint, id.to_owned())) {
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
    // Told under the lock: a thread that was interrupted here would tell an older count after a newer one.
    shared.count.send_replace(seen);
}

/// The time of sending, which the body begins with.
fn sent_us(body: &[u8]) -> Option<u64> {
    let digits = body.strip_prefix(b"{\"sent_us\":")?;
    let end = digits.iter().position(|byte| !byte.is_ascii_digit())?;
    std::str::from_utf8(&digits[..end]).ok()?.parse().ok()
}
