//! Filter for the addresses that policies are fetched from. The name of a policy host comes from mail traffic:
//! without the filter, any sender of mail could make the daemon connect to hosts inside the firewall.

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
};

use nix::ifaddrs::getifaddrs;

/// Destination port of a UDP socket that sends no packet: any port works.
const DISCARD: u16 = 9;

/// Why a name from mail traffic must not lead to an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AddressRefusal {
    /// The address is not on the public internet.
    #[error("{0} is no public address")]
    Private(IpAddr),
    /// The address belongs to this host, whatever its range: local services may trust connections from this host.
    #[error("{0} is an address of this host")]
    Own(IpAddr),
}

/// The addresses of this host's interfaces, in its network namespace.
#[derive(Debug, Default)]
pub struct OwnAddresses(HashSet<IpAddr>);

impl OwnAddresses {
    /// Reads the current addresses. They can change, so they are read before each connection.
    ///
    /// # Errors
    ///
    /// The system does not list its addresses.
    pub fn read() -> io::Result<Self> {
        let storages = getifaddrs()?.filter_map(|interface| interface.address);
        let v4 = |storage: &nix::sys::socket::SockaddrStorage| storage.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        let v6 = |storage: &nix::sys::socket::SockaddrStorage| storage.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip()));
        Ok(Self(storages.filter_map(|storage| v4(&storage).or_else(|| v6(&storage))).collect()))
    }

    /// Checks whether a name from mail traffic may lead to `address`.
    ///
    /// # Errors
    ///
    /// The address is not permitted.
    pub fn admit(&self, address: IpAddr) -> Result<(), AddressRefusal> {
        if !is_public(address) {
            return Err(AddressRefusal::Private(address));
        }
        let own = |address: IpAddr| self.0.contains(&address) || is_delivered_here(address);
        let embedded = match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(v6) => embedded_v4(v6).map(IpAddr::V4),
        };
        if own(address.to_canonical()) || embedded.is_some_and(own) {
            Err(AddressRefusal::Own(address))
        } else {
            Ok(())
        }
    }
}

/// Whether the kernel delivers an address locally although no interface has it (`ip route add local …`): the kernel
/// then selects the address itself as the source of a packet to it (`ip_route_output_key_hash_rcu` in
/// net/ipv4/route.c). No packet is sent.
fn is_delivered_here(address: IpAddr) -> bool {
    let any = if address.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    let source = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((address, DISCARD))?;
        socket.local_addr()
    });
    source.is_ok_and(|source| source.ip() == address)
}

/// Whether an address is on the public internet (IANA special-purpose registries, RFC 6890).
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
        // Multicast, and the reserved range up to the broadcast address.
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
    if let Some(embedded) = embedded_v4(address) {
        return is_public_v4(embedded);
    }
    match segments {
        // Teredo, ORCHID and other protocol assignments (RFC 2928); documentation (RFC 3849, RFC 9637).
        [0x2001, b, ..] if b < 0x200 || b == 0xdb8 => false,
        [0x3fff, b, ..] if b < 0x1000 => false,
        // Global unicast, as far as it is assigned (RFC 4291 §2.4); all other ranges are local, multicast or
        // reserved.
        [a, ..] => a & 0xe000 == 0x2000,
    }
}

/// The IPv4 destination of packets to an IPv6 address.
fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let from = |high: u16, low: u16| Some(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)));
    match address.segments() {
        // NAT64 (RFC 6052): the embedded address decides.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => from(high, low),
        // 6to4 (RFC 3056): the address of its router.
        [0x2002, high, low, ..] => from(high, low),
        _ => None,
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

    #[test]
    fn own_addresses_are_refused_in_every_form() {
        let own = ["8.8.4.4", "2a00:1450::7"].map(|address| address.parse().expect(address));
        let own = OwnAddresses(HashSet::from(own));
        for address in ["8.8.4.4", "::ffff:8.8.4.4", "64:ff9b::808:404", "2002:808:404::1", "2a00:1450::7"] {
            let address = address.parse().expect(address);
            assert_eq!(own.admit(address), Err(AddressRefusal::Own(address)));
        }
        let private = "10.0.0.1".parse().expect("address");
        assert_eq!(own.admit(private), Err(AddressRefusal::Private(private)));
        for address in ["8.8.8.8", "2a00:1450::8", "64:ff9b::808:808"] {
            assert_eq!(own.admit(address.parse().expect(address)), Ok(()), "{address}");
        }
    }

    #[test]
    fn the_addresses_of_interfaces_are_read() {
        let own = OwnAddresses::read().expect("addresses");
        assert!(own.0.contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)), "{own:?}");
        assert!(is_delivered_here("127.0.0.1".parse().expect("address")));
    }
}
