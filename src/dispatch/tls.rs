//! TLS towards receivers: one configuration for all of them, always verifying.

use std::borrow::Cow;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::{CertificateError, ClientConfig, Error, RootCertStore};

use super::client::SetupError;

/// TLS 1.2 and 1.3, HTTP/1.1 only, verified against the system's roots and the extra ones.
pub(super) fn client_config(
    system_roots: bool,
    extra_roots: &[CertificateDer<'static>],
) -> Result<Arc<ClientConfig>, SetupError> {
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
    if roots.is_empty() {
        tracing::warn!("no root certificates: every https endpoint will fail");
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(SetupError::Tls)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
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
