//! What receivers answer, and how connections end.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::sink::{Script, Sink, answer};
use super::{class, detail, dispatcher, post, request, settings};
use crate::dispatch::{DispatchSettings, Dispatcher};
use crate::domain::address::AddressPolicy;
use crate::domain::attempt::ErrorClass;

const KEPT: usize = 16 * 1024;

#[tokio::test]
async fn a_success_says_everything() {
    let sink = Sink::answering("200 OK", "x-reply: yes\r\nset-cookie: id=CANARY\r\n", b"thanks").await;
    let outcome = post(&dispatcher(), &sink.url()).await;
    assert!(outcome.is_success(), "{outcome:?}");
    assert_eq!(outcome.status, Some(200));
    assert_eq!((&outcome.body[..], outcome.body_truncated), (&b"thanks"[..], false));
    assert!(outcome.response_headers.contains(&("x-reply".to_owned(), "yes".to_owned())));
    assert!(!format!("{outcome:?}").contains("CANARY"));
    assert_eq!(outcome.peer, Some(sink.address));
    let timings = outcome.timings;
    assert!(!timings.reused);
    assert_eq!((timings.dns_us, timings.tls_us), (None, None));
    let (connect, first) = (timings.connect_us.expect("connect"), timings.first_byte_us.expect("first byte"));
    assert!(connect <= first && first <= timings.total_us, "{timings:?}");

    let [sent] = &sink.requests()[..] else { panic!("one request") };
    let (head, body) = sent.split_once("\r\n\r\n").expect("head");
    assert_eq!(body, "{\"odd\" :  1e400 }");
    let lines: HashSet<_> = head.lines().collect();
    let version = env!("CARGO_PKG_VERSION");
    let expected = [
        "POST /hook?a=b HTTP/1.1".to_owned(),
        format!("host: {}", sink.address),
        format!("user-agent: Hawser/{version}"),
        "accept-encoding: identity".to_owned(),
        "content-length: 17".to_owned(),
    ];
    assert_eq!(lines, expected.iter().map(String::as_str).collect());
}

#[tokio::test]
async fn long_bodies_are_cut_and_never_an_error() {
    let dispatcher = dispatcher();
    // Within what is drained, the connection is used again; beyond it, it is not.
    for (length, connections) in [(KEPT, 1), (KEPT + 1, 1), (5 * KEPT, 1), (5 * KEPT + 1, 2), (100 * KEPT, 2)]
    {
        let sink = Sink::answering("200 OK", "", &vec![b'x'; length]).await;
        for _ in 0..2 {
            let outcome = post(&dispatcher, &sink.url()).await;
            assert!(outcome.is_success(), "{outcome:?}");
            assert_eq!((outcome.body.len(), outcome.body_truncated), (KEPT, length > KEPT), "{length}");
        }
        assert_eq!(sink.connections(), connections, "{length}");
    }
}

#[tokio::test]
async fn endless_bodies_end() {
    let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    let sink = Sink::start(Script::Endless(head, b"4\r\nmore\r\n".to_vec())).await;
    let outcome = post(&dispatcher(), &sink.url()).await;
    assert!(outcome.is_success(), "{outcome:?}");
    assert_eq!((outcome.body.len(), outcome.body_truncated), (KEPT, true));

    let head = b"HTTP/1.1 500 Oops\r\ncontent-length: 10737418240\r\n\r\n".to_vec();
    let sink = Sink::start(Script::Endless(head, vec![b'x'; 1000])).await;
    let outcome = post(&dispatcher(), &sink.url()).await;
    assert_eq!(class(&outcome), Some(ErrorClass::HttpStatus));
    assert_eq!((outcome.body.len(), outcome.body_truncated), (KEPT, true));
}

#[tokio::test]
async fn a_body_shorter_than_announced_is_still_a_success() {
    let short = b"HTTP/1.1 202 Accepted\r\ncontent-length: 100\r\n\r\nshort".to_vec();
    let sink = Sink::start(Script::ReplyAndClose(short)).await;
    let outcome = post(&dispatcher(), &sink.url()).await;
    assert!(outcome.is_success(), "{outcome:?}");
    assert_eq!((&outcome.body[..], outcome.body_truncated), (&b"short"[..], true));
}

#[tokio::test]
async fn only_2xx_is_success_and_redirects_are_not_followed() {
    let elsewhere = Sink::answering("200 OK", "", b"").await;
    let dispatcher = dispatcher();
    for status in [300, 301, 302, 303, 304, 307, 308, 400, 404, 407, 410, 429, 500, 503, 999] {
        let location = format!("location: {}\r\nrefresh: 0\r\nretry-after: 2\r\n", elsewhere.url());
        let sink = Sink::answering(&format!("{status} X"), &location, b"").await;
        let outcome = post(&dispatcher, &sink.url()).await;
        assert_eq!((outcome.status, class(&outcome)), (Some(status), Some(ErrorClass::HttpStatus)));
        assert_eq!(detail(&outcome), format!("answered {status}"));
        let asked = matches!(status, 429 | 503).then_some(Duration::from_secs(2));
        assert_eq!(outcome.retry_after, asked, "{status}");
        assert_eq!(sink.requests().len(), 1);
    }
    for status in [200, 201, 202, 204, 299] {
        let sink = Sink::answering(&format!("{status} X"), "", b"").await;
        assert!(post(&dispatcher, &sink.url()).await.is_success(), "{status}");
    }
    assert_eq!(elsewhere.connections(), 0);
}

#[tokio::test]
async fn informational_answers_are_passed_over() {
    let mut reply = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n".to_vec();
    reply.extend(answer("200 OK", "", b"after all"));
    let sink = Sink::start(Script::Reply(reply)).await;
    let outcome = post(&dispatcher(), &sink.url()).await;
    assert_eq!((outcome.status, &outcome.body[..]), (Some(200), &b"after all"[..]));

    let sink =
        Sink::start(Script::Reply(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n".to_vec())).await;
    let outcome = post(&dispatcher(), &sink.url()).await;
    assert!(!outcome.is_success(), "{outcome:?}");
}

#[tokio::test]
async fn a_refused_connection_is_connect() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    drop(listener);
    let outcome = post(&dispatcher(), &format!("http://{address}/")).await;
    assert_eq!(class(&outcome), Some(ErrorClass::Connect));
    assert_eq!(detail(&outcome), "connection refused");
    assert_eq!(outcome.peer, None);
}

#[tokio::test]
async fn silence_is_a_timeout() {
    let limit = Duration::from_secs(1);
    let sink = Sink::start(Script::Stall(Vec::new())).await;
    let began = Instant::now();
    let outcome = dispatcher().send(request(&sink.url(), limit)).await;
    assert!(began.elapsed() >= limit && began.elapsed() < Duration::from_secs(5));
    assert_eq!((outcome.status, class(&outcome)), (None, Some(ErrorClass::Timeout)));
    assert_eq!(detail(&outcome), "no answer within 1 s");
    // The connection was there, and is shown.
    assert_eq!(outcome.peer, Some(sink.address));
    assert!(outcome.timings.connect_us.is_some() && outcome.timings.first_byte_us.is_none());
    assert!(outcome.timings.total_us >= 1_000_000);
}

#[tokio::test]
async fn the_limit_covers_the_body() {
    let limit = Duration::from_secs(1);
    let part =
        |status: &str| format!("HTTP/1.1 {status}\r\nx: y\r\ncontent-length: 100\r\n\r\npart").into_bytes();
    let sink = Sink::start(Script::Stall(part("200 OK"))).await;
    let outcome = dispatcher().send(request(&sink.url(), limit)).await;
    assert_eq!((outcome.status, class(&outcome)), (Some(200), Some(ErrorClass::Timeout)));
    assert_eq!((&outcome.body[..], outcome.body_truncated), (&b"part"[..], true));
    assert!(outcome.response_headers.contains(&("x".to_owned(), "y".to_owned())));

    // What failed before is not renamed: a 410 stays one.
    let sink = Sink::start(Script::Stall(part("410 Gone"))).await;
    let outcome = dispatcher().send(request(&sink.url(), limit)).await;
    assert_eq!((outcome.status, class(&outcome)), (Some(410), Some(ErrorClass::HttpStatus)));
}

#[tokio::test]
async fn a_lost_connection_is_reset() {
    for script in [Script::Close, Script::Reset, Script::ReplyAndClose(b"HTTP/1.1 200 OK\r\nx-half".to_vec())]
    {
        let sink = Sink::start(script).await;
        let outcome = post(&dispatcher(), &sink.url()).await;
        assert_eq!((outcome.status, class(&outcome)), (None, Some(ErrorClass::Reset)), "{outcome:?}");
        assert!(!outcome.timings.reused);
        assert_eq!(outcome.peer, Some(sink.address));
        assert_eq!(sink.requests().len(), 1, "never sent twice");
    }
}

#[tokio::test]
async fn what_is_not_http_is_protocol() {
    let many: String = (0..1025).map(|number| format!("x-{number}: y\r\n")).collect();
    let huge = format!("x-huge: {}\r\n", "y".repeat(1024 * 1024));
    let answers = [
        "garbage\r\n\r\n".to_owned(),
        "<html>HTTP/0.9</html>".to_owned() + &" ".repeat(100),
        "HTTP/2.0 200 OK\r\n\r\n".to_owned(),
        "HTTP/1.1 000 Zero\r\n\r\n".to_owned(),
        "HTTP/1.1 2xx OK\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\nbad header: \0\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx".to_owned(),
        format!("HTTP/1.1 200 OK\r\n{many}\r\n"),
        format!("HTTP/1.1 200 OK\r\n{huge}\r\n"),
        format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: 0123456789\r\n".repeat(80_000)),
    ];
    for text in answers {
        let sink = Sink::start(Script::ReplyAndClose(text.clone().into_bytes())).await;
        let outcome = post(&dispatcher(), &sink.url()).await;
        let shown: String = text.chars().take(60).collect();
        assert_eq!(class(&outcome), Some(ErrorClass::Protocol), "{shown:?} {outcome:?}");
        assert_eq!(sink.requests().len(), 1);
    }
}

#[tokio::test]
async fn more_headers_than_are_kept_are_no_failure() {
    for count in [63, 101, 1000] {
        let headers: String = (0..count).map(|number| format!("x-{number}: y\r\n")).collect();
        let sink = Sink::answering("200 OK", &headers, b"body").await;
        let outcome = post(&dispatcher(), &sink.url()).await;
        assert!(outcome.is_success(), "{outcome:?}");
        assert_eq!((outcome.response_headers.len(), outcome.headers_truncated), (64, count > 63));
        assert_eq!(&outcome.body[..], b"body");
    }
}

#[tokio::test]
async fn connections_beyond_the_bound_are_for_one_use() {
    let (first, second) =
        (Sink::answering("200 OK", "", b"1").await, Sink::answering("200 OK", "", b"2").await);
    let dispatcher = Dispatcher::new(DispatchSettings { kept_max: 1, ..settings() }).expect("dispatcher");
    for sink in [&first, &second, &first, &second, &first] {
        assert!(post(&dispatcher, &sink.url()).await.is_success());
    }
    assert_eq!((first.connections(), second.connections()), (1, 2));
    assert_eq!((first.requests().len(), second.requests().len()), (3, 2));
}

#[tokio::test]
async fn connections_are_reused_and_say_so() {
    let sink = Sink::answering("200 OK", "", b"again").await;
    let dispatcher = dispatcher();
    for number in 0..5 {
        let outcome = post(&dispatcher.clone(), &sink.url()).await;
        assert!(outcome.is_success());
        assert_eq!(outcome.peer, Some(sink.address));
        assert_eq!(outcome.timings.reused, number > 0);
        assert_eq!(outcome.timings.connect_us.is_some(), number == 0);
    }
    assert_eq!((sink.connections(), sink.requests().len()), (1, 5));
}

#[tokio::test]
async fn a_reset_on_a_reused_connection_is_reported_and_not_repeated() {
    let sink = Sink::start(Script::ReplyOnce(answer("200 OK", "", b""))).await;
    let dispatcher = dispatcher();
    assert!(post(&dispatcher, &sink.url()).await.is_success());
    let outcome = post(&dispatcher, &sink.url()).await;
    assert_eq!((outcome.status, class(&outcome)), (None, Some(ErrorClass::Reset)));
    assert!(outcome.timings.reused);
    assert_eq!((sink.connections(), sink.requests().len()), (1, 2));
}

#[tokio::test]
async fn each_of_many_at_once_is_one_request() {
    let sink = Sink::answering("200 OK", "", b"ok").await;
    let dispatcher = dispatcher();
    for _ in 0..3 {
        let mut sends = tokio::task::JoinSet::new();
        for _ in 0..100 {
            let (dispatcher, url) = (dispatcher.clone(), sink.url());
            sends.spawn(async move { post(&dispatcher, &url).await });
        }
        while let Some(outcome) = sends.join_next().await {
            let outcome = outcome.expect("no panic");
            assert!(outcome.is_success(), "{outcome:?}");
            assert_eq!(outcome.timings.reused, outcome.timings.connect_us.is_none());
        }
    }
    assert_eq!(sink.requests().len(), 300);
}

#[tokio::test]
async fn blocked_addresses_are_never_dialled() {
    let sink = Sink::answering("200 OK", "", b"").await;
    let block = AddressPolicy { block: vec!["127.0.0.1".parse().expect("cidr")], ..settings().addresses };
    for addresses in [AddressPolicy::default(), block] {
        let dispatcher = Dispatcher::new(DispatchSettings { addresses, ..settings() }).expect("dispatcher");
        let outcome = post(&dispatcher, &sink.url()).await;
        assert_eq!(class(&outcome), Some(ErrorClass::BlockedAddress));
        assert_eq!(detail(&outcome), "target address not allowed");
        assert_eq!((outcome.peer, outcome.timings.connect_us), (None, None));
        let outcome = post(&dispatcher, "http://169.254.169.254/latest/meta-data/").await;
        assert_eq!(class(&outcome), Some(ErrorClass::BlockedAddress));
    }
    assert_eq!(sink.connections(), 0);
}

#[tokio::test]
async fn callers_headers_are_sent_and_cannot_replace_the_host() {
    let sink = Sink::answering("200 OK", "", b"").await;
    let mut request = request(&sink.url(), Duration::from_secs(5));
    request.method = ::http::Method::HEAD;
    request.body = bytes::Bytes::new();
    for (name, value) in [
        ("webhook-id", "evt_1"),
        ("host", "evil.example"),
        ("accept-encoding", "gzip"),
        ("user-agent", "mine"),
    ] {
        request.headers.insert(name, value.parse().expect("value"));
    }
    assert!(dispatcher().send(request).await.is_success());
    let sent = sink.requests().concat().to_lowercase();
    assert!(sent.starts_with("head /hook?a=b"));
    for line in ["webhook-id: evt_1", "accept-encoding: identity", "user-agent: mine"] {
        assert!(sent.contains(line), "{sent}");
    }
    assert!(!sent.contains("evil") && !sent.contains("gzip"));
}
