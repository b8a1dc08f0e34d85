//! Reader of capture files: pcap (microseconds and nanoseconds, both byte orders) and pcapng, as a stream. [`read`]
//! passes each packet to a callback.
//!
//! A damaged file is read up to the damage; [`FileReport::damage`] describes it.

use std::{
    fs::File,
    io::{Cursor, Read as _},
    path::{Path, PathBuf},
};

use pcap_parser::{
    Block, EnhancedPacketBlock, InterfaceDescriptionBlock, Linktype, PcapBlockOwned, PcapError, create_reader,
    traits::PcapNGPacketBlock,
};
use smtpwatch_common::{Direction, encapsulation::is_encapsulating_type, headers::Link};
use smtpwatch_core::Timestamp;

/// Size of one read in bytes; also the initial capacity for a block.
const BUFFER: usize = 64 * 1024;
/// Largest accepted block in bytes; a larger length field indicates damage.
const MAX_BLOCK: usize = 16 * 1024 * 1024;
/// Shortest block of a pcapng file in bytes: its type, and its length twice (draft-ietf-opsawg-pcapng §3.1).
const MIN_BLOCK: u32 = 12;
/// Length of an Ethernet header in bytes.
const ETHERNET_LEN: u32 = 14;
/// Maximum number of interfaces of one section.
const MAX_INTERFACES: usize = 4_096;

/// One packet of a capture file.
#[derive(Clone, Copy, Debug)]
pub struct CapturedPacket<'a> {
    /// Capture time.
    pub at: Timestamp,
    /// Name of the interface; empty if the file does not name it.
    pub interface: &'a str,
    /// Number of the interface within its section.
    pub interface_index: u32,
    /// Direction as seen by the capturing host, if the file records it: the flags of a pcapng packet, or the packet
    /// type of a Linux cooked capture.
    pub direction: Option<Direction>,
    /// Type of the first header in `bytes`.
    pub link: Link,
    /// The bytes from the link layer on; pseudo-headers that the gate cannot parse are removed.
    pub bytes: &'a [u8],
    /// Length of the packet on the wire in bytes, with the same headers as `bytes`.
    pub wire_len: u32,
}

/// Result of reading one file.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FileReport {
    /// Number of packets read.
    pub packets: u64,
    /// Number of packets left out: unknown link layer, or an interface that the file does not describe.
    pub skipped: u64,
    /// Link types of the packets left out.
    pub unsupported: Vec<i32>,
    /// Why and where reading stopped before the end of the file.
    pub damage: Option<String>,
}

/// Why no packet of a file could be read.
#[derive(Debug, thiserror::Error)]
pub enum PcapFileError {
    /// The file cannot be opened or read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// The error of the system.
        source: std::io::Error,
    },
    /// The file has another format.
    #[error("{} is not a capture file (pcap or pcapng): {hint}", path.display())]
    Form {
        /// Path of the file.
        path: PathBuf,
        /// The detected format, or a remedy.
        hint: &'static str,
    },
}

/// Reads `path` to its end and passes every packet to `on`.
///
/// # Errors
///
/// The file cannot be opened, or is not a capture file. Later damage is reported in the [`FileReport`].
pub fn read(path: &Path, mut on: impl FnMut(CapturedPacket<'_>)) -> Result<FileReport, PcapFileError> {
    let failed = |source| PcapFileError::Read { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    let mut start = Vec::new();
    file.by_ref().take(BUFFER as u64).read_to_end(&mut start).map_err(failed)?;
    let hint = hint(&start);
    // The reader detects the format from its first read, which must return the whole first block; later reads go
    // directly to its buffer.
    let mut reader = create_reader(BUFFER, Cursor::new(start).chain(file))
        .map_err(|_| PcapFileError::Form { path: path.to_owned(), hint })?;
    let mut report = FileReport::default();
    let mut section = Section::default();
    let mut capacity = BUFFER;
    loop {
        // The parser subtracts from the length without a check.
        if section.block_len(reader.data()).is_some_and(|length| length < MIN_BLOCK) {
            report.damage = Some("a block that is shorter than its own header".to_owned());
            break;
        }
        let offset = match reader.next() {
            Ok((offset, block)) => {
                section.block(&block, &mut report, &mut on);
                offset
            }
            Err(PcapError::Eof) => return Ok(report),
            Err(PcapError::Incomplete(_)) => {
                if let Err(error) = reader.refill() {
                    report.damage = Some(damage(&error));
                    break;
                }
                continue;
            }
            Err(PcapError::BufferTooSmall) if capacity < MAX_BLOCK => {
                capacity *= 2;
                reader.grow(capacity);
                if let Err(error) = reader.refill() {
                    report.damage = Some(damage(&error));
                    break;
                }
                continue;
            }
            Err(error) => {
                report.damage = Some(damage(&error));
                break;
            }
        };
        reader.consume(offset);
    }
    let at = reader.consumed();
    report.damage = report.damage.map(|reason| format!("{reason} at byte {at}, after {} packets", report.packets));
    Ok(report)
}

/// State from the header and the interface descriptions of the current section.
#[derive(Default)]
struct Section {
    /// Byte order, if the file is a pcapng file.
    big_endian: Option<bool>,
    interfaces: Vec<Interface>,
}

struct Interface {
    name: String,
    linktype: i32,
    clock: Clock,
}

impl Section {
    /// Length field of the pcapng block at the start of `data`, in bytes.
    fn block_len(&self, data: &[u8]) -> Option<u32> {
        let length = *data.get(4..)?.first_chunk()?;
        self.big_endian.map(|big| if big { u32::from_be_bytes(length) } else { u32::from_le_bytes(length) })
    }

    fn block(&mut self, block: &PcapBlockOwned<'_>, report: &mut FileReport, on: &mut impl FnMut(CapturedPacket<'_>)) {
        match block {
            PcapBlockOwned::LegacyHeader(header) => {
                let clock = Clock {
                    units_per_second: if header.is_nanosecond_precision() { 1_000_000_000 } else { 1_000_000 },
                    offset: 0,
                };
                // The upper bits of the link type may describe a frame check sequence.
                let linktype = header.network.0 & 0xffff;
                self.interfaces = vec![Interface { name: String::new(), linktype, clock }];
            }
            PcapBlockOwned::Legacy(packet) => {
                let fraction = |interface: &Interface| {
                    interface
                        .clock
                        .at(u128::from(packet.ts_sec) * interface.clock.units_per_second + u128::from(packet.ts_usec))
                };
                self.packet((0, None), fraction, packet.data, packet.origlen, report, on);
            }
            PcapBlockOwned::NG(Block::SectionHeader(header)) => {
                *self = Self { big_endian: Some(header.big_endian()), interfaces: Vec::new() };
            }
            PcapBlockOwned::NG(Block::InterfaceDescription(description)) => {
                if self.interfaces.len() < MAX_INTERFACES {
                    self.interfaces.push(Interface::new(description));
                }
            }
            PcapBlockOwned::NG(Block::EnhancedPacket(packet)) => {
                let units = u128::from(packet.ts_high) << 32 | u128::from(packet.ts_low);
                self.packet(
                    (packet.if_id, flagged(packet, self.big_endian.unwrap_or(false))),
                    |interface| interface.clock.at(units),
                    packet.packet_data(),
                    packet.origlen,
                    report,
                    on,
                );
            }
            // Simple packets have no time stamp.
            PcapBlockOwned::NG(Block::SimplePacket(packet)) => {
                self.packet((0, None), |_| Timestamp::default(), packet.packet_data(), packet.origlen, report, on);
            }
            PcapBlockOwned::NG(_) => {}
        }
    }

    fn packet(
        &self,
        (index, flagged): (u32, Option<Direction>),
        at: impl FnOnce(&Interface) -> Timestamp,
        data: &[u8],
        wire_len: u32,
        report: &mut FileReport,
        on: &mut impl FnMut(CapturedPacket<'_>),
    ) {
        report.packets += 1;
        let interface = usize::try_from(index).ok().and_then(|index| self.interfaces.get(index));
        let Some(interface) = interface else {
            report.skipped += 1;
            return;
        };
        let direction = || flagged.or_else(|| cooked_direction(interface.linktype, data));
        match strip(interface.linktype, data) {
            Stripped::To(link, bytes) => {
                let stripped = u32::try_from(data.len() - bytes.len()).unwrap_or(u32::MAX);
                on(CapturedPacket {
                    at: at(interface),
                    interface: &interface.name,
                    interface_index: index,
                    direction: direction(),
                    link,
                    bytes,
                    wire_len: wire_len.saturating_sub(stripped),
                });
            }
            Stripped::Other(kind, rest) => {
                let stripped = u32::try_from(data.len() - rest.len()).unwrap_or(u32::MAX);
                on(CapturedPacket {
                    at: at(interface),
                    interface: &interface.name,
                    interface_index: index,
                    direction: direction(),
                    link: Link::Ethernet,
                    bytes: &in_ethernet(kind, rest),
                    wire_len: wire_len.saturating_sub(stripped).saturating_add(ETHERNET_LEN),
                });
            }
            Stripped::NotIp => {}
            Stripped::Unsupported => {
                report.skipped += 1;
                if !report.unsupported.contains(&interface.linktype) {
                    report.unsupported.push(interface.linktype);
                }
            }
        }
    }
}

/// A packet of a cooked capture with an Ethernet header, where the gate finds its type.
#[cold]
fn in_ethernet(ether_type: u16, rest: &[u8]) -> Vec<u8> {
    [&[0; 12], ether_type.to_be_bytes().as_slice(), rest].concat()
}

impl Interface {
    fn new(description: &InterfaceDescriptionBlock<'_>) -> Self {
        let big_endian = description.block_type != pcap_parser::IDB_MAGIC;
        // The parser reads the offset as little endian, regardless of the section's byte order.
        let offset = if big_endian { description.if_tsoffset.swap_bytes() } else { description.if_tsoffset };
        Self {
            name: description.if_name().and_then(Result::ok).unwrap_or_default().to_owned(),
            linktype: description.linktype.0,
            clock: Clock { units_per_second: units(description.if_tsresol), offset },
        }
    }
}

/// Time resolution and offset of an interface.
struct Clock {
    units_per_second: u128,
    /// Seconds to add to each time stamp.
    offset: i64,
}

impl Clock {
    fn at(&self, units: u128) -> Timestamp {
        let nanos = units.saturating_mul(1_000_000_000) / self.units_per_second;
        let nanos = i64::try_from(nanos).unwrap_or(i64::MAX);
        Timestamp(nanos.saturating_add(self.offset.saturating_mul(1_000_000_000)))
    }
}

/// Units per second of `if_tsresol`: a negative power of 10, or of 2 with the high bit set (pcapng §4.2).
fn units(resolution: u8) -> u128 {
    let exponent = u32::from(resolution & 0x7f);
    let base = if resolution & 0x80 == 0 { 10_u128 } else { 2 };
    base.checked_pow(exponent).unwrap_or(1_000_000)
}

enum Stripped<'a> {
    To(Link, &'a [u8]),
    /// An EtherType that encapsulates, and the bytes after it.
    Other(u16, &'a [u8]),
    NotIp,
    Unsupported,
}

/// Removes the pseudo-headers that capture tools prepend (link types as at tcpdump.org/linktypes).
fn strip(linktype: i32, data: &[u8]) -> Stripped<'_> {
    let ip = |header: usize| match data.get(header..) {
        Some(rest) if !rest.is_empty() => Stripped::To(Link::Ip, rest),
        _ => Stripped::NotIp,
    };
    match Linktype(linktype) {
        Linktype::ETHERNET => Stripped::To(Link::Ethernet, data),
        // Four bytes of address family, which is redundant with the version nibble after them.
        Linktype::NULL | Linktype::LOOP => ip(4),
        // DLT_RAW differs between systems: 12 and 14 besides 101.
        Linktype::RAW | Linktype::IPV4 | Linktype::IPV6 | Linktype(12 | 14) => ip(0),
        Linktype::LINUX_SLL => cooked(data, 14, 16),
        Linktype::LINUX_SLL2 => cooked(data, 0, 20),
        _ => Stripped::Unsupported,
    }
}

/// Linux cooked capture: the EtherType is at offset `protocol`, the packet at offset `header`, with VLAN tags
/// possible in between.
fn cooked(data: &[u8], protocol: usize, header: usize) -> Stripped<'_> {
    let ether_type = |at: usize| data.get(at..at + 2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
    let (mut protocol, mut header) = (protocol, header);
    for _ in 0..=smtpwatch_common::headers::MAX_VLAN_TAGS {
        match ether_type(protocol) {
            Some(0x0800 | 0x86dd) => {
                return data.get(header..).map_or(Stripped::NotIp, |rest| Stripped::To(Link::Ip, rest));
            }
            Some(0x8100 | 0x88a8 | 0x9100) => (protocol, header) = (header + 2, header + 4),
            Some(kind) if is_encapsulating_type(kind) => {
                return data.get(header..).map_or(Stripped::NotIp, |rest| Stripped::Other(kind, rest));
            }
            _ => return Stripped::NotIp,
        }
    }
    Stripped::NotIp
}

/// Direction from the flags of an enhanced packet block (option 2: draft-ietf-opsawg-pcapng §4.3.1): 1 inbound, 2
/// outbound.
fn flagged(packet: &EnhancedPacketBlock<'_>, big_endian: bool) -> Option<Direction> {
    let flags = packet.options.iter().find(|option| option.code.0 == 2)?;
    let bytes = *flags.value().first_chunk::<4>()?;
    let bits = if big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) };
    match bits & 3 {
        1 => Some(Direction::Ingress),
        2 => Some(Direction::Egress),
        _ => None,
    }
}

/// Direction from the packet type of a Linux cooked capture: 4 for a packet sent by this host, 0 for one sent to it.
/// Broadcasts and packets between other hosts have no direction.
fn cooked_direction(linktype: i32, data: &[u8]) -> Option<Direction> {
    let kind = match Linktype(linktype) {
        Linktype::LINUX_SLL => data.get(..2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))?,
        Linktype::LINUX_SLL2 => u16::from(*data.get(10)?),
        _ => return None,
    };
    match kind {
        0 => Some(Direction::Ingress),
        4 => Some(Direction::Egress),
        _ => None,
    }
}

/// Names the format of a file whose header is not a capture header.
fn hint(start: &[u8]) -> &'static str {
    match start {
        [] => "it is empty",
        [0x1f, 0x8b, ..] => "it is compressed; use gunzip first",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "it is compressed; use unzstd first",
        [0xa1, 0xb2, 0xc3 | 0xcd, ..]
        | [0xa1, 0xb2, 0x3c, ..]
        | [0xd4 | 0x34 | 0x4d, 0xc3 | 0xcd | 0x3c, 0xb2, 0xa1, ..]
        | [0x0a, 0x0d, 0x0d, 0x0a, ..] => "it ends, or is damaged, within its header",
        _ => "its first bytes match neither format",
    }
}

fn damage<I>(error: &PcapError<I>) -> String {
    match error {
        PcapError::Eof | PcapError::UnexpectedEof | PcapError::Incomplete(_) => "truncated".to_owned(),
        PcapError::BufferTooSmall => format!("damaged (a block of more than {MAX_BLOCK} bytes)"),
        PcapError::ReadError => "not readable any further".to_owned(),
        PcapError::HeaderNotRecognized | PcapError::NomError(..) | PcapError::OwnedNomError(..) => "damaged".to_owned(),
    }
}
