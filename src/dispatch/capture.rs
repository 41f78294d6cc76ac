//! Keeps a bounded piece of an answer: some headers, the start of the body, `Retry-After`.
//!
//! A receiver chooses all of it, so nothing here may grow with what is sent, and nothing here fails.

use std::time::Duration;

use http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use time::OffsetDateTime;

use crate::domain::clock::Timestamp;
use crate::domain::retry::RETRY_AFTER_MAX;

const HEADERS_KEPT: usize = 64;
const HEADER_BYTES_KEPT: usize = 16 * 1024;
const BODY_KEPT: usize = 16 * 1024;
/// Reading a longer answer to its end keeps the connection; beyond this a new connection is cheaper.
const BODY_DRAINED: usize = 64 * 1024;

/// Parts of header names whose values may be credentials.
const SENSITIVE: [&str; 7] = ["cookie", "authorization", "api-key", "apikey", "token", "secret", "password"];

/// The headers to keep, and whether some were left out.
pub(super) fn headers(all: &HeaderMap) -> (Vec<(String, String)>, bool) {
    let mut kept = Vec::with_capacity(all.len().min(HEADERS_KEPT));
    let mut room = HEADER_BYTES_KEPT;
    for (name, value) in all {
        let name = name.as_str();
        let value = if SENSITIVE.iter().any(|part| name.contains(part)) {
            "[redacted]".into()
        } else {
            String::from_utf8_lossy(value.as_bytes())
        };
        let size = name.len() + value.len();
        if kept.len() == HEADERS_KEPT || size > room {
            return (kept, true);
        }
        room -= size;
        kept.push((name.to_owned(), value.into_owned()));
    }
    (kept, false)
}

/// Reads the body into `kept` and says whether that is less than all of it. A body cut short by the receiver
/// is not an error: the head has decided.
pub(super) async fn body(mut body: Incoming, kept: &mut Vec<u8>) -> bool {
    let mut left_out = 0;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return true };
        let Some(data) = frame.data_ref() else { continue };
        let (keep, rest) = data.split_at(data.len().min(BODY_KEPT - kept.len()));
        kept.extend_from_slice(keep);
        left_out += rest.len();
        let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
        if left_out.saturating_add(announced) > BODY_DRAINED && kept.len() == BODY_KEPT {
            return true;
        }
    }
    left_out > 0
}

/// How long a 429 or 503 asks to be left alone: seconds or an HTTP date, bounded.
pub(super) fn retry_after(status: StatusCode, headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    if !matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
        return None;
    }
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if value.len() > 40 || value.is_empty() {
        return None;
    }
    let wait = if value.bytes().all(|byte| byte.is_ascii_digit()) {
        // Digits that do not fit mean a very long time.
        Duration::from_secs(value.parse().unwrap_or(u64::MAX))
    } else {
        // In any of the three forms of RFC 9110, section 5.6.7.
        let date = OffsetDateTime::from(httpdate::parse_http_date(value).ok()?);
        Timestamp::from_millis(date.unix_timestamp().saturating_mul(1000)).since(now)
    };
    Some(wait.min(RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};

    #[test]
    fn headers_are_bounded_and_redacted() {
        let mut all = HeaderMap::new();
        all.insert("x-plain", HeaderValue::from_static("seen"));
        all.insert("x-binary", HeaderValue::from_bytes(b"a\xffb").expect("value"));
        for name in ["set-cookie", "authorization", "proxy-authorization", "x-api-key", "x-auth-token"] {
            all.append(HeaderName::from_static(name), HeaderValue::from_static("CANARY"));
        }
        all.append("set-cookie", HeaderValue::from_static("CANARY"));
        let (kept, truncated) = headers(&all);
        assert_eq!((kept.len(), truncated), (8, false));
        assert!(kept.contains(&("x-plain".to_owned(), "seen".to_owned())));
        assert!(kept.contains(&("x-binary".to_owned(), "a\u{fffd}b".to_owned())));
        assert!(!format!("{kept:?}").contains("CANARY"));

        let mut many = HeaderMap::new();
        for _ in 0..80 {
            many.append("x", HeaderValue::from_static("y"));
        }
        let (kept, truncated) = headers(&many);
        assert_eq!((kept.len(), truncated), (64, true));

        let mut large = HeaderMap::new();
        let value = HeaderValue::from_str(&"v".repeat(5000)).expect("value");
        for _ in 0..5 {
            large.append("x", value.clone());
        }
        let (kept, truncated) = headers(&large);
        assert_eq!((kept.len(), truncated), (3, true));
    }

    #[test]
    fn retry_after_is_read_and_bounded() {
        // Sun, 06 Nov 1994 08:49:37 GMT
        let now = Timestamp::from_millis(784_111_777_000);
        let read = |value: &[u8], status: u16| {
            let headers = [(header::RETRY_AFTER, HeaderValue::from_bytes(value).expect("value"))];
            retry_after(StatusCode::from_u16(status).expect("status"), &headers.into_iter().collect(), now)
        };
        let secs = |secs| Some(Duration::from_secs(secs));
        assert_eq!(read(b"2", 429), secs(2));
        assert_eq!(read(b" 120 ", 503), secs(120));
        assert_eq!(read(b"0", 503), secs(0));
        assert_eq!(read(b"999999999", 503), secs(7200));
        assert_eq!(read(b"99999999999999999999999999", 503), secs(7200));
        assert_eq!(read(b"Sun, 06 Nov 1994 08:50:37 GMT", 503), secs(60));
        assert_eq!(read(b"Sun, 06 Nov 1994 08:49:00 GMT", 503), secs(0));
        assert_eq!(read(b"Sunday, 06-Nov-94 08:50:37 GMT", 503), secs(60));
        assert_eq!(read(b"Sun Nov  6 08:50:37 1994", 503), secs(60));
        assert_eq!(read(b"Fri, 31 Dec 9999 23:59:59 GMT", 503), secs(7200));
        for nonsense in
            [&b""[..], b"-5", b"+5", b"NaN", b"1.5", b"((((", b"06 Nov 1994", b"\xff", &[b'1'; 400_000]]
        {
            assert_eq!(read(nonsense, 503), None);
        }
        assert_eq!(read(b"2", 500), None);
        assert_eq!(read(b"2", 200), None);
    }
}
