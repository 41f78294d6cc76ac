//! The server's own certificate, for all that others reach it by: read from files, and read again without a restart.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use arc_swap::ArcSwap;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ConfigBuilder, RootCertStore, ServerConfig, WantsVerifier};

/// Where the certificate is, and whose clients are asked for theirs.
#[derive(Clone, Debug)]
pub struct ServerTls {
    /// PEM, the server's own certificate first.
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// With it a client of gRPC must show a certificate of this CA.
    pub client_ca: Option<PathBuf>,
}

/// One certificate, shown in two ways.
pub struct Faces {
    /// To services: HTTP/2, and their certificates where they are demanded.
    pub grpc: Arc<ServerConfig>,
    /// To customers, who have none: HTTP/1.1.
    pub portal: Arc<ServerConfig>,
}

impl ServerTls {
    /// Reads and checks the files.
    pub fn read(&self) -> anyhow::Result<Faces> {
        let chain = certificates(&self.certificate).context("tls-cert")?;
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .with_context(|| format!("tls-key: cannot read {}", self.key.display()))?;
        let portal = builder()?.with_no_client_auth().with_single_cert(chain.clone(), key.clone_key());
        let mut portal = portal.context("tls-cert and tls-key")?;
        portal.alpn_protocols = vec![b"http/1.1".to_vec()];

        let grpc = match &self.client_ca {
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(path).context("tls-client-ca")? {
                    roots.add(certificate).context("tls-client-ca")?;
                }
                let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder()?.with_client_cert_verifier(verifier.build().context("tls-client-ca")?)
            }
            None => builder()?.with_no_client_auth(),
        };
        let mut grpc = grpc.with_single_cert(chain, key).context("tls-cert and tls-key")?;
        grpc.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Faces { grpc: Arc::new(grpc), portal: Arc::new(portal) })
    }
}

fn builder() -> anyhow::Result<ConfigBuilder<ServerConfig, WantsVerifier>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Ok(ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?)
}

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = read.with_context(|| format!("cannot read {}", path.display()))?;
    if certificates.is_empty() {
        bail!("{} holds no certificate", path.display());
    }
    Ok(certificates)
}

/// The certificate in use.
pub struct Identity {
    files: ServerTls,
    current: ArcSwap<Faces>,
}

impl Identity {
    pub fn read(files: ServerTls) -> anyhow::Result<Arc<Self>> {
        let current = ArcSwap::from_pointee(files.read()?);
        Ok(Arc::new(Self { files, current }))
    }

    /// For the next handshake.
    pub fn current(&self) -> Arc<Faces> {
        self.current.load_full()
    }

    /// Reads the files again; what does not fit leaves the old certificate in use. Open connections stay.
    pub fn reload(&self) {
        match self.files.read() {
            Ok(faces) => {
                self.current.store(Arc::new(faces));
                tracing::info!(file = %self.files.certificate.display(), "read the certificate again");
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(error, "the new certificate cannot be used; the old one stays");
            }
        }
    }
}
