//! What the server holds HTTP/2 connections to, by a client that speaks frames: how many streams there may be at once,
//! and that a connection whose other end is gone does not stay.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::support::{Database, PATIENCE, World, in_time};

const STREAMS: u32 = 256;
/// The server asks whether anyone is there after so long a silence, and waits so long for the answer.
const ASKS: Duration = Duration::from_secs(30);
const WAITS: Duration = Duration::from_secs(20);

// Types, flags and names of RFC 9113.
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const MAX_CONCURRENT_STREAMS: u16 = 3;
const REFUSED_STREAM: u32 = 7;
const CANCEL: u32 = 8;

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Frame {
    fn is_ping(&self) -> bool {
        self.kind == PING && self.flags & ACK == 0
    }
}

/// A connection after its preface, and the settings that the server gave.
struct Connection(TcpStream);

impl Connection {
    async fn open(authority: &str) -> (Self, Frame) {
        let stream = TcpStream::connect(authority).await.expect("connected");
        let mut connection = Self(stream);
        connection.0.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("sent");
        connection.send(SETTINGS, 0, 0, &[]).await;
        let settings = connection.until(|frame| frame.kind == SETTINGS && frame.flags & ACK == 0).await;
        connection.send(SETTINGS, ACK, 0, &[]).await;
        (connection, settings)
    }

    async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags];
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.0.write_all(&frame).await.expect("sent");
    }

    /// The next frame; none at the connection's end.
    async fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        self.0.read_exact(&mut payload).await.ok()?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    async fn until(&mut self, wanted: impl Fn(&Frame) -> bool) -> Frame {
        let waiting = async {
            loop {
                let frame = self.next().await.expect("the connection stands");
                if wanted(&frame) {
                    return frame;
                }
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("a frame in time")
    }

    /// A call whose stream stays open, as the client says nothing more, or ends at once.
    async fn call(&mut self, stream: u32, key: &str, ends: bool) {
        let authorization = format!("Bearer {key}");
        let mut block = Vec::new();
        for (name, value) in [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/hawser.v1.EventService/StreamPublishEvents"),
            (":authority", "localhost"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("authorization", &authorization),
        ] {
            // A literal without indexing, its name new (RFC 7541, 6.2.2).
            block.push(0);
            for text in [name, value] {
                assert!(text.len() < 127, "its length is one byte");
                block.push(text.len() as u8);
                block.extend(text.as_bytes());
            }
        }
        let flags = if ends { END_HEADERS | END_STREAM } else { END_HEADERS };
        self.send(HEADERS, flags, stream, &block).await;
    }
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes.try_into().expect("four bytes"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_has_256_streams_at_once_and_no_more() {
    in_time(async {
        let world = World::new(Database::sqlite()).await;
        let (mut connection, settings) = Connection::open(world.server.authority()).await;
        let told = settings.payload.chunks(6).find(|one| one[..2] == MAX_CONCURRENT_STREAMS.to_be_bytes());
        assert_eq!(told.map(|one| number(&one[2..])), Some(STREAMS));
        // It is also kept to where a client does not care: all are answered but the one too many.
        let id = |call: u32| 2 * call + 1;
        for call in 0..=STREAMS {
            connection.call(id(call), &world.key, false).await;
        }
        let refused = connection.until(|frame| frame.kind == RST_STREAM).await;
        assert_eq!((refused.stream, number(&refused.payload)), (id(STREAMS), REFUSED_STREAM));
        // One that goes makes room.
        connection.send(RST_STREAM, 0, id(0), &CANCEL.to_be_bytes()).await;
        let next = id(STREAMS + 1);
        connection.call(next, &world.key, true).await;
        let answer = connection.until(|frame| frame.stream == next).await;
        assert_eq!(answer.kind, HEADERS);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_whose_other_end_is_gone_does_not_stay() {
    in_time(async {
        let world = World::new(Database::sqlite()).await;
        let began = Instant::now();
        let (mut gone, _) = Connection::open(world.server.authority()).await;
        let (mut there, _) = Connection::open(world.server.authority()).await;
        let asked = there.until(Frame::is_ping).await;
        assert!(began.elapsed() >= ASKS, "asked after {:?}", began.elapsed());
        there.send(PING, ACK, 0, &asked.payload).await;
        // The other one is asked as well, and does not answer.
        gone.until(Frame::is_ping).await;
        let ended = async { while gone.next().await.is_some() {} };
        tokio::time::timeout(PATIENCE, ended).await.expect("it is closed");
        assert!(began.elapsed() >= ASKS + WAITS, "closed after {:?}", began.elapsed());
        // Who answers stays: it answers calls.
        there.call(1, &world.key, true).await;
        let answer = there.until(|frame| frame.stream == 1).await;
        assert_eq!(answer.kind, HEADERS);
    })
    .await;
}
