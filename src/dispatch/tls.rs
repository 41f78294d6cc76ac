//! TLS for outbound connections: verified always, by the system's roots and configured ones.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::failure::ConnectFailure;
use crate::domain::attempt::ErrorClass;

/// A connector that trusts the system's roots and those in `extra_pem`.
pub fn connector(extra_pem: Option<&str>) -> Result<TlsConnector, String> {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    for error in native.errors {
        tracing::warn!(error = %error, "a system root certificate could not be read");
    }
    let (_, unusable) = roots.add_parsable_certificates(native.certs);
    if unusable > 0 {
        tracing::debug!(unusable, "some system root certificates are not usable");
    }
    if let Some(pem) = extra_pem {
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let certificate = certificate.map_err(|error| format!("the configured CA file: {error}"))?;
            roots.add(certificate).map_err(|error| format!("the configured CA file: {error}"))?;
        }
    }
    if roots.is_empty() {
        tracing::warn!("no root certificates found: every https delivery will fail (install ca-certificates)");
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Performs the handshake for the host as the URL names it, whatever address was dialled.
pub async fn handshake(
    connector: &TlsConnector,
    host: &str,
    stream: TcpStream,
) -> Result<TlsStream<TcpStream>, ConnectFailure> {
    let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = ServerName::try_from(bare)
        .map_err(|_| ConnectFailure::new(ErrorClass::Tls, "the host's name cannot be verified"))?;
    connector.connect(name, stream).await.map_err(|error| {
        let reason = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>())
            .map_or_else(|| "the connection ended".to_owned(), describe);
        ConnectFailure::new(ErrorClass::Tls, format!("the TLS handshake failed: {reason}"))
    })
}

/// In words that help a customer. What the peer sent is not repeated.
fn describe(error: &rustls::Error) -> String {
    use rustls::{CertificateError, Error};
    let text = match error {
        Error::InvalidCertificate(why) => match why {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "the certificate has expired",
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "the certificate is not valid yet"
            }
            CertificateError::UnknownIssuer => "the certificate's issuer is not trusted",
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "the certificate is for another name"
            }
            CertificateError::Revoked => "the certificate was revoked",
            _ => "the certificate is not valid",
        },
        Error::PeerIncompatible(_) => "no common TLS version or cipher",
        Error::AlertReceived(_) => "the receiver refused",
        _ => "the receiver does not speak TLS as expected",
    };
    text.to_owned()
}
