//! The server's own certificate: read from files, and read again without a restart.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use arc_swap::ArcSwap;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

/// Where the certificate is, and whose clients are asked for theirs.
#[derive(Clone, Debug)]
pub struct GrpcTls {
    /// PEM, the server's own certificate first.
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// With it a client must show a certificate of this CA.
    pub client_ca: Option<PathBuf>,
}

impl GrpcTls {
    /// Reads and checks the files.
    pub fn read(&self) -> anyhow::Result<Arc<ServerConfig>> {
        let chain = certificates(&self.certificate).context("tls-cert")?;
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .with_context(|| format!("tls-key: cannot read {}", self.key.display()))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config =
            ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
        let config = match &self.client_ca {
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(path).context("tls-client-ca")? {
                    roots.add(certificate).context("tls-client-ca")?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                config.with_client_cert_verifier(verifier.build().context("tls-client-ca")?)
            }
            None => config.with_no_client_auth(),
        };
        let mut config = config.with_single_cert(chain, key).context("tls-cert and tls-key")?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

fn certificates(path: &std::path::Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = read.with_context(|| format!("cannot read {}", path.display()))?;
    if certificates.is_empty() {
        bail!("{} holds no certificate", path.display());
    }
    Ok(certificates)
}

/// The certificate in use.
pub struct Identity {
    files: GrpcTls,
    current: ArcSwap<ServerConfig>,
}

impl Identity {
    pub fn read(files: GrpcTls) -> anyhow::Result<Arc<Self>> {
        let current = ArcSwap::new(files.read()?);
        Ok(Arc::new(Self { files, current }))
    }

    /// For the next handshake.
    pub fn current(&self) -> Arc<ServerConfig> {
        self.current.load_full()
    }

    /// Reads the files again; what does not fit leaves the old certificate in use. Open connections stay.
    pub fn reload(&self) {
        match self.files.read() {
            Ok(config) => {
                self.current.store(config);
                tracing::info!(file = %self.files.certificate.display(), "read the certificate again");
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(error, "the new certificate cannot be used; the old one stays");
            }
        }
    }
}
