//! Attack inputs, good inputs, and what holds for every input.

use super::*;
use proptest::prelude::*;

fn rules() -> UrlRules {
    UrlRules { allow_http: true, ..UrlRules::default() }
}

/// Attack inputs: each must be refused though http is allowed.
#[rustfmt::skip]
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
    "http://[::ffff:8.8.8.8]/", "http://[::ffff:808:808]/", "https://[2606:4700:4700:0::1111]/",
    "https://[2606:4700:4700::ABCD]/", "http://8.8.8.8./", "https://-a.example.com/", "https://a-.example.com/",
    "https://example.com/#", "https://example\u{fe0f}.com/", "https://example.com/\u{3164}",
    "https://example.com/\u{85}", "https://example.com/\u{a0}", "https://example.com/a b", "https://.example.com/",
    "https://.../", "https://example.com../", "https:example.com/", "https:/example.com/",
    "https:///example.com/", "https://home.arpa/", "https://printer.home.arpa/", "https://com/", "https://com./",
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
        ("https://example.com/a/../b/./c?q=a", "https://example.com/b/c?q=a"),
        ("https://ex%61mple.com/%7Ex", "https://example.com/%7Ex"),
        (
            "https://example.com/naïve?größe={\"a\"|b}",
            "https://example.com/na%C3%AFve?gr%C3%B6%C3%9Fe={%22a%22|b}",
        ),
        ("https://mylocalhost.example.com/", "https://mylocalhost.example.com/"),
        ("https://notlocal.dev/", "https://notlocal.dev/"),
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
    for raw in
        ["http://127.0.0.1:34567/", "http://127.0.0.1:6379/", "http://127.9.9.9/", "http://localhost:6379/"]
    {
        assert!(rules.parse(raw).is_ok(), "{raw}");
    }
    for raw in
        ["http://127.1/", "http://10.0.0.1/", "http://metadata/", "http://8.8.8.8:6379/", "http://[::1]/"]
    {
        assert!(rules.parse(raw).is_err(), "{raw}");
    }
}

#[test]
fn lengths_are_bounded() {
    let path = |length: usize| format!("https://example.com/{}", "x".repeat(length - 1));
    assert!(rules().parse(&path(2048)).is_ok());
    assert!(rules().parse(&path(2049)).is_err());
    // Percent-encoding counts as it is stored.
    assert!(rules().parse(&format!("https://example.com/{}", "ü".repeat(400))).is_err());
    let label = "x".repeat(63);
    let name = |last: usize| format!("https://{label}.{label}.{label}.{}.de/", "y".repeat(last));
    assert!(rules().parse(&name(58)).is_ok());
    assert!(rules().parse(&name(59)).is_err());
    assert!(rules().parse(&format!("https://{label}x.de/")).is_err());
}

#[test]
fn parts_are_what_the_client_needs() {
    let url = rules().parse("HTTPS://Example.com.:8443/a?b").expect("url");
    assert_eq!((url.host_header().as_bytes(), url.port()), (&b"example.com:8443"[..], 8443));
    assert_eq!(url.host(), &Host::Domain("example.com".to_owned()));
    assert_eq!(
        (url.uri().host(), url.uri().path_and_query().map(|p| p.as_str())),
        (Some("example.com"), Some("/a?b"))
    );
    let url = rules().parse("http://[2606:4700::1]").expect("url");
    assert_eq!((url.host_header().as_bytes(), url.port()), (&b"[2606:4700::1]"[..], 80));
    assert_eq!(url.address(), Some("2606:4700::1".parse().expect("address")));
}

/// What holds for every accepted URL.
fn check_accepted(raw: &str) -> Result<(), TestCaseError> {
    let Ok(url) = rules().parse(raw) else { return Ok(()) };
    let again = rules().parse(url.as_str()).expect("canonical text is accepted");
    prop_assert_eq!(again.as_str(), url.as_str());
    prop_assert_eq!(url.uri().host().unwrap_or_default(), url.host().to_string());
    prop_assert_eq!(url.uri().to_string(), url.as_str());
    match url.address() {
        Some(address) => prop_assert!(rules().addresses.permits(address), "{}", url),
        None => {
            let name = url.host().to_string();
            prop_assert!(name.contains('.') && name.split('.').all(is_label), "{}", url);
            let sni = rustls::pki_types::ServerName::try_from(name);
            prop_assert!(sni.is_ok(), "{}", url);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_text_is_refused_or_canonical(raw in any::<String>(), scheme in "https?:/{0,3}") {
        check_accepted(&raw)?;
        check_accepted(&format!("{scheme}{raw}"))?;
        check_accepted(&format!("https://example.com/{raw}"))?;
        check_accepted(&format!("https://{raw}.example.com/"))?;
    }

    #[test]
    fn odd_hosts_are_refused_or_canonical(
        host in "(\\[[0-9a-fA-F:.]{2,24}\\]|[0-9a-fxX.%]{1,20}|([a-zA-Z0-9_\\-]{1,6}[.。]){1,4}[a-z0-9]{0,4})",
        port in "(:[0-9]{0,6})?", path in "[/?#@:a-z%0-9|{}^`\"'\\[\\]]{0,12}",
    ) {
        check_accepted(&format!("http://{host}{port}{path}"))?;
    }

    #[test]
    fn literals_follow_the_address_policy(bits: u128, v4: u32) {
        for address in [IpAddr::from(std::net::Ipv6Addr::from_bits(bits)), std::net::Ipv4Addr::from_bits(v4).into()] {
            let host = if address.is_ipv6() { format!("[{address}]") } else { address.to_string() };
            let accepted = rules().parse(&format!("http://{host}/")).is_ok();
            prop_assert_eq!(accepted, rules().addresses.permits(address), "{}", address);
        }
    }
}
