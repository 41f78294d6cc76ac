//! The public keys of endpoints, for receivers that verify by them: `/endpoints/{id}/.well-known/jwks.json` (RFC 7517).
//!
//! One set for each endpoint, because a receiver that trusted the keys of others would accept what was signed for them.
//! Anyone may ask, so what is asked costs at most one look at the database in some seconds, and few at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use crate::domain::error::Result;
use crate::domain::id::EndpointId;
use crate::service::Services;

/// For how long a set is answered from memory; a rotation shows in it after that at the latest.
const KEPT: Duration = Duration::from_secs(5);
const KEPT_MAX: usize = 10_000;
/// Looks at the database at once, and how long one waits for its turn.
const LOOKS: usize = 4;
const TURN: Duration = Duration::from_secs(2);
/// How long receivers may keep a set: less than any sensible grace.
const CACHE: &str = "public, max-age=60";

/// Answers for key sets.
pub struct KeySets {
    services: Services,
    kept: Mutex<HashMap<EndpointId, (Instant, Option<KeySet>)>>,
    looks: Semaphore,
}

#[derive(Clone)]
struct KeySet {
    json: Bytes,
    etag: String,
}

pub fn router(services: Services) -> Router {
    let sets = Arc::new(KeySets { services, kept: Mutex::default(), looks: Semaphore::new(LOOKS) });
    Router::new().route("/endpoints/{id}/.well-known/jwks.json", get(jwks)).with_state(sets)
}

async fn jwks(State(sets): State<Arc<KeySets>>, Path(id): Path<String>, asked: HeaderMap) -> Response {
    let Ok(id) = id.parse::<EndpointId>() else { return not_found() };
    let set = match sets.get(id).await {
        Ok(Some(set)) => set,
        Ok(None) => return not_found(),
        Err(Busy) => return (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")]).into_response(),
    };
    let headers = [
        (header::CONTENT_TYPE, "application/jwk-set+json".to_owned()),
        (header::CACHE_CONTROL, CACHE.to_owned()),
        (header::ETAG, set.etag.clone()),
        // Pages of receivers' dashboards may read it too: it is public.
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*".to_owned()),
    ];
    let known = asked.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    if known.is_some_and(|known| known.split(',').any(|one| one.trim() == set.etag)) {
        return (StatusCode::NOT_MODIFIED, headers).into_response();
    }
    (headers, set.json).into_response()
}

/// The same for an endpoint that is not there and one that has no public key.
fn not_found() -> Response {
    (StatusCode::NOT_FOUND, [(header::CACHE_CONTROL, CACHE)]).into_response()
}

/// The database was not looked at: too many wait, or it is away.
struct Busy;

impl KeySets {
    async fn get(&self, id: EndpointId) -> std::result::Result<Option<KeySet>, Busy> {
        if let Some(known) = self.known(id) {
            return Ok(known);
        }
        let turn = tokio::time::timeout(TURN, self.looks.acquire()).await;
        let Ok(Ok(_turn)) = turn else { return Err(Busy) };
        // Someone else may have looked meanwhile.
        if let Some(known) = self.known(id) {
            return Ok(known);
        }
        match self.read(id).await {
            Ok(set) => {
                self.keep(id, set.clone());
                Ok(set)
            }
            Err(error) => {
                tracing::warn!(error = %error, "a key set could not be read");
                Err(Busy)
            }
        }
    }

    fn known(&self, id: EndpointId) -> Option<Option<KeySet>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get(&id).filter(|(at, _)| at.elapsed() < KEPT).map(|(_, set)| set.clone())
    }

    fn keep(&self, id: EndpointId, set: Option<KeySet>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT_MAX {
            kept.clear();
        }
        kept.insert(id, (Instant::now(), set));
    }

    /// None where there is no public key.
    async fn read(&self, id: EndpointId) -> Result<Option<KeySet>> {
        let keys = self.services.public_keys(id).await?;
        if keys.is_empty() {
            return Ok(None);
        }
        let keys: Vec<_> = keys
            .iter()
            .map(|(id, key)| {
                serde_json::json!({
                    "kty": "OKP",
                    "crv": "Ed25519",
                    "alg": "EdDSA",
                    "use": "sig",
                    "kid": id.to_string(),
                    "x": key.jwk_x(),
                })
            })
            .collect();
        let json = serde_json::json!({ "keys": keys }).to_string();
        let hash = Sha256::digest(json.as_bytes());
        let etag = hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect::<String>();
        Ok(Some(KeySet { json: json.into(), etag: format!("\"{etag}\"") }))
    }
}
