//! The TCP checksum of a segment (RFC 9293 §3.1): a decoy with a wrong one reaches the hooks and is discarded by the host
//! (docs/threats.md EV-9). Looked at in userspace alone.

use crate::{Header, Record, Side, headers::PROTOCOL_TCP};

/// What the checksum says of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Checksum {
    /// The segment arrived as it was sent.
    Right,
    /// It did not, and the host discards it.
    Wrong,
    /// Hardware is to fill it in, or not all that it covers is here.
    Untold,
}

/// Bytes of a TCP header without options.
const TCP_HEADER: usize = 20;

impl Checksum {
    /// Looks at a record that holds the whole segment; it says nothing about any other.
    #[must_use]
    pub fn of(record: &Record<'_>) -> Self {
        let Record { header, payload } = record;
        if header.offset != 0 || usize::try_from(header.length) != Ok(payload.len()) {
            return Self::Untold;
        }
        let Ok(length) = u32::try_from(TCP_HEADER + header.options().len() + payload.len()) else {
            return Self::Untold;
        };
        let pseudo = pseudo_header(header, length);
        let (source, target) = match header.from() {
            Side::Client => (header.key.client_port, header.key.server_port),
            Side::Server => (header.key.server_port, header.key.client_port),
        };
        let whole = pseudo
            .word(u32::from(source) << 16 | u32::from(target))
            .word(header.seq)
            .word(header.ack)
            .octets(&[header.data_offset, header.tcp_flags])
            .word(u32::from(header.window))
            .word(u32::from(header.urgent))
            .octets(header.options())
            .octets(payload);
        match header.checksum {
            checksum if checksum == !whole.folded() => Self::Right,
            // Left to the hardware: the sum of the pseudo-header alone (Linux: CHECKSUM_PARTIAL, and what GRO merged).
            checksum if checksum == pseudo.folded() => Self::Untold,
            _ => Self::Wrong,
        }
    }
}

/// The addresses, the protocol and the TCP length. An IPv4 address may be added in its mapped form: the bytes before it
/// add 0xffff, which is zero in this arithmetic.
fn pseudo_header(header: &Header, length: u32) -> Sum {
    let addresses = Sum::default().octets(&header.key.client.octets()).octets(&header.key.server.octets());
    addresses.word(u32::from(PROTOCOL_TCP)).word(length)
}

/// Ones' complement sum of 16-bit words (RFC 1071).
#[derive(Clone, Copy, Default)]
struct Sum(u64);

impl Sum {
    /// Adds bytes that begin a word; one that is left over is the upper half of the last one.
    fn octets(self, octets: &[u8]) -> Self {
        // Four bytes at once: what the upper word carries into is folded back in the end (RFC 1071 §2 (C)).
        let (words, rest) = octets.as_chunks();
        let whole: u64 = words.iter().map(|word| u64::from(u32::from_be_bytes(*word))).sum();
        let (pairs, rest) = rest.as_chunks();
        let pairs: u64 = pairs.iter().map(|pair| u64::from(u16::from_be_bytes(*pair))).sum();
        let odd = rest.first().map_or(0, |octet| u64::from(*octet) << 8);
        Self(self.0 + whole + pairs + odd)
    }

    /// Adds two words.
    const fn word(self, words: u32) -> Self {
        Self(self.0 + words as u64)
    }

    fn folded(self) -> u16 {
        let mut sum = self.0;
        while sum > u64::from(u16::MAX) {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        #[expect(clippy::cast_possible_truncation, reason = "not more than sixteen bits are left")]
        {
            sum as u16
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FlowKey;

    fn record<'a>(from: Side, ip_version: u8, key: FlowKey, checksum: u16, payload: &'a [u8]) -> Record<'a> {
        let mut header = Header { key, seq: 0x0102_0304, ack: 0x0506_0708, window: 512, urgent: 7, ..Header::EMPTY };
        (header.ip_version, header.tcp_flags, header.data_offset) = (ip_version, 0x18, 0x60);
        (header.from, header.checksum) = (from as u8, checksum);
        header.options[..4].copy_from_slice(&[1, 1, 1, 0]);
        header.options_len = 4;
        header.length = u32::try_from(payload.len()).unwrap();
        Record { header, payload }
    }

    #[test]
    fn both_families_and_odd_lengths() {
        let v4 = FlowKey::new("192.0.2.10:41234".parse().unwrap(), "198.51.100.25:25".parse().unwrap());
        let v6 = FlowKey::new("[2001:db8::10]:41234".parse().unwrap(), "[2001:db8:1::25]:25".parse().unwrap());
        for (from, version, key, right, pseudo, payload) in [
            (Side::Client, 4, v4, 0x3f08, 0xec7d, &b"EHLO x\r\n"[..]),
            (Side::Client, 4, v4, 0xc903, 0xec7e, b"EHLO xy\r\n"),
            (Side::Server, 6, v6, 0xb006, 0x5bce, b"250 ok\r\n"),
        ] {
            let told = |checksum| Checksum::of(&record(from, version, key, checksum, payload));
            assert_eq!(told(right), Checksum::Right);
            assert_eq!(told(pseudo), Checksum::Untold, "left to the hardware");
            assert_eq!(told(right ^ 0x0100), Checksum::Wrong);
            let part = Record { payload: &payload[1..], ..record(from, version, key, right, payload) };
            assert_eq!(Checksum::of(&part), Checksum::Untold);
        }
    }

    #[test]
    fn the_sum_of_rfc_1071() {
        assert_eq!(Sum::default().octets(&[0, 1, 0xf2, 3, 0xf4, 0xf5, 0xf6, 0xf7]).folded(), 0xddf2);
    }
}
