//! Which headers customers and publishers may add to deliveries.

use crate::domain::error::{Error, Result};

const COUNT_MAX: usize = 32;
const NAME_MAX: usize = 128;
const VALUE_MAX: usize = 4096;
const TOTAL_MAX: usize = 16 * 1024;

/// Names that HTTP or Hawser uses itself.
const RESERVED: [&str; 17] = [
    "host",
    "content-length",
    "content-type",
    "content-encoding",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "upgrade",
    "te",
    "trailer",
    "expect",
    "user-agent",
    "accept-encoding",
    "date",
    "cookie",
    "http2-settings",
    "via",
];
const RESERVED_PREFIXES: [&str; 3] = ["webhook-", "hawser-", "proxy-"];

/// Checks a list of headers and makes the names lower-case. `field` is the list's path in the request.
pub fn check(field: &str, headers: Vec<(String, String)>) -> Result<Vec<(String, String)>> {
    if headers.len() > COUNT_MAX {
        return Err(Error::invalid(field, format!("must have at most {COUNT_MAX} entries")));
    }
    let mut total = 0;
    let mut checked: Vec<(String, String)> = Vec::with_capacity(headers.len());
    for (name, value) in headers {
        let field = format!("{field}[{name:?}]");
        let lower = check_name(&field, &name)?;
        check_value(&field, &value)?;
        if checked.iter().any(|(known, _)| *known == lower) {
            return Err(Error::invalid(field, "is there twice"));
        }
        total += lower.len() + value.len();
        checked.push((lower, value));
    }
    if total > TOTAL_MAX {
        return Err(Error::invalid(field, "must have at most 16 KiB in all"));
    }
    Ok(checked)
}

/// Checks a header's name and makes it lower-case.
pub fn check_name(field: &str, name: &str) -> Result<String> {
    let lower = name.to_ascii_lowercase();
    if lower.len() > NAME_MAX || http::HeaderName::from_bytes(lower.as_bytes()).is_err() {
        return Err(Error::invalid(field, "is not a header name of at most 128 bytes (RFC 9110)"));
    }
    if RESERVED.contains(&lower.as_str()) || RESERVED_PREFIXES.iter().any(|prefix| lower.starts_with(prefix))
    {
        return Err(Error::invalid(field, "is a header that HTTP or Hawser sets itself"));
    }
    Ok(lower)
}

/// Checks a header's value.
pub fn check_value(field: &str, value: &str) -> Result<()> {
    let visible = value.bytes().all(|byte| (0x20..0x7f).contains(&byte)) && value.trim() == value;
    if value.len() > VALUE_MAX || !visible {
        let rule = "must have at most 4,096 bytes of visible ASCII, without spaces at its ends";
        return Err(Error::invalid(field, rule));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn injections_and_reserved_names_are_refused() {
        for (name, value) in [
            ("X:Y", ""),
            ("X Y", ""),
            ("", ""),
            ("Ünï", ""),
            ("X\r\nEvil", ""),
            ("x", "a\r\nb"),
            ("x", "a\nb"),
            ("x", "a\0b"),
            ("x", "\u{7f}"),
            ("x", " folded"),
            ("x", "é"),
            ("Host", "x"),
            ("Webhook-Id", "x"),
            ("hawser-attempt", "1"),
            ("Proxy-Authorization", "x"),
            ("Transfer-Encoding", "chunked"),
            (&"x".repeat(129), ""),
            ("x", &"v".repeat(4097)),
        ] {
            assert!(
                check("headers", vec![(name.to_owned(), value.to_owned())]).is_err(),
                "{name:?}: {value:?}"
            );
        }
        let good = check("headers", vec![("X-Api-Key".to_owned(), "k 1".to_owned())]).expect("good");
        assert_eq!(good, [("x-api-key".to_owned(), "k 1".to_owned())]);
        let twice = vec![("a".to_owned(), "1".to_owned()), ("A".to_owned(), "2".to_owned())];
        assert!(check("headers", twice).is_err());
    }
}
