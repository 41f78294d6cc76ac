//! A receiver that does as its script says.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// What to do with each request of a connection.
#[derive(Clone)]
pub(super) enum Script {
    /// Answer every request.
    Reply(Vec<u8>),
    /// Answer the first, close the connection.
    ReplyAndClose(Vec<u8>),
    /// Answer the first, close the connection when the second has come.
    ReplyOnce(Vec<u8>),
    /// Send the first part, then the second for ever.
    Endless(Vec<u8>, Vec<u8>),
    /// Send this and no more, and hold the connection.
    Stall(Vec<u8>),
    /// Close without an answer.
    Close,
    /// Reset without an answer.
    Reset,
}

/// The running receiver. It ends with its test's runtime.
pub(super) struct Sink {
    pub(super) address: SocketAddr,
    connections: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Sink {
    pub(super) async fn start(script: Script) -> Self {
        Self::listen(script, None).await
    }

    pub(super) async fn start_tls(script: Script, acceptor: TlsAcceptor) -> Self {
        Self::listen(script, Some(acceptor)).await
    }

    /// Answers every request with this head and body, with a length.
    pub(super) async fn answering(status: &str, headers: &str, body: &[u8]) -> Self {
        Self::start(Script::Reply(answer(status, headers, body))).await
    }

    async fn listen(script: Script, acceptor: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let sink = Self {
            address: listener.local_addr().expect("address"),
            connections: Arc::default(),
            requests: Arc::default(),
        };
        let (connections, requests) = (Arc::clone(&sink.connections), Arc::clone(&sink.requests));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::SeqCst);
                let (script, requests, acceptor) = (script.clone(), Arc::clone(&requests), acceptor.clone());
                tokio::spawn(async move {
                    match (acceptor, script) {
                        (None, Script::Reset) => reset(stream, &requests).await,
                        (None, script) => serve(stream, script, &requests).await,
                        (Some(acceptor), script) => {
                            if let Ok(stream) = acceptor.accept(stream).await {
                                serve(stream, script, &requests).await;
                            }
                        }
                    }
                });
            }
        });
        sink
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}/hook?a=b", self.address)
    }

    pub(super) fn https(&self) -> String {
        format!("https://{}/hook", self.address)
    }

    pub(super) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub(super) fn requests(&self) -> Vec<String> {
        self.requests.lock().expect("lock").clone()
    }
}

pub(super) fn answer(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut text =
        format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n", body.len()).into_bytes();
    text.extend_from_slice(body);
    text
}

async fn reset(mut stream: TcpStream, requests: &Mutex<Vec<String>>) {
    read_request(&mut stream, requests).await;
    stream.set_zero_linger().expect("linger");
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    script: Script,
    requests: &Mutex<Vec<String>>,
) {
    let mut answered = 0;
    while read_request(&mut stream, requests).await {
        let sent = match &script {
            Script::Reply(reply) => stream.write_all(reply).await,
            Script::ReplyOnce(_) if answered == 1 => return,
            Script::ReplyOnce(reply) => stream.write_all(reply).await,
            Script::ReplyAndClose(reply) => {
                let sent = stream.write_all(reply).await;
                sent.and(stream.shutdown().await).unwrap_or_default();
                // Reading on to the end lets the answer arrive before a reset could.
                drain(&mut stream).await;
                return;
            }
            Script::Endless(first, again) => {
                let mut sent = stream.write_all(first).await;
                while sent.is_ok() {
                    sent = stream.write_all(again).await;
                }
                sent
            }
            Script::Stall(part) => {
                let sent = stream.write_all(part).await;
                drain(&mut stream).await;
                sent
            }
            Script::Close | Script::Reset => return,
        };
        if sent.is_err() {
            return;
        }
        answered += 1;
    }
}

async fn drain<S: AsyncRead + Unpin>(stream: &mut S) {
    let mut rest = [0; 1024];
    while stream.read(&mut rest).await.is_ok_and(|read| read > 0) {}
}

/// Reads one request, its body too; false at the end of the connection.
async fn read_request<S: AsyncRead + Unpin>(stream: &mut S, requests: &Mutex<Vec<String>>) -> bool {
    let mut text = Vec::new();
    let mut expected = usize::MAX;
    while text.len() < expected {
        let mut part = [0; 4096];
        match stream.read(&mut part).await {
            Ok(read) if read > 0 => text.extend_from_slice(&part[..read]),
            _ => return false,
        }
        let head_end = text.windows(4).position(|four| four == b"\r\n\r\n");
        if let (usize::MAX, Some(end)) = (expected, head_end) {
            let head = String::from_utf8_lossy(&text[..end]).to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            expected = end + 4 + length.unwrap_or(0);
        }
    }
    requests.lock().expect("lock").push(String::from_utf8_lossy(&text).into_owned());
    true
}
