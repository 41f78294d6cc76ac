//! Authentication: a tower layer over everything but health, so that no service can be forgotten.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::header::AUTHORIZATION;
use http::{Request, Response};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};
use zeroize::Zeroizing;

use super::listener::Connection;
use super::status::unauthenticated;
use crate::domain::principal::Principal;
use crate::service::Services;

pub const HEALTH: &str = "/grpc.health.v1.Health/";
const REFLECTION: &str = "/grpc.reflection.";

/// Adds authentication to a service.
#[derive(Clone)]
pub struct AuthLayer {
    services: Services,
    reflection_open: bool,
}

impl AuthLayer {
    pub fn new(services: Services, reflection_open: bool) -> Self {
        Self { services, reflection_open }
    }
}

impl<S> Layer<S> for AuthLayer {
    type Service = Authenticated<S>;

    fn layer(&self, inner: S) -> Authenticated<S> {
        Authenticated { inner, layer: self.clone() }
    }
}

/// A service that only authenticated calls reach.
#[derive(Clone)]
pub struct Authenticated<S> {
    inner: S,
    layer: AuthLayer,
}

impl<S> Service<Request<Body>> for Authenticated<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        // The clone that was polled ready takes the call.
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        let layer = self.layer.clone();
        Box::pin(async move {
            let path = request.uri().path();
            let open = path.starts_with(HEALTH) || (layer.reflection_open && path.starts_with(REFLECTION));
            if !open {
                let (token, origin) = (bearer(&request), origin(&request));
                match authenticate(&layer.services, token, origin).await {
                    Ok(principal) => {
                        request.extensions_mut().insert(principal);
                    }
                    Err(status) => return Ok(status.into_http()),
                }
            }
            inner.call(request).await
        })
    }
}

async fn authenticate(
    services: &Services,
    token: Option<Zeroizing<String>>,
    origin: Option<String>,
) -> Result<Principal, Status> {
    let token = token.ok_or_else(|| unauthenticated("send `authorization: Bearer <key>`"))?;
    Ok(services.authenticate(&token, origin).await?)
}

/// The token of RFC 6750's header.
fn bearer(request: &Request<Body>) -> Option<Zeroizing<String>> {
    let (scheme, token) = request.headers().get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| Zeroizing::new(token.trim().to_owned()))
}

fn origin(request: &Request<Body>) -> Option<String> {
    Some(request.extensions().get::<Connection>()?.origin.to_string())
}
