//! Names to addresses, with every address checked.

use std::net::IpAddr;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;

use super::failure::ConnectFailure;
use crate::domain::address::AddressPolicy;
use crate::domain::attempt::ErrorClass;

const BUDGET: Duration = Duration::from_secs(5);
/// More answers are not looked at when dialling; all are checked.
const ADDRESSES_USED: usize = 8;

/// Resolves and checks.
pub struct Resolver {
    dns: TokioResolver,
    policy: AddressPolicy,
}

impl Resolver {
    /// `nameservers` instead of the system's, where there are any.
    pub fn new(nameservers: &[std::net::SocketAddr], policy: AddressPolicy) -> Result<Self, String> {
        let builder = if nameservers.is_empty() {
            TokioResolver::builder_tokio().map_err(|error| format!("the system's resolver settings: {error}"))?
        } else {
            let servers = nameservers.iter().map(|server| {
                let mut config = NameServerConfig::udp_and_tcp(server.ip());
                for connection in &mut config.connections {
                    connection.port = server.port();
                }
                config
            });
            let config = ResolverConfig::from_name_servers(servers.collect());
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        };
        let dns = builder.build().map_err(|error| format!("the resolver: {error}"))?;
        Ok(Self { dns, policy })
    }

    /// The addresses of a name that may be dialled. One bad answer refuses them all: a name that points both
    /// outside and inside is an attack or a mistake.
    pub async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, ConnectFailure> {
        let unresolved = || ConnectFailure::new(ErrorClass::Dns, "the host's name did not resolve");
        // Fully qualified, so that no search domain is tried.
        let name = format!("{name}.");
        let answer = tokio::time::timeout(BUDGET, self.dns.lookup_ip(name))
            .await
            .map_err(|_| unresolved())?
            .map_err(|_| unresolved())?;
        let mut addresses: Vec<IpAddr> = Vec::new();
        for address in answer.iter() {
            self.check(address)?;
            if addresses.len() < ADDRESSES_USED {
                addresses.push(address);
            }
        }
        if addresses.is_empty() { Err(unresolved()) } else { Ok(addresses) }
    }

    /// Refuses an address that must not be dialled.
    pub fn check(&self, address: IpAddr) -> Result<(), ConnectFailure> {
        if self.policy.permits(address) {
            return Ok(());
        }
        Err(ConnectFailure::new(ErrorClass::BlockedAddress, "the target's address is not allowed"))
    }
}
