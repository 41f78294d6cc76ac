//! How values are written on the command line.

use std::time::Duration;

use anyhow::{Context, bail};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::domain::clock::Timestamp;

/// A number with its unit.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a time such as 90s, 30m, 24h or 7d");
    let unit = text.chars().next_back().ok_or_else(wrong)?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 24 * 3600,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)
}

/// An instant; or so long ago.
pub fn moment(text: &str) -> Result<prost_types::Timestamp, String> {
    if let Ok(ago) = duration(text) {
        let then = Timestamp::now().minus(ago).as_millis();
        let nanos = (then.rem_euclid(1000) * 1_000_000) as i32;
        return Ok(prost_types::Timestamp { seconds: then.div_euclid(1000), nanos });
    }
    let then = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| {
        format!("{text:?} is neither an instant such as 2030-01-31T12:00:00Z nor so long ago, such as 24h")
    })?;
    Ok(prost_types::Timestamp { seconds: then.unix_timestamp(), nanos: then.nanosecond() as i32 })
}

/// A name and its value.
pub fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        // Without the text: it may be a value.
        _ => Err("must be a name, an equals sign and a value".to_owned()),
    }
}

/// So many in so much time; in a second where there is no time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub requests: u32,
    pub per: Duration,
}

pub fn rate(text: &str) -> Result<Rate, String> {
    let (requests, per) = text.split_once('/').unwrap_or((text, "1s"));
    let wrong = || format!("{text:?} is not a rate such as 20/s, 100/1m or 5000/1h");
    let requests = requests.parse().map_err(|_| wrong())?;
    let per = duration(per).or_else(|_| duration(&format!("1{per}"))).map_err(|_| wrong())?;
    Ok(Rate { requests, per })
}

/// What a file holds, without the end of its last line: for what must be in no list of processes and no shell's history.
pub fn read_file(path: &str) -> anyhow::Result<String> {
    let text = match path {
        "-" => std::io::read_to_string(std::io::stdin()),
        path => std::fs::read_to_string(path),
    };
    let text = text.with_context(|| format!("cannot read {path}"))?.trim().to_owned();
    if text.is_empty() {
        bail!("{path} is empty");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_number_and_a_unit() {
        for (text, seconds) in [("0s", 0), ("90s", 90), ("30m", 1800), ("24h", 86_400), ("7d", 604_800)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)));
        }
        for text in ["", "s", "7", "7w", "-1s", "1.5h", "99999999999999999999d", "7é"] {
            assert!(duration(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn moments_are_instants_or_so_long_ago() {
        let instant = moment("2030-01-31T13:00:00.5+01:00").expect("an instant");
        assert_eq!((instant.seconds, instant.nanos), (1_896_091_200, 500_000_000));
        let (hour, day) = (moment("1h").expect("a time"), moment("1d").expect("a time"));
        assert!((23 * 3600 - 60..=23 * 3600).contains(&(hour.seconds - day.seconds)), "{hour} {day}");
        for text in ["", "yesterday", "2030-01-31", "2030-01-31T12:00:00", "-1h"] {
            assert!(moment(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn rates_have_a_number_and_a_time() {
        let rate_of = |requests, seconds| Ok(Rate { requests, per: Duration::from_secs(seconds) });
        for (text, expected) in [
            ("20", rate_of(20, 1)),
            ("20/s", rate_of(20, 1)),
            ("100/1m", rate_of(100, 60)),
            ("5/30s", rate_of(5, 30)),
        ] {
            assert_eq!(rate(text), expected);
        }
        for text in ["", "/s", "20/", "x/s", "20/w", "-1/s", "20/1s/1s"] {
            assert!(rate(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn pairs_have_a_name() {
        assert_eq!(pair("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert_eq!(pair("a="), Ok(("a".to_owned(), String::new())));
        for text in ["", "=", "=b", "canary"] {
            assert!(!pair(text).expect_err(text).contains("canary"), "{text:?}");
        }
    }
}
