//! Which addresses Hawser may connect to: public unicast and nothing else, unless a list says so.
//!
//! IPv4 is refused by the IANA special-purpose registry's blocks; of IPv6 only 2000::/3 is allowed, less the
//! special blocks inside it, so mapped, compatible, translated, private and future blocks need no entry.
//! A mapped address is judged as the IPv4 address it carries, and where a list opens NAT64 or 6to4, so is what these
//! carry.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A block of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    network: IpAddr,
    prefix: u8,
}

/// Why a text is not a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be an address or a block such as 10.0.0.0/8 or fd00::/8, without bits behind its prefix, and not \
     an IPv4 address inside IPv6"
)]
pub struct InvalidCidr;

impl Cidr {
    const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Self {
        Self { network: IpAddr::V4(Ipv4Addr::new(a, b, c, d)), prefix }
    }

    const fn v6(a: u16, b: u16, c: u16, prefix: u8) -> Self {
        Self { network: IpAddr::V6(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0)), prefix }
    }

    const fn host_v6(s: [u16; 8]) -> Self {
        let address = Ipv6Addr::new(s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]);
        Self { network: IpAddr::V6(address), prefix: 128 }
    }

    /// Whether the address lies in the block. An address of the other family never does.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.network, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let shift = 32 - u32::from(self.prefix);
                shift == 32 || network.to_bits() >> shift == address.to_bits() >> shift
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let shift = 128 - u32::from(self.prefix);
                shift == 128 || network.to_bits() >> shift == address.to_bits() >> shift
            }
            _ => false,
        }
    }

    /// Whether it names a single address.
    const fn is_exact(&self) -> bool {
        match self.network {
            IpAddr::V4(_) => self.prefix == 32,
            IpAddr::V6(_) => self.prefix == 128,
        }
    }
}

impl FromStr for Cidr {
    type Err = InvalidCidr;

    fn from_str(text: &str) -> Result<Self, InvalidCidr> {
        let (address, prefix) = text.split_once('/').map_or((text, None), |(a, p)| (a, Some(p)));
        let network: IpAddr = address.parse().map_err(|_| InvalidCidr)?;
        // Addresses are judged in canonical form, so a mapped block would match nothing, silently.
        if network != network.to_canonical() {
            return Err(InvalidCidr);
        }
        let (longest, trailing_zeros) = match network {
            IpAddr::V4(v4) => (32, v4.to_bits().trailing_zeros()),
            IpAddr::V6(v6) => (128, v6.to_bits().trailing_zeros()),
        };
        let prefix = match prefix {
            None => longest,
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                digits.parse().map_err(|_| InvalidCidr)?
            }
            Some(_) => return Err(InvalidCidr),
        };
        let behind = u32::from(longest).checked_sub(u32::from(prefix)).ok_or(InvalidCidr)?;
        if trailing_zeros < behind {
            return Err(InvalidCidr);
        }
        Ok(Self { network, prefix })
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

const PUBLIC_V6: Cidr = Cidr::v6(0x2000, 0, 0, 3);

/// Inside public space, or all of IPv4, and yet not public unicast.
#[rustfmt::skip]
const SPECIAL: [Cidr; 24] = [
    Cidr::v4(0, 0, 0, 0, 8),          // this network (RFC 791)
    Cidr::v4(10, 0, 0, 0, 8),         // private (RFC 1918)
    Cidr::v4(100, 64, 0, 0, 10),      // carrier NAT (RFC 6598)
    Cidr::v4(127, 0, 0, 0, 8),        // loopback
    Cidr::v4(169, 254, 0, 0, 16),     // link-local (RFC 3927)
    Cidr::v4(172, 16, 0, 0, 12),      // private
    Cidr::v4(192, 0, 0, 0, 24),       // IETF protocol assignments (RFC 6890)
    Cidr::v4(192, 0, 2, 0, 24),       // documentation (RFC 5737)
    Cidr::v4(192, 31, 196, 0, 24),    // AS112 (RFC 7535)
    Cidr::v4(192, 52, 193, 0, 24),    // AMT (RFC 7450)
    Cidr::v4(192, 88, 99, 0, 24),     // 6to4 relays (RFC 7526)
    Cidr::v4(192, 168, 0, 0, 16),     // private
    Cidr::v4(192, 175, 48, 0, 24),    // AS112 (RFC 7534)
    Cidr::v4(198, 18, 0, 0, 15),      // benchmarks (RFC 2544)
    Cidr::v4(198, 51, 100, 0, 24),    // documentation
    Cidr::v4(203, 0, 113, 0, 24),     // documentation
    Cidr::v4(224, 0, 0, 0, 4),        // multicast (RFC 5771)
    Cidr::v4(240, 0, 0, 0, 4),        // reserved, broadcast (RFC 1112)
    Cidr::v6(0x2001, 0, 0, 23),       // IETF protocol assignments: Teredo, ORCHID, benchmarks …
    Cidr::v6(0x2001, 0xdb8, 0, 32),   // documentation (RFC 3849)
    Cidr::v6(0x2002, 0, 0, 16),       // 6to4, which carries an IPv4 address
    Cidr::v6(0x2620, 0x4f, 0x8000, 48), // AS112 direct delegation
    Cidr::v6(0x3fff, 0, 0, 20),       // documentation (RFC 9637)
    Cidr::v4(168, 63, 129, 16, 32),   // Azure's WireServer, in public space
];

/// Where clouds hand out credentials: an allow list must name each address by itself. All of link-local is
/// here, because every cloud puts its service somewhere else in it and no webhook lives there.
#[rustfmt::skip]
const METADATA: [Cidr; 8] = [
    Cidr::v4(169, 254, 0, 0, 16),                         // AWS, GCP, Azure, OCI, DigitalOcean; ECS and EKS credentials
    Cidr::v4(168, 63, 129, 16, 32),                       // Azure's WireServer
    Cidr::v4(100, 100, 100, 200, 32),                     // Alibaba
    Cidr::v4(192, 0, 0, 192, 32),                         // OCI's alias
    Cidr::v6(0xfe80, 0, 0, 10),                           // OpenStack
    Cidr::host_v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254]), // AWS
    Cidr::host_v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23]),  // EKS
    Cidr::host_v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254]),  // GCP
];

/// NAT64 by the well-known prefix (RFC 6052).
const NAT64: Cidr = Cidr::v6(0x64, 0xff9b, 0, 96);
/// NAT64 by a prefix of the network's own, whose length only that network knows (RFC 8215).
const NAT64_LOCAL: Cidr = Cidr::v6(0x64, 0xff9b, 1, 48);
/// RFC 3056.
const SIX_TO_FOUR: Cidr = Cidr::v6(0x2002, 0, 0, 16);

/// The IPv4 address that a translator or a tunnel makes of this one; by each length of a prefix where that is not known.
fn carried(address: IpAddr) -> Vec<IpAddr> {
    let IpAddr::V6(v6) = address else { return Vec::new() };
    let octets = v6.octets();
    let v4 = |places: [usize; 4]| IpAddr::from(places.map(|place| octets[place]));
    let places: &[[usize; 4]] = match address {
        _ if NAT64.contains(address) => &[[12, 13, 14, 15]],
        // Behind 48, 56, 64 and 96 bits; the ninth octet is never part of it (RFC 6052, section 2.2).
        _ if NAT64_LOCAL.contains(address) => {
            &[[6, 7, 9, 10], [7, 9, 10, 11], [9, 10, 11, 12], [12, 13, 14, 15]]
        }
        _ if SIX_TO_FOUR.contains(address) => &[[2, 3, 4, 5]],
        _ => &[],
    };
    places.iter().copied().map(v4).collect()
}

/// Decides about addresses. Default deny; the lists sit on top, and block wins.
#[derive(Clone, Debug, Default)]
pub struct AddressPolicy {
    /// Allowed though the default denies them.
    pub allow: Vec<Cidr>,
    /// Denied though the default, or `allow`, allows them.
    pub block: Vec<Cidr>,
}

impl AddressPolicy {
    /// Whether Hawser may connect there.
    pub fn permits(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        // Whatever leads on to another address is as good as that one, though a wide entry allows it.
        let carried = carried(address);
        let is_blocked = |address: &IpAddr| self.block.iter().any(|block| block.contains(*address));
        if is_blocked(&address) || carried.iter().any(is_blocked) {
            return false;
        }
        let is_named =
            |address: &IpAddr| self.allow.iter().any(|block| block.is_exact() && block.contains(*address));
        if is_named(&address) {
            return true;
        }
        let is_metadata =
            |address: &IpAddr| METADATA.iter().any(|block| block.contains(*address)) && !is_named(address);
        if is_metadata(&address) || carried.iter().any(is_metadata) {
            return false;
        }
        if self.allow.iter().any(|block| block.contains(address)) {
            // Where it is certain it is judged as any other; of several guesses three are wrong.
            return match carried[..] {
                [inside] => self.permits(inside),
                _ => true,
            };
        }
        let in_public_space = address.is_ipv4() || PUBLIC_V6.contains(address);
        in_public_space && !SPECIAL.iter().any(|block| block.contains(address))
    }

    /// Whether an allow list, rather than the default, lets Hawser connect there.
    pub fn allows_explicitly(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.permits(address) && self.allow.iter().any(|block| block.contains(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn permits(text: &str) -> bool {
        AddressPolicy::default().permits(text.parse().expect(text))
    }

    fn cidr(text: &str) -> Cidr {
        text.parse().expect(text)
    }

    #[rustfmt::skip]
    const METADATA_EXAMPLES: [&str; 10] = [
        "169.254.169.254", "169.254.170.2", "169.254.170.23", "168.63.129.16", "100.100.100.200", "192.0.0.192",
        "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "fe80::a9fe:a9fe",
    ];

    /// Walks every block of the table: its first and last address are refused, and the addresses on either
    /// side get the verdict of whatever they lie in.
    #[test]
    fn each_block_ends_where_it_should() {
        for block in SPECIAL {
            let (first, last) = match block.network {
                IpAddr::V4(v4) => {
                    let size = 1u64 << (32 - block.prefix);
                    (u128::from(v4.to_bits()), u128::from(v4.to_bits()) + u128::from(size) - 1)
                }
                IpAddr::V6(v6) => (v6.to_bits(), v6.to_bits() | (u128::MAX >> block.prefix)),
            };
            let address = |bits: u128| -> Option<IpAddr> {
                match block.network {
                    IpAddr::V4(_) => u32::try_from(bits).ok().map(|bits| Ipv4Addr::from_bits(bits).into()),
                    IpAddr::V6(_) => Some(Ipv6Addr::from_bits(bits).into()),
                }
            };
            let policy = AddressPolicy::default();
            for inside in [first, last] {
                assert!(!policy.permits(address(inside).expect("inside")), "{block}");
            }
            for outside in [first.checked_sub(1), last.checked_add(1)].into_iter().flatten() {
                let Some(outside) = address(outside) else { continue };
                assert!(!block.contains(outside), "{block}");
                let elsewhere = SPECIAL.iter().any(|other| other.contains(outside))
                    || (outside.is_ipv6() && !PUBLIC_V6.contains(outside));
                assert_eq!(policy.permits(outside), !elsewhere, "{outside} beside {block}");
            }
        }
    }

    #[test]
    #[rustfmt::skip]
    fn special_addresses_are_refused() {
        for text in [
            "0.0.0.0", "0.1.2.3", "10.1.2.3", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.255",
            "169.254.169.254", "169.254.170.2", "169.254.170.23", "172.16.0.1", "172.31.255.255", "192.0.0.192",
            "192.0.2.1", "192.31.196.1", "192.52.193.1", "192.88.99.1", "192.168.1.1", "192.175.48.1", "198.18.0.1",
            "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1",
            "255.255.255.255", "168.63.129.16", "::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:0:7f00:1",
            "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "100::1", "100:0:0:1::1", "200::1", "2001::1", "2001:2::1",
            "2001:1ff:ffff::1", "2001:db8::1", "2002:7f00:1::", "2620:4f:8000::1", "3fff::1", "4000::1", "5f00::1",
            "fc00::1", "fd00:ec2::254", "fd20:ce::254", "fe80::1", "fec0::1", "ff02::1",
        ] {
            assert!(!permits(text), "{text}");
        }
    }

    #[test]
    #[rustfmt::skip]
    fn neighbours_of_special_blocks_are_public() {
        for text in [
            "1.0.0.0", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0",
            "169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0", "192.0.1.0", "192.0.3.0",
            "192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0", "198.51.99.255", "198.51.101.0",
            "203.0.112.255", "203.0.114.0", "223.255.255.255", "168.63.129.15", "168.63.129.17", "2000::1",
            "2001:200::1", "2001:db7::1", "2001:db9::1", "2003::1", "2620:4f:7fff::1", "2620:4f:8001::1", "3ffe::1",
            "3fff:1000::1", "2606:4700:4700::1111", "::ffff:8.8.8.8",
        ] {
            assert!(permits(text), "{text}");
        }
    }

    #[test]
    fn lists_sit_on_top_and_block_wins() {
        let policy = AddressPolicy {
            allow: vec![cidr("10.0.0.0/8"), cidr("169.254.0.0/16")],
            block: vec![cidr("10.9.0.0/16"), cidr("8.8.8.8")],
        };
        let permits = |text: &str| policy.permits(text.parse().expect("address"));
        assert!(permits("10.1.2.3"));
        assert!(permits("::ffff:10.1.2.3"));
        assert!(!permits("10.9.0.1"));
        assert!(!permits("8.8.8.8"));
        assert!(!permits("127.0.0.1"));
        // Metadata needs an entry of its own.
        assert!(!permits("169.254.169.254"));
        assert!(!permits("169.254.1.1"));
        let all = AddressPolicy { allow: vec![cidr("0.0.0.0/0"), cidr("::/0")], block: Vec::new() };
        for text in METADATA_EXAMPLES {
            let address: IpAddr = text.parse().expect(text);
            assert!(!all.permits(address), "{text} by a wide entry");
            let own = AddressPolicy { allow: vec![cidr(text)], block: Vec::new() };
            assert!(own.permits(address), "{text} by its own entry");
            let blocked = AddressPolicy { allow: vec![cidr(text)], block: vec![cidr(text)] };
            assert!(!blocked.permits(address), "{text} though blocked");
        }
        assert!(all.permits("127.0.0.1".parse().expect("address")));
    }

    /// The ways to write an IPv4 address inside an IPv6 address that leads to it: 6to4, NAT64 by the well-known prefix,
    /// and by one of 48, 56, 64 and 96 bits of a network's own.
    fn wrapped(v4: Ipv4Addr) -> [Ipv6Addr; 6] {
        let [a, b, c, d] = v4.octets().map(u16::from);
        [
            Ipv6Addr::new(0x2002, a << 8 | b, c << 8 | d, 0, 0, 0, 0, 1),
            Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, a << 8 | b, c << 8 | d),
            Ipv6Addr::new(0x64, 0xff9b, 1, a << 8 | b, c, d << 8, 0, 0),
            Ipv6Addr::new(0x64, 0xff9b, 1, 0x5500 | a, b, c << 8 | d, 0, 0),
            Ipv6Addr::new(0x64, 0xff9b, 1, 0x5555, a, b << 8 | c, d << 8, 0),
            Ipv6Addr::new(0x64, 0xff9b, 1, 0x5555, 0x55, 0x5555, a << 8 | b, c << 8 | d),
        ]
    }

    #[test]
    fn no_wide_entry_leads_around_the_rules_for_ipv4() {
        let wide: Vec<Cidr> =
            ["::/0", "0.0.0.0/0", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16"].map(cidr).into();
        let with = |own: &[&str], block: &[&str]| AddressPolicy {
            allow: wide.iter().copied().chain(own.iter().map(|text| cidr(text))).collect(),
            block: block.iter().map(|text| cidr(text)).collect(),
        };
        let metadata = METADATA_EXAMPLES.iter().filter_map(|text| Some((text, text.parse().ok()?)));
        for (text, v4) in metadata {
            for address in wrapped(v4) {
                let (own, ip) = (address.to_string(), IpAddr::from(address));
                assert!(!with(&[], &[]).permits(ip), "{address} by wide entries");
                assert!(with(&[&own], &[]).permits(ip), "{address} by its own entry");
                assert!(!with(&[&own, text], &[text]).permits(ip), "{address} though {text} is blocked");
            }
            // Of a network's own prefix another reading may be metadata still.
            for address in &wrapped(v4)[..2] {
                assert!(with(&[text], &[]).permits((*address).into()), "{address} by an entry of {text}");
            }
        }
        // And with no metadata.
        for address in wrapped(Ipv4Addr::new(8, 8, 8, 8)) {
            assert!(with(&[], &[]).permits(address.into()), "{address}");
            assert!(!with(&[], &["8.8.8.0/24"]).permits(address.into()), "{address} is blocked");
        }
        // Who opens a translator has not opened the private addresses behind it.
        for [allowed, public, private] in [
            ["64:ff9b::/96", "64:ff9b::808:808", "64:ff9b::a01:203"],
            ["2002::/16", "2002:808:808::1", "2002:a01:203::1"],
        ] {
            let [public, private]: [IpAddr; 2] = [public, private].map(|text| text.parse().expect(text));
            let one = AddressPolicy { allow: vec![cidr(allowed)], block: Vec::new() };
            assert!(one.permits(public) && !one.permits(private), "{allowed}");
            let both = AddressPolicy { allow: vec![cidr(allowed), cidr("10.0.0.0/8")], block: Vec::new() };
            assert!(both.permits(private), "{allowed} and 10.0.0.0/8");
        }
    }

    #[test]
    #[rustfmt::skip]
    fn blocks_are_read_strictly() {
        for text in [
            "", "10.0.0.0/33", "10.0.0.1/8", "::1/129", "fd00::1/8", "10.0.0/8", "10.0.0.0/-1", "10.0.0.0/",
            "10.0.0.0/+8", "10.0.0.0/8/8", "::ffff:10.0.0.0/104", "::ffff:10.0.0.1", "010.0.0.0/8", "300.0.0.0/8",
        ] {
            assert!(text.parse::<Cidr>().is_err(), "{text:?}");
        }
        for text in ["0.0.0.0/0", "::/0", "10.0.0.1", "10.0.0.0/8", "fd00::/8", "::1"] {
            assert!(cidr(text).to_string().starts_with(text), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn outside_public_v6_space_is_refused(bits: u128) {
            let address = Ipv6Addr::from_bits(bits);
            if bits >> 125 != 1 && address.to_ipv4_mapped().is_none() {
                prop_assert!(!AddressPolicy::default().permits(address.into()));
            }
        }

        #[test]
        fn wrapped_v4_is_judged_as_v4_or_refused(bits: u32) {
            let policy = AddressPolicy::default();
            let v4 = Ipv4Addr::from_bits(bits);
            prop_assert_eq!(policy.permits(v4.into()), policy.permits(v4.to_ipv6_mapped().into()));
            for prefix in [0u128, 0xffff_0000 << 32, 0x64_ff9b << 96] {
                let wrapped = Ipv6Addr::from_bits(prefix | u128::from(bits));
                prop_assert!(!policy.permits(wrapped.into()));
            }
            let six_to_four = Ipv6Addr::from_bits(0x2002 << 112 | u128::from(bits) << 80);
            prop_assert!(!policy.permits(six_to_four.into()));
        }
    }
}
