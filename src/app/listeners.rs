//! Where the server listens: bound before anything is delivered, so that nothing is delivered there.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context;
use tokio::net::TcpListener;

/// The bound listeners; what connects waits until they are served.
pub struct Listeners {
    pub grpc: TcpListener,
    pub admin: Option<TcpListener>,
    pub portal: Option<TcpListener>,
}

/// Where they are.
pub struct Addresses {
    pub grpc: SocketAddr,
    pub admin: Option<SocketAddr>,
    pub portal: Option<SocketAddr>,
}

impl Listeners {
    /// Binds gRPC's, and those of the other two that there are to be.
    pub async fn bind(
        grpc: SocketAddr,
        admin: Option<SocketAddr>,
        portal: Option<SocketAddr>,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            grpc: listen(grpc).await?,
            admin: listen_if(admin).await.context("admin-listen")?,
            portal: listen_if(portal).await.context("portal-listen")?,
        })
    }

    pub fn addresses(&self) -> std::io::Result<Addresses> {
        let address =
            |listener: &Option<TcpListener>| listener.as_ref().map(TcpListener::local_addr).transpose();
        Ok(Addresses {
            grpc: self.grpc.local_addr()?,
            admin: address(&self.admin)?,
            portal: address(&self.portal)?,
        })
    }
}

impl Addresses {
    pub fn all(&self) -> Vec<SocketAddr> {
        [Some(self.grpc), self.admin, self.portal].into_iter().flatten().collect()
    }

    /// Tells whoever started the server. Written as a whole, so that a reader never sees half.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let Self { grpc, admin, portal } = self;
        let draft = path.with_added_extension("new");
        let text = format!("{}\n", serde_json::json!({ "grpc": grpc, "admin": admin, "portal": portal }));
        std::fs::write(&draft, text)
            .and_then(|()| std::fs::rename(&draft, path))
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}

async fn listen_if(address: Option<SocketAddr>) -> anyhow::Result<Option<TcpListener>> {
    match address {
        Some(address) => listen(address).await.map(Some),
        None => Ok(None),
    }
}
