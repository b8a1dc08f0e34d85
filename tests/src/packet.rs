//! Builds frames byte by byte: Ethernet, IPv4 or IPv6, TCP, with each flaw that makes a host discard an arriving
//! packet.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// A link-layer address.
pub type Mac = [u8; 6];

/// TCP flag bits (RFC 9293 §3.1).
pub mod flag {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// The acknowledgment field is significant.
    pub const ACK: u8 = 0x10;
    /// The urgent pointer is significant.
    pub const URG: u8 = 0x20;
}

/// The TCP part of a frame.
#[derive(Clone, Debug, Default)]
pub struct Tcp {
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgment number.
    pub ack: u32,
    /// Bits of [`flag`].
    pub flags: u8,
    /// Window, unscaled.
    pub window: u16,
    /// Urgent pointer.
    pub urgent: u16,
    /// Options; padded with "end of options" to a multiple of 4 bytes.
    pub options: Vec<u8>,
    /// Payload.
    pub payload: Vec<u8>,
}

/// The header fields and payload of one frame.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Destination and source link-layer address.
    pub macs: (Mac, Mac),
    /// Source address and port.
    pub source: SocketAddr,
    /// Destination address and port, of the same family.
    pub target: SocketAddr,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// The TCP segment.
    pub tcp: Tcp,
    /// Its flaw, if any.
    pub flaw: Flaw,
}

/// A flaw because of which the host's own stack discards a frame that reaches its ingress hook.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flaw {
    /// No flaw: the host accepts the frame.
    None,
    /// The IPv4 header checksum is wrong (ip_rcv).
    HeaderChecksum,
    /// The frame is addressed to another station (PACKET_OTHERHOST, ip_rcv and ip6_rcv).
    OtherStation,
    /// The frame is a link-layer broadcast (tcp_v4_rcv requires PACKET_HOST).
    Broadcast,
    /// The frame is a link-layer multicast.
    Multicast,
    /// The TCP checksum is wrong.
    TcpChecksum,
    /// The TCP checksum is only the sum of the pseudo-header, as in a frame that hardware shall complete.
    PseudoHeaderSum,
    /// IPv4 total length or IPv6 payload length is 0.
    ZeroLength,
    /// The IPv4 header is longer than the total length.
    ShortTotalLength,
    /// The IP length is larger than the frame.
    Truncated,
    /// An IPv4 loose source route (RFC 791 §3.1), which hosts refuse (accept_source_route is 0).
    SourceRoute,
    /// An IPv4 option that is longer than the header.
    MalformedOption,
    /// IPv6 routing header of type 0 with a segment left (RFC 5095).
    RoutingHeader,
    /// An unknown option of type "discard" (RFC 8200 §4.2) in a destination options header.
    DestinationOption,
    /// The same in a hop-by-hop options header.
    HopByHopOption,
    /// A hop-by-hop options header that is not the first one (RFC 8200 §4.1).
    HopByHopOutOfPlace,
    /// An authentication header (RFC 4302) without a security association.
    Authentication,
    /// A VLAN tag of a VLAN that the host is not in.
    ForeignVlan,
    /// IPv6 with the IPv4-mapped form of the flow's addresses (RFC 4291 §2.5.5.2), which never occur on a wire.
    MappedAddresses,
    /// No ACK flag (RFC 9293 §3.10.7.4: "if the ACK bit is off, drop the segment").
    NoAcknowledgment,
    /// It acknowledges data that was not sent (RFC 9293 §3.10.7.4, RFC 5961 §5).
    FutureAcknowledgment,
    /// Its acknowledgment number is much too old (RFC 5961 §5).
    OldAcknowledgment,
    /// The TCP header is longer than the segment.
    DataOffset,
    /// An IPv6 jumbogram (RFC 2675) that is too short to be one.
    Jumbogram,
    /// Encapsulated in another IP packet to the host, which is no tunnel end point (RFC 2003, RFC 2473).
    Tunnel,
}

impl Flaw {
    /// Every flaw of issue 16, and related ones, that an IPv4 frame can have.
    pub const V4: &'static [Self] = &[
        Self::HeaderChecksum,
        Self::OtherStation,
        Self::Broadcast,
        Self::Multicast,
        Self::TcpChecksum,
        Self::PseudoHeaderSum,
        Self::ZeroLength,
        Self::ShortTotalLength,
        Self::Truncated,
        Self::SourceRoute,
        Self::MalformedOption,
        Self::ForeignVlan,
        Self::MappedAddresses,
        Self::NoAcknowledgment,
        Self::FutureAcknowledgment,
        Self::OldAcknowledgment,
        Self::DataOffset,
        Self::Tunnel,
    ];

    /// Every such flaw that an IPv6 frame can have.
    pub const V6: &'static [Self] = &[
        Self::OtherStation,
        Self::Broadcast,
        Self::Multicast,
        Self::TcpChecksum,
        Self::PseudoHeaderSum,
        Self::ZeroLength,
        Self::Truncated,
        Self::RoutingHeader,
        Self::DestinationOption,
        Self::HopByHopOption,
        Self::HopByHopOutOfPlace,
        Self::Authentication,
        Self::ForeignVlan,
        Self::NoAcknowledgment,
        Self::FutureAcknowledgment,
        Self::OldAcknowledgment,
        Self::DataOffset,
        Self::Jumbogram,
        Self::Tunnel,
    ];

    /// Whether TCP detects the flaw by the state of the connection; such a flaw has no effect on a SYN.
    #[must_use]
    pub const fn of_connection(self) -> bool {
        matches!(self, Self::NoAcknowledgment | Self::FutureAcknowledgment | Self::OldAcknowledgment)
    }
}

const ETHER_IPV4: u16 = 0x0800;
const ETHER_IPV6: u16 = 0x86dd;
const ETHER_VLAN: u16 = 0x8100;
/// A VLAN that no host of the lab is in.
const FOREIGN_VLAN: u16 = 77;

/// IANA protocol numbers.
const IPV4_IN_IP: u8 = 4;
const IPV6_IN_IP: u8 = 41;
const TCP: u8 = 6;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;

/// An unknown option whose first bits say "discard" (RFC 8200 §4.2), with four bytes.
const DISCARD: [u8; 6] = [0x7e, 4, 0, 0, 0, 0];
/// The option PadN with four bytes.
const PADDING: [u8; 6] = [1, 4, 0, 0, 0, 0];

impl Frame {
    /// Serialises the frame.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let (mut target, source) = self.macs;
        match self.flaw {
            Flaw::OtherStation => target = [0x02, 0, 0, 0xaa, 0xbb, 0xcc],
            Flaw::Broadcast => target = [0xff; 6],
            Flaw::Multicast => target = [0x01, 0, 0x5e, 0, 0, 1],
            _ => {}
        }
        let mut bytes = [target, source].concat();
        if self.flaw == Flaw::ForeignVlan {
            bytes.extend(ETHER_VLAN.to_be_bytes());
            bytes.extend(FOREIGN_VLAN.to_be_bytes());
        }
        match (self.source.ip(), self.target.ip()) {
            (IpAddr::V4(source), IpAddr::V4(target)) if self.flaw == Flaw::MappedAddresses => {
                bytes.extend(ETHER_IPV6.to_be_bytes());
                bytes.extend(self.ipv6(source.to_ipv6_mapped(), target.to_ipv6_mapped()));
            }
            (IpAddr::V6(source), IpAddr::V6(target)) => {
                bytes.extend(ETHER_IPV6.to_be_bytes());
                bytes.extend(self.ipv6(source, target));
            }
            _ => {
                bytes.extend(ETHER_IPV4.to_be_bytes());
                bytes.extend(self.ipv4());
            }
        }
        bytes
    }

    fn ipv4(&self) -> Vec<u8> {
        // RFC 791 §3.1. A loose source route whose one address was visited already, or an option that declares 40 bytes
        // in 4.
        let options: &[u8] = match self.flaw {
            Flaw::SourceRoute => &[131, 7, 8, 192, 0, 2, 1, 0],
            Flaw::MalformedOption => &[68, 40, 5, 0],
            _ => &[],
        };
        let (source, target) = match (self.source.ip(), self.target.ip()) {
            (IpAddr::V4(source), IpAddr::V4(target)) => (source.octets(), target.octets()),
            _ => ([0; 4], [0; 4]),
        };
        let (protocol, tcp) = match self.flaw {
            Flaw::Tunnel => (IPV4_IN_IP, Self { flaw: Flaw::None, ..self.clone() }.ipv4()),
            _ => (TCP, self.tcp([&source[..], &target].concat())),
        };
        let header = 20 + options.len();
        let total = match self.flaw {
            Flaw::ZeroLength => 0,
            Flaw::ShortTotalLength => 16,
            Flaw::Truncated => header + tcp.len() + 64,
            _ => header + tcp.len(),
        };
        let [length_high, length_low] = low16(total).to_be_bytes();
        let mut bytes = vec![0x40 | low8(header / 4), 0, length_high, length_low];
        // Identification, "don't fragment", time to live, protocol, checksum to be filled in.
        bytes.extend([0x12, 0x34, 0x40, 0, self.ttl, protocol, 0, 0]);
        bytes.extend(source.iter().chain(&target).chain(options));
        let mut checksum = !sum(&[&bytes]);
        if self.flaw == Flaw::HeaderChecksum {
            checksum ^= 0x5555;
        }
        bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
        bytes.extend(tcp);
        bytes
    }

    fn ipv6(&self, source: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
        let (protocol, tcp) = match self.flaw {
            Flaw::Tunnel => (IPV6_IN_IP, Self { flaw: Flaw::None, ..self.clone() }.ipv6(source, target)),
            _ => (TCP, self.tcp([source.octets(), target.octets()].concat())),
        };
        // Each extension header: its protocol number, and its bytes after the field "next header".
        let headers: Vec<(u8, Vec<u8>)> = match self.flaw {
            // RFC 8200 §4.4: type 0, one segment left, reserved, one address.
            Flaw::RoutingHeader => vec![(ROUTING, [&[2, 0, 1, 0, 0, 0, 0][..], &target.octets()].concat())],
            Flaw::DestinationOption => vec![(DESTINATION, [&[0][..], &DISCARD].concat())],
            Flaw::HopByHopOption => vec![(HOP_BY_HOP, [&[0][..], &DISCARD].concat())],
            Flaw::HopByHopOutOfPlace => {
                vec![(DESTINATION, [&[0][..], &PADDING].concat()), (HOP_BY_HOP, [&[0][..], &PADDING].concat())]
            }
            // RFC 2675 §2: option 194 with the length of everything after the IPv6 header.
            Flaw::Jumbogram => {
                let length = u32::try_from(tcp.len() + 8).unwrap_or_default();
                vec![(HOP_BY_HOP, [&[0, 194, 4][..], &length.to_be_bytes()].concat())]
            }
            // RFC 4302 §2: 24 bytes: length in units of 4 minus 2, reserved, index, sequence number, check value.
            Flaw::Authentication => vec![(AUTHENTICATION, [&[4, 0, 0, 0, 0, 1, 2, 0, 0, 0, 1][..], &[0; 12]].concat())],
            _ => Vec::new(),
        };
        let mut body = Vec::new();
        for (at, (_, rest)) in headers.iter().enumerate() {
            body.push(headers.get(at + 1).map_or(protocol, |(number, _)| *number));
            body.extend(rest);
        }
        body.extend(tcp);
        let length = match self.flaw {
            Flaw::ZeroLength | Flaw::Jumbogram => 0,
            Flaw::Truncated => body.len() + 64,
            _ => body.len(),
        };
        let [length_high, length_low] = low16(length).to_be_bytes();
        let first = headers.first().map_or(protocol, |(number, _)| *number);
        let mut bytes = vec![0x60, 0, 0, 0, length_high, length_low, first, self.ttl];
        bytes.extend(source.octets().iter().chain(&target.octets()));
        bytes.extend(body);
        bytes
    }

    /// Serialises the segment, with the checksum over it and the pseudo-header of these addresses.
    fn tcp(&self, addresses: Vec<u8>) -> Vec<u8> {
        let Tcp { seq, mut ack, mut flags, window, urgent, ref options, ref payload } = self.tcp;
        match self.flaw {
            Flaw::NoAcknowledgment => flags &= !flag::ACK,
            Flaw::FutureAcknowledgment => ack = ack.wrapping_add(0x1000_0000),
            Flaw::OldAcknowledgment => ack = ack.wrapping_sub(0x1000_0000),
            _ => {}
        }
        let mut options = options.clone();
        options.resize(options.len().next_multiple_of(4), 0);
        let header = 20 + options.len();
        let offset = if self.flaw == Flaw::DataOffset { 0xf0 } else { low8(header / 4) << 4 };
        let mut bytes = [self.source.port().to_be_bytes(), self.target.port().to_be_bytes()].concat();
        bytes.extend(seq.to_be_bytes().iter().chain(&ack.to_be_bytes()));
        bytes.extend([offset, flags]);
        bytes.extend(window.to_be_bytes().iter().chain(&[0, 0]).chain(&urgent.to_be_bytes()));
        bytes.extend(options.iter());
        // With this flaw the declared header is longer than the segment, so there is no payload.
        if self.flaw != Flaw::DataOffset {
            bytes.extend(payload);
        }
        let pseudo = [addresses, vec![0, TCP], low16(bytes.len()).to_be_bytes().to_vec()].concat();
        let checksum = match self.flaw {
            Flaw::PseudoHeaderSum => sum(&[&pseudo]),
            Flaw::TcpChecksum => !sum(&[&pseudo, &bytes]) ^ 0x5555,
            _ => !sum(&[&pseudo, &bytes]),
        };
        bytes[16..18].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }
}

/// A received TCP segment in a plain IPv4 or IPv6 packet.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Source address and port.
    pub source: SocketAddr,
    /// Destination address and port.
    pub target: SocketAddr,
    /// The segment.
    pub tcp: Tcp,
}

impl Arrival {
    /// Parses an Ethernet frame; `None` if it is not TCP in a plain packet.
    #[must_use]
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let ip = frame.get(14..)?;
        let (source, target, tcp) = match frame.get(12..14)? {
            [0x08, 0x00] if ip.first()? >> 4 == 4 && *ip.get(9)? == TCP => {
                let header = usize::from(ip[0] & 15) * 4;
                // A segment of more than 64 KiB has the length 0 (BIG TCP).
                let total = match be16(ip.get(2..4)?) {
                    0 => ip.len(),
                    total => usize::from(total),
                };
                let address = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(ip.get(at..at + 4)?).ok()?));
                (address(12)?, address(16)?, ip.get(header..total)?)
            }
            [0x86, 0xdd] if *ip.get(6)? == TCP => {
                let address = |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(ip.get(at..at + 16)?).ok()?));
                (address(8)?, address(24)?, ip.get(40..40 + usize::from(be16(ip.get(4..6)?)))?)
            }
            _ => return None,
        };
        let word = |at: usize| Some(u32::from_be_bytes(tcp.get(at..at + 4)?.try_into().ok()?));
        let header = usize::from(*tcp.get(12)? >> 4) * 4;
        Some(Self {
            source: SocketAddr::new(source, be16(tcp.get(0..2)?)),
            target: SocketAddr::new(target, be16(tcp.get(2..4)?)),
            tcp: Tcp {
                seq: word(4)?,
                ack: word(8)?,
                flags: *tcp.get(13)?,
                window: be16(tcp.get(14..16)?),
                urgent: be16(tcp.get(18..20)?),
                options: tcp.get(20..header)?.to_vec(),
                payload: tcp.get(header..)?.to_vec(),
            },
        })
    }
}

fn be16(bytes: &[u8]) -> u16 {
    bytes.first_chunk().map_or(0, |bytes| u16::from_be_bytes(*bytes))
}

/// The low 16 bits of a length, as a header field stores it.
#[expect(clippy::cast_possible_truncation, reason = "a field of 16 bits holds the lower 16 bits")]
const fn low16(length: usize) -> u16 {
    length as u16
}

#[expect(clippy::cast_possible_truncation, reason = "a header has at most 60 bytes")]
const fn low8(length: usize) -> u8 {
    length as u8
}

/// Ones' complement sum of 16-bit words over `parts` (RFC 1071); each part but the last must have an even length.
fn sum(parts: &[&[u8]]) -> u16 {
    let mut total: u64 = 0;
    for part in parts {
        for pair in part.chunks(2) {
            total += u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u64::from(*low));
        }
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    low16(usize::try_from(total).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Example of RFC 1071 §3.
    #[test]
    fn sum_of_the_specification() {
        assert_eq!(sum(&[&[0x00, 0x01, 0xf2, 0x03], &[0xf4, 0xf5, 0xf6, 0xf7]]), 0xddf2);
    }

    fn frame(source: &str, target: &str, flaw: Flaw) -> Frame {
        let tcp =
            Tcp { seq: 7, ack: 9, flags: flag::ACK, window: 100, payload: b"220 x\r\n".to_vec(), ..Tcp::default() };
        let [source, target] = [source, target].map(|text| text.parse().unwrap());
        Frame { macs: ([2; 6], [4; 6]), source, target, ttl: 64, tcp, flaw }
    }

    #[test]
    fn what_is_built_is_read() {
        for (source, target) in [("192.0.2.1:25", "192.0.2.2:4000"), ("[2001:db8::1]:25", "[2001:db8::2]:4000")] {
            let built = frame(source, target, Flaw::None);
            let read = Arrival::parse(&built.to_bytes()).unwrap();
            assert_eq!((read.source, read.target), (built.source, built.target));
            assert_eq!((read.tcp.seq, read.tcp.ack, &read.tcp.payload), (7, 9, &built.tcp.payload));
        }
    }

    /// Every flaw yields a different frame, with a valid overall length.
    #[test]
    fn flaws_differ() {
        let ends = [("192.0.2.1:25", "192.0.2.2:4000", Flaw::V4), ("[2001:db8::1]:25", "[2001:db8::2]:4000", Flaw::V6)];
        for (source, target, flaws) in ends {
            let mut seen = vec![frame(source, target, Flaw::None).to_bytes()];
            for flaw in flaws {
                let bytes = frame(source, target, *flaw).to_bytes();
                assert!(!seen.contains(&bytes), "{flaw:?}");
                seen.push(bytes);
            }
        }
    }
}
