//! A capture file made from evidence.
//!
//! Each packet row of the evidence becomes a packet with its original IP and TCP header and the stored cleartext
//! bytes, with secrets overwritten. Bytes that were not stored (message bodies, encrypted data) are not invented:
//! such a packet is truncated where they would begin, as by a snapshot length. There is no link layer, because none
//! is stored.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
};

use etherparse::{IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, TcpHeader};
use pcap_parser::{
    EnhancedPacketBlock, InterfaceDescriptionBlock, Linktype, OptionCode, PcapNGOption, SectionHeaderBlock, ToVec,
};
use smtpwatch_core::{
    Finding, Side, TcpFlags,
    evidence::{ByteRange, ConflictingSegments, Packet},
};

use super::{ends, sentence};
use crate::text::printable;

/// Raw IP, of either version (LINKTYPE_RAW).
const RAW: Linktype = Linktype(101);
/// Resolution of time stamps: nanoseconds (`if_tsresol`).
const NANOSECONDS: u8 = 9;
/// Maximum length of a comment in bytes.
const COMMENT: usize = 4_096;
/// Comment on the first packet of each connection.
const NOTICE: &str = "Put together from the evidence of smtpwatch: secrets are overwritten with *, message bodies and encrypted \
                      bytes are left out, and there is no link layer.";

/// One connection, and the stored evidence of its findings.
struct Connection<'a> {
    client: SocketAddr,
    server: SocketAddr,
    interface: &'a str,
    rows: BTreeMap<Key, &'a Packet>,
    pieces: Vec<&'a ByteRange>,
    copies: Vec<&'a ConflictingSegments>,
    findings: Vec<&'a Finding>,
}

/// Sort key in time order; identical for the same packet in the evidence of two findings.
type Key = (i64, u8, u32, u32, u32, u8, u16);

fn key(packet: &Packet) -> Key {
    (packet.time.0, packet.from as u8, packet.seq, packet.ack, packet.length, packet.flags, packet.ip_id)
}

/// Writes the evidence of these findings as a pcapng file.
///
/// # Errors
///
/// The writer failed.
pub fn pcapng(findings: &[Finding], out: &mut impl io::Write) -> io::Result<()> {
    let mut connections: Vec<Connection<'_>> = Vec::new();
    for finding in findings {
        let (Some((client, server)), Some(exhibit)) = (ends(finding), &finding.exhibit) else { continue };
        let interface = finding.flow.interface.as_str();
        let same =
            |known: &&mut Connection<'_>| (known.client, known.server, known.interface) == (client, server, interface);
        let place = match connections.iter_mut().find(same) {
            Some(known) => known,
            None => {
                connections.push(Connection {
                    client,
                    server,
                    interface,
                    rows: BTreeMap::new(),
                    pieces: Vec::new(),
                    copies: Vec::new(),
                    findings: Vec::new(),
                });
                let Some(newest) = connections.last_mut() else { continue };
                newest
            }
        };
        place.rows.extend(exhibit.packets.iter().map(|packet| (key(packet), packet)));
        // The evidence of a later finding contains that of an earlier one.
        place.pieces.splice(0..0, exhibit.octets.iter());
        place.copies.extend(&exhibit.copies);
        place.findings.push(finding);
    }

    let mut interfaces: Vec<&str> = Vec::new();
    for connection in &connections {
        if !interfaces.contains(&connection.interface) {
            interfaces.push(connection.interface);
        }
    }
    let program = format!("smtpwatch {}", smtpwatch_core::VERSION);
    let mut section = SectionHeaderBlock {
        block_type: 0,
        block_len1: 0,
        bom: 0,
        major_version: 1,
        minor_version: 0,
        section_len: -1,
        options: vec![option(OptionCode(4), program.as_bytes())],
        block_len2: 0,
    };
    write(out, &mut section)?;
    for name in &interfaces {
        let named = (!name.is_empty()).then(|| option(OptionCode(2), name.as_bytes()));
        let mut interface = InterfaceDescriptionBlock {
            block_type: 0,
            block_len1: 0,
            linktype: RAW,
            reserved: 0,
            snaplen: 0,
            options: named.into_iter().collect(),
            block_len2: 0,
            if_tsresol: NANOSECONDS,
            if_tsoffset: 0,
        };
        write(out, &mut interface)?;
    }

    let mut packets: Vec<(Key, usize)> = Vec::new();
    for (number, connection) in connections.iter().enumerate() {
        packets.extend(connection.rows.keys().map(|key| (*key, number)));
    }
    packets.sort_unstable();
    for (key, number) in packets {
        let Some(connection) = connections.get(number) else { continue };
        let Some(row) = connection.rows.get(&key) else { continue };
        let (bytes, length) = connection.packet(row);
        let time = u64::try_from(row.time.0).unwrap_or(0);
        let interface = interfaces.iter().position(|name| *name == connection.interface).unwrap_or(0);
        let comments = connection.comments(&key);
        let mut block = EnhancedPacketBlock {
            block_type: 0,
            block_len1: 0,
            if_id: u32::try_from(interface).unwrap_or(0),
            ts_high: u32::try_from(time >> 32).unwrap_or(u32::MAX),
            ts_low: u32::try_from(time & 0xffff_ffff).unwrap_or(0),
            caplen: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
            origlen: length,
            data: &bytes,
            options: comments.iter().map(|comment| option(OptionCode(1), comment.as_bytes())).collect(),
            block_len2: 0,
        };
        write(out, &mut block)?;
    }
    out.flush()
}

impl Connection<'_> {
    /// The comments of a packet: the notice on the first one, and each finding on the packet that decided it.
    fn comments(&self, key: &Key) -> Vec<String> {
        let mut comments = Vec::new();
        if self.rows.keys().next() == Some(key) {
            comments.push(NOTICE.to_owned());
        }
        for finding in &self.findings {
            let first = self.rows.keys().next();
            let decided =
                self.rows.range(..=(finding.time.0, u8::MAX, u32::MAX, u32::MAX, u32::MAX, u8::MAX, u16::MAX));
            if decided.map(|(key, _)| key).next_back().or(first) == Some(key) {
                let text = sentence(finding);
                comments.push(printable(&text).chars().take(COMMENT / 4).collect());
            }
        }
        comments
    }

    /// A packet from its IP header on, as far as its bytes were stored, and its original length.
    fn packet(&self, row: &Packet) -> (Vec<u8>, u32) {
        let (from, to) = match row.from {
            Side::Client => (self.client, self.server),
            Side::Server => (self.server, self.client),
        };
        let payload = self.payload(row);
        let whole = payload.len() as u64 == u64::from(row.length);
        let has = |flag: TcpFlags| row.flags & flag.0 != 0;
        let mut tcp = TcpHeader::new(from.port(), to.port(), row.seq, row.window);
        tcp.acknowledgment_number = row.ack;
        tcp.fin = has(TcpFlags::FIN);
        tcp.syn = has(TcpFlags::SYN);
        tcp.rst = has(TcpFlags::RST);
        tcp.psh = has(TcpFlags::PSH);
        tcp.ack = has(TcpFlags::ACK);
        tcp.urg = row.flags & 0x20 != 0;
        tcp.ece = row.flags & 0x40 != 0;
        tcp.cwr = row.flags & 0x80 != 0;
        // Options that are not a multiple of 4 bytes long are left out: the wire format has only whole words.
        let _ = tcp.set_options_raw(&row.options);
        let segment = u32::from(tcp.header_len_u16()).saturating_add(row.length);
        // A segment before segmentation offload exceeds the maximum length of an IP packet: its header had length zero.
        let of_segment = u16::try_from(segment).unwrap_or(0);
        let mut bytes = Vec::new();
        match (from.ip().to_canonical(), to.ip().to_canonical()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let total = of_segment.checked_add(20).filter(|_| of_segment > 0).unwrap_or(0);
                let mut ip = Ipv4Header {
                    time_to_live: row.ttl,
                    identification: row.ip_id,
                    protocol: IpNumber::TCP,
                    source: source.octets(),
                    destination: destination.octets(),
                    total_len: total,
                    ..Ipv4Header::default()
                };
                ip.header_checksum = ip.calc_header_checksum();
                if whole {
                    tcp.checksum = tcp.calc_checksum_ipv4(&ip, &payload).unwrap_or(0);
                }
                bytes.extend_from_slice(&ip.to_bytes());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let ip = Ipv6Header {
                    traffic_class: 0,
                    flow_label: Ipv6FlowLabel::ZERO,
                    payload_length: of_segment,
                    next_header: IpNumber::TCP,
                    hop_limit: row.ttl,
                    source: source.octets(),
                    destination: destination.octets(),
                };
                if whole {
                    tcp.checksum = tcp.calc_checksum_ipv6(&ip, &payload).unwrap_or(0);
                }
                bytes.extend_from_slice(&ip.to_bytes());
            }
            // Both endpoints of a connection have the same IP version.
            _ => {}
        }
        let header = u32::try_from(bytes.len()).unwrap_or(0);
        bytes.extend_from_slice(&tcp.to_bytes());
        bytes.extend_from_slice(&payload);
        (bytes, header.saturating_add(segment))
    }

    /// The stored payload of a packet, up to the first byte that was not stored.
    fn payload(&self, row: &Packet) -> Vec<u8> {
        let mut payload = Vec::new();
        let start = row.seq.wrapping_add(u32::from(row.flags & TcpFlags::SYN.0 != 0));
        while u64::from(row.length) > payload.len() as u64 {
            let at = start.wrapping_add(u32::try_from(payload.len()).unwrap_or(u32::MAX));
            let holds = |piece: &&&ByteRange| u64::from(at.wrapping_sub(piece.seq)) < piece.octets.len() as u64;
            let Some(piece) = self.pieces.iter().filter(|piece| piece.from == row.from).find(holds) else { break };
            let left = usize::try_from(row.length).unwrap_or(usize::MAX) - payload.len();
            let rest = piece.octets.get(at.wrapping_sub(piece.seq) as usize..).unwrap_or_default();
            payload.extend_from_slice(&rest[..rest.len().min(left)]);
        }
        // Of two conflicting copies, the later one was in this packet.
        for copy in self.copies.iter().filter(|copy| copy.from == row.from && copy.time == row.time) {
            let offset = copy.seq.wrapping_sub(start) as usize;
            if let Some(range) = payload.get_mut(offset..offset.saturating_add(copy.other.len())) {
                range.copy_from_slice(&copy.other);
            }
        }
        payload
    }
}

fn option(code: OptionCode, value: &[u8]) -> PcapNGOption<'_> {
    PcapNGOption { code, len: u16::try_from(value.len()).unwrap_or(0), value: Cow::Borrowed(value) }
}

fn write(out: &mut impl io::Write, block: &mut impl ToVec) -> io::Result<()> {
    let bytes = block.to_vec().map_err(|error| io::Error::other(format!("{error:?}")))?;
    out.write_all(&bytes)
}
