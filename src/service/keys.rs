//! API keys: making, finding and revoking them, and who a bearer is.
//!
//! A key reads `hk_<26 characters of its id>_<43 characters>`: the last part is 256 random bits in
//! base64url, of which the store keeps the SHA-256.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::Services;
use crate::domain::clock::Timestamp;
use crate::domain::error::{Error, ErrorKind, Result};
use crate::domain::id::{KeyId, ProjectId};
use crate::domain::page::{Page, PageRequest};
use crate::domain::principal::{Principal, Scope, Scopes};
use crate::domain::project::ApiKey;
use crate::store::{AuditEntry, Lane};

const PREFIX: &str = "hk_";

/// The text of a key, shown once.
#[derive(Clone)]
pub struct KeySecret(Zeroizing<String>);

impl KeySecret {
    /// The text, for the reply that made it.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    fn generate(id: KeyId) -> Self {
        let bytes: Zeroizing<[u8; 32]> = Zeroizing::new(rand::random());
        let id = id.to_string();
        let id = id.trim_start_matches("key_");
        Self(Zeroizing::new(format!("{PREFIX}{id}_{}", URL_SAFE_NO_PAD.encode(&bytes[..]))))
    }

    /// Reads a key that someone else made, such as the one given by configuration.
    pub fn parse(text: &str) -> Option<(Self, KeyId)> {
        let (id, _) = split(text)?;
        Some((Self(Zeroizing::new(text.to_owned())), id))
    }

    fn hash(&self) -> [u8; 32] {
        split(&self.0).map(|(_, secret)| hash(&secret)).unwrap_or_default()
    }
}

impl fmt::Debug for KeySecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeySecret([redacted])")
    }
}

fn split(text: &str) -> Option<(KeyId, Zeroizing<[u8; 32]>)> {
    let (id, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
    let secret = Zeroizing::new(URL_SAFE_NO_PAD.decode(secret).ok()?);
    let secret: [u8; 32] = secret.as_slice().try_into().ok()?;
    Some((format!("key_{id}").parse().ok()?, Zeroizing::new(secret)))
}

fn hash(secret: &[u8; 32]) -> [u8; 32] {
    Sha256::digest(secret).into()
}

/// A key to make.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// None for an operator key.
    pub project: Option<ProjectId>,
    pub name: String,
    pub scopes: Scopes,
    pub expires_at: Option<Timestamp>,
}

impl NewKey {
    fn made(self, id: KeyId) -> ApiKey {
        ApiKey {
            id,
            project: self.project,
            name: self.name,
            scopes: self.scopes,
            created_at: Timestamp::now(),
            expires_at: self.expires_at,
            last_used_at: None,
            revoked_at: None,
        }
    }
}

/// When it was read, the key, and the hash of its secret.
type KnownKey = (Instant, ApiKey, [u8; 32]);

/// Keys seen lately, so that a call costs no query; short-lived, so that a revoked key ends within a second.
#[derive(Default)]
pub struct KeyCache {
    known: Mutex<HashMap<KeyId, KnownKey>>,
    used: Mutex<HashMap<KeyId, Timestamp>>,
}

const CACHE_LIFE: Duration = Duration::from_secs(1);
const CACHE_MAX: usize = 10_000;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl KeyCache {
    fn get(&self, id: KeyId) -> Option<(ApiKey, [u8; 32])> {
        let known = lock(&self.known);
        let (at, key, hash) = known.get(&id)?;
        (at.elapsed() < CACHE_LIFE).then(|| (key.clone(), *hash))
    }

    fn put(&self, key: ApiKey, hash: [u8; 32]) {
        let mut known = lock(&self.known);
        if known.len() >= CACHE_MAX {
            known.clear();
        }
        known.insert(key.id, (Instant::now(), key, hash));
    }

    fn forget(&self, id: KeyId) {
        lock(&self.known).remove(&id);
    }

    fn note_use(&self, id: KeyId, now: Timestamp) {
        lock(&self.used).insert(id, now);
    }
}

impl Services {
    /// Who holds this bearer token.
    pub async fn authenticate(&self, token: &str, origin: Option<String>) -> Result<Principal> {
        let unknown = || {
            Error::new(ErrorKind::Unauthenticated, "INVALID_KEY", "the key is unknown, expired or revoked")
        };
        let (id, secret) = split(token).ok_or_else(unknown)?;
        let (key, stored) = match self.keys.get(id) {
            Some(known) => known,
            None => {
                let (key, stored) = self.store.key(id).await?.ok_or_else(unknown)?;
                let stored: [u8; 32] = stored.try_into().map_err(|_| unknown())?;
                self.keys.put(key.clone(), stored);
                (key, stored)
            }
        };
        let matches: bool = stored.ct_eq(&hash(&secret)).into();
        let now = Timestamp::now();
        if !matches || !key.is_valid(now) {
            return Err(unknown());
        }
        self.keys.note_use(id, now);
        let scopes = if key.project.is_none() { Scopes::all() } else { key.scopes };
        Ok(Principal { key_id: id, project: key.project, scopes, origin })
    }

    /// Whether a principal's key still works; long calls ask now and then.
    pub async fn is_still_valid(&self, principal: &Principal) -> Result<bool> {
        let key = self.store.key(principal.key_id).await?;
        Ok(key.is_some_and(|(key, _)| key.is_valid(Timestamp::now())))
    }

    pub async fn create_key(&self, principal: &Principal, new: NewKey) -> Result<(ApiKey, KeySecret)> {
        principal.require_operator()?;
        if let Some(project) = new.project {
            super::found(self.store.project(project).await?, "project", project)?;
            if new.scopes.is_empty() {
                return Err(Error::invalid(
                    "api_key.scopes",
                    "must name at least one scope for a project key",
                ));
            }
        } else if !new.scopes.is_empty() {
            return Err(Error::invalid(
                "api_key.scopes",
                "must be empty for an operator key, which may do everything",
            ));
        }
        let now = Timestamp::now();
        if new.expires_at.is_some_and(|end| end <= now) {
            return Err(Error::invalid("api_key.expire_time", "must be in the future"));
        }
        let id = KeyId::new();
        let secret = KeySecret::generate(id);
        let key = self.write_key(principal, id, new, &secret).await?;
        Ok((key, secret))
    }

    async fn write_key(
        &self,
        principal: &Principal,
        id: KeyId,
        new: NewKey,
        secret: &KeySecret,
    ) -> Result<ApiKey> {
        let key = new.made(id);
        let tx = self.store.begin(Lane::Service).await?;
        tx.insert_key(&key, secret.hash()).await?;
        tx.audit(AuditEntry {
            principal,
            project: key.project,
            action: "CreateApiKey",
            resource: key.id.to_string(),
            before: None,
            after: Some(summary(&key)),
        })
        .await?;
        self.commit(tx, async { Ok(key) }).await
    }

    /// Makes the first operator key, unless there is one. `given` is a key's text from the configuration.
    pub async fn ensure_operator_key(&self, given: Option<&str>) -> Result<Option<KeySecret>> {
        let (secret, id) = match given {
            Some(text) => KeySecret::parse(text).ok_or_else(|| {
                Error::invalid("HAWSER_OPERATOR_KEY", "must be a key as `hawser keys generate` makes it")
            })?,
            None if self.store.has_operator_key().await? => return Ok(None),
            None => {
                let id = KeyId::new();
                (KeySecret::generate(id), id)
            }
        };
        if self.store.key(id).await?.is_some() {
            return Ok(None);
        }
        let new = NewKey {
            project: None,
            name: "operator".to_owned(),
            scopes: Scopes::default(),
            expires_at: None,
        };
        let principal = Principal { key_id: id, project: None, scopes: Scopes::all(), origin: None };
        self.write_key(&principal, id, new, &secret).await?;
        Ok(Some(secret))
    }

    pub async fn list_keys(
        &self,
        principal: &Principal,
        project: Option<ProjectId>,
        page: PageRequest,
    ) -> Result<Page<ApiKey>> {
        principal.require_operator()?;
        Ok(self.store.keys(project, page).await?)
    }

    pub async fn revoke_key(&self, principal: &Principal, id: KeyId) -> Result<ApiKey> {
        principal.require_operator()?;
        let tx = self.store.begin(Lane::Service).await?;
        let key = super::found(tx.revoke_key(id, Timestamp::now()).await?, "api_key", id)?;
        tx.audit(AuditEntry {
            principal,
            project: key.project,
            action: "RevokeApiKey",
            resource: id.to_string(),
            before: None,
            after: Some(summary(&key)),
        })
        .await?;
        let keys = self.keys.clone();
        self.commit(tx, async move {
            keys.forget(id);
            Ok(key)
        })
        .await
    }

    /// Writes down when keys were last used.
    pub async fn flush_key_uses(&self) -> Result<()> {
        let used: Vec<_> = lock(&self.keys.used).drain().collect();
        if !used.is_empty() {
            self.store.touch_keys(&used).await?;
        }
        Ok(())
    }
}

/// A key for the audit log.
fn summary(key: &ApiKey) -> String {
    serde_json::json!({
        "name": key.name,
        "scopes": key.scopes.iter().map(Scope::as_str).collect::<Vec<_>>(),
        "expires_at_ms": key.expires_at.map(Timestamp::as_millis),
        "revoked_at_ms": key.revoked_at.map(Timestamp::as_millis),
    })
    .to_string()
}

/// Making keys without a server, for whoever holds the store itself.
pub mod offline {
    use super::{
        ApiKey, AuditEntry, Error, KeyId, KeySecret, Lane, NewKey, PageRequest, Principal, ProjectId, Result,
        Timestamp, summary,
    };
    use crate::domain::page::PAGE_MAX;
    use crate::store::{Store, Tx};

    /// Makes a key in a store that is open here.
    pub async fn create_key(store: &Store, new: NewKey) -> Result<KeySecret> {
        if let Some(project) = new.project {
            store.project(project).await?.ok_or_else(|| Error::not_found("project", project))?;
        }
        let id = KeyId::new();
        let secret = KeySecret::generate(id);
        let key = new.made(id);
        let tx = store.begin(Lane::Service).await?;
        tx.insert_key(&key, secret.hash()).await?;
        audit(&tx, "CreateApiKey", &key).await?;
        tx.commit().await?;
        Ok(secret)
    }

    /// Keys of a project, or operator keys; the first thousand.
    pub async fn list_keys(store: &Store, project: Option<ProjectId>) -> Result<Vec<ApiKey>> {
        let page = PageRequest { size: PAGE_MAX, after: None };
        Ok(store.keys(project, page).await?.items)
    }

    /// Revokes a key.
    pub async fn revoke_key(store: &Store, id: KeyId) -> Result<ApiKey> {
        let tx = store.begin(Lane::Service).await?;
        let key =
            tx.revoke_key(id, Timestamp::now()).await?.ok_or_else(|| Error::not_found("api_key", id))?;
        audit(&tx, "RevokeApiKey", &key).await?;
        tx.commit().await?;
        Ok(key)
    }

    /// Whoever holds the store needs no key.
    async fn audit(tx: &Tx, action: &'static str, key: &ApiKey) -> Result<()> {
        let principal = Principal { origin: Some("the store itself".to_owned()), ..Principal::server() };
        let entry = AuditEntry {
            principal: &principal,
            project: key.project,
            action,
            resource: key.id.to_string(),
            before: None,
            after: Some(summary(key)),
        };
        Ok(tx.audit(entry).await?)
    }
}

/// A key's text with a fresh id, for `HAWSER_OPERATOR_KEY`.
pub fn generate_operator_key() -> KeySecret {
    KeySecret::generate(KeyId::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_names_its_id_and_shows_nothing_else() {
        let id = KeyId::new();
        let secret = KeySecret::generate(id);
        assert_eq!(KeySecret::parse(secret.reveal()).map(|(_, id)| id), Some(id));
        assert_eq!(secret.reveal().len(), 3 + 26 + 1 + 43);
        assert_eq!(format!("{secret:?}"), "KeySecret([redacted])");
        for text in ["", "hk_", "hk_x_y", &secret.reveal()[1..], &secret.reveal()[..40]] {
            assert!(KeySecret::parse(text).is_none(), "{text}");
        }
    }
}
