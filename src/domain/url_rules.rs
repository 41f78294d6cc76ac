//! Which URLs may be delivered to, and their one canonical text.
//!
//! A URL is parsed once, by the WHATWG parser, and only its canonical text is stored, shown and dialled.
//! What that parser would silently mend (control characters, backslashes, odd spellings of addresses) is
//! refused, because another reader might mend it differently.

use std::fmt;
use std::net::IpAddr;

use url::{Host, Url};

use super::address::AddressPolicy;

const URL_MAX: usize = 4096;
const PATH_MAX: usize = 2048;
const HOST_MAX: usize = 253;

/// Names that do not belong to the public internet.
const SPECIAL_SUFFIXES: [&str; 14] = [
    "localhost", "localdomain", "local", "internal", "intranet", "lan", "home", "home.arpa", "corp", "invalid",
    "onion", "test", "private", "alt",
];

/// Ports of services that must not receive HTTP: the Fetch standard's bad ports, and databases, brokers and
/// control planes.
const BAD_PORTS: [u16; 102] = [
    1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, 101, 102, 103, 104, 109,
    110, 111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389, 427, 465, 512, 513, 514, 515, 526, 530,
    531, 532, 540, 548, 554, 556, 563, 587, 601, 636, 989, 990, 993, 995, 1719, 1720, 1723, 2049, 2375, 2376, 2379,
    2380, 3306, 3389, 3659, 4045, 4190, 5060, 5061, 5432, 5672, 5984, 6000, 6379, 6443, 6566, 6665, 6666, 6667, 6668,
    6669, 6679, 6697, 8500, 9200, 9300, 10080, 10250, 11211, 27017, 50051, 6380, 26257,
];

/// What a server allows.
#[derive(Clone, Debug, Default)]
pub struct UrlRules {
    pub allow_http: bool,
    /// Names that are allowed though they are special or have a single label.
    pub allowed_hosts: Vec<String>,
    pub addresses: AddressPolicy,
}

/// A URL that may be delivered to, by the rules it was parsed with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointUrl {
    url: Url,
    uri: http::Uri,
}

/// What is wrong with a URL, as a sentence without its subject.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidUrl(&'static str);

impl EndpointUrl {
    pub fn as_str(&self) -> &str {
        self.url.as_str()
    }

    /// The same URL as the HTTP client takes it.
    pub fn uri(&self) -> &http::Uri {
        &self.uri
    }
}

impl fmt::Display for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl UrlRules {
    /// Checks a URL and makes it canonical.
    pub fn parse(&self, raw: &str) -> Result<EndpointUrl, InvalidUrl> {
        check_raw(raw)?;
        let mut url = Url::parse(raw).map_err(|_| InvalidUrl("must be an absolute URL"))?;
        match url.scheme() {
            "https" => {}
            "http" if self.allow_http => {}
            "http" => return Err(InvalidUrl("must use https")),
            _ => return Err(InvalidUrl("must use https, or http where the server allows it")),
        }
        let after_scheme = raw.get(url.scheme().len()..).unwrap_or_default();
        let Some(authority_on) = after_scheme.strip_prefix("://") else {
            return Err(InvalidUrl("must have // after its scheme"));
        };
        let authority = authority_on.split(['/', '?', '#']).next().unwrap_or_default();
        if authority.is_empty() {
            return Err(InvalidUrl("must name a host"));
        }
        if authority.contains('@') || !url.username().is_empty() || url.password().is_some() {
            return Err(InvalidUrl("must not hold a user name or password; use the endpoint's authentication"));
        }
        if url.fragment().is_some() {
            return Err(InvalidUrl("must not have a fragment"));
        }
        self.check_host(&mut url, authority)?;
        let literal = literal(&url);
        if let Some(port) = url.port() {
            let allowed = literal.is_some_and(|address| self.addresses.allows_explicitly(address));
            if port == 0 || (BAD_PORTS.contains(&port) && !allowed) {
                return Err(InvalidUrl("must not use that port"));
            }
        }
        let path_len = url.path().len() + url.query().map_or(0, |query| query.len() + 1);
        if path_len > PATH_MAX {
            return Err(InvalidUrl("must have at most 2048 bytes of path and query"));
        }
        let uri = url.as_str().parse().map_err(|_| InvalidUrl("must be a URL that HTTP can carry"))?;
        Ok(EndpointUrl { url, uri })
    }

    fn check_host(&self, url: &mut Url, authority: &str) -> Result<(), InvalidUrl> {
        match url.host() {
            None => Err(InvalidUrl("must name a host")),
            Some(Host::Ipv4(address)) => self.check_literal(authority, &address.to_string(), address.into()),
            Some(Host::Ipv6(address)) => self.check_literal(authority, &format!("[{address}]"), address.into()),
            Some(Host::Domain(name)) => {
                let name = name.strip_suffix('.').unwrap_or(name).to_owned();
                self.check_name(&name)?;
                url.set_host(Some(&name)).map_err(|_| InvalidUrl("must name a valid host"))
            }
        }
    }

    fn check_literal(&self, authority: &str, canonical: &str, address: IpAddr) -> Result<(), InvalidUrl> {
        let rest = authority.strip_prefix(canonical);
        if !rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(':')) {
            return Err(InvalidUrl("must write its address in the canonical form"));
        }
        if self.addresses.permits(address) {
            return Ok(());
        }
        Err(InvalidUrl("must not name a private, local or reserved address"))
    }

    fn check_name(&self, name: &str) -> Result<(), InvalidUrl> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        let valid = name.len() <= HOST_MAX
            && name.split('.').all(|label| (1..=63).contains(&label.len()) && label.bytes().all(plain));
        if !valid {
            return Err(InvalidUrl("must name a valid host"));
        }
        if self.allowed_hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(name)) {
            return Ok(());
        }
        let special = |suffix: &&str| {
            name.strip_suffix(*suffix).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        if !name.contains('.') || SPECIAL_SUFFIXES.iter().any(|suffix| special(&suffix)) {
            return Err(InvalidUrl("must name a public host"));
        }
        Ok(())
    }
}

/// The address that a URL names, if it names one.
pub fn literal(url: &Url) -> Option<IpAddr> {
    match url.host()? {
        Host::Ipv4(address) => Some(address.into()),
        Host::Ipv6(address) => Some(address.into()),
        Host::Domain(_) => None,
    }
}

/// Refuses what the parser would drop or map without a word.
fn check_raw(raw: &str) -> Result<(), InvalidUrl> {
    if raw.is_empty() {
        return Err(InvalidUrl("must not be empty"));
    }
    if raw.len() > URL_MAX {
        return Err(InvalidUrl("must be at most 4096 bytes"));
    }
    for letter in raw.chars() {
        if letter.is_control() || letter == ' ' || letter == '\\' || letter.is_whitespace() || is_format(letter) {
            return Err(InvalidUrl("must not hold spaces, backslashes, control or invisible characters"));
        }
    }
    Ok(())
}

/// Unicode's format characters (category Cf), which no one sees.
fn is_format(letter: char) -> bool {
    matches!(u32::from(letter),
        0xAD | 0x600..=0x605 | 0x61C | 0x6DD | 0x70F | 0x890..=0x891 | 0x8E2 | 0x180E | 0x200B..=0x200F
        | 0x202A..=0x202E | 0x2060..=0x2064 | 0x2066..=0x206F | 0xFEFF | 0xFFF9..=0xFFFB | 0x110BD | 0x110CD
        | 0x13430..=0x1343F | 0x1BCA0..=0x1BCA3 | 0x1D173..=0x1D17A | 0xE0001 | 0xE0020..=0xE007F)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rules() -> UrlRules {
        UrlRules { allow_http: true, ..UrlRules::default() }
    }

    /// Attack inputs: each must be refused though http is allowed.
    const REFUSED: &[&str] = &[
        "http://127.0.0.1/", "http://127.1/", "http://127.0.1/", "http://2130706433/", "http://0x7f000001/",
        "http://0x7f.1/", "http://0177.0.0.1/", "http://017700000001/", "http://00000177.0.0.1/",
        "http://127.0.0.0x1/", "http://127.0.0.1./", "http://127.0.0.1../", "http://0/", "http://0x/",
        "http://0.0.0.0/", "http://4294967295/", "http://4294967296/", "http://256.256.256.256/",
        "http://1.2.3.4.5/", "http://08.0.0.1/", "http://foo.1/", "http://foo.0x4/", "http://%31%32%37.0.0.1/",
        "http://127%2e0%2e0%2e1/", "http://%6c%6f%63%61%6c%68%6f%73%74/", "http://１２７.0.0.1/",
        "http://127。0。0。1/", "http://127．0．0．1/", "http://①②⑦.⓪.⓪.①/", "http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ/",
        "http://local\u{200b}host/", "http://local\u{ad}host/", "http://local\u{2060}host/",
        "http://\u{feff}localhost/", "http://local\u{200d}host/", "http://127.0.0.1\u{200b}/",
        "http://127.\n0.0.1/", "ht\ntp://127.0.0.1/", "http://127.0.\t0.1/", "http://exam\rple.com/",
        " http://example.com/", "http://example.com/ ", "\thttp://example.com/", "http:\\\\127.0.0.1\\",
        "http:/127.0.0.1/", "http:127.0.0.1/", "http:///127.0.0.1/", "http:////127.0.0.1/", "//127.0.0.1/",
        "http://127.0.0.1\\@example.com/", "http://example.com\\@127.0.0.1/", "http://example.com@127.0.0.1/",
        "http://example.com:80@127.0.0.1/", "http://127.0.0.1@example.com/", "http://[::1]:80@example.com/",
        "https://user@exam@ple.com/", "https://user:pass@example.com/", "https://@example.com/",
        "https://:@example.com/", "http://example.com#@127.0.0.1/", "http://[::1]/", "http://[0:0:0:0:0:0:0:1]/",
        "http://[::]/", "http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]/",
        "http://[0:0:0:0:0:ffff:7f00:0001]/", "http://[fe80::1]/", "http://[fe80::1%25eth0]/",
        "http://[fe80::1%eth0]/", "http://[::1%31]/", "http://[fec0::1]/", "http://[fc00::1]/",
        "http://[fd00:ec2::254]/", "http://[fd20:ce::254]/", "http://[ff02::1]/", "http://[5f00::1]/",
        "http://[100::1]/", "http://[100:0:0:1::1]/", "http://[2001:db8::1]/", "http://[3fff::1]/",
        "http://[4000::1]/", "http://[127.0.0.1]/", "http://[::1/", "http://::1/", "http://[v1.fe80::a]/",
        "http://[::1]foo/", "http://[1::2::3]/", "http://169.254.169.254/latest/meta-data/", "http://2852039166/",
        "http://0xa9fea9fe/", "http://0251.0376.0251.0376/", "http://169.254.43518/", "http://169.16689662/",
        "http://169.254.170.2/", "http://169.254.170.23/", "http://10.1.2.3/", "http://172.16.0.1/",
        "http://172.31.255.255/", "http://192.168.1.1/", "http://100.64.0.1/", "http://198.18.0.1/",
        "http://192.0.2.1/", "http://198.51.100.1/", "http://203.0.113.1/", "http://192.88.99.1/",
        "http://224.0.0.1/", "http://240.0.0.1/", "http://0.1.2.3/", "http://localhost/", "http://LOCALHOST/",
        "http://localhost./", "http://foo.localhost/", "http://localhost.localdomain/", "http://ip6-localhost/",
        "http://metadata.google.internal/", "http://METADATA.GOOGLE.INTERNAL./", "http://router/",
        "http://metadata/", "http://1e3/", "http://kubernetes.default.svc.cluster.local/", "http://x.local/",
        "http://x.onion/", "http://x.invalid/", "http://xn--localhost-/", "http://xn--example-.org/",
        "http://example.org.xn--/", "http://xn--a/", "http://example.com%00.evil.com/",
        "http://127.0.0.1%00.example.com/", "http://example.com\0.evil.com/", "http://example.com%0d%0aX:1/",
        "http://example.com/\r\nX-Injected: 1", "http://exa mple.com/", "http://exa%20mple.com/",
        "http://exa<mple.com/", "http://exa^mple.com/", "http://exa|mple.com/", "http://", "http://:80/",
        "http://?q", "http://#f", "http://a:b@/", "", "http://example.com:65536/", "http://example.com:-1/",
        "http://example.com:80a/", "http://example.com:%38%30/", "http://example.com:80:80/",
        "http://example.com:0/", "http://example.com:22/", "http://example.com:25/", "http://example.com:6379/",
        "http://example.com:5432/", "http://example.com:9200/", "http://example.com:2375/",
        "http://example.com:11211/", "http://example.com:10250/", "http://example.com:6000/", "ftp://example.com/",
        "file:///etc/passwd", "gopher://127.0.0.1:6379/_INFO", "unix:/tmp/x", "ws://example.com/",
        "javascript:alert(1)", "data:text/plain,x", "blob:https://example.com/x", "ldap://example.com/",
        "dict://example.com/", "http://0x08080808/", "http://134744072/", "http://a..example.com/",
    ];

    #[test]
    fn attack_inputs_are_refused() {
        for raw in REFUSED {
            assert!(rules().parse(raw).is_err(), "{raw:?} was accepted as {:?}", rules().parse(raw));
        }
        let long = format!("https://example.com/{}", "x".repeat(5000));
        assert!(rules().parse(&long).is_err());
        assert!(rules().parse(&format!("https://{}.com/", "x".repeat(64))).is_err());
    }

    #[test]
    fn good_urls_become_canonical() {
        let cases = [
            ("https://example.com", "https://example.com/"),
            ("HTTPS://EXAMPLE.COM/", "https://example.com/"),
            ("https://example.com./", "https://example.com/"),
            ("https://example.com:443/", "https://example.com/"),
            ("http://example.com:080/", "http://example.com/"),
            ("http://example.com:/", "http://example.com/"),
            ("http://example.com:443/", "http://example.com:443/"),
            ("https://example.com:80/", "https://example.com:80/"),
            ("http://аpple.com/", "http://xn--pple-43d.com/"),
            ("https://faß.de/", "https://xn--fa-hia.de/"),
            ("http://_dmarc.example.com/", "http://_dmarc.example.com/"),
            ("http://example.com?@127.0.0.1/", "http://example.com/?@127.0.0.1/"),
            ("http://example.com/%0d%0aX-Injected:%201", "http://example.com/%0d%0aX-Injected:%201"),
            ("https://8.8.8.8/", "https://8.8.8.8/"),
            ("https://[2606:4700:4700::1111]:8443/x?y=1", "https://[2606:4700:4700::1111]:8443/x?y=1"),
        ];
        for (raw, canonical) in cases {
            let url = rules().parse(raw).unwrap_or_else(|error| panic!("{raw}: {error}"));
            assert_eq!(url.as_str(), canonical);
            assert_eq!(rules().parse(canonical).as_ref().map(EndpointUrl::as_str), Ok(canonical));
        }
        assert_eq!(UrlRules::default().parse("http://example.com/"), Err(InvalidUrl("must use https")));
    }

    #[test]
    fn allow_lists_open_what_they_name() {
        let rules = UrlRules {
            allow_http: true,
            allowed_hosts: vec!["localhost".to_owned()],
            addresses: AddressPolicy { allow: vec!["127.0.0.0/8".parse().expect("cidr")], block: Vec::new() },
        };
        for raw in ["http://127.0.0.1:6379/", "http://127.9.9.9/", "http://localhost:8080/"] {
            assert!(rules.parse(raw).is_ok(), "{raw}");
        }
        for raw in ["http://127.1/", "http://10.0.0.1/", "http://metadata/", "http://localhost:6379/"] {
            assert!(rules.parse(raw).is_err(), "{raw}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_is_stable(raw in "\\PC{0,60}") {
            for candidate in [raw.clone(), format!("http://{raw}"), format!("https://example.com/{raw}")] {
                if let Ok(url) = rules().parse(&candidate) {
                    let again = rules().parse(url.as_str()).expect("canonical text is accepted");
                    prop_assert_eq!(again.as_str(), url.as_str());
                    let host = url.uri().host().unwrap_or_default();
                    prop_assert_eq!(Some(host), again.url.host_str());
                }
            }
        }
    }
}
