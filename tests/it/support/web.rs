//! gRPC-Web by hand: HTTP/1.1 and frames, so that nothing of ours or of tonic's is on the caller's side.

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::PATIENCE;

/// An answer as it came.
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    body: Incoming,
    received: BytesMut,
}

/// A frame of gRPC-Web's.
#[derive(Debug)]
pub enum Frame {
    Message(Bytes),
    Trailers(String),
}

/// Sends one request on a connection of its own.
pub async fn send(authority: &str, request: Request<Full<Bytes>>) -> Answer {
    send_on(TcpStream::connect(authority).await.expect("connected"), request).await
}

/// Sends one request on this connection.
pub async fn send_on(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Answer {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP/1.1");
    tokio::spawn(connection);
    let response = tokio::time::timeout(PATIENCE, sender.send_request(request)).await.expect("in time");
    let (head, body) = response.expect("an answer").into_parts();
    Answer { status: head.status, headers: head.headers, body, received: BytesMut::new() }
}

/// Calls a method with a key and more headers.
pub async fn call(
    authority: &str,
    method: &str,
    message: &impl Message,
    key: Option<&str>,
    headers: &[(&str, &str)],
) -> Answer {
    let encoded = message.encode_to_vec();
    let mut framed = vec![0];
    framed.extend_from_slice(&u32::try_from(encoded.len()).expect("short").to_be_bytes());
    framed.extend_from_slice(&encoded);
    let mut request = Request::post(format!("/hawser.v1.{method}"))
        .header("host", authority)
        .header("content-type", "application/grpc-web+proto")
        .header("x-grpc-web", "1");
    if let Some(key) = key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    send(authority, request.body(Full::from(framed)).expect("a request")).await
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The next frame; none at the end.
    pub async fn frame(&mut self) -> Option<Frame> {
        loop {
            if self.received.len() >= 5 {
                let length = u32::from_be_bytes(self.received[1..5].try_into().expect("four")) as usize;
                if self.received.len() >= 5 + length {
                    let flags = self.received[0];
                    self.received.advance(5);
                    let bytes = self.received.split_to(length).freeze();
                    return Some(match flags {
                        0 => Frame::Message(bytes),
                        0x80 => Frame::Trailers(String::from_utf8(bytes.to_vec()).expect("text")),
                        _ => panic!("flags {flags}"),
                    });
                }
            }
            let frame = tokio::time::timeout(PATIENCE, self.body.frame()).await.expect("in time");
            match frame {
                Some(frame) => self.received.extend(frame.expect("a frame").into_data().ok()),
                None => return None,
            }
        }
    }

    pub async fn message<M: Message + Default>(&mut self) -> M {
        match self.frame().await {
            Some(Frame::Message(bytes)) => M::decode(bytes).expect("decodes"),
            other => panic!("{other:?}"),
        }
    }

    /// gRPC's status: of the headers, or of the trailers after all messages.
    pub async fn grpc_status(&mut self) -> i32 {
        if let Some(code) = self.headers.get("grpc-status") {
            return code.to_str().expect("text").parse().expect("a number");
        }
        loop {
            match self.frame().await.expect("trailers") {
                Frame::Message(_) => {}
                Frame::Trailers(text) => {
                    let line = text.lines().find_map(|line| line.strip_prefix("grpc-status:"));
                    return line.expect("a status").trim().parse().expect("a number");
                }
            }
        }
    }

    /// The whole body as text.
    pub async fn text(self) -> String {
        let bytes = self.body.collect().await.expect("a body").to_bytes();
        String::from_utf8(bytes.to_vec()).expect("text")
    }
}

/// GET from the admin listener.
pub async fn get(authority: &str, path: &str) -> (StatusCode, String) {
    let request = Request::get(path).header("host", authority).body(Full::default()).expect("a request");
    let answer = send(authority, request).await;
    (answer.status, answer.text().await)
}
