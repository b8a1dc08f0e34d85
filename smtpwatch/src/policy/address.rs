//! Addresses that a policy is fetched from. The name of a policy host comes from mail traffic: without this, whoever
//! sends mail could have the daemon connect to what stands behind a firewall.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Whether an address is one of the public internet (IANA special-purpose registries, RFC 6890).
#[must_use]
pub fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !(a == 0
        || address.is_loopback()
        || address.is_private()
        || address.is_link_local()
        || address.is_documentation()
        // Multicast, and what is reserved up to the broadcast address.
        || a >= 224
        // Shared address space (RFC 6598).
        || (a == 100 && b & 0xc0 == 64)
        // IETF protocol assignments (RFC 6890), and the old 6to4 anycast (RFC 7526).
        || (a == 192 && b == 0 && c == 0)
        || (a == 192 && b == 88 && c == 99)
        // Benchmarks (RFC 2544).
        || (a == 198 && b & 0xfe == 18))
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    let last_two = |address: Ipv6Addr| Ipv4Addr::from_bits((address.to_bits() & 0xffff_ffff) as u32);
    match segments {
        // NAT64 (RFC 6052): what counts is the address behind it.
        [0x64, 0xff9b, 0, 0, 0, 0, ..] => is_public_v4(last_two(address)),
        // Teredo, ORCHID and other protocol assignments (RFC 2928); documentation (RFC 3849, RFC 9637).
        [0x2001, b, ..] if b < 0x200 || b == 0xdb8 => false,
        [0x3fff, b, ..] if b < 0x1000 => false,
        // 6to4 (RFC 3056): the address of its router.
        [0x2002, b, c, ..] => is_public_v4(Ipv4Addr::from_bits(u32::from(b) << 16 | u32::from(c))),
        // Global unicast as far as it is assigned (RFC 4291 §2.4); all else is local, multicast or reserved.
        [a, ..] => a & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_public_internet_is_public() {
        for public in ["8.8.8.8", "100.128.0.1", "172.32.0.1", "2a00:1450::1", "64:ff9b::808:808", "2002:808:808::1"] {
            assert!(is_public(public.parse().expect(public)), "{public}");
        }
        for local in [
            "0.0.0.0",
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.0.1",
            "169.254.169.254",
            "100.64.0.1",
            "192.0.0.8",
            "192.0.2.1",
            "198.51.100.1",
            "203.0.113.1",
            "198.18.0.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
            "64:ff9b:1::1",
            "100::1",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "2001::1",
            "2001:db8::1",
            "3fff::1",
            "2002:7f00:1::1",
        ] {
            assert!(!is_public(local.parse().expect(local)), "{local}");
        }
    }
}
