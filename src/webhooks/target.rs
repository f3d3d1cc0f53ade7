//! Addresses that webhooks must not connect to: link-local, metadata services of clouds, multicast and unspecified
//! ones.
//!
//! Otherwise anyone who may configure a URL for an app could make the server request credentials from the metadata
//! service of its cloud. The address that is connected to is checked, not the host name. Loopback and private networks
//! are allowed, because applications run there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};

/// Metadata services outside the link-local range: Alibaba, Azure, Oracle.
const METADATA_V4: [Ipv4Addr; 3] =
    [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(192, 0, 0, 192)];

/// The same over IPv6: Amazon (all instance services, such as pod credentials), Google, Oracle, Scaleway, Linode.
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

/// The kind of `address`, if webhooks must not connect to it.
#[must_use]
pub fn denied_kind(address: IpAddr, allowed: &[IpNet]) -> Option<&'static str> {
    let address = unwrap_embedded_v4(address);
    if allowed.iter().any(|network| network.contains(&address)) {
        return None;
    }
    match address {
        IpAddr::V4(address) => denied_kind_of_v4(address),
        IpAddr::V6(address) if METADATA_V6.iter().any(|network| network.contains(&address)) => {
            Some("a cloud's metadata service")
        }
        IpAddr::V6(address) if address.is_unspecified() => Some("an unspecified address"),
        IpAddr::V6(address) if address.is_unicast_link_local() => Some("link-local"),
        IpAddr::V6(address) if address.is_multicast() => Some("multicast"),
        IpAddr::V6(_) => None,
    }
}

fn denied_kind_of_v4(address: Ipv4Addr) -> Option<&'static str> {
    match address {
        _ if address == Ipv4Addr::new(169, 254, 169, 254) || METADATA_V4.contains(&address) => {
            Some("a cloud's metadata service")
        }
        _ if address.is_link_local() => Some("link-local"),
        // All of 0.0.0.0/8 is this host.
        _ if address.octets()[0] == 0 => Some("an unspecified address"),
        _ if address.is_multicast() => Some("multicast"),
        _ if address.is_broadcast() => Some("broadcast"),
        _ => None,
    }
}

/// The IPv4 address that is embedded in an IPv6 address: mapped (`::ffff:0:0/96`), or translated by NAT64 with the
/// well-known prefix (`64:ff9b::/96`) or the local one (`64:ff9b:1::/48`, with a prefix length of 48 or 96).
/// Source: RFC 6052 §2.2, RFC 8215.
fn unwrap_embedded_v4(address: IpAddr) -> IpAddr {
    let v4 = |high: u16, low: u16| IpAddr::V4(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)));
    match address.to_canonical() {
        IpAddr::V6(v6) => match v6.segments() {
            [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4(high, low),
            // With a /48 prefix, bits 64 to 71 are zero within the address, and the suffix is zero.
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
    fn denied_addresses_are_denied_in_every_notation() {
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
            assert_eq!(denied_kind(address.parse().unwrap(), &[]).is_none(), may, "{address}");
        }
    }

    #[test]
    fn allowed_addresses_are_allowed_in_every_notation() {
        let allowed: [IpNet; 1] = ["169.254.10.0/24".parse().unwrap()];
        assert_eq!(denied_kind("169.254.10.7".parse().unwrap(), &allowed), None);
        assert_eq!(denied_kind("::ffff:169.254.10.7".parse().unwrap(), &allowed), None);
        assert_eq!(denied_kind("169.254.11.7".parse().unwrap(), &allowed), Some("link-local"));
    }
}
