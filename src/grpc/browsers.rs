//! Calls from browsers: CORS, and gRPC-Web made into plain gRPC. All other calls pass by: what browsers need is copied
//! and asked for with every request.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, Request, Response, Version, header};
use tonic::body::Body;
use tonic_web::{GrpcWebLayer, GrpcWebService};
use tower::{Layer, Service, ServiceExt};
use tower_http::cors::{Cors, CorsLayer};

/// How long a browser may keep the answer to its preflight.
const PREFLIGHT_KEPT: Duration = Duration::from_secs(7200);
/// What gRPC-Web clients send beside the key.
const REQUEST_HEADERS: [&str; 4] = ["grpc-timeout", "x-grpc-web", "x-user-agent", "connect-protocol-version"];

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// Adds browsers to a service of gRPC calls.
#[derive(Clone)]
pub struct BrowserLayer {
    cors: CorsLayer,
}

impl BrowserLayer {
    /// Pages of these origins may call, and may read the status that gRPC-Web puts into headers.
    pub fn new(origins: Vec<HeaderValue>) -> Self {
        let names =
            |names: &[&'static str]| names.iter().copied().map(HeaderName::from_static).collect::<Vec<_>>();
        let cors = CorsLayer::new()
            .allow_origin(origins)
            .allow_methods([Method::POST])
            .allow_headers(
                [vec![header::AUTHORIZATION, header::CONTENT_TYPE], names(&REQUEST_HEADERS)].concat(),
            )
            .expose_headers(names(&["grpc-status", "grpc-message", "grpc-status-details-bin"]))
            .max_age(PREFLIGHT_KEPT);
        Self { cors }
    }
}

impl<S: Clone> Layer<S> for BrowserLayer {
    type Service = Browsers<S>;

    fn layer(&self, calls: S) -> Browsers<S> {
        // A browser's preflight has no key and is answered by CORS. From gRPC-Web on, its call is a call like any other,
        // refusals included.
        let web = self.cors.layer(GrpcWebLayer::new().layer(calls.clone()));
        Browsers { calls, web: Arc::new(web) }
    }
}

/// A service that browsers can call too.
#[derive(Clone)]
pub struct Browsers<S> {
    calls: S,
    web: Arc<Cors<GrpcWebService<S>>>,
}

impl<S> Service<Request<Body>> for Browsers<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future = Answer>,
    S: Clone + Send + Sync + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.calls.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Answer {
        if is_plain(&request) {
            return self.calls.call(request);
        }
        Box::pin(Cors::clone(&self.web).oneshot(request))
    }
}

/// Browsers name their page's origin, and cannot read the trailers of plain gRPC.
fn is_plain(request: &Request<Body>) -> bool {
    if request.version() != Version::HTTP_2 {
        return false;
    }
    let headers = request.headers();
    let plain = headers.get(header::CONTENT_TYPE).is_some_and(|kind| {
        kind.as_bytes().strip_prefix(b"application/grpc").is_some_and(|rest| !rest.starts_with(b"-"))
    });
    plain && !headers.contains_key(header::ORIGIN)
}
