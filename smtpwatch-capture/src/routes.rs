//! Reads the routing tables: the interfaces that lead out of this host ([`outward`]), and the interface that a
//! connection uses ([`interface_of`]).

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::ControlFlow,
};

use nix::sys::socket::SockProtocol;

use super::netlink::{NLM_ACK, NLM_DUMP, each_attribute, number, push_attribute, request};

/// Maximum number of routes read per address family, about 10 MiB of messages. A mail host has tens; a host with a
/// full BGP table has a million, and the capture thread cannot wait for them.
const MAX_ROUTES: usize = 100_000;
/// Longest prefix of a route without a gateway that counts as leading to the Internet: a VPN that routes everything
/// except a few networks has 0.0.0.0/1, or a list that begins with 0.0.0.0/5, 8.0.0.0/7, 11.0.0.0/8. IPv6: 2000::/3.
const WIDE_PREFIX: u8 = 8;

// include/uapi/linux/rtnetlink.h
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWRULE: u16 = 32;
const RTM_GETRULE: u16 = 34;
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;
/// Route that the kernel created for an address of the interface.
const RTPROT_KERNEL: u8 = 2;
const RTNH_F_DEAD: u32 = 1;
const RTA_DST: u16 = 1;
const RTA_SRC: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTA_MARK: u16 = 16;
const RTA_VIA: u16 = 18;
const RTA_UID: u16 = 25;
const RTA_IP_PROTO: u16 = 27;
const RTA_SPORT: u16 = 28;
const RTA_DPORT: u16 = 29;
// include/uapi/linux/fib_rules.h
const FR_ACT_TO_TBL: u8 = 1;
const FRA_TABLE: u16 = 15;
const FRA_L3MDEV: u16 = 19;

/// The protocol number of TCP (RFC 9293 §3.1).
pub(crate) const TCP: u8 = 6;

/// Interfaces that lead out of this host.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Outward {
    /// Interface indexes.
    pub interfaces: BTreeSet<u32>,
    /// Whether there are more routes than were read.
    pub cut: bool,
}

/// The interfaces of routes that lead out of this host, in every table that a rule refers to.
///
/// # Errors
///
/// The kernel does not list its IPv4 routes.
pub(crate) fn outward() -> io::Result<Outward> {
    let mut found = Outward::default();
    for family in [libc::AF_INET, libc::AF_INET6] {
        match routes(family, &mut found) {
            // Error of a kernel without IPv6.
            Err(_) if family == libc::AF_INET6 => {}
            done => done?,
        }
    }
    Ok(found)
}

fn routes(family: i32, found: &mut Outward) -> io::Result<()> {
    let tables = tables(family);
    let mut read = 0;
    request(SockProtocol::NetlinkRoute, RTM_GETROUTE, NLM_DUMP, &header(family, 0, 0), |kind, body| {
        if kind != RTM_NEWROUTE {
            return ControlFlow::Continue(());
        }
        read += 1;
        if read > MAX_ROUTES {
            found.cut = true;
            return ControlFlow::Break(());
        }
        let Some(route) = Route::parse(body) else { return ControlFlow::Continue(()) };
        if tables.as_ref().is_none_or(|tables| tables.contains(&route.table)) && route.leads_out() {
            found.interfaces.extend(&route.interfaces);
        }
        ControlFlow::Continue(())
    })
}

/// The tables that rules refer to; `None`: all tables, because the kernel has no rules, or one rule covers the tables
/// of all VRFs.
fn tables(family: i32) -> Option<BTreeSet<u32>> {
    let mut tables = BTreeSet::new();
    let mut all = false;
    // struct fib_rule_hdr has the same 12 bytes as struct rtmsg.
    let listed = request(SockProtocol::NetlinkRoute, RTM_GETRULE, NLM_DUMP, &header(family, 0, 0), |kind, body| {
        let [_, _, _, _, table, _, _, action, ..] = *body else { return ControlFlow::Continue(()) };
        if kind == RTM_NEWRULE && action == FR_ACT_TO_TBL {
            let mut table = u32::from(table);
            each_attribute(body.get(12..).unwrap_or_default(), |kind, value| match kind {
                FRA_TABLE => table = number(value, 0).unwrap_or(table),
                FRA_L3MDEV => all = true,
                _ => {}
            });
            tables.insert(table);
        }
        ControlFlow::Continue(())
    });
    (listed.is_ok() && !all).then_some(tables)
}

/// struct rtmsg.
fn header(family: i32, destination: u8, source: u8) -> Vec<u8> {
    let mut message = vec![0; 12];
    message[0] = u8::try_from(family).unwrap_or_default();
    message[1] = destination;
    message[2] = source;
    message
}

/// One entry of the kernel's routing tables.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Route {
    /// Prefix length in bits.
    prefix: u8,
    table: u32,
    /// Origin of the route: RTPROT_….
    protocol: u8,
    /// RTN_….
    kind: u8,
    /// `None` if the prefix length is 0.
    destination: Option<IpAddr>,
    gateway: bool,
    interfaces: Vec<u32>,
}

impl Route {
    fn parse(body: &[u8]) -> Option<Self> {
        let [_, prefix, _, _, table, protocol, _, kind, ..] = *body else { return None };
        let dead = number(body, 8)? & RTNH_F_DEAD != 0;
        let mut route = Self {
            prefix,
            table: u32::from(table),
            protocol,
            kind,
            destination: None,
            gateway: false,
            interfaces: Vec::new(),
        };
        each_attribute(body.get(12..)?, |kind, value| match kind {
            RTA_DST => route.destination = address(value),
            RTA_TABLE => route.table = number(value, 0).unwrap_or(route.table),
            RTA_OIF => route.interfaces.extend(number(value, 0)),
            RTA_GATEWAY | RTA_VIA => route.gateway = true,
            RTA_MULTIPATH => route.next_hops(value),
            _ => {}
        });
        (!dead).then_some(route)
    }

    /// Parses a list of struct rtnexthop, each 8 bytes (length, flags, hops, interface) and attributes.
    fn next_hops(&mut self, mut list: &[u8]) {
        while let Some([low, high, flags, _]) = list.first_chunk::<4>() {
            let length = usize::from(u16::from_ne_bytes([*low, *high]));
            let Some(hop) = list.get(..length).filter(|hop| hop.len() >= 8) else { return };
            if u32::from(*flags) & RTNH_F_DEAD == 0 {
                self.interfaces.extend(number(hop, 4));
            }
            each_attribute(&hop[8..], |kind, _| self.gateway |= matches!(kind, RTA_GATEWAY | RTA_VIA));
            list = list.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }

    /// Whether mail to the Internet can use this route: a default route; a route nearly as wide; a route through a
    /// gateway to addresses that are not private. Routes to own networks and to container networks do not count.
    fn leads_out(&self) -> bool {
        let public = self.destination.is_none_or(|address| !is_private(address));
        let wide = self.prefix <= WIDE_PREFIX && self.protocol != RTPROT_KERNEL;
        self.kind == RTN_UNICAST && (self.prefix == 0 || public && (wide || self.gateway))
    }
}

/// Whether an address cannot belong to a mail exchanger on the Internet.
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let shared = address.octets()[0] == 100 && address.octets()[1] & 0xc0 == 64;
            address.is_private()
                || shared
                || address.is_link_local()
                || address.is_loopback()
                || address.is_multicast()
                || address.is_broadcast()
        }
        IpAddr::V6(address) => {
            address.is_unique_local()
                || address.is_unicast_link_local()
                || address.is_loopback()
                || address.is_multicast()
        }
    }
}

fn address(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => value.first_chunk::<4>().map(|bytes| IpAddr::V4(Ipv4Addr::from(*bytes))),
        16 => value.first_chunk::<16>().map(|bytes| IpAddr::V6(Ipv6Addr::from(*bytes))),
        _ => None,
    }
}

/// Key of a route look-up, as far as the kernel reports it for a TCP connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Packet {
    /// The own address.
    pub source: IpAddr,
    /// The peer's address.
    pub destination: IpAddr,
    /// Own port, if it is the watched one.
    pub source_port: Option<u16>,
    /// The peer's port, if it is the watched one.
    pub destination_port: Option<u16>,
    /// Index of the interface that the socket is bound to; 0: none.
    pub bound: u32,
    /// User id of the socket's owner, if known.
    pub user: Option<u32>,
    /// The socket's mark, if known.
    pub mark: Option<u32>,
}

/// Index of the interface by which the packet leaves; `None` if it cannot leave, or stays on this host.
///
/// # Errors
///
/// The route look-up fails.
pub(crate) fn interface_of(packet: &Packet) -> io::Result<Option<u32>> {
    match ask(packet, true) {
        // The source is not an address of this host (IP_TRANSPARENT, IP_FREEBIND): the kernel accepts it from a
        // socket only.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => ask(packet, false),
        answer => answer,
    }
    .or_else(|error| match error.raw_os_error() {
        // No route; or an unreachable, prohibit, blackhole or throw route; or the interface has gone.
        Some(
            libc::ENETUNREACH
            | libc::EHOSTUNREACH
            | libc::EACCES
            | libc::EINVAL
            | libc::EAGAIN
            | libc::ENODEV
            | libc::ENONET
            | libc::ENETDOWN,
        ) => Ok(None),
        _ => Err(error),
    })
}

fn ask(packet: &Packet, with_source: bool) -> io::Result<Option<u32>> {
    let (family, bits) = match packet.destination {
        IpAddr::V4(_) => (libc::AF_INET, 32),
        IpAddr::V6(_) => (libc::AF_INET6, 128),
    };
    let mut message = header(family, bits, if with_source { bits } else { 0 });
    let mut push = |kind, value: &[u8]| push_attribute(&mut message, kind, value);
    let mut push_address = |kind, address| match address {
        IpAddr::V4(address) => push(kind, &address.octets()),
        IpAddr::V6(address) => push(kind, &address.octets()),
    };
    push_address(RTA_DST, packet.destination);
    if with_source {
        push_address(RTA_SRC, packet.source);
    }
    // Routing rules can match these fields too.
    push(RTA_IP_PROTO, &[TCP]);
    for (kind, port) in [(RTA_SPORT, packet.source_port), (RTA_DPORT, packet.destination_port)] {
        if let Some(port) = port {
            push(kind, &port.to_be_bytes());
        }
    }
    if packet.bound != 0 {
        push(RTA_OIF, &packet.bound.to_ne_bytes());
    }
    for (kind, number) in [(RTA_UID, packet.user), (RTA_MARK, packet.mark)] {
        if let Some(number) = number {
            push(kind, &number.to_ne_bytes());
        }
    }
    let mut interface = None;
    request(SockProtocol::NetlinkRoute, RTM_GETROUTE, NLM_ACK, &message, |kind, body| {
        if kind == RTM_NEWROUTE
            && let Some(route) = Route::parse(body)
            && route.kind != RTN_LOCAL
        {
            interface = route.interfaces.first().copied();
        }
        ControlFlow::Continue(())
    })?;
    Ok(interface)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(destination: &str, prefix: u8) -> Route {
        let destination = (prefix > 0).then(|| destination.parse().expect("an address"));
        Route { prefix, table: 254, protocol: 3, kind: RTN_UNICAST, destination, gateway: false, interfaces: vec![7] }
    }

    #[test]
    fn routes_to_the_internet_lead_out() {
        for (destination, prefix, gateway, expected) in [
            ("0.0.0.0", 0, false, true),
            ("0.0.0.0", 1, false, true),
            ("128.0.0.0", 1, false, true),
            ("2000::", 3, false, true),
            ("8000::", 1, false, true),
            ("11.0.0.0", 8, false, true),
            ("198.51.100.25", 32, true, true),
            ("2001:db8:2::", 64, true, true),
            // A point-to-point device of one container; a network behind a router of the site.
            ("198.51.100.25", 32, false, false),
            ("10.0.0.0", 8, true, false),
            ("10.0.0.0", 8, false, false),
            ("100.64.0.0", 10, true, false),
            ("fd00::", 8, true, false),
            ("ff00::", 8, false, false),
            ("224.0.0.0", 4, false, false),
        ] {
            let route = Route { gateway, ..route(destination, prefix) };
            assert_eq!(route.leads_out(), expected, "{destination}/{prefix}, gateway: {gateway}");
        }
        assert!(!Route { kind: 6, ..route("0.0.0.0", 0) }.leads_out(), "a blackhole");
        assert!(!Route { protocol: RTPROT_KERNEL, ..route("11.0.0.0", 8) }.leads_out(), "an own network");
    }

    #[test]
    fn a_route_with_several_next_hops_has_several_interfaces() {
        let mut message = header(libc::AF_INET, 0, 0);
        message[7] = RTN_UNICAST;
        let hop = |interface: u8, flags: u8| [16, 0, flags, 0, interface, 0, 0, 0, 8, 0, 5, 0, 192, 0, 2, 1];
        let hops = [hop(3, 0), hop(4, 1), hop(5, 0)].concat();
        push_attribute(&mut message, RTA_MULTIPATH, &hops);
        let route = Route::parse(&message).expect("a route");
        assert_eq!((route.interfaces.as_slice(), route.gateway), (&[3, 5][..], true));
        // A message cut at any length is parsed up to the cut.
        for length in 0..message.len() {
            _ = Route::parse(&message[..length]);
        }
    }
}
