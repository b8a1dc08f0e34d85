//! Builds packets byte by byte, in every link-layer and IP format that header parsing supports.

/// One TCP segment and the headers around it.
#[derive(Clone, Debug)]
pub struct Packet {
    /// EtherTypes of the VLAN tags, outermost first.
    pub tags: Vec<u16>,
    /// IPv6 instead of IPv4.
    pub v6: bool,
    /// IPv4 options, a multiple of 4 bytes; for IPv6, extension headers as (type, bytes), each a multiple of 8.
    pub ip_options: Vec<u8>,
    /// IPv6 extension headers: the type, and the bytes, the first of them overwritten with the next type.
    pub extensions: Vec<(u8, Vec<u8>)>,
    /// Host part of the source address.
    pub source: u8,
    /// Host part of the target address.
    pub target: u8,
    /// Source port.
    pub source_port: u16,
    /// Target port.
    pub target_port: u16,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgment number.
    pub ack: u32,
    /// TCP flags.
    pub flags: u8,
    /// TCP options, a multiple of 4 bytes.
    pub options: Vec<u8>,
    /// Payload.
    pub payload: Vec<u8>,
    /// Bytes of padding after the IP packet.
    pub padding: usize,
    /// The length field of the IP header is 0 (BIG TCP).
    pub no_length: bool,
    /// The checksum of the IPv4 header is wrong.
    pub wrong_sum: bool,
}

impl Default for Packet {
    fn default() -> Self {
        Self {
            tags: Vec::new(),
            v6: false,
            ip_options: Vec::new(),
            extensions: Vec::new(),
            source: 10,
            target: 25,
            source_port: 41_234,
            target_port: 25,
            seq: 1,
            ack: 1,
            flags: 0x10,
            options: Vec::new(),
            payload: Vec::new(),
            padding: 0,
            no_length: false,
            wrong_sum: false,
        }
    }
}

/// Destination Ethernet address of the frames.
pub const TARGET: [u8; 6] = [2, 0, 0, 0, 0, 1];

impl Packet {
    /// The same segment with source and target exchanged; the sequence numbers stay.
    #[must_use]
    pub fn reversed(self) -> Self {
        Self {
            source: self.target,
            target: self.source,
            source_port: self.target_port,
            target_port: self.source_port,
            ..self
        }
    }

    /// The frame, from the Ethernet header on.
    #[must_use]
    pub fn ethernet(&self) -> Vec<u8> {
        let mut frame = [TARGET, [2, 0, 0, 0, 0, 2]].concat();
        for tag in &self.tags {
            frame.extend_from_slice(&tag.to_be_bytes());
            frame.extend_from_slice(&[0, 7]);
        }
        frame.extend_from_slice(if self.v6 { &[0x86, 0xdd] } else { &[0x08, 0x00] });
        frame.extend(self.ip());
        frame
    }

    /// The packet, from the IP header on.
    #[must_use]
    pub fn ip(&self) -> Vec<u8> {
        let tcp = self.tcp();
        let mut packet = if self.v6 { self.ipv6(tcp.len()) } else { self.ipv4(tcp.len()) };
        packet.extend(tcp);
        packet.resize(packet.len() + self.padding, 0xaa);
        packet
    }

    fn ipv4(&self, rest: usize) -> Vec<u8> {
        let header = 20 + self.ip_options.len();
        let total = if self.no_length { 0 } else { header + rest };
        let mut packet = vec![0x40 | low(header / 4), 0];
        packet.extend_from_slice(&short(total));
        packet.extend_from_slice(&[0xbe, 0xef, 0x40, 0, 64, 6, 0, 0]);
        packet.extend_from_slice(&[192, 0, 2, self.source]);
        packet.extend_from_slice(&[192, 0, 2, self.target]);
        packet.extend_from_slice(&self.ip_options);
        // Header checksum: RFC 791 §3.1, RFC 1071.
        let sum: u32 = packet.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
        let folded = (sum & 0xffff) + (sum >> 16);
        let sum = !((folded & 0xffff) + (folded >> 16));
        packet[10..12].copy_from_slice(&short(sum as usize));
        if self.wrong_sum {
            packet[11] ^= 1;
        }
        packet
    }

    fn ipv6(&self, rest: usize) -> Vec<u8> {
        let extensions: usize = self.extensions.iter().map(|(_, bytes)| bytes.len()).sum();
        let length = if self.no_length { 0 } else { extensions + rest };
        let types: Vec<u8> = self.extensions.iter().map(|(kind, _)| *kind).chain([6]).collect();
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend_from_slice(&short(length));
        packet.extend_from_slice(&[types[0], 64]);
        for host in [self.source, self.target] {
            packet.extend_from_slice(&[0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]);
        }
        for ((_, bytes), next) in self.extensions.iter().zip(&types[1..]) {
            packet.push(*next);
            packet.extend_from_slice(bytes.get(1..).unwrap_or_default());
        }
        packet
    }

    fn tcp(&self) -> Vec<u8> {
        let mut tcp = Vec::new();
        tcp.extend_from_slice(&self.source_port.to_be_bytes());
        tcp.extend_from_slice(&self.target_port.to_be_bytes());
        tcp.extend_from_slice(&self.seq.to_be_bytes());
        tcp.extend_from_slice(&self.ack.to_be_bytes());
        tcp.extend_from_slice(&[low(5 + self.options.len() / 4) << 4, self.flags, 2, 0, 0, 0, 0, 0]);
        tcp.extend_from_slice(&self.options);
        tcp.extend_from_slice(&self.payload);
        tcp
    }
}

/// The low byte.
fn low(number: usize) -> u8 {
    number.to_le_bytes()[0]
}

/// The low two bytes, in network order.
fn short(number: usize) -> [u8; 2] {
    let [a, b, ..] = number.to_le_bytes();
    [b, a]
}

/// xorshift64*: reproducible, and good enough for choosing packets.
#[derive(Clone, Debug)]
pub struct Dice(pub u64);

impl Dice {
    /// A number below `bound`, which must not be zero.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        usize::try_from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).unwrap_or(0) % bound
    }

    /// True with probability 1 / `of`.
    pub fn one_in(&mut self, of: usize) -> bool {
        self.below(of) == 0
    }

    /// One of `choices`, which must not be empty.
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len())]
    }
}
