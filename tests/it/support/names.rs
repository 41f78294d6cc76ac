//! A name server with a table: which addresses each name has.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use tokio::net::UdpSocket;
use tokio_util::task::AbortOnDropHandle;

/// A running name server; ends when dropped. Names that it does not know do not exist.
pub struct NameServer {
    pub address: SocketAddr,
    _answering: AbortOnDropHandle<()>,
}

const A: u8 = 1;

impl NameServer {
    pub async fn start(table: HashMap<String, Vec<IpAddr>>) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
        let address = socket.local_addr().expect("bound");
        let answering = tokio::spawn(async move {
            let mut query = [0; 1500];
            while let Ok((_, from)) = socket.recv_from(&mut query).await {
                let _gone = socket.send_to(&answer(&query, &table), from).await;
            }
        });
        Self { address, _answering: AbortOnDropHandle::new(answering) }
    }
}

fn answer(query: &[u8], table: &HashMap<String, Vec<IpAddr>>) -> Vec<u8> {
    let (name, end) = question(query);
    let kind = query[end - 3];
    let known = table.get(&name);
    let found: Vec<&IpAddr> =
        known.into_iter().flatten().filter(|address| address.is_ipv4() == (kind == A)).collect();
    let code = if known.is_some() { 0 } else { 3 };
    let mut reply = vec![query[0], query[1], 0x81, 0x80 | code, 0, 1, 0, found.len() as u8, 0, 0, 0, 0];
    reply.extend_from_slice(&query[12..end]);
    for address in found {
        let data = match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        reply.extend_from_slice(&[0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 60, 0, data.len() as u8]);
        reply.extend(data);
    }
    reply
}

/// The name asked for, and where the question ends.
fn question(query: &[u8]) -> (String, usize) {
    let (mut at, mut labels) = (12, Vec::new());
    while query[at] != 0 {
        let end = at + 1 + usize::from(query[at]);
        labels.push(String::from_utf8_lossy(&query[at + 1..end]).to_lowercase());
        at = end;
    }
    (labels.join("."), at + 5)
}
