//! Deadlines: a unary call ends within the client's `grpc-timeout` and the server's own limit, a stream within
//! the client's alone. Either end is DEADLINE_EXCEEDED.
//!
//! A call that is cut loses its handler where it waits. Handlers can bear that: a transaction that is dropped
//! rolls back, and what must be finished runs in a task of its own.

use std::time::Duration;

use http::HeaderMap;

use crate::domain::error::{Error, Result};

const HEADER: &str = "grpc-timeout";

/// The client's patience; none if it named none. What is not exactly as gRPC writes it is refused.
pub fn of_client(headers: &HeaderMap) -> Result<Option<Duration>> {
    let mut values = headers.get_all(HEADER).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let parsed = value.to_str().ok().and_then(parse).filter(|_| values.next().is_none());
    match parsed {
        Some(timeout) => Ok(Some(timeout)),
        None => Err(Error::invalid(HEADER, "must be 1 to 8 digits and one of the units H, M, S, m, u and n")),
    }
}

fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_strictly() {
        for (text, expected) in [
            ("5S", Duration::from_secs(5)),
            ("100m", Duration::from_millis(100)),
            ("99999999H", Duration::from_secs(99_999_999 * 3600)),
            ("0n", Duration::ZERO),
            ("7u", Duration::from_micros(7)),
            ("2M", Duration::from_secs(120)),
        ] {
            assert_eq!(parse(text), Some(expected), "{text}");
        }
        for text in ["", "S", "5", "5s", "-5S", "+5S", "1.5S", "123456789S", " 5S", "5 S", "5SS", "٣S", "5é"]
        {
            assert_eq!(parse(text), None, "{text}");
        }
        let mut headers = HeaderMap::new();
        assert_eq!(of_client(&headers).expect("none"), None);
        headers.append(HEADER, "5S".parse().expect("a value"));
        assert_eq!(of_client(&headers).expect("one"), Some(Duration::from_secs(5)));
        headers.append(HEADER, "6S".parse().expect("a value"));
        assert!(of_client(&headers).is_err(), "two timeouts");
    }
}
