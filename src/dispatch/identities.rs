//! One pool of connections for each TLS identity: an endpoint with a client certificate or with authorities of its
//! own shares its connections with no other, nor with what it was before a change.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::client::HttpClient;
use super::connector::Connector;
use super::failure::Failure;
use super::identity;
use super::kept::Kept;
use super::tls::Tls;
use crate::domain::attempt::ErrorClass;
use crate::domain::clock::Timestamp;
use crate::domain::credentials::Credentials;
use crate::domain::id::EndpointId;

/// Identities whose connections are kept; beyond it the one that was used longest ago goes.
const KEPT: usize = 4096;
/// One that was not used for so long goes.
const UNUSED: Duration = Duration::from_secs(300);

/// Makes a client that connects by this connector.
type MakeClient = dyn Fn(Connector) -> HttpClient + Send + Sync;

pub(super) struct Identities {
    tls: Tls,
    connector: Connector,
    make: Box<MakeClient>,
    kept: Mutex<Kept<HttpClient>>,
}

impl Identities {
    pub(super) fn new(
        tls: Tls,
        connector: Connector,
        make: impl Fn(Connector) -> HttpClient + Send + Sync + 'static,
    ) -> Self {
        Self { tls, connector, make: Box::new(make), kept: Mutex::new(Kept::new(KEPT, UNUSED)) }
    }

    /// The client for an endpoint. A certificate that has expired, or cannot be used, fails before anything is
    /// dialled.
    pub(super) fn client(
        &self,
        endpoint: EndpointId,
        credentials: &Credentials,
    ) -> Result<HttpClient, Failure> {
        check_expiry(credentials)?;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get(endpoint, credentials.version, || self.fresh(credentials))
    }

    /// A client whose connections are for one use.
    pub(super) fn once(&self, credentials: &Credentials) -> Result<HttpClient, Failure> {
        check_expiry(credentials)?;
        self.fresh(credentials)
    }

    fn fresh(&self, credentials: &Credentials) -> Result<HttpClient, Failure> {
        let unusable = |_| Failure::new(ErrorClass::Certificate, "the client certificate cannot be used");
        let untrusted = |_| Failure::new(ErrorClass::Certificate, "the CA certificates cannot be used");
        let certificate = match &credentials.client_certificate {
            None => None,
            Some(own) => {
                let chain = identity::certificates(&own.chain, usize::MAX).map_err(unusable)?;
                let key = identity::private_key(&own.key).map_err(unusable)?;
                Some(identity::certified(chain, key).map_err(unusable)?)
            }
        };
        let authorities = match &credentials.authorities {
            None => None,
            Some(pem) => Some(identity::certificates(pem, usize::MAX).map_err(untrusted)?),
        };
        let config = self.tls.of_endpoint(authorities, certificate).map_err(|error| {
            tracing::warn!(%error, "a stored TLS identity cannot be used");
            Failure::new(ErrorClass::Certificate, "the certificates cannot be used")
        })?;
        Ok((self.make)(self.connector.with_tls(config)))
    }
}

fn check_expiry(credentials: &Credentials) -> Result<(), Failure> {
    match &credentials.client_certificate {
        Some(own) if own.ends_at <= Timestamp::now() => {
            Err(Failure::new(ErrorClass::Certificate, "the client certificate has expired"))
        }
        _ => Ok(()),
    }
}
