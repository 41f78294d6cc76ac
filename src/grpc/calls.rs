//! What every call passes through before authentication: it is counted, bounded in time, and refused at once
//! where too many are in progress. Health is never refused: it must answer most when there is too much to do.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};

use super::auth::HEALTH;
use super::deadline;
use super::listener::{Connection, KEYLESS};
use super::methods::{self, Shape};
use super::status;
use super::stream_end::StreamEnd;
use crate::domain::error::Error;
use crate::metrics::{Method, Metrics, Open};

/// What bounds calls.
#[derive(Clone, Copy, Debug)]
pub struct CallLimits {
    /// The longest that a unary call may take.
    pub timeout: Duration,
    /// Unary calls in progress at once.
    pub max: usize,
}

const REFLECTION: &str = "/grpc.reflection.";
/// Streams at once on which clients send: each may hold a message that is not complete.
const EXCHANGES: usize = 1024;

/// Adds these bounds to a service.
#[derive(Clone)]
pub struct CallLayer {
    shared: Arc<Shared>,
}

struct Shared {
    methods: HashMap<String, Known>,
    unknown: Known,
    places: Semaphore,
    exchanges: Arc<Semaphore>,
    limits: CallLimits,
    metrics: Arc<Metrics>,
}

struct Known {
    shape: Shape,
    measured: Arc<Method>,
}

impl CallLayer {
    pub fn new(limits: CallLimits, metrics: Arc<Metrics>) -> Result<Self, prost::DecodeError> {
        let known = |(path, shape): (String, Shape)| {
            let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or_default();
            let measured = metrics.calls.method(service, method);
            (path, Known { shape, measured })
        };
        let methods = methods::all()?.into_iter().map(known).collect();
        let unknown = Known { shape: Shape::Unary, measured: metrics.calls.method("unknown", "unknown") };
        let places = Semaphore::new(limits.max.min(Semaphore::MAX_PERMITS));
        let exchanges = Arc::new(Semaphore::new(EXCHANGES));
        Ok(Self { shared: Arc::new(Shared { methods, unknown, places, exchanges, limits, metrics }) })
    }
}

impl<S> Layer<S> for CallLayer {
    type Service = Bounded<S>;

    fn layer(&self, inner: S) -> Bounded<S> {
        Bounded { inner, shared: self.shared.clone() }
    }
}

/// A service whose calls are bounded.
#[derive(Clone)]
pub struct Bounded<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S> Service<Request<Body>> for Bounded<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The clone that was polled ready takes the call.
        let fresh = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, fresh);
        let shared = self.shared.clone();
        Box::pin(async move { Ok(shared.pass(inner, request).await) })
    }
}

impl Shared {
    async fn pass<S>(&self, inner: S, request: Request<Body>) -> Response<Body>
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    {
        let path = request.uri().path();
        let known = self.methods.get(path).unwrap_or(&self.unknown);
        let mut open = Open::new(known.measured.clone(), known.shape == Shape::Unary);
        let patience = match deadline::of_client(request.headers()) {
            Ok(patience) => patience,
            Err(error) => return refused(&mut open, error.into()),
        };
        match known.shape {
            Shape::Unary => {
                let _place = match self.places.try_acquire() {
                    Ok(place) => Some(place),
                    Err(_) if path.starts_with(HEALTH) => None,
                    Err(_) => {
                        self.metrics.calls.shed.inc();
                        let message = "the server has as many calls in progress as it takes (calls-max)";
                        return refused(&mut open, Error::overloaded(message).into());
                    }
                };
                let limit = patience.unwrap_or(Duration::MAX).min(self.limits.timeout);
                self.unary(inner, request, limit, open).await
            }
            // It is not for those without a key to keep others out.
            Shape::Stream | Shape::Exchange if path.starts_with(HEALTH) || path.starts_with(REFLECTION) => {
                let connection = request.extensions().get::<Connection>();
                let place = connection.map(|connection| connection.keyless.clone().try_acquire_owned());
                let leaving = match known.shape {
                    Shape::Stream => leaving(connection),
                    _ => CancellationToken::new(),
                };
                match place.transpose() {
                    Ok(place) => stream(inner, request, patience, leaving, open, place).await,
                    Err(_) => {
                        self.metrics.calls.shed.inc();
                        let message = format!(
                            "the connection has as many streams of health and reflection as it may ({KEYLESS})"
                        );
                        refused(&mut open, Error::overloaded(message).into())
                    }
                }
            }
            Shape::Stream => {
                let leaving = leaving(request.extensions().get::<Connection>());
                stream(inner, request, patience, leaving, open, None).await
            }
            Shape::Exchange => match self.exchanges.clone().try_acquire_owned() {
                Ok(place) => {
                    stream(inner, request, patience, CancellationToken::new(), open, Some(place)).await
                }
                Err(_) => {
                    self.metrics.calls.shed.inc();
                    let message = "clients send on as many streams as the server takes (1,024)";
                    refused(&mut open, Error::overloaded(message).into())
                }
            },
        }
    }

    async fn unary<S>(
        &self,
        mut inner: S,
        request: Request<Body>,
        limit: Duration,
        mut open: Open,
    ) -> Response<Body>
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    {
        let Ok(Ok(response)) = tokio::time::timeout(limit, inner.call(request)).await else {
            return refused(&mut open, status::deadline_exceeded(limit));
        };
        let failed = response.headers().contains_key("grpc-status");
        match failed.then(|| Status::from_header_map(response.headers())).flatten() {
            None => {
                open.ok();
                response
            }
            // tonic's decoder says so; which setting it is, it cannot know.
            Some(status) if status::says_too_large(&status) => {
                refused(&mut open, status::message_too_large(status.message()))
            }
            Some(status) => {
                open.code(status.code().into());
                response
            }
        }
    }
}

/// What ends a call's stream when its connection is to go.
fn leaving(connection: Option<&Connection>) -> CancellationToken {
    connection.map(|connection| connection.leaving.clone()).unwrap_or_default()
}

async fn stream<S>(
    mut inner: S,
    request: Request<Body>,
    patience: Option<Duration>,
    leaving: CancellationToken,
    mut open: Open,
    place: Option<OwnedSemaphorePermit>,
) -> Response<Body>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    let deadline = patience.map(|limit| (Instant::now() + limit, limit));
    let opening = inner.call(request);
    let response = match deadline {
        Some((at, limit)) => match tokio::time::timeout_at(at, opening).await {
            Ok(response) => response,
            Err(_) => return refused(&mut open, status::deadline_exceeded(limit)),
        },
        None => opening.await,
    };
    let Ok(response) = response;
    if response.headers().contains_key("grpc-status") {
        let status = Status::from_header_map(response.headers());
        open.code(status.map_or(Code::Unknown, |status| status.code()).into());
        return response;
    }
    response.map(|body| Body::new(StreamEnd::new(body, deadline, leaving.cancelled_owned(), open, place)))
}

fn refused(open: &mut Open, status: Status) -> Response<Body> {
    open.code(status.code().into());
    status.into_http()
}
