//! Synthetic traffic: SMTP sessions as packets, packets as capture files.

use std::net::SocketAddr;

/// 2026-11-23T15:00:00Z.
pub const START_NS: u64 = 1_795_446_000_000_000_000;
pub const CLIENT: &str = "192.0.2.10:41234";
pub const SERVER: &str = "198.51.100.25:25";

/// One packet, from its IP header on.
pub struct Packet {
    pub at_ns: u64,
    pub ip: Vec<u8>,
}

/// The lines of one side, in the order of the session.
#[derive(Clone, Copy)]
pub enum Turn<'a> {
    Client(&'a str),
    Server(&'a str),
}

/// A whole connection: handshake, every turn acknowledged by the other side, both FINs.
pub fn session(client: &str, server: &str, start_ns: u64, turns: &[Turn<'_>]) -> Vec<Packet> {
    let (client, server): (SocketAddr, SocketAddr) = (client.parse().unwrap(), server.parse().unwrap());
    let mut wire = Wire { client, server, at_ns: start_ns, seq: [1_000, u32::MAX - 20], packets: Vec::new() };
    wire.push(0, 0x02, b"");
    wire.seq[0] = wire.seq[0].wrapping_add(1);
    wire.push(1, 0x12, b"");
    wire.seq[1] = wire.seq[1].wrapping_add(1);
    wire.push(0, 0x10, b"");
    for turn in turns {
        let (side, text) = match turn {
            Turn::Client(text) => (0, text),
            Turn::Server(text) => (1, text),
        };
        wire.push(side, 0x18, text.as_bytes());
        wire.push(1 - side, 0x10, b"");
    }
    for side in [0, 1] {
        wire.push(side, 0x11, b"");
        wire.seq[side] = wire.seq[side].wrapping_add(1);
        wire.push(1 - side, 0x10, b"");
    }
    wire.packets
}

/// A session that delivers one message in cleartext; `capabilities` is the EHLO reply after its first line.
pub fn mail(client: &str, start_ns: u64, capabilities: &str) -> Vec<Packet> {
    let ehlo = format!("250-mx1.example.net\r\n{capabilities}");
    session(client, SERVER, start_ns, &dialogue(&ehlo))
}

/// The turns of such a session; `ehlo` is the whole EHLO reply.
pub const fn dialogue(ehlo: &str) -> [Turn<'_>; 13] {
    [
        Turn::Server("220 mx1.example.net ESMTP\r\n"),
        Turn::Client("EHLO mail.example.org\r\n"),
        Turn::Server(ehlo),
        Turn::Client("MAIL FROM:<a@example.org>\r\n"),
        Turn::Server("250 2.1.0 Ok\r\n"),
        Turn::Client("RCPT TO:<b@example.net>\r\n"),
        Turn::Server("250 2.1.5 Ok\r\n"),
        Turn::Client("DATA\r\n"),
        Turn::Server("354 End data with <CR><LF>.<CR><LF>\r\n"),
        Turn::Client("Subject: x\r\n\r\nbody\r\n.\r\n"),
        Turn::Server("250 2.0.0 Ok: queued\r\n"),
        Turn::Client("QUIT\r\n"),
        Turn::Server("221 2.0.0 Bye\r\n"),
    ]
}

/// A session in which a password is sent in cleartext.
pub fn password() -> Vec<Packet> {
    session(
        CLIENT,
        "198.51.100.25:587",
        START_NS,
        &[
            Turn::Server("220 mx1.example.net ESMTP\r\n"),
            Turn::Client("EHLO mail.example.org\r\n"),
            Turn::Server("250-mx1.example.net\r\n250-STARTTLS\r\n250 AUTH PLAIN\r\n"),
            Turn::Client("AUTH PLAIN AGFsaWNlAGh1bnRlcjI=\r\n"),
            Turn::Server("235 2.7.0 Authentication successful\r\n"),
            Turn::Client("QUIT\r\n"),
            Turn::Server("221 2.0.0 Bye\r\n"),
        ],
    )
}

struct Wire {
    client: SocketAddr,
    server: SocketAddr,
    at_ns: u64,
    seq: [u32; 2],
    packets: Vec<Packet>,
}

impl Wire {
    fn push(&mut self, side: usize, flags: u8, payload: &[u8]) {
        let (from, to) = if side == 0 { (self.client, self.server) } else { (self.server, self.client) };
        let ack = if flags & 0x10 == 0 { 0 } else { self.seq[1 - side] };
        self.at_ns += 1_000_000;
        self.packets.push(Packet { at_ns: self.at_ns, ip: segment(from, to, self.seq[side], ack, flags, payload) });
        self.seq[side] = self.seq[side].wrapping_add(u32::try_from(payload.len()).unwrap());
    }
}

/// IP and TCP headers with the payload; the TCP checksum is zero, as with checksum offload.
fn segment(from: SocketAddr, to: SocketAddr, seq: u32, ack: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut tcp = Vec::new();
    tcp.extend(from.port().to_be_bytes());
    tcp.extend(to.port().to_be_bytes());
    tcp.extend(seq.to_be_bytes());
    tcp.extend(ack.to_be_bytes());
    tcp.extend([5 << 4, flags]);
    tcp.extend([0xff, 0xff, 0, 0, 0, 0]);
    tcp.extend(payload);
    let (SocketAddr::V4(from), SocketAddr::V4(to)) = (from, to) else { panic!("IPv4 only") };
    let mut ip = vec![0x45, 0];
    ip.extend(u16::try_from(20 + tcp.len()).unwrap().to_be_bytes());
    ip.extend([0, 1, 0x40, 0, 64, 6, 0, 0]);
    ip.extend(from.ip().octets());
    ip.extend(to.ip().octets());
    // Header checksum: RFC 791 §3.1, RFC 1071.
    let sum: u32 = ip.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let folded = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    ip[10..12].copy_from_slice(&(!folded).to_be_bytes());
    ip.extend(tcp);
    ip
}

/// Whether the client sends this IPv4 packet. In these captures the client is the capturing host, and the server has
/// the lower port.
pub fn leaves(ip: &[u8]) -> bool {
    ip[20..22] > ip[22..24]
}

/// The link header before the IP header, by link type; a cooked capture marks packets that leave.
pub fn link_header(linktype: u32, leaves: bool) -> Vec<u8> {
    let kind = if leaves { 4 } else { 0 };
    match linktype {
        0 => vec![2, 0, 0, 0],
        1 => [[0_u8; 12].as_slice(), &[8, 0]].concat(),
        101 | 228 => Vec::new(),
        108 => vec![0, 0, 0, 2],
        113 => [[0, kind].as_slice(), &[0; 12], &[8, 0]].concat(),
        276 => [[8, 0].as_slice(), &[0; 8], &[kind], &[0; 9]].concat(),
        other => panic!("no header for link type {other}"),
    }
}

/// A pcap file, with nanosecond time stamps if `nanos`, big-endian if `big`.
pub fn pcap(packets: &[Packet], linktype: u32, nanos: bool, big: bool) -> Vec<u8> {
    let frames: Vec<_> = packets
        .iter()
        .map(|packet| (packet.at_ns, [link_header(linktype, leaves(&packet.ip)), packet.ip.clone()].concat()))
        .collect();
    pcap_of_frames(&frames, (linktype, usize::MAX), nanos, big)
}

/// A pcap file of frames with their times, each cut at `snap` bytes.
pub fn pcap_of_frames(frames: &[(u64, Vec<u8>)], (linktype, snap): (u32, usize), nanos: bool, big: bool) -> Vec<u8> {
    let u32_ = |value: u32| if big { value.to_be_bytes() } else { value.to_le_bytes() };
    let u16_ = |value: u16| if big { value.to_be_bytes() } else { value.to_le_bytes() };
    let mut file = Vec::new();
    file.extend(u32_(if nanos { 0xa1b2_3c4d } else { 0xa1b2_c3d4 }));
    file.extend([u16_(2), u16_(4)].concat());
    file.extend([u32_(0), u32_(0), u32_(262_144), u32_(linktype)].concat());
    for (at_ns, frame) in frames {
        let captured = &frame[..frame.len().min(snap)];
        let fraction = at_ns % 1_000_000_000;
        file.extend(u32_(u32::try_from(at_ns / 1_000_000_000).unwrap()));
        file.extend(u32_(u32::try_from(if nanos { fraction } else { fraction / 1_000 }).unwrap()));
        for length in [captured.len(), frame.len()] {
            file.extend(u32_(u32::try_from(length).unwrap()));
        }
        file.extend(captured);
    }
    file
}

/// Wraps a packet in an outer Ethernet frame, in the form that [`link_header`] has for a packet that leaves.
pub mod wrap {
    /// An Ethernet frame of this EtherType.
    pub fn ethernet(ether_type: u16, rest: &[u8]) -> Vec<u8> {
        [[0_u8; 12].as_slice(), &ether_type.to_be_bytes(), rest].concat()
    }

    /// An outer IPv4 packet, with the checksum of its header.
    pub fn ipv4(protocol: u8, rest: &[u8]) -> Vec<u8> {
        let [high, low] = u16::try_from(20 + rest.len()).unwrap().to_be_bytes();
        let mut ip = vec![0x45, 0, high, low, 0, 1, 0x40, 0, 64, protocol, 0, 0, 203, 0, 113, 1, 203, 0, 113, 2];
        let sum: u32 = ip.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
        let folded = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
        ip[10..12].copy_from_slice(&(!folded).to_be_bytes());
        ip.extend(rest);
        ip
    }

    /// VXLAN (RFC 7348) around an IPv4 packet, from the outer IPv4 header on.
    pub fn vxlan(ip: &[u8]) -> Vec<u8> {
        let inner = ethernet(0x0800, ip);
        let [high, low] = u16::try_from(16 + inner.len()).unwrap().to_be_bytes();
        let header = [0xc0, 0, 0x12, 0xb5, high, low, 0, 0, 8, 0, 0, 0, 0, 0, 7, 0];
        ipv4(17, &[&header[..], &inner].concat())
    }

    /// GRE (RFC 2784) around an IPv4 packet, from the outer IPv4 header on.
    pub fn gre(ip: &[u8]) -> Vec<u8> {
        ipv4(47, &[&[0, 0, 8, 0], ip].concat())
    }

    /// A PPPoE session packet (RFC 2516) around an IPv4 packet, without a link header.
    pub fn pppoe(ip: &[u8]) -> Vec<u8> {
        let [high, low] = u16::try_from(2 + ip.len()).unwrap().to_be_bytes();
        [&[0x11, 0, 0, 7, high, low, 0, 0x21], ip].concat()
    }
}

/// An interface of a pcapng file: name, link type, `if_tsresol`.
pub type Interface<'a> = (&'a str, u16, u8);

/// A pcapng file, big-endian if `big`; packet `i` belongs to interface `i % interfaces.len()`.
pub fn pcapng(packets: &[Packet], interfaces: &[Interface<'_>], big: bool) -> Vec<u8> {
    pcapng_flagged(packets, interfaces, big, |_, _| None)
}

/// As [`pcapng`], with the flags of each packet, computed from its index.
pub fn pcapng_flagged(
    packets: &[Packet],
    interfaces: &[Interface<'_>],
    big: bool,
    flags: impl Fn(usize, &Packet) -> Option<u32>,
) -> Vec<u8> {
    let u32_ = |value: u32| if big { value.to_be_bytes() } else { value.to_le_bytes() };
    let u16_ = |value: u16| if big { value.to_be_bytes() } else { value.to_le_bytes() };
    let block = |kind: u32, body: &[u8]| {
        let length = u32_(u32::try_from(body.len() + 12).unwrap());
        [u32_(kind).as_slice(), &length, body, &length].concat()
    };
    let padded = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    };
    let option = |code: u16, value: &[u8]| {
        [u16_(code).as_slice(), &u16_(u16::try_from(value.len()).unwrap()), &padded(value)].concat()
    };
    let mut file = block(0x0a0d_0d0a, &[u32_(0x1a2b_3c4d).as_slice(), &u16_(1), &u16_(0), &[0xff; 8]].concat());
    for (name, linktype, resolution) in interfaces {
        let options = [option(2, name.as_bytes()), option(9, &[*resolution]), u32_(0).to_vec()].concat();
        file.extend(block(1, &[u16_(*linktype).as_slice(), &u16_(0), &u32_(0), &options].concat()));
    }
    for (index, packet) in packets.iter().enumerate() {
        let id = index % interfaces.len();
        let (_, linktype, resolution) = interfaces[id];
        let units = if resolution & 0x80 == 0 {
            u128::from(packet.at_ns) * 10_u128.pow(resolution.into()) / 1_000_000_000
        } else {
            u128::from(packet.at_ns) * (1 << (resolution & 0x7f)) / 1_000_000_000
        };
        let data = [link_header(linktype.into(), leaves(&packet.ip)), packet.ip.clone()].concat();
        let length = u32_(u32::try_from(data.len()).unwrap());
        let body = [
            u32_(u32::try_from(id).unwrap()),
            u32_(u32::try_from(units >> 32).unwrap()),
            u32_(u32::try_from(units & 0xffff_ffff).unwrap()),
            length,
            length,
        ];
        let options = match flags(index, packet) {
            Some(flags) => [option(2, &u32_(flags)), u32_(0).to_vec()].concat(),
            None => Vec::new(),
        };
        file.extend(block(6, &[body.concat(), padded(&data), options].concat()));
    }
    file
}
