//! Where webhooks may not go: addresses that are this machine's link or its cloud's, and nobody's.
//!
//! Whoever may write a URL into an app could otherwise have the server ask the metadata service of its cloud, which
//! hands out keys. What counts is the address that is connected to, whatever name led there. Loopback and private
//! networks are fine: that is where applications are, a Laravel on the same machine above all.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};

/// Metadata services outside the link-local range: Alibaba's, Azure's, Oracle's.
const METADATA_V4: [Ipv4Addr; 3] =
    [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(192, 0, 0, 192)];

/// The same over IPv6: Amazon's (all of its services, such as the credentials of pods), Google's, Oracle's, Scaleway's,
/// Linode's.
const METADATA_V6: [Ipv6Net; 5] = [
    v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0], 32),
    v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254], 128),
    v6([0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe], 128),
    v6([0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42], 128),
    v6([0xfd00, 0xa9fe, 0xa9fe, 0, 0, 0, 0, 0x1], 128),
];

const fn v6([a, b, c, d, e, f, g, h]: [u16; 8], prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, g, h), prefix)
}

/// What kind of address `address` is, if webhooks may not go there.
#[must_use]
pub fn refusal(address: IpAddr, allowed: &[IpNet]) -> Option<&'static str> {
    let address = bare(address);
    if allowed.iter().any(|network| network.contains(&address)) {
        return None;
    }
    match address {
        IpAddr::V4(address) => of_v4(address),
        IpAddr::V6(address) if METADATA_V6.iter().any(|network| network.contains(&address)) => {
            Some("a cloud's metadata service")
        }
        IpAddr::V6(address) if address.is_unspecified() => Some("no address"),
        IpAddr::V6(address) if address.is_unicast_link_local() => Some("link-local"),
        IpAddr::V6(address) if address.is_multicast() => Some("multicast"),
        IpAddr::V6(_) => None,
    }
}

fn of_v4(address: Ipv4Addr) -> Option<&'static str> {
    match address {
        _ if address == Ipv4Addr::new(169, 254, 169, 254) || METADATA_V4.contains(&address) => {
            Some("a cloud's metadata service")
        }
        _ if address.is_link_local() => Some("link-local"),
        // All of 0.0.0.0/8 is this machine.
        _ if address.octets()[0] == 0 => Some("no address"),
        _ if address.is_multicast() => Some("multicast"),
        _ if address.is_broadcast() => Some("broadcast"),
        _ => None,
    }
}

/// The IPv4 address within an IPv6 one that stands for it: mapped (`::ffff:0:0/96`), or behind NAT64, the public prefix
/// (`64:ff9b::/96`) or a local one (`64:ff9b:1::/48`, of which it takes all or 96 bits).
/// Source: RFC 6052 §2.2, RFC 8215.
fn bare(address: IpAddr) -> IpAddr {
    let v4 = |high: u16, low: u16| IpAddr::V4(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)));
    match address.to_canonical() {
        IpAddr::V6(v6) => match v6.segments() {
            [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4(high, low),
            // Within 48 bits, the address stands around eight that are zero, and nothing follows it.
            [0x64, 0xff9b, 1, high, middle, rest, 0, 0] if middle <= 0xff && rest.trailing_zeros() >= 8 => {
                v4(high, (middle << 8) | (rest >> 8))
            }
            [0x64, 0xff9b, 1, _, _, _, high, low] => v4(high, low),
            _ => IpAddr::V6(v6),
        },
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_the_cloud_and_nobody_are_refused_in_every_spelling() {
        let table = [
            ("127.0.0.1", true),
            ("::1", true),
            ("10.0.0.1", true),
            ("192.168.1.1", true),
            ("172.17.0.1", true),
            ("100.64.0.1", true),
            ("fd00::1", true),
            ("93.184.216.34", true),
            ("2606:2800::1", true),
            ("64:ff9b::5db8:d822", true),
            ("169.254.169.254", false),
            ("169.254.1.1", false),
            ("::ffff:169.254.169.254", false),
            ("64:ff9b::a9fe:a9fe", false),
            ("100.100.100.200", false),
            ("168.63.129.16", false),
            ("192.0.0.192", false),
            ("fd00:ec2::254", false),
            ("fd20:ce::254", false),
            ("fd00:ec2::23", false),
            ("fd00:ec2:1::1", false),
            ("fd00:ec3::1", true),
            ("fd00:c1::a9fe:a9fe", false),
            ("fd00:42::42", false),
            ("fd00:42::43", true),
            ("fd00:a9fe:a9fe::1", false),
            ("64:ff9b:1::a9fe:a9fe", false),
            ("64:ff9b:1:7::a9fe:a9fe", false),
            ("64:ff9b:1:a9fe:a9:fe00::", false),
            ("64:ff9b:1::5db8:d822", true),
            ("64:ff9b:1:5db8:d8:2200::", true),
            ("64:ff9b:2::a9fe:a9fe", true),
            ("fe80::1", false),
            ("febf::1", false),
            ("0.0.0.0", false),
            ("0.1.2.3", false),
            ("::", false),
            ("224.0.0.1", false),
            ("ff02::1", false),
            ("255.255.255.255", false),
        ];
        for (address, may) in table {
            assert_eq!(refusal(address.parse().unwrap(), &[]).is_none(), may, "{address}");
        }
    }

    #[test]
    fn what_is_allowed_is_allowed_in_every_spelling() {
        let allowed: [IpNet; 1] = ["169.254.10.0/24".parse().unwrap()];
        assert_eq!(refusal("169.254.10.7".parse().unwrap(), &allowed), None);
        assert_eq!(refusal("::ffff:169.254.10.7".parse().unwrap(), &allowed), None);
        assert_eq!(refusal("169.254.11.7".parse().unwrap(), &allowed), Some("link-local"));
    }
}
