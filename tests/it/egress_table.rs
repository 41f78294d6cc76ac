//! What must not be reached, as data: addresses, and the ways that URLs may spell or hide them.

/// Addresses that are not public unicast and can be listened on in a namespace.
#[rustfmt::skip]
pub const LISTENED: [&str; 43] = [
    "0.0.0.0", "0.1.2.3", "10.1.2.3", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.0.0.2", "169.254.169.254",
    "169.254.170.2", "169.254.170.23", "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1", "192.31.196.1",
    "192.52.193.1", "192.88.99.1", "192.168.1.1", "192.175.48.1", "198.18.0.1", "198.51.100.1", "203.0.113.1",
    "240.0.0.1", "168.63.129.16",
    "::1", "::7f00:1", "::ffff:0:7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "100::1", "100:0:0:1::1", "2001::1",
    "2001:db8::1", "2002:7f00:1::", "2620:4f:8000::1", "3fff::1", "4000::1", "5f00::1", "fc00::1", "fd00:ec2::254",
    "fd00:ec2::23", "fd20:ce::254", "fec0::1",
];

/// Those that nobody can listen on without more ado.
pub const OTHERS: [&str; 6] =
    ["224.0.0.1", "255.255.255.255", "::", "::ffff:169.254.169.254", "fe80::1", "ff02::1"];

/// Public ones, which are reached: the table's proof that it can fail.
pub const PUBLIC: [&str; 2] = ["8.8.8.8", "2606:4700:4700::1111"];

/// URLs that are refused when they are set, whatever they would resolve to.
#[rustfmt::skip]
pub const URLS: &[&str] = &[
    // Spellings of addresses.
    "http://127.1:8080/", "http://127.0.1:8080/", "http://2130706433:8080/", "http://0x7f000001:8080/",
    "http://0x7f.1:8080/", "http://0177.0.0.1:8080/", "http://017700000001:8080/", "http://00000177.0.0.1:8080/",
    "http://127.0.0.0x1:8080/", "http://127.0.0.1.:8080/", "http://127.0.0.1..:8080/", "http://0:8080/",
    "http://0x:8080/", "http://4294967295:8080/", "http://4294967296:8080/", "http://256.256.256.256:8080/",
    "http://1.2.3.4.5:8080/", "http://08.0.0.1:8080/", "http://foo.1:8080/", "http://foo.0x4:8080/",
    "http://%31%32%37.0.0.1:8080/", "http://127%2e0%2e0%2e1:8080/", "http://%6c%6f%63%61%6c%68%6f%73%74:8080/",
    "http://１２７.0.0.1:8080/", "http://127。0。0。1:8080/", "http://127．0．0．1:8080/", "http://①②⑦.⓪.⓪.①:8080/",
    "http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ:8080/", "http://local\u{200b}host:8080/", "http://local\u{ad}host:8080/",
    "http://local\u{2060}host:8080/", "http://\u{feff}localhost:8080/", "http://local\u{200d}host:8080/",
    "http://127.0.0.1\u{200b}:8080/", "http://127.\n0.0.1:8080/", "ht\ntp://127.0.0.1:8080/", "http://127.0.\t0.1:8080/",
    "http://exam\rple.com:8080/", " http://8.8.8.8:8080/", "http://8.8.8.8:8080/\t",
    "http://2852039166:8080/", "http://0xa9fea9fe:8080/", "http://0251.0376.0251.0376:8080/", "http://169.254.43518:8080/",
    "http://169.16689662:8080/", "http://0x08080808:8080/", "http://134744072:8080/",
    // Slashes, backslashes, users.
    "http:\\\\127.0.0.1:8080\\", "http:/127.0.0.1:8080/", "http:127.0.0.1:8080/", "http:///127.0.0.1:8080/",
    "http:////127.0.0.1:8080/", "//127.0.0.1:8080/", "http://127.0.0.1:8080\\@example.com/",
    "http://example.com\\@127.0.0.1:8080/", "http://example.com@127.0.0.1:8080/", "http://127.0.0.1:8080@example.com/",
    "http://[::1]:80@example.com/", "https://user@exam@ple.com/", "https://user:pass@example.com/",
    "https://@example.com/", "https://:@example.com/", "http://example.com#@127.0.0.1:8080/",
    // IPv6.
    "http://[0:0:0:0:0:0:0:1]:8080/", "http://[::ffff:127.0.0.1]:8080/", "http://[::ffff:7f00:1]:8080/",
    "http://[0:0:0:0:0:ffff:7f00:0001]:8080/", "http://[fe80::1%25lo]:8080/", "http://[fe80::1%lo]:8080/",
    "http://[::1%31]:8080/", "http://[127.0.0.1]:8080/", "http://[::1:8080/", "http://::1:8080/",
    "http://[v1.fe80::a]:8080/", "http://[::1]foo:8080/", "http://[1::2::3]:8080/", "http://[::ffff:8.8.8.8]:8080/",
    // Names that are not public.
    "http://localhost:8080/", "http://LOCALHOST:8080/", "http://localhost.:8080/", "http://foo.localhost:8080/",
    "http://localhost.localdomain:8080/", "http://ip6-localhost:8080/", "http://metadata.google.internal:8080/",
    "http://METADATA.GOOGLE.INTERNAL.:8080/", "http://router:8080/", "http://metadata:8080/", "http://1e3:8080/",
    "http://kubernetes.default.svc.cluster.local:8080/", "http://x.local:8080/", "http://x.onion:8080/",
    "http://x.invalid:8080/", "http://xn--localhost-:8080/", "http://xn--example-.org:8080/", "http://xn--a:8080/",
    // What no host is.
    "http://example.com%00.evil.com:8080/", "http://127.0.0.1%00.example.com:8080/", "http://example.com%0d%0aX:1/",
    "http://example.com:8080/\r\nX-Injected: 1", "http://exa mple.com:8080/", "http://exa%20mple.com:8080/",
    "http://exa<mple.com:8080/", "http://exa^mple.com:8080/", "http://exa|mple.com:8080/", "http://", "http://:80/",
    "http://?q", "http://#f",
    // Ports and schemes.
    "http://8.8.8.8:65536/", "http://8.8.8.8:-1/", "http://8.8.8.8:0/", "http://8.8.8.8:22/", "http://8.8.8.8:25/",
    "http://8.8.8.8:6379/", "http://8.8.8.8:5432/", "http://8.8.8.8:2375/", "http://8.8.8.8:2376/",
    "http://8.8.8.8:2379/", "http://8.8.8.8:3306/", "http://8.8.8.8:3389/", "http://8.8.8.8:5672/",
    "http://8.8.8.8:5984/", "http://8.8.8.8:6443/", "http://8.8.8.8:8500/", "http://8.8.8.8:9200/",
    "http://8.8.8.8:9300/", "http://8.8.8.8:10250/", "http://8.8.8.8:11211/", "http://8.8.8.8:27017/",
    "ftp://8.8.8.8/", "file:///etc/passwd", "gopher://127.0.0.1:6379/_INFO", "ws://8.8.8.8/", "wss://8.8.8.8/",
    "data:text/plain,x", "ldap://8.8.8.8/", "dict://8.8.8.8:11211/stats", "javascript:alert(1)", "unix:/run/x.sock",
];
