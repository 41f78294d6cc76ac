//! What of ours is never dialled, whatever the lists allow: the server's own listeners and its database.
//!
//! A customer's URL that led there would be answered by us: metrics on the admin port, to begin with. Ports are compared
//! first, so that other connections cost nothing more.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

/// Where the database is may be asked for so long.
const LOOKUP: Duration = Duration::from_secs(5);

/// The places that are ours.
#[derive(Clone, Debug, Default)]
pub struct OwnPlaces {
    /// As they are bound: one on all addresses is met on each address of this machine.
    pub listeners: Vec<SocketAddr>,
    /// The database's host and port, where it has them.
    pub database: Option<(String, u16)>,
}

impl OwnPlaces {
    /// Whether one of these addresses leads to us at that port.
    pub(super) async fn include(&self, addresses: &[IpAddr], port: u16) -> bool {
        let is_met = |own: &SocketAddr| {
            own.port() == port && addresses.iter().any(|address| meets(own.ip(), *address))
        };
        self.listeners.iter().any(is_met) || self.include_database(addresses, port).await
    }

    /// Its name is resolved each time, as the database's driver does, since it may move.
    async fn include_database(&self, addresses: &[IpAddr], port: u16) -> bool {
        let Some((host, _)) = self.database.as_ref().filter(|(_, own)| *own == port) else { return false };
        let found = tokio::time::timeout(LOOKUP, tokio::net::lookup_host((host.as_str(), port))).await;
        let Ok(Ok(mut found)) = found else {
            tracing::warn!(host, "the database's name does not resolve: nothing is dialled at its port");
            return true;
        };
        found.any(|own| {
            // On this machine it may listen on more addresses than the one that we use.
            let own = own.ip();
            let here = is_of_this_machine(own.to_canonical());
            addresses.iter().any(|address| {
                own.to_canonical() == address.to_canonical()
                    || (here && is_of_this_machine(address.to_canonical()))
            })
        })
    }
}

/// Whether who dials `address` may reach a listener that is bound to `own`.
fn meets(own: IpAddr, address: IpAddr) -> bool {
    let (own, address) = (own.to_canonical(), address.to_canonical());
    // To dial the unspecified address is to dial this machine.
    own == address || address.is_unspecified() || (own.is_unspecified() && is_of_this_machine(address))
}

/// An address that can be bound is one of this machine, or of this container. Where the kernel lets any be bound
/// (`ip_nonlocal_bind`), all seem to be: more is refused then, at these few ports.
fn is_of_this_machine(address: IpAddr) -> bool {
    address.is_loopback()
        || address.is_unspecified()
        || !matches!(UdpSocket::bind((address, 0)), Err(error) if error.kind() == ErrorKind::AddrNotAvailable)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn includes(own: &OwnPlaces, address: &str) -> bool {
        let address: SocketAddr = address.parse().expect(address);
        own.include(&[address.ip()], address.port()).await
    }

    #[tokio::test]
    async fn a_listener_is_met_where_it_listens() {
        let own = OwnPlaces {
            listeners: ["127.0.0.1:1001", "0.0.0.0:1002", "[::]:1003"]
                .map(|text| text.parse().expect(text))
                .into(),
            database: None,
        };
        for ours in [
            "127.0.0.1:1001",
            "[::ffff:127.0.0.1]:1001",
            "0.0.0.0:1001",
            "127.0.0.1:1002",
            "127.9.9.9:1002",
            "[::1]:1002",
            "0.0.0.0:1002",
            "127.0.0.1:1003",
            "[::1]:1003",
            "[::]:1003",
        ] {
            assert!(includes(&own, ours).await, "{ours}");
        }
        // Documentation addresses, which no machine has.
        for other in ["127.0.0.2:1001", "127.0.0.1:1004", "192.0.2.1:1002", "[2001:db8::1]:1003"] {
            assert!(!includes(&own, other).await, "{other}");
        }
        assert!(own.include(&["192.0.2.1", "127.0.0.1"].map(|text| text.parse().expect(text)), 1001).await);
    }

    #[tokio::test]
    async fn a_database_is_met_by_its_name_and_on_all_addresses_of_its_machine() {
        let at = |host: &str| OwnPlaces { listeners: Vec::new(), database: Some((host.to_owned(), 5433)) };
        for (host, address, ours) in [
            ("localhost", "127.0.0.1:5433", true),
            ("127.0.0.1", "127.0.0.2:5433", true),
            ("127.0.0.1", "[::1]:5433", true),
            ("127.0.0.1", "127.0.0.1:5434", false),
            ("127.0.0.1", "192.0.2.1:5433", false),
            ("192.0.2.1", "192.0.2.1:5433", true),
            ("192.0.2.1", "[::ffff:192.0.2.1]:5433", true),
            ("192.0.2.1", "127.0.0.1:5433", false),
            // It may be anywhere.
            ("no such name", "192.0.2.1:5433", true),
            ("no such name", "192.0.2.1:5434", false),
        ] {
            assert_eq!(includes(&at(host), address).await, ours, "{address} of {host}");
        }
    }
}
