//! Which URLs may be delivered to, and their one canonical text.
//!
//! A URL is parsed once, by the WHATWG parser, and only its canonical text is stored, shown and dialled.
//! What that parser would silently mend (control characters, backslashes, odd spellings of addresses) is
//! refused, because another reader might mend it differently.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderValue, Uri};
use url::{Host, Url};

use super::address::AddressPolicy;

const URL_MAX: usize = 4096;
const PATH_MAX: usize = 2048;
const HOST_MAX: usize = 253;
const LABEL_MAX: usize = 63;

/// Names that do not belong to the public internet.
#[rustfmt::skip]
const SPECIAL_SUFFIXES: [&str; 14] = [
    "localhost", "localdomain", "local", "internal", "intranet", "lan", "home", "home.arpa", "corp", "invalid",
    "onion", "test", "private", "alt",
];

/// Ports of services that must not receive HTTP: the Fetch standard's bad ports, and databases, brokers and
/// control planes.
#[rustfmt::skip]
const BAD_PORTS: [u16; 102] = [
    1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, 101, 102, 103, 104, 109,
    110, 111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389, 427, 465, 512, 513, 514, 515, 526, 530,
    531, 532, 540, 548, 554, 556, 563, 587, 601, 636, 989, 990, 993, 995, 1719, 1720, 1723, 2049, 2375, 2376, 2379,
    2380, 3306, 3389, 3659, 4045, 4190, 5060, 5061, 5432, 5672, 5984, 6000, 6379, 6380, 6443, 6566, 6665, 6666, 6667,
    6668, 6669, 6679, 6697, 8500, 9200, 9300, 10080, 10250, 11211, 26257, 27017, 50051,
];

/// What a server allows.
#[derive(Clone, Debug, Default)]
pub struct UrlRules {
    /// Whether `http` is accepted beside `https`.
    pub allow_http: bool,
    /// Names that are allowed though they are special or have a single label.
    pub allowed_hosts: Vec<String>,
    /// Which addresses a URL may name.
    pub addresses: AddressPolicy,
}

/// A URL that may be delivered to, by the rules it was parsed with. Cheap to clone: it is made once per
/// endpoint and shared by all its attempts.
#[derive(Clone)]
pub struct EndpointUrl(Arc<Canonical>);

struct Canonical {
    text: String,
    host: Host<String>,
    port: u16,
    uri: Uri,
    host_header: HeaderValue,
}

/// What is wrong with a URL, as a sentence without its subject.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidUrl(&'static str);

impl EndpointUrl {
    /// The canonical text.
    pub fn as_str(&self) -> &str {
        &self.0.text
    }

    /// The same URL as the HTTP client takes it.
    pub fn uri(&self) -> &Uri {
        &self.0.uri
    }

    /// The value of the request's `Host` header.
    pub fn host_header(&self) -> &HeaderValue {
        &self.0.host_header
    }

    /// The name or address, canonical: lower case, punycode, no trailing dot.
    pub fn host(&self) -> &Host<String> {
        &self.0.host
    }

    /// The port, explicit or the scheme's.
    pub fn port(&self) -> u16 {
        self.0.port
    }

    /// The address that the URL names, if it names one.
    pub fn address(&self) -> Option<IpAddr> {
        match self.0.host {
            Host::Ipv4(address) => Some(address.into()),
            Host::Ipv6(address) => Some(address.into()),
            Host::Domain(_) => None,
        }
    }
}

impl PartialEq for EndpointUrl {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for EndpointUrl {}

impl fmt::Display for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl UrlRules {
    /// Checks a URL and makes it canonical.
    pub fn parse(&self, raw: &str) -> Result<EndpointUrl, InvalidUrl> {
        check_raw(raw)?;
        let mut url = Url::parse(raw).map_err(|_| InvalidUrl("must be an absolute URL with a valid host"))?;
        match url.scheme() {
            "https" => {}
            "http" if self.allow_http => {}
            "http" => return Err(InvalidUrl("must use https")),
            _ => return Err(InvalidUrl("must use https, or http where the server allows it")),
        }
        let authority = raw_authority(raw, url.scheme())?;
        if authority.contains('@') || !url.username().is_empty() || url.password().is_some() {
            return Err(InvalidUrl(
                "must not hold a user name or password; use the endpoint's authentication",
            ));
        }
        if url.fragment().is_some() {
            return Err(InvalidUrl("must not have a fragment"));
        }
        let host = self.check_host(&mut url, authority)?;
        self.check_port(&url, &host)?;
        if url.path().len() + url.query().map_or(0, |query| query.len() + 1) > PATH_MAX {
            return Err(InvalidUrl("must have at most 2048 bytes of path and query"));
        }
        if url.as_str().len() > URL_MAX {
            return Err(InvalidUrl("must be at most 4096 bytes"));
        }
        canonical(url, host)
    }

    /// Checks the host, strips a trailing dot from it in `url`, and returns it.
    fn check_host(&self, url: &mut Url, authority: &str) -> Result<Host<String>, InvalidUrl> {
        let host = url.host().ok_or(InvalidUrl("must name a host"))?.to_owned();
        match &host {
            Host::Ipv4(address) => self.check_literal(url, authority, (*address).into())?,
            Host::Ipv6(address) => self.check_literal(url, authority, (*address).into())?,
            Host::Domain(dotted) => {
                let name = dotted.strip_suffix('.').unwrap_or(dotted);
                self.check_name(name)?;
                if name.len() < dotted.len() {
                    let host = Host::Domain(name.to_owned());
                    url.set_host(Some(name)).map_err(|_| InvalidUrl("must name a valid host"))?;
                    // What is left without its dot must still be a name, not an address.
                    return if url.host() == Some(Host::Domain(name)) {
                        Ok(host)
                    } else {
                        Err(InvalidUrl("must name a valid host"))
                    };
                }
            }
        }
        Ok(host)
    }

    fn check_literal(&self, url: &Url, authority: &str, address: IpAddr) -> Result<(), InvalidUrl> {
        let spelling = url.host_str().unwrap_or_default();
        let rest = authority.strip_prefix(spelling);
        if !rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(':')) {
            return Err(InvalidUrl("must write its address in the canonical form"));
        }
        if address != address.to_canonical() {
            return Err(InvalidUrl("must write an IPv4 address as such"));
        }
        if self.addresses.permits(address) { Ok(()) } else { Err(InvalidUrl("target address not allowed")) }
    }

    fn check_name(&self, name: &str) -> Result<(), InvalidUrl> {
        if name.len() > HOST_MAX || !name.split('.').all(is_label) {
            return Err(InvalidUrl("must name a valid host"));
        }
        if self.allows_host(name) {
            return Ok(());
        }
        let special = |suffix: &&str| {
            name.strip_suffix(*suffix).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        if !name.contains('.') || SPECIAL_SUFFIXES.iter().any(special) {
            return Err(InvalidUrl("must name a public host"));
        }
        Ok(())
    }

    fn check_port(&self, url: &Url, host: &Host<String>) -> Result<(), InvalidUrl> {
        let Some(port) = url.port() else { return Ok(()) };
        let named_by_operator = match host {
            Host::Ipv4(address) => self.addresses.allows_explicitly((*address).into()),
            Host::Ipv6(address) => self.addresses.allows_explicitly((*address).into()),
            Host::Domain(name) => self.allows_host(name),
        };
        if port == 0 || (BAD_PORTS.contains(&port) && !named_by_operator) {
            return Err(InvalidUrl("must not use that port"));
        }
        Ok(())
    }

    fn allows_host(&self, name: &str) -> bool {
        self.allowed_hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(name))
    }
}

/// The text that a URL is stored as wherever it is accepted, by whatever rules; as it is where it is accepted nowhere.
pub fn canonical_text(raw: &str) -> String {
    let Ok(mut url) = Url::parse(raw) else { return raw.to_owned() };
    let undotted = url.host_str().and_then(|host| host.strip_suffix('.')).map(str::to_owned);
    if let Some(host) = undotted
        && url.set_host(Some(&host)).is_err()
    {
        return raw.to_owned();
    }
    url.into()
}

/// Refuses what the parser would drop or map without a word.
fn check_raw(raw: &str) -> Result<(), InvalidUrl> {
    if raw.is_empty() {
        return Err(InvalidUrl("must not be empty"));
    }
    if raw.len() > URL_MAX {
        return Err(InvalidUrl("must be at most 4096 bytes"));
    }
    let hidden = |letter: char| letter.is_control() || letter.is_whitespace() || is_invisible(letter);
    if raw.contains(|letter| letter == '\\' || hidden(letter)) {
        return Err(InvalidUrl("must not hold spaces, backslashes, control or invisible characters"));
    }
    Ok(())
}

/// What stands between `//` and the path, as it was written. The parser accepts any number of slashes after
/// the scheme; here there are two.
fn raw_authority<'a>(raw: &'a str, scheme: &str) -> Result<&'a str, InvalidUrl> {
    let rest = raw.get(scheme.len()..).and_then(|rest| rest.strip_prefix("://"));
    let rest = rest.ok_or(InvalidUrl("must have // after its scheme"))?;
    match rest.split(['/', '?', '#']).next() {
        None | Some("") => Err(InvalidUrl("must name a host")),
        Some(authority) => Ok(authority),
    }
}

fn canonical(url: Url, host: Host<String>) -> Result<EndpointUrl, InvalidUrl> {
    let unfit = |_| InvalidUrl("must be a URL that HTTP can carry");
    let uri: Uri = url.as_str().parse().map_err(unfit)?;
    let name = url.host_str().unwrap_or_default();
    let host_header = match url.port() {
        None => HeaderValue::from_str(name),
        Some(port) => HeaderValue::from_str(&format!("{name}:{port}")),
    };
    let host_header = host_header.map_err(|_| InvalidUrl("must name a valid host"))?;
    let port = url.port_or_known_default().ok_or(InvalidUrl("must have a port"))?;
    Ok(EndpointUrl(Arc::new(Canonical { text: url.into(), host, port, uri, host_header })))
}

/// Letters, digits, hyphens inside, and the underscore that some service names have.
fn is_label(label: &str) -> bool {
    (1..=LABEL_MAX).contains(&label.len())
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

/// Unicode's format characters (category Cf) and its other default-ignorable ones: no one sees them.
fn is_invisible(letter: char) -> bool {
    matches!(u32::from(letter),
        0xAD | 0x34F | 0x600..=0x605 | 0x61C | 0x6DD | 0x70F | 0x890..=0x891 | 0x8E2 | 0x115F..=0x1160
        | 0x17B4..=0x17B5 | 0x180B..=0x180F | 0x200B..=0x200F | 0x202A..=0x202E | 0x2060..=0x206F | 0x3164
        | 0xFE00..=0xFE0F | 0xFEFF | 0xFFA0 | 0xFFF0..=0xFFFB | 0x110BD | 0x110CD | 0x13430..=0x1343F
        | 0x1BCA0..=0x1BCA3 | 0x1D173..=0x1D17A | 0xE0000..=0xE0FFF)
}

#[cfg(test)]
mod tests;
