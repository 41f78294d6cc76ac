//! A receiver whose connections take one request each, but say nothing about it: the next one is met by a close.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Barrier;
use tokio_util::task::AbortOnDropHandle;

/// Answers the first request of each connection with 204, and closes the connection on the second.
pub struct StaleReceiver {
    address: SocketAddr,
    /// The head of every request, and whether it was answered.
    seen: Arc<Mutex<Vec<(String, bool)>>>,
    _accepting: AbortOnDropHandle<()>,
}

impl StaleReceiver {
    /// The first `together` requests are answered at the same time, so that each has a connection of its own.
    pub async fn start(together: usize) -> Self {
        Self::parting_with(together, b"").await
    }

    /// The same, and each connection ends with these bytes.
    pub async fn parting_with(together: usize, last: &'static [u8]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let seen = Arc::<Mutex<Vec<(String, bool)>>>::default();
        let (log, barrier) = (seen.clone(), Arc::new(Barrier::new(together)));
        let accepting = tokio::spawn(async move {
            for connection in 0.. {
                let Ok((stream, _)) = listener.accept().await else { return };
                let barrier = (connection < together).then(|| barrier.clone());
                tokio::spawn(serve(stream, log.clone(), barrier, last));
            }
        });
        Self { address, seen, _accepting: AbortOnDropHandle::new(accepting) }
    }

    pub fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }

    /// `hawser-attempt` of the requests with this event, and whether each was answered.
    pub fn attempts_of(&self, event: &str) -> Vec<(String, bool)> {
        let seen = self.seen.lock().expect("unpoisoned");
        let of_event = seen.iter().filter(|(head, _)| head.contains(event));
        of_event.map(|(head, answered)| (header(head, "hawser-attempt"), *answered)).collect()
    }
}

async fn serve(
    mut stream: TcpStream,
    seen: Arc<Mutex<Vec<(String, bool)>>>,
    barrier: Option<Arc<Barrier>>,
    last: &'static [u8],
) {
    let Some(first) = request(&mut stream).await else { return };
    seen.lock().expect("unpoisoned").push((first, true));
    if let Some(barrier) = barrier {
        barrier.wait().await;
    }
    if stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.is_err() {
        return;
    }
    if let Some(second) = request(&mut stream).await {
        seen.lock().expect("unpoisoned").push((second, false));
        // Whoever closed first gets none of it.
        let _gone = stream.write_all(last).await;
    }
}

/// Reads one request to its end; returns its head.
async fn request(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
            let length: usize = header(&head, "content-length").parse().ok()?;
            if bytes.len() >= end + 4 + length {
                return Some(head);
            }
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}

fn header(head: &str, name: &str) -> String {
    let value = head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    value.unwrap_or_default().to_owned()
}
