//! Mail within encapsulation: VXLAN, Geneve, GRE, IP in IP, PPPoE, MPLS.
//!
//! The dialogue of such mail is not followed: the device at the end of the encapsulation (`vxlan0`, `gre1`, `ppp0`) shows the inner
//! packets, and is watched on its own. Here the inner ports are read, so that mail that no watched device shows is counted.
//!
//! It is a step of its own, after the header parser has found no TCP: ordinary mail never takes it.

use core::hint::black_box;

use crate::{
    FlowKey, Link, Packet, Side,
    flow_key::{self, Address},
    headers::{DESTINATION, ETHER_IPV4, ETHER_IPV6, FRAGMENT, HOP_BY_HOP, PROTOCOL_TCP, is_vlan, tcp_flag},
};

/// A kind of encapsulation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Encapsulation {
    /// RFC 7348, UDP port 4789; port 8472 is Linux's default.
    Vxlan,
    /// RFC 8926, UDP port 6081.
    Geneve,
    /// RFC 2784 and 2890, protocol 47, with IP, Ethernet (NVGRE, gretap) or ERSPAN in it.
    Gre,
    /// Protocols 4 and 41: RFC 2003 (ipip), RFC 4213 (sit, 6in4), RFC 2473 (ip6tnl).
    Ipip,
    /// RFC 2516, EtherType 0x8864.
    Pppoe,
    /// RFC 3032, EtherTypes 0x8847 and 0x8848.
    Mpls,
}

impl Encapsulation {
    /// Every encapsulation, in the order of its bits.
    pub const ALL: [Self; 6] = [Self::Vxlan, Self::Geneve, Self::Gre, Self::Ipip, Self::Pppoe, Self::Mpls];

    /// The metric label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Vxlan => "vxlan",
            Self::Geneve => "geneve",
            Self::Gre => "gre",
            Self::Ipip => "ipip",
            Self::Pppoe => "pppoe",
            Self::Mpls => "mpls",
        }
    }

    /// Its name in messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vxlan => "VXLAN",
            Self::Geneve => "Geneve",
            Self::Gre => "GRE",
            Self::Ipip => "IP in IP",
            Self::Pppoe => "PPPoE",
            Self::Mpls => "MPLS",
        }
    }

    /// Its bit in a set of encapsulations.
    #[inline(always)]
    #[must_use]
    pub const fn bit(self) -> u32 {
        1 << self as u32
    }
}

/// Headers that are read, such as Ethernet, two tags, IPv6, an extension header, UDP, VXLAN's Ethernet, two tags, IPv4 and TCP.
pub const MAX_HEADERS: u32 = 12;

const ETHER_PPPOE: u16 = 0x8864;
const ETHER_MPLS: u16 = 0x8847;
const ETHER_MPLS_UPSTREAM: u16 = 0x8848;
/// Ethernet in GRE and Geneve.
const ETHER_BRIDGING: u16 = 0x6558;
const ETHER_ERSPAN_2: u16 = 0x88be;
const ETHER_ERSPAN_3: u16 = 0x22eb;
/// RFC 1661 and 5072: the protocol field of PPP.
const PPP_IPV4: u16 = 0x0021;
const PPP_IPV6: u16 = 0x0057;

const PROTOCOL_IPV4: u8 = 4;
const PROTOCOL_UDP: u8 = 17;
const PROTOCOL_IPV6: u8 = 41;
const PROTOCOL_GRE: u8 = 47;

const PORT_VXLAN: u16 = 4789;
const PORT_VXLAN_LINUX: u16 = 8472;
const PORT_GENEVE: u16 = 6081;

/// Whether frames of this EtherType may hold mail in an encapsulation.
#[inline(always)]
#[must_use]
pub const fn is_encapsulating_type(ether_type: u16) -> bool {
    matches!(ether_type, ETHER_PPPOE | ETHER_MPLS | ETHER_MPLS_UPSTREAM)
}

/// Whether packets of this IP protocol may hold mail in an encapsulation. `target` is the UDP destination port.
#[inline(always)]
pub(crate) fn is_encapsulating_protocol(protocol: u8, target: impl FnOnce() -> u16) -> bool {
    match protocol {
        PROTOCOL_UDP => matches!(target(), PORT_VXLAN | PORT_VXLAN_LINUX | PORT_GENEVE),
        PROTOCOL_IPV4 | PROTOCOL_IPV6 | PROTOCOL_GRE => true,
        _ => false,
    }
}

/// Where [`find_mail`] is in a packet.
///
/// It lies in the scratch, and each header is read from there on: the verifier knows nothing about memory of a map, and therefore
/// follows every kind of header once at each step. With these numbers in registers it follows every combination.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Walk {
    header: Next,
    /// Offset of that header.
    start: u32,
    /// Offset of the last IP header.
    network: u32,
    /// The outermost encapsulation so far.
    outermost: Option<Encapsulation>,
}

impl Walk {
    /// At the start of a packet with a link layer.
    pub const START: Self = Self { header: Next::Ethernet, start: 0, network: 0, outermost: None };
}

/// The header that is read next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum Next {
    Ethernet,
    Tag,
    Pppoe,
    Mpls,
    Ip,
    Extension,
    Fragment,
    Gre,
    Udp,
    Tcp,
}

/// The outermost encapsulation of a packet that holds a TCP segment of a watched port, whose connection is written to `key` as
/// [`parse_headers`](crate::headers::parse_headers) would. `None`: it holds no such segment, or a SYN.
///
/// A SYN does not count: it may reach the outer device before the inner one.
#[inline(always)]
pub fn find_mail<P: Packet>(
    packet: &P,
    link: Link,
    watched: impl Fn(u16) -> bool,
    walk: &mut Walk,
    key: &mut FlowKey,
) -> Option<Encapsulation> {
    *walk = Walk::START;
    if matches!(link, Link::Ip) {
        walk.header = Next::Ip;
    }
    let mut headers = 0;
    while headers < MAX_HEADERS {
        headers += 1;
        // Read back: see `Walk`.
        let at = black_box(&mut *walk);
        if at.header == Next::Tcp {
            let outermost = at.outermost?;
            return if connection(packet, at, watched, key) { Some(outermost) } else { None };
        }
        advance(packet, at)?;
    }
    None
}

/// Reads one header.
#[inline(always)]
fn advance<P: Packet>(packet: &P, walk: &mut Walk) -> Option<()> {
    let start = walk.start;
    let (header, start, found) = match walk.header {
        Next::Ethernet => (after_type(packet.load(start + 12)?)?, start + 14, None),
        Next::Tag => (after_type(packet.load(start + 2)?)?, start + 4, None),
        Next::Pppoe => (Next::Ip, pppoe(packet, start)?, Some(Encapsulation::Pppoe)),
        Next::Mpls => {
            // RFC 3032 §2.1: the last label has the bit.
            let [_, _, bottom, _] = packet.load::<4>(start)?;
            let header = if bottom & 1 != 0 { Next::Ip } else { Next::Mpls };
            (header, start + 4, Some(Encapsulation::Mpls))
        }
        Next::Ip => {
            let (protocol, transport) = ip(packet, start)?;
            walk.network = start;
            let within_ip = matches!(protocol, PROTOCOL_IPV4 | PROTOCOL_IPV6);
            (after_protocol(protocol)?, transport, if within_ip { Some(Encapsulation::Ipip) } else { None })
        }
        Next::Extension | Next::Fragment => {
            let [protocol, length, high, low] = packet.load::<4>(start)?;
            let is_fragment = walk.header == Next::Fragment;
            if is_fragment && u16::from_be_bytes([high, low]) & 0xfff8 != 0 {
                return None;
            }
            let length = if is_fragment { 0 } else { u32::from(length) };
            let within_ip = matches!(protocol, PROTOCOL_IPV4 | PROTOCOL_IPV6);
            let found = if within_ip { Some(Encapsulation::Ipip) } else { None };
            (after_protocol(protocol)?, start + 8 + 8 * length, found)
        }
        Next::Gre => {
            let (header, start) = gre(packet, start)?;
            (header, start, Some(Encapsulation::Gre))
        }
        Next::Udp => {
            let (found, header, start) = udp(packet, start)?;
            (header, start, Some(found))
        }
        Next::Tcp => return None,
    };
    (walk.header, walk.start) = (header, start);
    if walk.outermost.is_none() {
        walk.outermost = found;
    }
    Some(())
}

#[inline(always)]
fn after_type(ether_type: [u8; 2]) -> Option<Next> {
    match u16::from_be_bytes(ether_type) {
        ETHER_IPV4 | ETHER_IPV6 => Some(Next::Ip),
        ETHER_PPPOE => Some(Next::Pppoe),
        ETHER_MPLS | ETHER_MPLS_UPSTREAM => Some(Next::Mpls),
        ETHER_BRIDGING => Some(Next::Ethernet),
        other if is_vlan(other) => Some(Next::Tag),
        _ => None,
    }
}

#[inline(always)]
fn after_protocol(protocol: u8) -> Option<Next> {
    match protocol {
        PROTOCOL_TCP => Some(Next::Tcp),
        PROTOCOL_UDP => Some(Next::Udp),
        PROTOCOL_GRE => Some(Next::Gre),
        PROTOCOL_IPV4 | PROTOCOL_IPV6 => Some(Next::Ip),
        HOP_BY_HOP | DESTINATION => Some(Next::Extension),
        FRAGMENT => Some(Next::Fragment),
        _ => None,
    }
}

/// Offset of the IP header in a PPPoE session packet (RFC 2516 §4: version 1, type 1, code 0, session, length; PPP's protocol).
#[inline(always)]
fn pppoe<P: Packet>(packet: &P, start: u32) -> Option<u32> {
    let [version, code, _, _, _, _, high, low] = packet.load::<8>(start)?;
    let is_ip = matches!(u16::from_be_bytes([high, low]), PPP_IPV4 | PPP_IPV6);
    if version == 0x11 && code == 0 && is_ip { Some(start + 8) } else { None }
}

/// Protocol of an IP packet, and the offset of its payload. `None` for a fragment without the payload's first bytes.
#[inline(always)]
fn ip<P: Packet>(packet: &P, start: u32) -> Option<(u8, u32)> {
    let head = packet.load::<10>(start)?;
    match head[0] >> 4 {
        4 => {
            let is_first = u16::from_be_bytes([head[6], head[7]]) & 0x1fff == 0;
            let length = u32::from(head[0] & 0x0f) * 4;
            if is_first { Some((head[9], start + length)) } else { None }
        }
        6 => Some((head[6], start + 40)),
        _ => None,
    }
}

/// RFC 2784 §2.1, RFC 2890 §2: flags and version, type, and four bytes each for checksum, key and sequence number.
#[inline(always)]
fn gre<P: Packet>(packet: &P, start: u32) -> Option<(Next, u32)> {
    let [flags, version, high, low] = packet.load::<4>(start)?;
    // Bit 1 is a source route (RFC 1701); version 1 is PPTP.
    if flags & 0x40 != 0 || version & 7 != 0 {
        return None;
    }
    let bit = |at: u8| u32::from(flags >> at & 1);
    let start = start + 4 + 4 * (bit(7) + bit(5) + bit(4));
    match u16::from_be_bytes([high, low]) {
        // draft-foschiano-erspan §4: type I has neither a sequence number nor a header of its own, type II 8 bytes.
        ETHER_ERSPAN_2 => Some((Next::Ethernet, start + 8 * bit(4))),
        ETHER_ERSPAN_3 => {
            // Type III has 12 bytes, and 8 more if the lowest bit says so.
            let [optional] = packet.load::<1>(start + 11)?;
            Some((Next::Ethernet, start + 12 + 8 * u32::from(optional & 1)))
        }
        _ => Some((after_type([high, low])?, start)),
    }
}

/// The tunnels over UDP, by their destination port.
#[inline(always)]
fn udp<P: Packet>(packet: &P, start: u32) -> Option<(Encapsulation, Next, u32)> {
    let head = packet.load::<12>(start)?;
    let start = start + 16;
    match u16::from_be_bytes([head[2], head[3]]) {
        // RFC 7348 §5: the flag I, and 7 bytes.
        PORT_VXLAN | PORT_VXLAN_LINUX if head[8] & 0x08 != 0 => Some((Encapsulation::Vxlan, Next::Ethernet, start)),
        // RFC 8926 §3.4: version 0, length of the options, flags, type, and 4 bytes.
        PORT_GENEVE if head[8] >> 6 == 0 => {
            let header = after_type([head[10], head[11]])?;
            Some((Encapsulation::Geneve, header, start + u32::from(head[8] & 0x3f) * 4))
        }
        _ => None,
    }
}

/// Whether the segment is of a watched port and no SYN; its connection goes to `key`.
#[inline(always)]
fn connection<P: Packet>(packet: &P, walk: &Walk, watched: impl Fn(u16) -> bool, key: &mut FlowKey) -> bool {
    let network = walk.network;
    let Some(tcp) = packet.load::<14>(walk.start) else { return false };
    let ports = (u16::from_be_bytes([tcp[0], tcp[1]]), u16::from_be_bytes([tcp[2], tcp[3]]));
    let (source_watched, target_watched) = (watched(ports.0), watched(ports.1));
    let opens = tcp[13] & tcp_flag::SYN != 0 && tcp[13] & tcp_flag::ACK == 0;
    if opens || !(source_watched || target_watched) {
        return false;
    }
    let Some([version]) = packet.load::<1>(network) else { return false };
    if version >> 4 == 4 {
        let (Some(source), Some(target)) = (packet.load(network + 12), packet.load(network + 16)) else { return false };
        (key.client, key.server) = (Address::from_ipv4(source), Address::from_ipv4(target));
    } else {
        let Some(octets) = packet.load(network + 8) else { return false };
        key.client = Address::from_octets(&octets);
        let Some(octets) = packet.load(network + 24) else { return false };
        key.server = Address::from_octets(&octets);
    }
    (key.client_port, key.server_port) = ports;
    if flow_key::sender(source_watched, target_watched, ports, || key.client < key.server) == Side::Server {
        core::mem::swap(&mut key.client, &mut key.server);
        core::mem::swap(&mut key.client_port, &mut key.server_port);
    }
    true
}

#[cfg(test)]
mod tests;
