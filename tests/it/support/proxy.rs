//! A proxy before PostgreSQL that loses what a network can lose: the answer to a commit, or everything.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, watch};
use tokio_util::task::AbortOnDropHandle;

/// Passes everything on until it is told otherwise; ends when dropped.
pub struct Proxy {
    url: String,
    orders: Arc<Orders>,
    _accepting: AbortOnDropHandle<()>,
}

struct Orders {
    /// The next connection that carried these bytes loses the answer to its commit.
    lose_commit_after: Mutex<Option<Vec<u8>>>,
    /// Rings when all present connections are to fall silent.
    silence: watch::Sender<()>,
}

impl Proxy {
    /// Before the database of this URL.
    pub async fn before(url: &str) -> Self {
        let (scheme, rest) = url.split_once("://").expect("a URL");
        let (user, rest) = rest.split_once('@').map_or(("", rest), |(user, rest)| (user, rest));
        let (server, database) = rest.split_once('/').expect("a URL with a database");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let own = listener.local_addr().expect("bound");
        let at = if user.is_empty() { "" } else { "@" };
        let orders = Orders { lose_commit_after: Mutex::new(None), silence: watch::Sender::new(()) };
        let orders = Arc::new(orders);
        let accepting = tokio::spawn(accept(listener, server.to_owned(), orders.clone()));
        Self {
            url: format!("{scheme}://{user}{at}{own}/{database}"),
            orders,
            _accepting: AbortOnDropHandle::new(accepting),
        }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// The connection that next carries `mark`, in either direction, is cut when its commit was carried out and
    /// before the answer passes.
    pub async fn lose_commit_after(&self, mark: &[u8]) {
        *self.orders.lose_commit_after.lock().await = Some(mark.to_vec());
    }

    /// Whether the commit was lost.
    pub async fn lost_commit(&self) -> bool {
        self.orders.lose_commit_after.lock().await.is_none()
    }

    /// All present connections fall silent, as when a machine vanishes; new ones work.
    pub fn silence_present(&self) {
        self.orders.silence.send_replace(());
    }
}

async fn accept(listener: TcpListener, server: String, orders: Arc<Orders>) {
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        let Ok(server) = TcpStream::connect(&server).await else { continue };
        // Silence is for those that were there before.
        let silence = orders.silence.subscribe();
        tokio::spawn(pass(client, server, orders.clone(), silence));
    }
}

async fn pass(client: TcpStream, server: TcpStream, orders: Arc<Orders>, mut silence: watch::Receiver<()>) {
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    // Pinned, so that a silent connection stays open.
    let mut passing = std::pin::pin!(copy(from_client, to_server, from_server, to_client, &orders));
    tokio::select! {
        () = &mut passing => {}
        _ = silence.changed() => std::future::pending().await,
    }
}

async fn copy(
    mut from_client: OwnedReadHalf,
    mut to_server: OwnedWriteHalf,
    mut from_server: OwnedReadHalf,
    mut to_client: OwnedWriteHalf,
    orders: &Orders,
) {
    let (mut up, mut down) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    let mut marked = false;
    loop {
        tokio::select! {
            read = from_client.read(&mut up) => {
                let Ok(count @ 1..) = read else { return };
                let said = &up[..count];
                marked |= carries_mark(said, orders).await;
                if to_server.write_all(said).await.is_err() {
                    return;
                }
                if marked && contains(said, b"COMMIT") {
                    // The answer: it was carried out. It is not passed on.
                    let _answer = from_server.read(&mut down).await;
                    *orders.lose_commit_after.lock().await = None;
                    return;
                }
            }
            read = from_server.read(&mut down) => {
                let Ok(count @ 1..) = read else { return };
                let said = &down[..count];
                marked |= carries_mark(said, orders).await;
                if to_client.write_all(said).await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn carries_mark(said: &[u8], orders: &Orders) -> bool {
    orders.lose_commit_after.lock().await.as_ref().is_some_and(|mark| contains(said, mark))
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}
