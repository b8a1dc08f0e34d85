//! Finds the interfaces that carry TCP connections of watched ports: the end points come from the sockets of the host
//! (sock_diag), the interface from its routes. [`super::Capture::survey`] and `probe` call [`find`].

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::ControlFlow,
};

use nix::sys::socket::SockProtocol;
use smtpwatch_common::PortSet;
use smtpwatch_core::Role;

use super::{
    netlink::{NLM_DUMP, each_attribute, number, push_attribute, request},
    routes::{self, Packet, TCP},
};

/// Maximum number of route look-ups per role in one survey; connections with the same look-up key share one. A
/// look-up takes about 10 µs of the capture thread.
const MAX_LOOKUPS: usize = 4_096;
/// Maximum number of ports in the kernel's socket filter; with more ports, the kernel lists every socket.
const MAX_FILTERED_PORTS: usize = 256;

// include/uapi/linux/sock_diag.h, inet_diag.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const INET_DIAG_REQ_BYTECODE: u16 = 1;
const INET_DIAG_MARK: u16 = 15;
const INET_DIAG_BC_JMP: u8 = 1;
/// Compares the local port for equality; Linux 4.16.
const INET_DIAG_BC_S_EQ: u8 = 11;
/// Compares the peer's port for equality; Linux 4.16.
const INET_DIAG_BC_D_EQ: u8 = 12;
/// Sizes of struct `inet_diag_sockid` and `inet_diag_msg`, in bytes.
const SOCKET_ID: usize = 48;
const MESSAGE: usize = 72;
/// States of include/net/tcp_states.h: ESTABLISHED, SYN_SENT, FIN_WAIT1, FIN_WAIT2, TIME_WAIT, CLOSE_WAIT, LAST_ACK,
/// CLOSING. SYN_RECV is excluded: a SYN without a handshake can have any source address and would exhaust the
/// look-ups.
const STATES: u32 = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 9 | 1 << 11;

/// Connections carried by one interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Carried {
    /// Number of connections of clients on this host.
    pub clients: u64,
    /// Number of connections of servers on this host.
    pub servers: u64,
    /// One example end point: the peer of a client, or the server's own address.
    pub example: (Role, SocketAddr),
}

impl Carried {
    /// A description such as `mail to 198.51.100.25:25 goes by wg0`.
    #[must_use]
    pub fn describe(&self, interface: &str) -> String {
        match self.example {
            (Role::Client, peer) => format!("mail to {peer} goes by {interface}"),
            (Role::Server, own) => format!("mail to {own} of this host comes by {interface}"),
        }
    }
}

/// Remedy for an interface that the configuration leaves out.
pub const NOT_AMONG_INTERFACES: &str = "add it to `interfaces`, or leave `interfaces` out";

/// Remedy if connections cannot be looked up.
pub const REMEDY: &str = "the kernel needs CONFIG_INET_DIAG, and the service AF_NETLINK among RestrictAddressFamilies=";

/// Connections by interface.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ConnectionsByInterface {
    /// By interface index; without loopback.
    pub by_interface: BTreeMap<u32, Carried>,
    /// Connections without a look-up, because the table was full.
    pub dropped: u64,
}

/// The interfaces that carry connections of watched ports. `addresses` maps the addresses of this host's interfaces
/// to interface indexes.
///
/// # Errors
///
/// The kernel does not list its sockets, or a route look-up fails.
pub fn find(ports: &PortSet, addresses: &BTreeMap<IpAddr, u32>) -> io::Result<ConnectionsByInterface> {
    let mut found = ConnectionsByInterface::default();
    // Separate bounds per role: peers that connect to a server of this host cannot use up the look-ups of its
    // clients.
    let mut lookups = [const { BTreeMap::new() }; 2];
    for family in [libc::AF_INET, libc::AF_INET6] {
        sockets(family, ports, |socket| {
            let (role, packet) = socket.packet(ports);
            let lookups: &mut BTreeMap<Packet, (u64, SocketAddr)> = &mut lookups[role as usize];
            if lookups.len() >= MAX_LOOKUPS && !lookups.contains_key(&packet) {
                found.dropped += 1;
                return;
            }
            let end = if role == Role::Client { socket.remote } else { socket.local };
            lookups.entry(packet).or_insert((0, end)).0 += 1;
        })?;
    }
    for role in [Role::Client, Role::Server] {
        for (packet, (count, end)) in &lookups[role as usize] {
            let Some(leaves) = routes::interface_of(packet)? else { continue };
            // The peer's packets arrive at the interface that has the own address, regardless of the route of the
            // replies. If user and mark are known, routing rules on them are evaluated; otherwise the own address is
            // more reliable than the route.
            let arrives = addresses.get(&packet.source).copied();
            let known = packet.user.is_some() && packet.mark.is_some();
            let interfaces =
                BTreeSet::from([arrives.unwrap_or(leaves), if known { leaves } else { arrives.unwrap_or(leaves) }]);
            for interface in interfaces {
                let carried = found.by_interface.entry(interface);
                let carried = carried.or_insert(Carried { clients: 0, servers: 0, example: (role, *end) });
                match role {
                    Role::Client => carried.clients += count,
                    Role::Server => carried.servers += count,
                }
            }
        }
    }
    Ok(found)
}

/// A TCP socket of a watched port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Socket {
    local: SocketAddr,
    remote: SocketAddr,
    bound: u32,
    user: Option<u32>,
    mark: Option<u32>,
}

impl Socket {
    /// Parses struct `inet_diag_msg` and its attributes. An IPv6 socket with an IPv4 peer gets IPv4 addresses.
    fn parse(body: &[u8]) -> Option<Self> {
        let head = body.first_chunk::<MESSAGE>()?;
        let port = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
        let address = |at: usize| -> Option<IpAddr> {
            let bytes = head.get(at..)?;
            if i32::from(head[0]) == libc::AF_INET {
                return bytes.first_chunk::<4>().map(|bytes| IpAddr::V4(Ipv4Addr::from(*bytes)));
            }
            bytes.first_chunk::<16>().map(|bytes| Ipv6Addr::from(*bytes).to_canonical())
        };
        // Without an inode no process holds the socket, and the kernel reports its user as 0.
        let held = number(head, 68)? != 0;
        let mut mark = None;
        each_attribute(&body[MESSAGE..], |kind, value| {
            if kind == INET_DIAG_MARK {
                mark = number(value, 0);
            }
        });
        Some(Self {
            local: SocketAddr::new(address(8)?, port(4)),
            remote: SocketAddr::new(address(24)?, port(6)),
            bound: number(head, 40)?,
            user: number(head, 64).filter(|_| held),
            mark,
        })
    }

    /// The role of this host, and the look-up key of outgoing packets.
    fn packet(&self, ports: &PortSet) -> (Role, Packet) {
        let role = if ports.contains(self.local.port()) { Role::Server } else { Role::Client };
        let packet = Packet {
            source: self.local.ip(),
            destination: self.remote.ip(),
            source_port: (role == Role::Server).then_some(self.local.port()),
            destination_port: (role == Role::Client).then_some(self.remote.port()),
            bound: self.bound,
            user: self.user,
            mark: self.mark,
        };
        (role, packet)
    }
}

/// Calls `on` for each socket of a watched port, except those with a loopback peer address.
fn sockets(family: i32, ports: &PortSet, mut on: impl FnMut(&Socket)) -> io::Result<()> {
    let mut message = vec![0; 8];
    message[0] = u8::try_from(family).unwrap_or_default();
    message[1] = TCP;
    message[4..8].copy_from_slice(&STATES.to_ne_bytes());
    message.resize(8 + SOCKET_ID, 0);
    let watched: Vec<u16> = (0..=u16::MAX).filter(|port| ports.contains(*port)).collect();
    if watched.len() <= MAX_FILTERED_PORTS {
        push_attribute(&mut message, INET_DIAG_REQ_BYTECODE, &filter(&watched));
    }
    request(SockProtocol::NetlinkSockDiag, SOCK_DIAG_BY_FAMILY, NLM_DUMP, &message, |kind, body| {
        if kind == SOCK_DIAG_BY_FAMILY
            && let Some(socket) = Socket::parse(body)
            && (ports.contains(socket.local.port()) || ports.contains(socket.remote.port()))
            && !socket.remote.ip().is_loopback()
        {
            on(&socket);
        }
        ControlFlow::Continue(())
    })
}

/// An inet_diag bytecode program that accepts a socket if one of its ports is among `ports`. Each comparison has two
/// operations of 4 bytes; the second holds the port. On a match it jumps to the end, which accepts. A jump past the
/// end rejects.
fn filter(ports: &[u16]) -> Vec<u8> {
    const COMPARE: u16 = 8;
    const JUMP: u16 = 4;
    // struct inet_diag_bc_op: code, yes (relative jump in bytes), no.
    let operation = |code: u8, yes: u8, no: u16| {
        let [low, high] = no.to_ne_bytes();
        [code, yes, low, high]
    };
    let comparisons = ports.iter().flat_map(|port| [(INET_DIAG_BC_S_EQ, *port), (INET_DIAG_BC_D_EQ, *port)]);
    let mut left = u16::try_from(2 * ports.len()).unwrap_or(u16::MAX);
    let mut program = Vec::new();
    for (code, port) in comparisons {
        left -= 1;
        program.extend(operation(code, 8, COMPARE + JUMP));
        program.extend(operation(0, 0, port));
        if left > 0 {
            program.extend(operation(INET_DIAG_BC_JMP, 4, left * (COMPARE + JUMP)));
        }
    }
    program
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn the_kernel_takes_the_filter_and_gives_sockets_of_these_ports() {
        let listen = || TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = |listener: &TcpListener| listener.local_addr().expect("an address").port();
        let (watched, other) = (listen(), listen());
        let clients =
            [&watched, &other].map(|listener| TcpStream::connect(("127.0.0.1", port(listener))).expect("a connection"));
        let read = |ports: &[u16]| {
            let mut seen = Vec::new();
            let mut message = vec![0; 8 + SOCKET_ID];
            message[0] = 2;
            message[1] = TCP;
            message[4..8].copy_from_slice(&STATES.to_ne_bytes());
            push_attribute(&mut message, INET_DIAG_REQ_BYTECODE, &filter(ports));
            request(SockProtocol::NetlinkSockDiag, SOCK_DIAG_BY_FAMILY, NLM_DUMP, &message, |_, body| {
                seen.push(Socket::parse(body).expect("a socket"));
                ControlFlow::Continue(())
            })
            .expect("the kernel takes the filter");
            seen
        };
        let ends = |sockets: &[Socket], port: u16| {
            let local = sockets.iter().filter(|socket| socket.local.port() == port).count();
            (local, sockets.iter().filter(|socket| socket.remote.port() == port).count())
        };
        let seen = read(&[1, port(&watched), 2]);
        assert_eq!((ends(&seen, port(&watched)), seen.len()), ((1, 1), 2), "{seen:?}");
        let seen = read(&[port(&watched), port(&other)]);
        assert_eq!((ends(&seen, port(&other)), seen.len()), ((1, 1), 4), "{seen:?}");
        let own = clients[0].local_addr().expect("an address");
        let socket = seen.iter().find(|socket| socket.local == own).expect("the client's end");
        assert_eq!(socket.user, Some(nix::unistd::getuid().as_raw()), "{socket:?}");
        let many: Vec<u16> = (1..=256).collect();
        let of_many = |socket: &Socket| [socket.local, socket.remote].iter().any(|end| many.contains(&end.port()));
        assert!(read(&many).iter().all(of_many));
        // Connections within this host are excluded.
        let found = find(&PortSet::new(&[port(&watched)]), &BTreeMap::new()).expect("found");
        assert_eq!(found, ConnectionsByInterface::default());
    }

    #[test]
    fn an_ipv6_socket_that_speaks_ipv4_has_ipv4_addresses() {
        let mut message = vec![0; MESSAGE];
        message[0] = 10;
        message[4..6].copy_from_slice(&25_u16.to_be_bytes());
        message[6..8].copy_from_slice(&4_711_u16.to_be_bytes());
        message[8..24].copy_from_slice(&Ipv4Addr::new(192, 0, 2, 10).to_ipv6_mapped().octets());
        message[24..40].copy_from_slice(&Ipv4Addr::new(198, 51, 100, 25).to_ipv6_mapped().octets());
        let socket = Socket::parse(&message).expect("a socket");
        assert_eq!(socket.local.to_string(), "192.0.2.10:25");
        assert_eq!(socket.remote.to_string(), "198.51.100.25:4711");
        assert_eq!((socket.user, socket.mark), (None, None), "no process holds it");
        let (role, packet) = socket.packet(&PortSet::new(&[25]));
        assert_eq!((role, packet.source_port, packet.destination_port), (Role::Server, Some(25), None));
        for length in 0..message.len() {
            assert_eq!(Socket::parse(&message[..length]), None);
        }
    }
}
