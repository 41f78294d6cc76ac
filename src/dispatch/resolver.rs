//! Names to addresses, within a time of its own: by the system's name servers, or by given ones.
//!
//! Resolving is not trusting: every address it finds is checked by the connector.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, NameServerConfig, ResolverConfig};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::Name;

use super::failure::{Failure, is_lack, seconds};
use crate::domain::attempt::ErrorClass;

/// A changed record is seen within this time, whatever its TTL.
const POSITIVE_TTL_MAX: Duration = Duration::from_secs(300);
/// A record made after someone asked for it is seen within this time.
const NEGATIVE_TTL_MAX: Duration = Duration::from_secs(30);
/// Answers kept in memory.
const CACHE_SIZE: u64 = 4096;

pub(super) struct Resolver {
    inner: TokioResolver,
    budget: Duration,
}

impl Resolver {
    /// Without name servers, those of the system are used, and its hosts file.
    pub(super) fn new(name_servers: &[SocketAddr], budget: Duration) -> Result<Self, NetError> {
        let mut builder = if name_servers.is_empty() {
            system_builder()
        } else {
            let servers = name_servers.iter().map(|server| {
                let mut config = NameServerConfig::udp_and_tcp(server.ip());
                for connection in &mut config.connections {
                    connection.port = server.port();
                }
                config
            });
            let config = ResolverConfig::from_name_servers(servers.collect());
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        };
        let options = builder.options_mut();
        // Both families are asked, for one bad answer must refuse the attempt. Where one of them stays
        // without an answer, its two tries end before the budget does, so that the other can be used.
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        options.timeout = budget * 2 / 5;
        options.attempts = 1;
        options.cache_size = CACHE_SIZE;
        options.positive_max_ttl = Some(POSITIVE_TTL_MAX);
        options.negative_max_ttl = Some(NEGATIVE_TTL_MAX);
        Ok(Self { inner: builder.build()?, budget })
    }

    /// All addresses of a host, IPv4 first; never none.
    pub(super) async fn lookup(&self, host: &str) -> Result<Vec<IpAddr>, Failure> {
        let mut name = Name::from_ascii(host).map_err(|error| failure(host, &error.into()))?;
        // Absolute, or the system's search domains would be tried.
        name.set_fqdn(true);
        let found = match tokio::time::timeout(self.budget, self.inner.lookup_ip(name)).await {
            Ok(Ok(found)) => found.iter().collect::<Vec<_>>(),
            Ok(Err(error)) => return Err(failure(host, &error)),
            Err(_) => {
                let detail = format!("no answer from DNS within {}", seconds(self.budget));
                return Err(Failure::new(ErrorClass::Dns, detail));
            }
        };
        if found.is_empty() {
            return Err(Failure::new(ErrorClass::Dns, "host name has no address"));
        }
        Ok(found)
    }
}

/// Where the system has no resolver configuration, do as the C library does and ask this machine.
fn system_builder() -> hickory_resolver::ResolverBuilder<TokioRuntimeProvider> {
    TokioResolver::builder_tokio().unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot read the system's DNS configuration; asking 127.0.0.1");
        let local = NameServerConfig::udp_and_tcp(Ipv4Addr::LOCALHOST.into());
        let config = ResolverConfig::from_name_servers(vec![local]);
        TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
    })
}

fn failure(host: &str, error: &NetError) -> Failure {
    if let NetError::Io(error) = error
        && is_lack(error)
    {
        return Failure::lack(error);
    }
    let detail = if error.is_nx_domain() {
        "host name does not exist"
    } else if error.is_no_records_found() {
        "host name has no address"
    } else {
        tracing::debug!(host, %error, "name resolution failed");
        match error {
            NetError::Timeout => "no answer from DNS",
            _ => "DNS failed",
        }
    };
    Failure::new(ErrorClass::Dns, detail)
}
