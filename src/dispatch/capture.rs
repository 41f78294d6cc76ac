//! Reading a bounded part of an answer.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::domain::clock::Timestamp;

/// How much of the body is kept.
const BODY_KEPT: usize = 16 * 1024;
/// How much of it is read at all; then the connection is dropped.
const BODY_READ: usize = 64 * 1024;
const HEADERS_KEPT: usize = 64;
const HEADERS_BYTES: usize = 16 * 1024;

/// An answer's headers as they are kept, and whether some were left out.
pub fn headers(map: &HeaderMap) -> (Vec<(String, String)>, bool) {
    let mut kept = Vec::with_capacity(map.len().min(HEADERS_KEPT));
    let mut bytes = 0;
    for (name, value) in map {
        let value = if is_credential(name.as_str()) {
            "[redacted]".to_owned()
        } else {
            String::from_utf8_lossy(value.as_bytes()).into_owned()
        };
        bytes += name.as_str().len() + value.len();
        if kept.len() == HEADERS_KEPT || bytes > HEADERS_BYTES {
            return (kept, true);
        }
        kept.push((name.as_str().to_owned(), value));
    }
    (kept, false)
}

fn is_credential(name: &str) -> bool {
    matches!(name, "set-cookie" | "authorization" | "proxy-authorization" | "www-authenticate" | "x-api-key")
}

/// The start of a body, and whether there was more or it broke off. A body that ends within the bound is
/// read to its end, so that the connection can be used again.
pub async fn body(mut body: Incoming) -> (Bytes, bool) {
    let mut kept = BytesMut::new();
    let mut read = 0;
    let mut cut = false;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            return (kept.freeze(), true);
        };
        let Ok(data) = frame.into_data() else { continue };
        read += data.len();
        let room = BODY_KEPT - kept.len();
        if data.len() > room {
            cut = true;
        }
        kept.extend_from_slice(&data[..data.len().min(room)]);
        if read > BODY_READ {
            return (kept.freeze(), true);
        }
    }
    (kept.freeze(), cut)
}

/// Reads Retry-After (RFC 9110 §10.2.3): seconds, or a date in the preferred format.
pub fn retry_after(map: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = map.get(http::header::RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More than 64 bits of seconds is for ever; the policy's cap decides.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    if text.len() > 40 {
        return None;
    }
    let format = time::macros::format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    let at = time::PrimitiveDateTime::parse(text, format).ok()?.assume_utc();
    Some(Timestamp::from_millis(at.unix_timestamp().saturating_mul(1000)).since(now))
}

#[cfg(test)]
mod unit {
    use super::*;

    fn wait(text: &str) -> Option<u64> {
        let mut map = HeaderMap::new();
        map.insert("retry-after", text.parse().ok()?);
        let now = Timestamp::from_millis(1_445_412_420_000); // 21 Oct 2015 07:27:00 GMT
        retry_after(&map, now).map(|wait| wait.as_secs())
    }

    #[test]
    fn retry_after_reads_seconds_and_dates_and_nothing_else() {
        assert_eq!(wait("120"), Some(120));
        assert_eq!(wait("99999999999999999999999"), Some(u64::MAX));
        assert_eq!(wait("Wed, 21 Oct 2015 07:28:00 GMT"), Some(60));
        assert_eq!(wait("Wed, 21 Oct 2015 07:26:00 GMT"), Some(0));
        for text in ["-5", "NaN", "", "1.5", "soon", "(((((((((((((((((((((((((((((((((((((((((((((("] {
            assert_eq!(wait(text), None, "{text}");
        }
    }
}
