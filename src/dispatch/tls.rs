//! TLS towards receivers: verifying, against the server's roots or an endpoint's own, unless development switched that
//! off for the whole server; and with the endpoint's client certificate where it has one.

use std::borrow::Cow;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError, ClientConfig, Error, RootCertStore};

use super::client::SetupError;
use super::unverified::AnyCertificate;

/// What all configurations are made of.
#[derive(Clone)]
pub(super) struct Tls {
    provider: Arc<CryptoProvider>,
    /// The system's roots, and the extra ones.
    roots: Arc<RootCertStore>,
    verify: bool,
}

/// What is said, loudly, where receivers are not verified.
pub const UNVERIFIED: &str =
    "insecure-skip-tls-verify: whoever answers is taken for the receiver, for development only";

/// Sessions remembered for an endpoint with an identity of its own: it is one host.
const SESSIONS: usize = 4;

impl Tls {
    pub(super) fn new(
        system_roots: bool,
        extra_roots: &[CertificateDer<'static>],
        verify: bool,
    ) -> Result<Self, SetupError> {
        if !verify {
            tracing::warn!("{UNVERIFIED}");
        }
        let mut roots = RootCertStore::empty();
        if system_roots {
            let found = rustls_native_certs::load_native_certs();
            for error in &found.errors {
                tracing::warn!(%error, "cannot read some of the system's root certificates");
            }
            let (added, ignored) = roots.add_parsable_certificates(found.certs);
            tracing::debug!(added, ignored, "loaded the system's root certificates");
        }
        for root in extra_roots {
            roots.add(root.clone()).map_err(SetupError::ExtraRoot)?;
        }
        if roots.is_empty() && verify {
            tracing::warn!("no root certificates: every https endpoint will fail");
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        Ok(Self { provider, roots: Arc::new(roots), verify })
    }

    /// For endpoints without an identity of their own.
    pub(super) fn shared(&self) -> Result<Arc<ClientConfig>, Error> {
        self.config(self.roots.clone(), None).map(Arc::new)
    }

    /// For one endpoint: `authorities`, where there are any, are trusted instead of the server's roots.
    pub(super) fn of_endpoint(
        &self,
        authorities: Option<Vec<CertificateDer<'static>>>,
        certificate: Option<CertifiedKey>,
    ) -> Result<Arc<ClientConfig>, Error> {
        let roots = match authorities {
            None => self.roots.clone(),
            Some(authorities) => {
                let mut roots = RootCertStore::empty();
                for authority in authorities {
                    roots.add(authority)?;
                }
                Arc::new(roots)
            }
        };
        let mut config = self.config(roots, certificate)?;
        config.resumption = Resumption::in_memory_sessions(SESSIONS);
        Ok(Arc::new(config))
    }

    /// TLS 1.2 and 1.3, HTTP/1.1 only.
    fn config(
        &self,
        roots: Arc<RootCertStore>,
        certificate: Option<CertifiedKey>,
    ) -> Result<ClientConfig, Error> {
        let builder = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?;
        let builder = match self.verify {
            true => builder.with_root_certificates(roots),
            false => {
                let any = Arc::new(AnyCertificate(self.provider.clone()));
                builder.dangerous().with_custom_certificate_verifier(any)
            }
        };
        let mut config = match certificate {
            Some(certificate) => {
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certificate)))
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// Why a handshake failed, for the endpoint's owner: without the names that a certificate holds.
pub(super) fn describe(error: &Error) -> Cow<'static, str> {
    use CertificateError as C;
    let text = match error {
        Error::InvalidCertificate(certificate) => match certificate {
            C::UnknownIssuer => "certificate is not issued by a trusted authority",
            C::Expired | C::ExpiredContext { .. } => "certificate has expired",
            C::NotValidYet | C::NotValidYetContext { .. } => "certificate is not valid yet",
            C::NotValidForName | C::NotValidForNameContext { .. } => "certificate is for another host",
            C::Revoked => "certificate is revoked",
            C::BadSignature => "certificate has a bad signature",
            C::BadEncoding => "certificate cannot be read",
            _ => "certificate is not acceptable",
        },
        Error::NoCertificatesPresented => "server sent no certificate",
        Error::PeerIncompatible(_) => "server offers no TLS version or cipher that is accepted",
        Error::NoApplicationProtocol => "server does not speak HTTP/1.1",
        Error::AlertReceived(alert) => return format!("server ended TLS with {alert:?}").into(),
        Error::InvalidMessage(_) => "server does not speak TLS on this port",
        _ => "TLS failed",
    };
    text.into()
}
