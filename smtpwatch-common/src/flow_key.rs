//! One key for both directions of a connection.

use core::{
    hash::{Hash, Hasher},
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

/// One end of a connection, in SMTP's terms.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Side {
    /// Sends commands.
    Client = 0,
    /// Sends replies: the end with the watched port.
    Server = 1,
}

impl Side {
    /// The other end.
    #[inline(always)]
    #[must_use]
    pub const fn peer(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// An address: its bytes as on the wire, IPv4 in its IPv6-mapped form (RFC 4291 §2.5.5.2).
///
/// Held as words in the host's order: the kernel hashes keys word by word, and a word that was stored byte by byte stalls
/// the processor when it is read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct Address([u32; 4]);

/// The third word of a mapped address.
const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

impl Address {
    /// All zero.
    pub const UNSPECIFIED: Self = Self([0; 4]);

    /// The address with these bytes.
    #[inline(always)]
    #[must_use]
    pub const fn from_octets(octets: &[u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *octets;
        Self([
            u32::from_ne_bytes([a, b, c, d]),
            u32::from_ne_bytes([e, f, g, h]),
            u32::from_ne_bytes([i, j, k, l]),
            u32::from_ne_bytes([m, n, o, p]),
        ])
    }

    /// The mapped form of an IPv4 address.
    #[inline(always)]
    #[must_use]
    pub const fn from_ipv4(octets: [u8; 4]) -> Self {
        Self([0, 0, MAPPED, u32::from_ne_bytes(octets)])
    }

    /// The words, each in network byte order.
    #[inline(always)]
    #[must_use]
    pub const fn words(&self) -> [u32; 4] {
        self.0
    }

    /// The bytes, as on the wire.
    #[must_use]
    pub fn octets(&self) -> [u8; 16] {
        let mut octets = [0; 16];
        for (into, word) in octets.chunks_exact_mut(4).zip(self.0) {
            into.copy_from_slice(&word.to_ne_bytes());
        }
        octets
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self::from_ipv4(v4.octets()),
            IpAddr::V6(v6) => Self::from_octets(&v6.octets()),
        }
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        match address.0 {
            [0, 0, MAPPED, v4] => IpAddr::from(v4.to_ne_bytes()),
            _ => Ipv6Addr::from(address.octets()).into(),
        }
    }
}

/// A connection, the same for packets of both directions. Map key of the kernel: no padding.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(C)]
pub struct FlowKey {
    /// Address of the end without the watched port.
    pub client: Address,
    /// Address of the end with the watched port.
    pub server: Address,
    /// Port of the client, in host order.
    pub client_port: u16,
    /// Port of the server, in host order.
    pub server_port: u16,
}

const _: () = assert!(size_of::<FlowKey>() == FlowKey::SIZE);

impl Hash for FlowKey {
    // Every packet of a capture file is looked up by it: five numbers instead of ten.
    fn hash<E: Hasher>(&self, state: &mut E) {
        for [a, b, c, d] in [self.client.0, self.server.0] {
            state.write_u64(u64::from(a) << 32 | u64::from(b));
            state.write_u64(u64::from(c) << 32 | u64::from(d));
        }
        state.write_u32(u32::from(self.client_port) << 16 | u32::from(self.server_port));
    }
}

impl FlowKey {
    /// To be filled.
    pub const EMPTY: Self =
        Self { client: Address::UNSPECIFIED, server: Address::UNSPECIFIED, client_port: 0, server_port: 0 };

    /// Bytes of the key in a map.
    pub const SIZE: usize = 36;

    /// The key of two end points in the SMTP roles given. Both must be of one IP version.
    #[must_use]
    pub fn new(client: SocketAddr, server: SocketAddr) -> Self {
        Self {
            client: client.ip().into(),
            server: server.ip().into(),
            client_port: client.port(),
            server_port: server.port(),
        }
    }

    /// The key with its ends exchanged.
    #[inline(always)]
    #[must_use]
    pub const fn swapped(&self) -> Self {
        Self { client: self.server, server: self.client, client_port: self.server_port, server_port: self.client_port }
    }

    /// The client's end point; an IPv4-mapped address is returned as IPv4.
    #[must_use]
    pub fn client(&self) -> SocketAddr {
        SocketAddr::new(self.client.into(), self.client_port)
    }

    /// The server's end point; an IPv4-mapped address is returned as IPv4.
    #[must_use]
    pub fn server(&self) -> SocketAddr {
        SocketAddr::new(self.server.into(), self.server_port)
    }

    /// The key as a map holds it.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..16].copy_from_slice(&self.client.octets());
        bytes[16..32].copy_from_slice(&self.server.octets());
        bytes[32..34].copy_from_slice(&self.client_port.to_ne_bytes());
        bytes[34..].copy_from_slice(&self.server_port.to_ne_bytes());
        bytes
    }
}

/// Which end sent a packet between these ports: the server is the end whose port is watched. Where both are, the lower
/// port is the server's, and with equal ports the lower address: arbitrary, but the same in both directions.
#[inline(always)]
pub(crate) fn sender(
    source_watched: bool,
    target_watched: bool,
    ports: (u16, u16),
    source_is_lower: impl FnOnce() -> bool,
) -> Side {
    let from_server = match (source_watched, target_watched) {
        (true, false) => true,
        (false, true | false) => false,
        (true, true) if ports.0 != ports.1 => ports.0 < ports.1,
        (true, true) => source_is_lower(),
    };
    if from_server { Side::Server } else { Side::Client }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn end_points_survive_the_round_trip() {
        for (client, server) in [("192.0.2.10:41234", "198.51.100.25:25"), ("[2001:db8::1]:41234", "[2001:db8::2]:587")]
        {
            let key = FlowKey::new(client.parse().unwrap(), server.parse().unwrap());
            assert_eq!(key.client().to_string(), client);
            assert_eq!(key.server().to_string(), server);
        }
    }

    #[test]
    fn both_directions_agree_who_the_server_is() {
        // (ports of one direction, watched ones, source address lower)
        for (a, b, a_watched, b_watched, a_lower) in [
            (25, 40_000, true, false, true),
            (587, 25, true, true, true),
            (25, 25, true, true, true),
            (25, 25, true, true, false),
        ] {
            let there = sender(a_watched, b_watched, (a, b), || a_lower);
            let back = sender(b_watched, a_watched, (b, a), || !a_lower);
            assert_ne!(there, back, "{a} {b}");
        }
        assert_eq!(sender(true, true, (587, 25), || unreachable!()), Side::Client);
    }

    use std::string::ToString as _;
}
