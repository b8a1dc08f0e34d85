//! Classifies segments that arrive here but that this host's own stack discards: the capture sees them, the SMTP server
//! does not (docs/threats.md EV-8, EV-9). [`Sender`] keeps the state of one sender and returns a [`Standing`].
//!
//! A discarded copy of a range is replaced by a sound copy as long as neither was delivered. A wrong classification
//! therefore loses nothing.

use super::{
    fingerprint::{self, SynFingerprint},
    seq::Origin,
};
use crate::{Segment, Side, TcpFlags};

/// TCP MD5 signature (RFC 2385) and TCP-AO (RFC 5925): a host without a key for the peer discards such segments.
const SIGNED: [u8; 2] = [19, 29];

/// Maximum payload of a segment if the receiver announced no MSS (RFC 9293 §3.7.1).
const DEFAULT_MSS: u32 = 536;

/// How the receiver treats a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Standing {
    /// No reason to discard it.
    Sound,
    /// The receiver discards it, and no accident explains that: two copies of one range are evidence.
    Odd,
    /// The checksum is wrong. That may be a transmission error, so it is not evidence.
    Corrupt,
}

/// State of one sender that the classification needs.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sender {
    /// A correct checksum was seen, so checksums are meaningful here.
    checked: bool,
    /// The receiver accepted a segment despite its wrong checksum: the capture was edited.
    edited: bool,
    /// Latest TCP timestamp of a sound segment.
    newest: Option<u32>,
    /// Number of segments that the receiver certainly discards.
    discarded: u64,
}

impl Sender {
    /// Classifies a segment of this sender. `unsent`: it acknowledges bytes that the peer was not seen to send.
    pub fn look(&mut self, segment: &Segment<'_>, syns: [Option<&SynFingerprint>; 2], unsent: bool) -> Standing {
        let certain = self.certain(segment, syns);
        if certain != Standing::Sound {
            self.discarded = self.discarded.saturating_add(1);
            return certain;
        }
        if segment.flags.contains(TcpFlags::RST) {
            return Standing::Sound;
        }
        if segment.unusual || self.is_unchecked(segment, syns) {
            return Standing::Odd;
        }
        // These two signs also occur if packets were recorded out of order or dropped by the gate.
        if unsent || self.is_outdated(segment, syns) { Standing::Odd } else { Standing::Sound }
    }

    /// Records that the receiver accepted a segment that it should have discarded.
    pub const fn refute(&mut self) {
        (self.edited, self.discarded) = (true, 0);
    }

    /// Number of segments so far that the receiver certainly discards.
    pub const fn discarded(&self) -> u64 {
        self.discarded
    }

    fn certain(&mut self, segment: &Segment<'_>, [client, server]: [Option<&SynFingerprint>; 2]) -> Standing {
        match segment.checksum_right {
            Some(true) => self.checked = true,
            Some(false) if self.checked && !self.edited => return Standing::Corrupt,
            Some(false) | None => {}
        }
        let (Some(client), Some(server)) = (client, server) else { return Standing::Sound };
        if segment.flags.contains(TcpFlags::SYN) {
            return Standing::Sound;
        }
        let own = match segment.from {
            Side::Client => client,
            Side::Server => server,
        };
        let signed = fingerprint::kinds(segment.options).any(|kind| SIGNED.contains(&kind) && !own.has(kind));
        // RFC 9293 §3.10.7.4: a segment without ACK is dropped. A reset needs none.
        let bare = !segment.flags.contains(TcpFlags::ACK) && !segment.flags.contains(TcpFlags::RST);
        if signed || bare { Standing::Odd } else { Standing::Sound }
    }

    /// The checksum is left to the hardware, although this sender computes its checksums: on a segment from the wire
    /// that is a wrong checksum. A packet merged by the kernel on arrival (GRO) looks the same, but is longer than a
    /// segment.
    fn is_unchecked(&self, segment: &Segment<'_>, syns: [Option<&SynFingerprint>; 2]) -> bool {
        let [client, server] = syns;
        let receiver = match segment.from {
            Side::Client => server,
            Side::Server => client,
        };
        let most = receiver.and_then(|syn| syn.mss).map_or(DEFAULT_MSS, u32::from);
        self.checked
            && !self.edited
            && segment.checksum_right.is_none()
            && segment.offset == 0
            && segment.payload.len() == usize::try_from(segment.length).unwrap_or(usize::MAX)
            && segment.length > 0
            && segment.length <= most
    }

    /// RFC 7323 §5.2 (PAWS): the timestamp is older than one already accepted.
    fn is_outdated(&mut self, segment: &Segment<'_>, syns: [Option<&SynFingerprint>; 2]) -> bool {
        let Some(time) = fingerprint::timestamp(segment.options) else { return false };
        let agreed = syns.iter().all(|syn| syn.is_some_and(|syn| syn.timestamps));
        let outdated = agreed && self.newest.is_some_and(|newest| Origin(newest).offset(time, 0) < 0);
        if !outdated {
            self.newest = Some(time);
        }
        outdated
    }
}
