//! From the link layer to the TCP payload.
//!
//! One bounds check and direct access for what nearly every packet is (Ethernet, IPv4 without options or IPv6 without
//! extension headers, TCP); everything else goes by [`Packet::load`], step by step.

use crate::{FlowKey, Packet, Side, flow_key};

/// Extension headers walked before an IPv6 packet counts as unparsed (THREATS EV-6).
pub const MAX_EXTENSION_HEADERS: u32 = 8;
/// VLAN tags walked: IEEE 802.1Q and 802.1ad (THREATS EV-7).
pub const MAX_VLAN_TAGS: u32 = 2;

/// TCP flag bits (RFC 9293 §3.1).
pub mod tcp_flag {
    /// No more data from sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// The acknowledgment field is significant.
    pub const ACK: u8 = 0x10;
}

/// What a packet begins with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Link {
    /// An Ethernet header.
    Ethernet,
    /// An IPv4 or IPv6 header, told apart by the version nibble: devices without a link layer, raw captures.
    Ip,
}

/// A TCP segment of a watched port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// The connection.
    pub key: FlowKey,
    /// Who sent it.
    pub from: Side,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgment number.
    pub ack: u32,
    /// Offset of the payload in the packet.
    pub payload: u32,
    /// Octets of payload, by the IP header's length: link-layer padding is not counted.
    pub length: u32,
    /// Window field.
    pub window: u16,
    /// IPv4 identification; zero for IPv6.
    pub ip_id: u16,
    /// TCP flags.
    pub flags: u8,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// 4 or 6.
    pub ip_version: u8,
    /// Octets of TCP options; they end where the payload begins.
    pub options_len: u8,
}

impl Segment {
    /// Whether any flag of `flags` is set; see [`tcp_flag`].
    #[inline(always)]
    #[must_use]
    pub const fn has(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }

    /// Sequence number of the first payload octet: a SYN takes one number itself (RFC 9293 §3.4).
    #[inline(always)]
    #[must_use]
    pub const fn data_seq(&self) -> u32 {
        self.seq.wrapping_add(self.has(tcp_flag::SYN) as u32)
    }
}

/// What a packet turned out to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Walk {
    /// Not TCP over IP.
    NotTcp,
    /// TCP between ports that are not watched.
    NotWatched,
    /// TCP in an IP fragment; an IPv6 "atomic" fragment (RFC 6946) is none.
    Fragment,
    /// Headers that make no sense, or more of them than are walked.
    Unparsed,
    /// The packet ends before its headers do, or before the end that its IP header tells.
    Truncated,
    /// A segment of a watched port.
    Segment(Segment),
}

/// Walks the headers of `packet`.
#[inline(always)]
pub fn walk<P: Packet>(packet: &P, link: Link, watched: impl Fn(u16) -> bool) -> Walk {
    if matches!(link, Link::Ethernet)
        && let Some(head) = packet.head::<{ ETHERNET_LEN + IPV4_LEN + TCP_LEN }>()
    {
        let (ethernet, rest) = split::<ETHERNET_LEN, { IPV4_LEN + TCP_LEN }, _>(head);
        match ether_type(ethernet) {
            ETHER_IPV4 if rest[0] == 0x45 => {
                let (ip, tcp) = split::<IPV4_LEN, TCP_LEN, _>(rest);
                let ip = Ipv4::new(ip);
                if ip.protocol != PROTOCOL_TCP {
                    return Walk::NotTcp;
                }
                if ip.fragment {
                    return Walk::Fragment;
                }
                return finish(packet, ETHERNET_LEN_U32, IPV4_LEN_U32, ip.total, tcp, watched, ip);
            }
            ETHER_IPV6 => {
                if let Some(head) = packet.head::<{ ETHERNET_LEN + IPV6_LEN + TCP_LEN }>() {
                    let (_, rest) = split::<ETHERNET_LEN, { IPV6_LEN + TCP_LEN }, _>(head);
                    let (ip, tcp) = split::<IPV6_LEN, TCP_LEN, _>(rest);
                    let ip = Ipv6::new(ip);
                    if ip.next != PROTOCOL_TCP && !is_extension(ip.next) {
                        return Walk::NotTcp;
                    }
                    if ip.next == PROTOCOL_TCP && rest[0] >> 4 == 6 {
                        return finish(packet, ETHERNET_LEN_U32, IPV6_LEN_U32, ip.total(), tcp, watched, ip);
                    }
                }
            }
            ETHER_IPV4 | ETHER_VLAN | ETHER_QINQ | ETHER_QINQ_OLD => {}
            _ => return Walk::NotTcp,
        }
    }
    walk_stepwise(packet, link, watched)
}

const ETHERNET_LEN: usize = 14;
const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
const TCP_LEN: usize = 20;
const ETHERNET_LEN_U32: u32 = 14;
const IPV4_LEN_U32: u32 = 20;
const IPV6_LEN_U32: u32 = 40;
const TCP_LEN_U32: u32 = 20;

const ETHER_IPV4: u16 = 0x0800;
const ETHER_IPV6: u16 = 0x86dd;
const ETHER_VLAN: u16 = 0x8100;
const ETHER_QINQ: u16 = 0x88a8;
/// Stacked tags before IEEE 802.1ad.
const ETHER_QINQ_OLD: u16 = 0x9100;

// IANA protocol numbers; the extension headers of RFC 8200 §4.
const PROTOCOL_TCP: u8 = 6;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;

/// Where the transport header of an IP packet was found.
struct Transport<A> {
    /// Octets from the start of the IP header to the transport header.
    header: u32,
    /// Octets of the IP packet; zero if only the link layer knows (BIG TCP, THREATS EV-11).
    total: u32,
    ip: A,
}

#[inline(always)]
fn walk_stepwise<P: Packet>(packet: &P, link: Link, watched: impl Fn(u16) -> bool) -> Walk {
    let (start, version) = match network_layer(packet, link) {
        Ok(found) => found,
        Err(end) => return end,
    };
    if version == 4 {
        match ipv4(packet, start) {
            Ok(found) => transport(packet, start, found, watched),
            Err(end) => end,
        }
    } else {
        match ipv6(packet, start) {
            Ok(found) => transport(packet, start, found, watched),
            Err(end) => end,
        }
    }
}

/// Offset of the IP header and its version.
#[inline(always)]
fn network_layer<P: Packet>(packet: &P, link: Link) -> Result<(u32, u8), Walk> {
    match link {
        Link::Ip => {
            let Some([first]) = packet.load::<1>(0) else { return Err(Walk::Truncated) };
            match first >> 4 {
                4 => Ok((0, 4)),
                6 => Ok((0, 6)),
                _ => Err(Walk::NotTcp),
            }
        }
        Link::Ethernet => {
            let Some(ethernet) = packet.load::<ETHERNET_LEN>(0) else { return Err(Walk::Truncated) };
            let mut kind = ether_type(&ethernet);
            let mut start = ETHERNET_LEN_U32;
            for _ in 0..MAX_VLAN_TAGS {
                if is_vlan(kind) {
                    let Some([high, low]) = packet.load::<2>(start + 2) else { return Err(Walk::Truncated) };
                    kind = u16::from_be_bytes([high, low]);
                    start += 4;
                }
            }
            match kind {
                ETHER_IPV4 => Ok((start, 4)),
                ETHER_IPV6 => Ok((start, 6)),
                _ if is_vlan(kind) => Err(Walk::Unparsed),
                _ => Err(Walk::NotTcp),
            }
        }
    }
}

#[inline(always)]
fn ipv4<P: Packet>(packet: &P, start: u32) -> Result<Transport<Ipv4>, Walk> {
    let Some(header) = packet.load::<IPV4_LEN>(start) else { return Err(Walk::Truncated) };
    let length = u32::from(header[0] & 0x0f) * 4;
    if header[0] >> 4 != 4 || length < IPV4_LEN_U32 {
        return Err(Walk::Unparsed);
    }
    let ip = Ipv4::new(&header);
    if ip.protocol != PROTOCOL_TCP {
        return Err(Walk::NotTcp);
    }
    if ip.fragment {
        return Err(Walk::Fragment);
    }
    Ok(Transport { header: length, total: ip.total, ip })
}

#[inline(always)]
fn ipv6<P: Packet>(packet: &P, start: u32) -> Result<Transport<Ipv6>, Walk> {
    let Some(header) = packet.load::<IPV6_LEN>(start) else { return Err(Walk::Truncated) };
    if header[0] >> 4 != 6 {
        return Err(Walk::Unparsed);
    }
    let ip = Ipv6::new(&header);
    let mut next = ip.next;
    let mut length = IPV6_LEN_U32;
    for _ in 0..MAX_EXTENSION_HEADERS {
        if next == PROTOCOL_TCP || !is_extension(next) {
            break;
        }
        let Some(extension) = packet.load::<4>(start + length) else { return Err(Walk::Truncated) };
        if next == FRAGMENT {
            // RFC 8200 §4.5: 13 bits of offset, 2 reserved, 1 "more fragments".
            if u16::from_be_bytes([extension[2], extension[3]]) & 0xfff9 != 0 {
                let may_be_tcp = extension[0] == PROTOCOL_TCP || is_extension(extension[0]);
                return Err(if may_be_tcp { Walk::Fragment } else { Walk::NotTcp });
            }
            length += 8;
        } else if next == AUTHENTICATION {
            // RFC 4302 §2.2: in units of 4 octets, minus 2.
            length += (u32::from(extension[1]) + 2) * 4;
        } else {
            // RFC 8200 §4.3: in units of 8 octets, not counting the first.
            length += (u32::from(extension[1]) + 1) * 8;
        }
        next = extension[0];
    }
    if next != PROTOCOL_TCP {
        return Err(if is_extension(next) { Walk::Unparsed } else { Walk::NotTcp });
    }
    Ok(Transport { header: length, total: ip.total(), ip })
}

#[inline(always)]
fn transport<P: Packet, A: Ip>(packet: &P, start: u32, found: Transport<A>, watched: impl Fn(u16) -> bool) -> Walk {
    let Some(tcp) = packet.load::<TCP_LEN>(start + found.header) else { return Walk::Truncated };
    finish(packet, start, found.header, found.total, &tcp, watched, found.ip)
}

/// The TCP header, once the way to it is known. Ports first: most packets end here.
#[inline(always)]
fn finish<P: Packet, A: Ip>(
    packet: &P,
    start: u32,
    header: u32,
    total: u32,
    tcp: &[u8; TCP_LEN],
    watched: impl Fn(u16) -> bool,
    ip: A,
) -> Walk {
    let source = u16::from_be_bytes([tcp[0], tcp[1]]);
    let target = u16::from_be_bytes([tcp[2], tcp[3]]);
    let (source_watched, target_watched) = (watched(source), watched(target));
    if !source_watched && !target_watched {
        return Walk::NotWatched;
    }
    let data_offset = u32::from(tcp[12] >> 4) * 4;
    let total = if total == 0 { packet.len().saturating_sub(start) } else { total };
    if data_offset < TCP_LEN_U32 || total < header + data_offset {
        return Walk::Unparsed;
    }
    if start + total > packet.len() {
        // The host's own stack drops these too (ip_rcv, ip6_rcv).
        return Walk::Truncated;
    }
    let from = flow_key::sender(source_watched, target_watched, (source, target), || ip.source() < ip.target());
    let key = match from {
        Side::Client => FlowKey { client: ip.source(), server: ip.target(), client_port: source, server_port: target },
        Side::Server => FlowKey { client: ip.target(), server: ip.source(), client_port: target, server_port: source },
    };
    Walk::Segment(Segment {
        key,
        from,
        seq: u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]),
        ack: u32::from_be_bytes([tcp[8], tcp[9], tcp[10], tcp[11]]),
        payload: start + header + data_offset,
        length: total - header - data_offset,
        window: u16::from_be_bytes([tcp[14], tcp[15]]),
        ip_id: ip.id(),
        flags: tcp[13],
        ttl: ip.ttl(),
        ip_version: A::VERSION,
        options_len: (tcp[12] >> 4).wrapping_sub(5) * 4,
    })
}

/// The fields of an IP header that are kept.
trait Ip {
    const VERSION: u8;
    fn source(&self) -> flow_key::Address;
    fn target(&self) -> flow_key::Address;
    fn id(&self) -> u16;
    fn ttl(&self) -> u8;
}

struct Ipv4 {
    total: u32,
    id: u16,
    ttl: u8,
    protocol: u8,
    fragment: bool,
    source: [u8; 4],
    target: [u8; 4],
}

impl Ipv4 {
    #[inline(always)]
    fn new(header: &[u8; IPV4_LEN]) -> Self {
        Self {
            total: u32::from(u16::from_be_bytes([header[2], header[3]])),
            id: u16::from_be_bytes([header[4], header[5]]),
            // RFC 791: 1 reserved bit, "don't fragment", "more fragments", 13 bits of offset.
            fragment: u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0,
            ttl: header[8],
            protocol: header[9],
            source: [header[12], header[13], header[14], header[15]],
            target: [header[16], header[17], header[18], header[19]],
        }
    }
}

impl Ip for Ipv4 {
    const VERSION: u8 = 4;

    #[inline(always)]
    fn source(&self) -> flow_key::Address {
        mapped(self.source)
    }

    #[inline(always)]
    fn target(&self) -> flow_key::Address {
        mapped(self.target)
    }

    #[inline(always)]
    fn id(&self) -> u16 {
        self.id
    }

    #[inline(always)]
    fn ttl(&self) -> u8 {
        self.ttl
    }
}

struct Ipv6 {
    payload: u32,
    next: u8,
    ttl: u8,
    source: [u8; 16],
    target: [u8; 16],
}

impl Ipv6 {
    #[inline(always)]
    fn new(header: &[u8; IPV6_LEN]) -> Self {
        let (fixed, addresses) = split::<8, 32, _>(header);
        let (source, target) = split::<16, 16, _>(addresses);
        Self {
            payload: u32::from(u16::from_be_bytes([fixed[4], fixed[5]])),
            next: fixed[6],
            ttl: fixed[7],
            source: *source,
            target: *target,
        }
    }

    /// Octets of the packet; zero if the header does not tell (jumbogram, BIG TCP).
    #[inline(always)]
    const fn total(&self) -> u32 {
        if self.payload == 0 { 0 } else { self.payload + IPV6_LEN_U32 }
    }
}

impl Ip for Ipv6 {
    const VERSION: u8 = 6;

    #[inline(always)]
    fn source(&self) -> flow_key::Address {
        self.source
    }

    #[inline(always)]
    fn target(&self) -> flow_key::Address {
        self.target
    }

    #[inline(always)]
    fn id(&self) -> u16 {
        0
    }

    #[inline(always)]
    fn ttl(&self) -> u8 {
        self.ttl
    }
}

#[inline(always)]
fn mapped([a, b, c, d]: [u8; 4]) -> flow_key::Address {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

#[inline(always)]
const fn ether_type(header: &[u8; ETHERNET_LEN]) -> u16 {
    u16::from_be_bytes([header[12], header[13]])
}

#[inline(always)]
const fn is_vlan(ether_type: u16) -> bool {
    matches!(ether_type, ETHER_VLAN | ETHER_QINQ | ETHER_QINQ_OLD)
}

#[inline(always)]
const fn is_extension(protocol: u8) -> bool {
    matches!(protocol, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION)
}

/// Splits an array at `A`; the lengths are constants, so no check remains at run time.
#[inline(always)]
fn split<const A: usize, const B: usize, const N: usize>(bytes: &[u8; N]) -> (&[u8; A], &[u8; B]) {
    const { assert!(A + B == N) };
    let (head, rest) = bytes.split_at(A);
    match (head.first_chunk(), rest.first_chunk()) {
        (Some(head), Some(rest)) => (head, rest),
        _ => (&[0; A], &[0; B]),
    }
}

#[cfg(test)]
mod tests;
