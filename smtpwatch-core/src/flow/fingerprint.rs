//! What a SYN or SYN-ACK tells of the stack that sent it (docs/threats.md FO-4, FO-6).

use crate::Segment;

/// Option kinds kept of one SYN. Real stacks send five to eight.
const KINDS: usize = 20;

/// The stack behind one end, as its SYN or SYN-ACK shows it.
///
/// Two of them differ when a device on the path answers in the server's stead, or when the path is another one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct SynFingerprint {
    /// IPv4 time to live or IPv6 hop limit on arrival.
    pub ttl: u8,
    /// Window, not scaled (RFC 7323 §2.2: the window of a SYN never is).
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
    /// Reads the header fields and options of a SYN or SYN-ACK. Options after a malformed one are left out.
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

    /// Option kinds (IANA numbers) in their order on the wire, NOP and end-of-list included, at most twenty.
    #[must_use]
    pub fn option_order(&self) -> &[u8] {
        &self.kinds[..usize::from(self.kinds_len)]
    }

    /// Whether an option of this kind is there.
    pub(super) fn has(&self, kind: u8) -> bool {
        self.option_order().contains(&kind)
    }

    /// Multipath TCP (RFC 8684, option kind 30): other subflows may carry parts of the stream (docs/threats.md EV-28).
    #[must_use]
    pub fn multipath(&self) -> bool {
        self.has(30)
    }
}

/// The kinds of a segment's options, in order, up to a malformed one.
pub(super) fn kinds(mut options: &[u8]) -> impl Iterator<Item = u8> {
    std::iter::from_fn(move || {
        let (kind, _, rest) = next_option(options)?;
        options = rest;
        Some(kind)
    })
}

/// The sender's clock in the timestamps option (RFC 7323 §3.2).
pub(super) fn timestamp(mut options: &[u8]) -> Option<u32> {
    while let Some((kind, value, rest)) = next_option(options) {
        if let (8, &[a, b, c, d, ..]) = (kind, value) {
            return Some(u32::from_be_bytes([a, b, c, d]));
        }
        options = rest;
    }
    None
}

/// Kind, value and what follows of the first option (RFC 9293 §3.2); `None` at the end or where the list is malformed.
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
