//! Fingerprint of a TCP stack, read from its SYN or SYN-ACK (docs/threats.md FO-4, FO-6). [`SynFingerprint`] is the
//! main type; [`Connection`](super::Connection) stores one for each side.

use crate::Segment;

/// Option kinds stored for one SYN. Real stacks send five to eight.
const KINDS: usize = 20;

/// The TCP stack of one end, as shown by its SYN or SYN-ACK.
///
/// Two fingerprints of one server differ if a device on the path answers in its place, or if the path changed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct SynFingerprint {
    /// IPv4 time to live or IPv6 hop limit on arrival.
    pub ttl: u8,
    /// Window in bytes, not scaled (RFC 7323 §2.2: the window of a SYN is never scaled).
    pub window: u16,
    /// Maximum segment size (RFC 9293 §3.7.1).
    pub mss: Option<u16>,
    /// Window scale shift (RFC 7323 §2).
    pub window_scale: Option<u8>,
    /// SACK permitted (RFC 2018 §2).
    pub sack_permitted: bool,
    /// Timestamps (RFC 7323 §3).
    pub timestamps: bool,
    kinds: [u8; KINDS],
    kinds_len: u8,
}

impl SynFingerprint {
    /// Reads the header fields and options of a SYN or SYN-ACK. Options after a malformed one are ignored.
    pub(super) fn of(segment: &Segment<'_>) -> Self {
        let mut fingerprint = Self { ttl: segment.ttl, window: segment.window, ..Self::default() };
        let mut options = segment.options;
        while let Some((kind, value, rest)) = next_option(options) {
            match (kind, value) {
                (2, &[high, low]) => fingerprint.mss = Some(u16::from_be_bytes([high, low])),
                (3, &[shift]) => fingerprint.window_scale = Some(shift),
                (4, &[]) => fingerprint.sack_permitted = true,
                (8, &[_, _, _, _, _, _, _, _]) => fingerprint.timestamps = true,
                _ => {}
            }
            if let Some(slot) = fingerprint.kinds.get_mut(usize::from(fingerprint.kinds_len)) {
                *slot = kind;
                fingerprint.kinds_len += 1;
            }
            options = rest;
        }
        fingerprint
    }

    /// Option kinds (IANA numbers) in wire order, including NOP and end-of-list; at most twenty.
    #[must_use]
    pub fn option_order(&self) -> &[u8] {
        &self.kinds[..usize::from(self.kinds_len)]
    }

    /// Whether an option of this kind is present.
    pub(super) fn has(&self, kind: u8) -> bool {
        self.option_order().contains(&kind)
    }

    /// Whether the option of multipath TCP is present (RFC 8684, kind 30): other subflows may carry parts of the stream
    /// (docs/threats.md EV-28).
    #[must_use]
    pub fn multipath(&self) -> bool {
        self.has(30)
    }
}

/// Option kinds of a segment, in order, up to a malformed option.
pub(super) fn kinds(mut options: &[u8]) -> impl Iterator<Item = u8> {
    std::iter::from_fn(move || {
        let (kind, _, rest) = next_option(options)?;
        options = rest;
        Some(kind)
    })
}

/// The sender's clock (`TSval`) from the timestamps option (RFC 7323 §3.2).
pub(super) fn timestamp(mut options: &[u8]) -> Option<u32> {
    while let Some((kind, value, rest)) = next_option(options) {
        if let (8, &[a, b, c, d, ..]) = (kind, value) {
            return Some(u32::from_be_bytes([a, b, c, d]));
        }
        options = rest;
    }
    None
}

/// Kind and value of the first option, and the options after it (RFC 9293 §3.2); `None` at the end or at a malformed
/// option.
fn next_option(options: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    match *options {
        [] => None,
        [0, ..] => Some((0, &[], &[])),
        [1, ref rest @ ..] => Some((1, &[], rest)),
        [kind, length, ref rest @ ..] => {
            let (value, rest) = rest.split_at_checked(usize::from(length).checked_sub(2)?)?;
            Some((kind, value, rest))
        }
        [_] => None,
    }
}
