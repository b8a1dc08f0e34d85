//! Packets of one mail connection, and the encoding of a sequence of them.
//!
//! An input is a list of frames, each six bytes and a body. The body of a *raw* frame is the packet. Any other frame is
//! built around its body, so that a changed byte changes the dialogue and not a checksum, which would only make the
//! packet invalid:
//!
//! ```text
//! 0 kind   bits of `kind`     1 order  the daemon's order after it           2 ahead  offset of the sequence number
//! 3 flags  of the TCP header  4 length of the body, little endian, 16 bits
//! ```

use smtpwatch_common::Side;

/// Length of a frame's header, bytes.
pub const HEADER: usize = 6;

/// Bits of the first byte of a frame.
pub mod kind {
    /// The body is the packet.
    pub const RAW: u8 = 1;
    /// From the server, else from the client.
    pub const SERVER: u8 = 2;
    /// Seen at egress, else at ingress.
    pub const EGRESS: u8 = 4;
    /// Without a link-layer header.
    pub const IP: u8 = 8;
    /// IPv6, else IPv4.
    pub const V6: u8 = 16;
    /// Two VLAN tags.
    pub const TAGGED: u8 = 32;
    /// Truncated by the capture: 32,768 further bytes were on the wire.
    pub const CUT: u8 = 64;
    /// With TCP options, and an IP option or extension header.
    pub const OPTIONS: u8 = 128;
}

/// Bytes of a [`kind::CUT`] frame that were on the wire and not captured.
pub const CUT_OCTETS: usize = 32_768;

/// Destination Ethernet address of the frames.
pub const TARGET: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// One frame of an input.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// Bits of [`kind`].
    pub kind: u8,
    /// The daemon's order after the frame; zero: none.
    pub order: u8,
    /// Offset of the sequence number from the sender's next one.
    pub ahead: i8,
    /// TCP flags.
    pub flags: u8,
    /// The packet, or its TCP payload.
    pub body: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Decodes the next frame of an input; a body may be shorter than its declared length.
    pub fn take(input: &mut &'a [u8]) -> Option<Self> {
        let (&[kind, order, ahead, flags, low, high], rest) = input.split_first_chunk::<HEADER>()?;
        let length = usize::from(u16::from_le_bytes([low, high])).min(rest.len());
        let (body, rest) = rest.split_at(length);
        *input = rest;
        Some(Self { kind, order, ahead: ahead.cast_signed(), flags, body })
    }

    /// Appends the encoded frame to an input.
    pub fn put(&self, input: &mut Vec<u8>) {
        let length = u16::try_from(self.body.len()).expect("a frame is short").to_le_bytes();
        input.extend([self.kind, self.order, self.ahead.cast_unsigned(), self.flags, length[0], length[1]]);
        input.extend(self.body);
    }

    /// Whether every bit of `bits` is set.
    #[must_use]
    pub const fn is(&self, bits: u8) -> bool {
        self.kind & bits == bits
    }

    /// The sender of the frame.
    #[must_use]
    pub const fn from(&self) -> Side {
        if self.is(kind::SERVER) { Side::Server } else { Side::Client }
    }
}

/// Both streams of the connection for which frames are built.
#[derive(Clone, Debug)]
pub struct Streams {
    next: [u32; 2],
}

impl Default for Streams {
    /// Both start shortly before the wrap-around.
    fn default() -> Self {
        Self { next: [0xffff_ff00, 0xffff_fe00] }
    }
}

impl Streams {
    /// Builds the packet of a frame that is not raw, and advances the sender's stream.
    pub fn build(&mut self, frame: &Frame<'_>) -> Vec<u8> {
        let from = frame.from();
        let seq = self.next[from as usize].wrapping_add_signed(i32::from(frame.ahead));
        let ack = self.next[1 - from as usize];
        let (ports, odd) = match from {
            Side::Client => ([41_234_u16, 25], false),
            Side::Server => ([25, 41_234], true),
        };
        let options: &[u8] = if frame.is(kind::OPTIONS) { &[2, 4, 5, 0xb4, 1, 1, 1, 0] } else { &[] };
        let mut tcp = Vec::new();
        tcp.extend(ports.iter().flat_map(|port| port.to_be_bytes()));
        tcp.extend(seq.to_be_bytes());
        tcp.extend(ack.to_be_bytes());
        let words = u8::try_from((20 + options.len()) / 4).expect("a TCP header is short");
        tcp.extend([words << 4, frame.flags, 0xfa, 0xf0, 0, 0, 0, 0]);
        tcp.extend(options);
        tcp.extend(frame.body);
        let extra = if frame.is(kind::CUT) { CUT_OCTETS } else { 0 };
        let length = frame.body.len() + extra;
        let taken = u32::try_from(length).expect("a segment is short") + u32::from(frame.flags & 3 != 0);
        self.next[from as usize] = seq.wrapping_add(taken);
        let ip =
            if frame.is(kind::V6) { ipv6(frame, odd, tcp.len() + extra) } else { ipv4(frame, odd, tcp.len() + extra) };
        let mut packet = Vec::new();
        if !frame.is(kind::IP) {
            packet.extend(TARGET);
            packet.extend([2, 0, 0, 0, 0, 2]);
            if frame.is(kind::TAGGED) {
                packet.extend([0x88, 0xa8, 0, 7, 0x81, 0, 0, 9]);
            }
            packet.extend(if frame.is(kind::V6) { [0x86, 0xdd] } else { [8, 0] });
        }
        packet.extend(ip);
        packet.extend(tcp);
        packet
    }
}

fn ipv4(frame: &Frame<'_>, from_server: bool, tcp: usize) -> Vec<u8> {
    // Router alert (RFC 2113).
    let options: &[u8] = if frame.is(kind::OPTIONS) { &[0x94, 4, 0, 0] } else { &[] };
    let header = 20 + options.len();
    let words = u8::try_from(header / 4).expect("an IP header is short");
    let length = u16::try_from(header + tcp).unwrap_or(u16::MAX).to_be_bytes();
    let mut ip = vec![0x40 | words, 0, length[0], length[1], 0, 1, 0x40, 0, 64, 6, 0, 0];
    let ends = [[192, 0, 2, 10], [198, 51, 100, 25]];
    ip.extend(ends[usize::from(from_server)]);
    ip.extend(ends[usize::from(!from_server)]);
    ip.extend(options);
    // RFC 791 §3.1, RFC 1071: an arriving packet with a wrong checksum is discarded.
    let sum: u32 = ip.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let [high, low] = u16::try_from((folded & 0xffff) + (folded >> 16)).expect("folded twice").to_be_bytes();
    ip[10..12].copy_from_slice(&[!high, !low]);
    ip
}

fn ipv6(frame: &Frame<'_>, from_server: bool, tcp: usize) -> Vec<u8> {
    // Hop-by-hop options: padding of four bytes (RFC 8200 §4.3).
    let extension: &[u8] = if frame.is(kind::OPTIONS) { &[6, 0, 1, 4, 0, 0, 0, 0] } else { &[] };
    let length = u16::try_from(extension.len() + tcp).unwrap_or(u16::MAX).to_be_bytes();
    let next = if extension.is_empty() { 6 } else { 0 };
    let mut ip = vec![0x60, 0, 0, 0, length[0], length[1], next, 64];
    let end = |last: u8| [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
    ip.extend(end(if from_server { 25 } else { 10 }));
    ip.extend(end(if from_server { 10 } else { 25 }));
    ip.extend(extension);
    ip
}
