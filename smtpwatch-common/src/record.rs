//! The wire record: crosses the ring from kernel to daemon; replay produces the same records.
//!
//! A record is a fixed [`Header`] followed by the captured payload bytes. Numbers are in host order (both ends of the ring
//! are one host), addresses as on the wire.
//!
//! ```text
//! offset size field                     offset size field
//!      0    8 timestamp                     84    2 captured
//!      8    8 flow                          86    2 window
//!     16    8 cgroup                        88    2 ip_id
//!     24    4 uid                           90    2 flags
//!     28    4 interface                     92    1 abi
//!     32   16 client address                93    1 direction
//!     48   16 server address                94    1 from
//!     64    2 client port                   95    1 ip_version
//!     66    2 server port                   96    1 tcp_flags
//!     68    4 seq                           97    1 ttl
//!     72    4 ack                           98    1 options_len
//!     76    4 length                        99    1 data_offset
//!     80    4 offset                       100    2 checksum
//!                                          102    2 urgent
//!                                          104   40 options
//! ```

use core::{fmt, mem::offset_of};

use crate::{FlowKey, FlowState, Segment, Side, encapsulation::Walk, flow_key::Address, tail::TailBuffer};

/// Version of the record's layout. The daemon embeds its kernel object, so a difference is a broken build.
pub const WIRE_ABI: u8 = 3;

/// Payload bytes that one record can carry; longer segments cross as several records.
pub const CHUNK: usize = 2048;

/// Longest TCP option area (RFC 9293 §3.1: data offset 15).
pub const OPTIONS_MAX: usize = 40;

/// [`Header::uid`] if the packet has no socket.
pub const UID_UNKNOWN: u32 = u32::MAX;

/// Which hook saw the packet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Direction {
    /// Into this host.
    Ingress = 0,
    /// Out of this host.
    Egress = 1,
}

impl Direction {
    /// Both directions, in label order.
    pub const ALL: [Self; 2] = [Self::Ingress, Self::Egress];

    /// The metric label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// [`Header::direction`] of a capture file that does not say which way a packet went.
pub const DIRECTION_UNKNOWN: u8 = 2;

/// Properties of a record; bits of [`Header::flags`].
pub mod flag {
    /// The flow was joined after its SYN.
    pub const MIDSTREAM: u16 = 1;
    /// The flow's budget is spent: nothing but SYN, FIN and RST follows.
    pub const BUDGET: u16 = 2;
    /// The capture file cut this packet: less was captured than the gate wanted.
    pub const CUT: u16 = 4;
    /// The bytes of this record follow the end of the client's message: they are commands.
    pub const BODY_ENDED: u16 = 8;
    /// The packet arrived with IPv4 options or IPv6 extension headers, or in a frame to another Ethernet address: this host's own stack
    /// discards many of those (EV-6, EV-9), and no mail server sends them. Another copy of its bytes is the better one.
    pub const UNUSUAL: u16 = 16;
}

/// The fixed part of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Header {
    /// Nanoseconds: `CLOCK_MONOTONIC` from the kernel, of the Unix epoch from a capture file.
    pub timestamp: u64,
    /// Identifies this life of the flow: end points are reused, this number is not.
    pub flow: u64,
    /// Cgroup of the sending socket (cgroup v2 id) at egress; zero where unknown.
    pub cgroup: u64,
    /// User of the sending socket at egress; [`UID_UNKNOWN`] elsewhere.
    pub uid: u32,
    /// Interface index.
    pub interface: u32,
    /// The connection.
    pub key: FlowKey,
    /// TCP sequence number of the segment.
    pub seq: u32,
    /// TCP acknowledgment number.
    pub ack: u32,
    /// Payload bytes of the segment on the wire.
    pub length: u32,
    /// Offset of the captured bytes within the segment's payload.
    pub offset: u32,
    /// Captured bytes that follow the header, at most [`CHUNK`].
    pub captured: u16,
    /// TCP window field, not scaled.
    pub window: u16,
    /// IPv4 identification; zero for IPv6.
    pub ip_id: u16,
    /// Bits of [`flag`].
    pub flags: u16,
    /// [`WIRE_ABI`].
    pub abi: u8,
    /// A [`Direction`], or [`DIRECTION_UNKNOWN`].
    pub direction: u8,
    /// The sending [`Side`].
    pub from: u8,
    /// 4 or 6.
    pub ip_version: u8,
    /// The flag byte of the TCP header.
    pub tcp_flags: u8,
    /// IPv4 time to live or IPv6 hop limit.
    pub ttl: u8,
    /// Bytes of `options` that are meant.
    pub options_len: u8,
    /// The byte of the TCP header that holds the data offset and the bits beside it.
    pub data_offset: u8,
    /// TCP checksum; see [`Checksum`](crate::Checksum).
    pub checksum: u16,
    /// TCP urgent pointer.
    pub urgent: u16,
    /// TCP options as on the wire; bytes past `options_len` are unspecified.
    pub options: [u8; OPTIONS_MAX],
}

const _: () = {
    assert!(size_of::<Header>() == Header::SIZE);
    assert!(align_of::<Header>() == 8);
    assert!(offset_of!(Header, key) == 32);
    assert!(offset_of!(Header, seq) == 68);
    assert!(offset_of!(Header, captured) == 84);
    assert!(offset_of!(Header, abi) == 92);
    assert!(offset_of!(Header, options) == 104);
    assert!(offset_of!(RecordBuffer, payload) == Header::SIZE);
};

impl Header {
    /// Bytes of the header on the ring.
    pub const SIZE: usize = 144;

    /// A header of zeroes, marked with the layout's version.
    pub const EMPTY: Self = Self {
        timestamp: 0,
        flow: 0,
        cgroup: 0,
        uid: UID_UNKNOWN,
        interface: 0,
        key: FlowKey::EMPTY,
        seq: 0,
        ack: 0,
        length: 0,
        offset: 0,
        captured: 0,
        window: 0,
        ip_id: 0,
        flags: 0,
        abi: WIRE_ABI,
        direction: 0,
        from: 0,
        ip_version: 0,
        tcp_flags: 0,
        ttl: 0,
        options_len: 0,
        data_offset: 0,
        checksum: 0,
        urgent: 0,
        options: [0; OPTIONS_MAX],
    };

    /// Direction of the packet; `None` if the capture file does not have it.
    #[must_use]
    pub const fn direction(&self) -> Option<Direction> {
        match self.direction {
            0 => Some(Direction::Ingress),
            1 => Some(Direction::Egress),
            _ => None,
        }
    }

    /// The sender.
    #[must_use]
    pub const fn from(&self) -> Side {
        if self.from == Side::Client as u8 { Side::Client } else { Side::Server }
    }

    /// The TCP options.
    #[must_use]
    pub fn options(&self) -> &[u8] {
        self.options.get(..usize::from(self.options_len)).unwrap_or(&[])
    }

    /// Whether all bits of `mark` are set; see [`flag`].
    #[must_use]
    pub const fn has_flags(&self, flags: u16) -> bool {
        self.flags & flags == flags
    }
}

/// Working memory for one packet. Outside the stack, because a kernel program has 512 bytes of it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Scratch {
    /// The parsed packet.
    pub segment: Segment,
    /// The last bytes of a segment.
    pub tail: TailBuffer,
    /// The record to be sent.
    pub record: RecordBuffer,
    /// A record of the packet was sent.
    pub sent: bool,
    /// State of a flow that is created.
    pub fresh: FlowState,
    /// Key for the look-up of an order.
    pub ordered: FlowKey,
    /// Where the search for mail in an encapsulation is.
    pub walk: Walk,
}

/// A record as it is built.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct RecordBuffer {
    /// The header to be sent.
    pub header: Header,
    /// The captured bytes to be sent: the first [`Header::captured`] ones.
    pub payload: [u8; CHUNK],
}

impl Scratch {
    /// An empty scratch.
    pub const EMPTY: Self = Self {
        segment: Segment::EMPTY,
        tail: TailBuffer::EMPTY,
        record: RecordBuffer { header: Header::EMPTY, payload: [0; CHUNK] },
        sent: false,
        fresh: FlowState::EMPTY,
        ordered: FlowKey::EMPTY,
        walk: Walk::START,
    };
}

/// A record: its header and the bytes captured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record<'a> {
    /// The fixed part.
    pub header: Header,
    /// Captured payload bytes, from [`Header::offset`] on.
    pub payload: &'a [u8],
}

/// Bytes that are not a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DecodeError {
    /// Shorter than a header.
    Short {
        /// Bytes there.
        length: usize,
    },
    /// Written by another version of the kernel object.
    Abi {
        /// The version found.
        found: u8,
    },
    /// The bytes after the header are not as many as it says.
    Length {
        /// Bytes that the header announces.
        announced: usize,
        /// Bytes there.
        found: usize,
    },
    /// A field holds a value that the kernel program never writes.
    Field {
        /// Name of the field.
        name: &'static str,
        /// Its value.
        value: u8,
    },
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short { length } => write!(f, "record of {length} octets is shorter than its header"),
            Self::Abi { found } => write!(f, "record has layout version {found}, this is version {WIRE_ABI}"),
            Self::Length { announced, found } => {
                write!(f, "record announces {announced} payload octets and has {found}")
            }
            Self::Field { name, value } => write!(f, "record field {name} has the impossible value {value}"),
        }
    }
}

impl core::error::Error for DecodeError {}

impl<'a> Record<'a> {
    /// Reads a record from the ring.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] if the bytes are not a record of this layout.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let Some((head, rest)) = bytes.split_first_chunk::<{ Header::SIZE }>() else {
            return Err(DecodeError::Short { length: bytes.len() });
        };
        let header = read_header(head);
        if header.abi != WIRE_ABI {
            return Err(DecodeError::Abi { found: header.abi });
        }
        for (name, value, sound) in [
            ("direction", header.direction, header.direction <= DIRECTION_UNKNOWN),
            ("from", header.from, header.from <= Side::Server as u8),
            ("ip_version", header.ip_version, matches!(header.ip_version, 4 | 6)),
            ("options_len", header.options_len, usize::from(header.options_len) <= OPTIONS_MAX),
        ] {
            if !sound {
                return Err(DecodeError::Field { name, value });
            }
        }
        let announced = usize::from(header.captured);
        match rest.get(..announced) {
            // The ring adds no padding: more bytes than announced are as wrong as fewer.
            Some(payload) if rest.len() == announced && announced <= CHUNK => Ok(Self { header, payload }),
            _ => Err(DecodeError::Length { announced, found: rest.len() }),
        }
    }
}

fn read_header(head: &[u8; Header::SIZE]) -> Header {
    let mut fields = Fields(head);
    Header {
        timestamp: u64::from_ne_bytes(fields.take()),
        flow: u64::from_ne_bytes(fields.take()),
        cgroup: u64::from_ne_bytes(fields.take()),
        uid: u32::from_ne_bytes(fields.take()),
        interface: u32::from_ne_bytes(fields.take()),
        key: FlowKey {
            client: Address::from_octets(&fields.take()),
            server: Address::from_octets(&fields.take()),
            client_port: u16::from_ne_bytes(fields.take()),
            server_port: u16::from_ne_bytes(fields.take()),
        },
        seq: u32::from_ne_bytes(fields.take()),
        ack: u32::from_ne_bytes(fields.take()),
        length: u32::from_ne_bytes(fields.take()),
        offset: u32::from_ne_bytes(fields.take()),
        captured: u16::from_ne_bytes(fields.take()),
        window: u16::from_ne_bytes(fields.take()),
        ip_id: u16::from_ne_bytes(fields.take()),
        flags: u16::from_ne_bytes(fields.take()),
        abi: u8::from_ne_bytes(fields.take()),
        direction: u8::from_ne_bytes(fields.take()),
        from: u8::from_ne_bytes(fields.take()),
        ip_version: u8::from_ne_bytes(fields.take()),
        tcp_flags: u8::from_ne_bytes(fields.take()),
        ttl: u8::from_ne_bytes(fields.take()),
        options_len: u8::from_ne_bytes(fields.take()),
        data_offset: u8::from_ne_bytes(fields.take()),
        checksum: u16::from_ne_bytes(fields.take()),
        urgent: u16::from_ne_bytes(fields.take()),
        options: fields.take(),
    }
}

/// The header's bytes, taken field by field in the order of the layout.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let Some((field, rest)) = self.0.split_first_chunk::<N>() else {
            // The fields add up to Header::SIZE, which the assertions on the layout hold.
            return [0; N];
        };
        self.0 = rest;
        *field
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{vec, vec::Vec};

    /// Bytes as the kernel writes them: the table in the module's documentation, by hand.
    fn sample(payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; Header::SIZE];
        bytes[0..8].copy_from_slice(&7_000_000_001_u64.to_ne_bytes());
        bytes[8..16].copy_from_slice(&42_u64.to_ne_bytes());
        bytes[24..28].copy_from_slice(&33_u32.to_ne_bytes());
        bytes[28..32].copy_from_slice(&2_u32.to_ne_bytes());
        bytes[42..48].copy_from_slice(&[0xff, 0xff, 192, 0, 2, 10]);
        bytes[58..64].copy_from_slice(&[0xff, 0xff, 198, 51, 100, 25]);
        bytes[64..66].copy_from_slice(&41_234_u16.to_ne_bytes());
        bytes[66..68].copy_from_slice(&25_u16.to_ne_bytes());
        bytes[68..72].copy_from_slice(&0xffff_fff0_u32.to_ne_bytes());
        bytes[72..76].copy_from_slice(&9_u32.to_ne_bytes());
        bytes[76..80].copy_from_slice(&1460_u32.to_ne_bytes());
        bytes[80..84].copy_from_slice(&3_u32.to_ne_bytes());
        bytes[84..86].copy_from_slice(&u16::try_from(payload.len()).unwrap().to_ne_bytes());
        bytes[86..88].copy_from_slice(&512_u16.to_ne_bytes());
        bytes[88..90].copy_from_slice(&0xbeef_u16.to_ne_bytes());
        bytes[90..92].copy_from_slice(&flag::MIDSTREAM.to_ne_bytes());
        bytes[92..99].copy_from_slice(&[WIRE_ABI, 1, 1, 4, 0x18, 64, 4]);
        bytes[99] = 6 << 4;
        bytes[100..102].copy_from_slice(&0x1234_u16.to_ne_bytes());
        bytes[102..104].copy_from_slice(&7_u16.to_ne_bytes());
        bytes[104..108].copy_from_slice(&[2, 4, 5, 0x64]);
        bytes.extend_from_slice(payload);
        bytes
    }

    #[test]
    fn decodes_every_field() {
        let bytes = sample(b"220 ready\r\n");
        let record = Record::decode(&bytes).unwrap();
        let header = record.header;
        assert_eq!(record.payload, b"220 ready\r\n");
        assert_eq!((header.timestamp, header.flow, header.cgroup, header.uid), (7_000_000_001, 42, 0, 33));
        assert_eq!(header.key, FlowKey::new("192.0.2.10:41234".parse().unwrap(), "198.51.100.25:25".parse().unwrap()));
        assert_eq!((header.seq, header.ack, header.length, header.offset), (0xffff_fff0, 9, 1460, 3));
        assert_eq!((header.window, header.ip_id, header.tcp_flags, header.ttl), (512, 0xbeef, 0x18, 64));
        assert_eq!((header.direction(), header.from()), (Some(Direction::Egress), Side::Server));
        assert_eq!((header.interface, header.ip_version), (2, 4));
        assert_eq!((header.data_offset, header.checksum, header.urgent), (6 << 4, 0x1234, 7));
        assert_eq!(header.options(), [2, 4, 5, 0x64]);
        assert!(header.has_flags(flag::MIDSTREAM) && !header.has_flags(flag::BUDGET));
    }

    #[test]
    fn refuses_what_the_kernel_never_writes() {
        let good = sample(b"x");
        for length in 0..Header::SIZE {
            assert_eq!(Record::decode(&good[..length]), Err(DecodeError::Short { length }));
        }
        assert_eq!(Record::decode(&good[..Header::SIZE]), Err(DecodeError::Length { announced: 1, found: 0 }));
        let long = [good.as_slice(), b"y"].concat();
        assert_eq!(Record::decode(&long), Err(DecodeError::Length { announced: 1, found: 2 }));
        for (offset, value, name) in
            [(93, 3, "direction"), (94, 2, "from"), (95, 5, "ip_version"), (98, 41, "options_len")]
        {
            let mut bad = good.clone();
            bad[offset] = value;
            assert_eq!(Record::decode(&bad), Err(DecodeError::Field { name, value }));
        }
        let mut other = good.clone();
        other[92] = WIRE_ABI + 1;
        assert_eq!(Record::decode(&other), Err(DecodeError::Abi { found: WIRE_ABI + 1 }));
    }
}
