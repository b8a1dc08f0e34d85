//! From the link layer to the TCP payload.
//!
//! One bounds check and direct access for almost every packet (Ethernet, IPv4 without options or IPv6 without extension
//! headers, TCP). All other packets are read step by step with [`Packet::load`].

use crate::{
    FlowKey, Packet, Scratch, Side,
    flow_key::{self, Address},
};

/// Extension headers parsed before an IPv6 packet counts as unparsed (docs/threats.md EV-6).
pub const MAX_EXTENSION_HEADERS: u32 = 8;
/// VLAN tags parsed: IEEE 802.1Q and 802.1ad (docs/threats.md EV-7).
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

/// First header of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Link {
    /// An Ethernet header.
    Ethernet,
    /// An IPv4 or IPv6 header, distinguished by the version field: devices without a link layer, raw captures.
    Ip,
}

/// A TCP segment of a watched port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// The connection.
    pub key: FlowKey,
    /// The sender.
    pub from: Side,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgment number.
    pub ack: u32,
    /// Offset of the payload in the packet.
    pub payload: u32,
    /// Bytes of payload, by the IP header's length: link-layer padding is not counted. See [`Segment::is_whole`].
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
    /// Bytes of TCP options; they end where the payload begins.
    pub options_len: u8,
    /// Bits of [`flaw`].
    pub flaws: u8,
    /// `from` is not what the ports say: see [`Segment::orient`].
    pub swapped: bool,
}

/// Properties of a packet's network layer for which a receiver may discard it; bits of [`Segment::flaws`].
pub mod flaw {
    /// The checksum of the IPv4 header is wrong: the receiver discards the packet (RFC 1122 §3.2.1.2; Linux: ip_rcv).
    pub const HEADER_SUM: u8 = 1;
    /// IPv4 options or IPv6 extension headers. Source routes, malformed options, options of type "discard", routing headers and
    /// headers out of place are discarded (Linux: ip_rcv_options, ip6_parse_tlv); no mail server sends any of them. Also a frame to another
    /// Ethernet address than the interface's.
    pub const UNUSUAL: u8 = 2;
}

impl Segment {
    /// Whether any flag of `flags` is set; see [`tcp_flag`].
    #[inline(always)]
    #[must_use]
    pub const fn has(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }

    /// Whether the packet has all the bytes that its IP header announces; the host's own stack drops a shorter one (ip_rcv,
    /// ip6_rcv). Not part of [`parse_headers`], because it costs a call that a muted flow does not need.
    #[inline(always)]
    pub fn is_whole<P: Packet>(&self, packet: &P) -> bool {
        self.payload + self.length <= packet.len()
    }

    /// Sets client and server as the flow's SYN has shown them. The key does not change: the flow is found by it.
    #[inline(always)]
    pub const fn orient(&mut self, swapped: bool) {
        if self.swapped != swapped {
            self.from = self.from.peer();
        }
        self.swapped = swapped;
    }

    /// The sender according to the ports.
    #[inline(always)]
    #[must_use]
    pub const fn gate_side(&self) -> Side {
        if self.swapped { self.from.peer() } else { self.from }
    }

    /// The key with client and server as the SYN has shown them.
    #[inline(always)]
    #[must_use]
    pub const fn oriented_key(&self) -> FlowKey {
        if self.swapped { self.key.swapped() } else { self.key }
    }

    /// Sequence number of the first payload octet: a SYN takes one number itself (RFC 9293 §3.4).
    #[inline(always)]
    #[must_use]
    pub const fn data_seq(&self) -> u32 {
        self.seq.wrapping_add(self.has(tcp_flag::SYN) as u32)
    }
}

impl Segment {
    /// To be filled by [`parse_headers`].
    pub const EMPTY: Self = Self {
        key: FlowKey::EMPTY,
        from: Side::Client,
        seq: 0,
        ack: 0,
        payload: 0,
        length: 0,
        window: 0,
        ip_id: 0,
        flags: 0,
        ttl: 0,
        ip_version: 0,
        options_len: 0,
        flaws: 0,
        swapped: false,
    };
}

/// Result of [`parse_headers`].
#[derive(Debug)]
pub enum ParsedPacket<'s> {
    /// Not TCP over IP. The packet may hold TCP in an encapsulation: see [`encapsulation`](crate::encapsulation).
    NotTcp,
    /// TCP between ports that are not watched.
    NotWatched,
    /// TCP in an IP fragment; an IPv6 "atomic" fragment (RFC 6946) is none.
    Fragment,
    /// Invalid headers, or more of them than are parsed.
    Unparsed,
    /// The packet is shorter than its headers.
    Truncated,
    /// A segment of a watched port, in [`Scratch::segment`].
    Segment(&'s mut Scratch),
    /// No scratch was available.
    NoScratch,
}

/// Parses the headers of `packet`. `scratch` is called only if a port is watched.
#[inline(always)]
pub fn parse_headers<'s, P: Packet>(
    packet: &P,
    link: Link,
    watched: impl Fn(u16) -> bool,
    scratch: impl FnOnce() -> Option<&'s mut Scratch>,
) -> ParsedPacket<'s> {
    if matches!(link, Link::Ethernet)
        && let Some(head) = packet.head::<{ ETHERNET_LEN + IPV4_LEN + TCP_LEN }>()
    {
        let (ethernet, rest) = split::<ETHERNET_LEN, { IPV4_LEN + TCP_LEN }, _>(head);
        match ether_type(ethernet) {
            ETHER_IPV4 if rest[0] == 0x45 => {
                let (header, tcp) = split::<IPV4_LEN, TCP_LEN, _>(rest);
                let (fixed, addresses) = split::<IPV4_FIXED, 8, _>(header);
                if ipv4_protocol(fixed) != PROTOCOL_TCP {
                    return ParsedPacket::NotTcp;
                }
                if ipv4_is_fragment(fixed) {
                    return ParsedPacket::Fragment;
                }
                let mut ip = Ip::v4(fixed, ETHERNET_LEN_U32, IPV4_LEN_U32);
                ip.flaws = header_sum(header);
                return finish(packet, &ip, tcp, watched, scratch, |source, target| {
                    let (a, b) = split::<4, 4, _>(addresses);
                    *source = Address::from_ipv4(*a);
                    *target = Address::from_ipv4(*b);
                    true
                });
            }
            ETHER_IPV6 => {
                if let Some(head) = packet.head::<{ ETHERNET_LEN + IPV6_LEN + TCP_LEN }>() {
                    let (_, rest) = split::<ETHERNET_LEN, { IPV6_LEN + TCP_LEN }, _>(head);
                    let (header, tcp) = split::<IPV6_LEN, TCP_LEN, _>(rest);
                    let (fixed, addresses) = split::<IPV6_FIXED, 32, _>(header);
                    if ipv6_next(fixed) == PROTOCOL_TCP && fixed[0] >> 4 == 6 {
                        let ip = Ip::v6(fixed, ETHERNET_LEN_U32, IPV6_LEN_U32);
                        return finish(packet, &ip, tcp, watched, scratch, |source, target| {
                            let (a, b) = split::<16, 16, _>(addresses);
                            *source = Address::from_octets(a);
                            *target = Address::from_octets(b);
                            true
                        });
                    }
                    if !is_extension(ipv6_next(fixed)) {
                        return ParsedPacket::NotTcp;
                    }
                }
            }
            ETHER_IPV4 | ETHER_VLAN | ETHER_QINQ | ETHER_QINQ_OLD => {}
            _ => return ParsedPacket::NotTcp,
        }
    }
    parse_stepwise(packet, link, watched, scratch)
}

pub(crate) const ETHERNET_LEN: usize = 14;
pub(crate) const IPV4_LEN: usize = 20;
pub(crate) const IPV6_LEN: usize = 40;
pub(crate) const TCP_LEN: usize = 20;
/// Bytes before the addresses.
const IPV4_FIXED: usize = 12;
const IPV6_FIXED: usize = 8;
const ETHERNET_LEN_U32: u32 = 14;
const IPV4_LEN_U32: u32 = 20;
const IPV6_LEN_U32: u32 = 40;
const TCP_LEN_U32: u32 = 20;

pub(crate) const ETHER_IPV4: u16 = 0x0800;
pub(crate) const ETHER_IPV6: u16 = 0x86dd;
pub(crate) const ETHER_VLAN: u16 = 0x8100;
pub(crate) const ETHER_QINQ: u16 = 0x88a8;
/// Stacked tags before IEEE 802.1ad.
pub(crate) const ETHER_QINQ_OLD: u16 = 0x9100;

// IANA protocol numbers; the extension headers of RFC 8200 §4.
pub(crate) const PROTOCOL_TCP: u8 = 6;
pub(crate) const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
pub(crate) const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
pub(crate) const DESTINATION: u8 = 60;

#[inline(always)]
fn parse_stepwise<'s, P: Packet>(
    packet: &P,
    link: Link,
    watched: impl Fn(u16) -> bool,
    scratch: impl FnOnce() -> Option<&'s mut Scratch>,
) -> ParsedPacket<'s> {
    match network_layer(packet, link) {
        Ok((start, 4)) => parse_ipv4(packet, start, watched, scratch),
        Ok((start, _)) => parse_ipv6(packet, start, watched, scratch),
        Err(end) => end,
    }
}

/// Offset of the IP header and its version.
#[inline(always)]
fn network_layer<'s, P: Packet>(packet: &P, link: Link) -> Result<(u32, u8), ParsedPacket<'s>> {
    match link {
        Link::Ip => {
            let Some([first]) = packet.load::<1>(0) else { return Err(ParsedPacket::Truncated) };
            match first >> 4 {
                4 => Ok((0, 4)),
                6 => Ok((0, 6)),
                _ => Err(ParsedPacket::NotTcp),
            }
        }
        Link::Ethernet => {
            let Some(ethernet) = packet.load::<ETHERNET_LEN>(0) else { return Err(ParsedPacket::Truncated) };
            let mut kind = ether_type(&ethernet);
            let mut start = ETHERNET_LEN_U32;
            for _ in 0..MAX_VLAN_TAGS {
                if is_vlan(kind) {
                    let Some([high, low]) = packet.load::<2>(start + 2) else { return Err(ParsedPacket::Truncated) };
                    kind = u16::from_be_bytes([high, low]);
                    start += 4;
                }
            }
            match kind {
                ETHER_IPV4 => Ok((start, 4)),
                ETHER_IPV6 => Ok((start, 6)),
                _ if is_vlan(kind) => Err(ParsedPacket::Unparsed),
                _ => Err(ParsedPacket::NotTcp),
            }
        }
    }
}

#[inline(always)]
fn parse_ipv4<'s, P: Packet>(
    packet: &P,
    start: u32,
    watched: impl Fn(u16) -> bool,
    scratch: impl FnOnce() -> Option<&'s mut Scratch>,
) -> ParsedPacket<'s> {
    let Some(fixed) = packet.load::<IPV4_FIXED>(start) else { return ParsedPacket::Truncated };
    let length = u32::from(fixed[0] & 0x0f) * 4;
    if fixed[0] >> 4 != 4 || length < IPV4_LEN_U32 {
        return ParsedPacket::Unparsed;
    }
    if ipv4_protocol(&fixed) != PROTOCOL_TCP {
        return ParsedPacket::NotTcp;
    }
    if ipv4_is_fragment(&fixed) {
        return ParsedPacket::Fragment;
    }
    let mut ip = Ip::v4(&fixed, start, length);
    if length > IPV4_LEN_U32 {
        ip.flaws = flaw::UNUSUAL;
    } else {
        let Some(header) = packet.load::<IPV4_LEN>(start) else { return ParsedPacket::Truncated };
        ip.flaws = header_sum(&header);
    }
    let Some(tcp) = packet.load::<TCP_LEN>(start + length) else { return ParsedPacket::Truncated };
    finish(packet, &ip, &tcp, watched, scratch, |source, target| {
        let (Some(a), Some(b)) = (packet.load(start + 12), packet.load(start + 16)) else { return false };
        (*source, *target) = (Address::from_ipv4(a), Address::from_ipv4(b));
        true
    })
}

#[inline(always)]
fn parse_ipv6<'s, P: Packet>(
    packet: &P,
    start: u32,
    watched: impl Fn(u16) -> bool,
    scratch: impl FnOnce() -> Option<&'s mut Scratch>,
) -> ParsedPacket<'s> {
    let Some(fixed) = packet.load::<IPV6_FIXED>(start) else { return ParsedPacket::Truncated };
    if fixed[0] >> 4 != 6 {
        return ParsedPacket::Unparsed;
    }
    let mut next = ipv6_next(&fixed);
    let mut length = IPV6_LEN_U32;
    for _ in 0..MAX_EXTENSION_HEADERS {
        if !is_extension(next) {
            break;
        }
        let Some(extension) = packet.load::<4>(start + length) else { return ParsedPacket::Truncated };
        if next == FRAGMENT {
            // RFC 8200 §4.5: 13 bits of offset, 2 reserved, 1 "more fragments".
            if u16::from_be_bytes([extension[2], extension[3]]) & 0xfff9 != 0 {
                let may_be_tcp = extension[0] == PROTOCOL_TCP || is_extension(extension[0]);
                return if may_be_tcp { ParsedPacket::Fragment } else { ParsedPacket::NotTcp };
            }
            length += 8;
        } else if next == AUTHENTICATION {
            // RFC 4302 §2.2: in units of 4 bytes, minus 2.
            length += (u32::from(extension[1]) + 2) * 4;
        } else {
            // RFC 8200 §4.3: in units of 8 bytes, not counting the first.
            length += (u32::from(extension[1]) + 1) * 8;
        }
        next = extension[0];
    }
    if next != PROTOCOL_TCP {
        return if is_extension(next) { ParsedPacket::Unparsed } else { ParsedPacket::NotTcp };
    }
    let mut ip = Ip::v6(&fixed, start, length);
    if length > IPV6_LEN_U32 {
        ip.flaws = flaw::UNUSUAL;
    }
    let Some(tcp) = packet.load::<TCP_LEN>(start + length) else { return ParsedPacket::Truncated };
    finish(packet, &ip, &tcp, watched, scratch, |source, target| {
        let Some(octets) = packet.load(start + 8) else { return false };
        *source = Address::from_octets(&octets);
        let Some(octets) = packet.load(start + 24) else { return false };
        *target = Address::from_octets(&octets);
        true
    })
}

/// Parses the TCP header. Ports first: most packets end here. `addresses` writes source and destination to the key.
#[inline(always)]
fn finish<'s, P: Packet>(
    packet: &P,
    ip: &Ip,
    tcp: &[u8; TCP_LEN],
    watched: impl Fn(u16) -> bool,
    scratch: impl FnOnce() -> Option<&'s mut Scratch>,
    addresses: impl FnOnce(&mut Address, &mut Address) -> bool,
) -> ParsedPacket<'s> {
    let source = u16::from_be_bytes([tcp[0], tcp[1]]);
    let target = u16::from_be_bytes([tcp[2], tcp[3]]);
    let (source_watched, target_watched) = (watched(source), watched(target));
    if !source_watched && !target_watched {
        return ParsedPacket::NotWatched;
    }
    let data_offset = u32::from(tcp[12] >> 4) * 4;
    // BIG TCP: only the link layer has the length (EV-11). A packet that would have fitted its length field is discarded by the receiver
    // where that field is zero (Linux: iph_totlen, ip6_rcv_core).
    let rest = packet.len().saturating_sub(ip.start);
    if ip.total == 0 && rest <= u16::MAX as u32 {
        return ParsedPacket::Unparsed;
    }
    let total = if ip.total == 0 { rest } else { ip.total };
    if data_offset < TCP_LEN_U32 || total < ip.header + data_offset {
        return ParsedPacket::Unparsed;
    }
    let Some(scratch) = scratch() else { return ParsedPacket::NoScratch };
    let segment = &mut scratch.segment;
    let key = &mut segment.key;
    if !addresses(&mut key.client, &mut key.server) {
        return ParsedPacket::Truncated;
    }
    (key.client_port, key.server_port) = (source, target);
    segment.from = flow_key::sender(source_watched, target_watched, (source, target), || key.client < key.server);
    if segment.from == Side::Server {
        core::mem::swap(&mut key.client, &mut key.server);
        core::mem::swap(&mut key.client_port, &mut key.server_port);
    }
    segment.seq = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
    segment.ack = u32::from_be_bytes([tcp[8], tcp[9], tcp[10], tcp[11]]);
    segment.payload = ip.start + ip.header + data_offset;
    segment.length = total - ip.header - data_offset;
    segment.window = u16::from_be_bytes([tcp[14], tcp[15]]);
    segment.ip_id = ip.id;
    segment.flags = tcp[13];
    segment.ttl = ip.ttl;
    segment.ip_version = ip.version;
    segment.options_len = (tcp[12] >> 4).wrapping_sub(5) * 4;
    segment.flaws = ip.flaws;
    segment.swapped = false;
    ParsedPacket::Segment(scratch)
}

/// Fields of an IP header, without the addresses.
struct Ip {
    version: u8,
    /// Offset of the header.
    start: u32,
    /// Bytes from there to the TCP header.
    header: u32,
    /// Bytes of the packet from there on; zero if the header has no length.
    total: u32,
    id: u16,
    ttl: u8,
    flaws: u8,
}

impl Ip {
    #[inline(always)]
    fn v4(fixed: &[u8; IPV4_FIXED], start: u32, header: u32) -> Self {
        let total = u32::from(u16::from_be_bytes([fixed[2], fixed[3]]));
        Self { version: 4, start, header, total, id: u16::from_be_bytes([fixed[4], fixed[5]]), ttl: fixed[8], flaws: 0 }
    }

    #[inline(always)]
    fn v6(fixed: &[u8; IPV6_FIXED], start: u32, header: u32) -> Self {
        let payload = u32::from(u16::from_be_bytes([fixed[4], fixed[5]]));
        let total = if payload == 0 { 0 } else { payload + IPV6_LEN_U32 };
        Self { version: 6, start, header, total, id: 0, ttl: fixed[7], flaws: 0 }
    }
}

/// [`flaw::HEADER_SUM`], unless the checksum of an IPv4 header without options is right (RFC 791 §3.1, RFC 1071).
#[inline(always)]
const fn header_sum(header: &[u8; IPV4_LEN]) -> u8 {
    let mut sum = 0_u32;
    let mut i = 0;
    while i < IPV4_LEN {
        sum += u16::from_ne_bytes([header[i], header[i + 1]]) as u32;
        i += 2;
    }
    // Ten words carry at most nine: folded once, they carry at most one.
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    if sum == 0xffff { 0 } else { flaw::HEADER_SUM }
}

#[inline(always)]
const fn ipv4_protocol(fixed: &[u8; IPV4_FIXED]) -> u8 {
    fixed[9]
}

/// RFC 791: 1 reserved bit, "don't fragment", "more fragments", 13 bits of offset.
#[inline(always)]
const fn ipv4_is_fragment(fixed: &[u8; IPV4_FIXED]) -> bool {
    u16::from_be_bytes([fixed[6], fixed[7]]) & 0x3fff != 0
}

#[inline(always)]
const fn ipv6_next(fixed: &[u8; IPV6_FIXED]) -> u8 {
    fixed[6]
}

#[inline(always)]
const fn ether_type(header: &[u8; ETHERNET_LEN]) -> u16 {
    u16::from_be_bytes([header[12], header[13]])
}

#[inline(always)]
pub(crate) const fn is_vlan(ether_type: u16) -> bool {
    matches!(ether_type, ETHER_VLAN | ETHER_QINQ | ETHER_QINQ_OLD)
}

#[inline(always)]
pub(crate) const fn is_extension(protocol: u8) -> bool {
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
