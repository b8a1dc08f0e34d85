//! Segments that arrived here and that the receiving host's own stack discards: the hooks see them, its SMTP does not
//! (docs/threats.md EV-8, EV-9). Such a copy of a range gives way to a sound one as long as neither was delivered, so that a
//! reading of ours that is wrong loses nothing.

use super::{
    fingerprint::{self, SynFingerprint},
    seq::Origin,
};
use crate::{Segment, Side, TcpFlags};

/// TCP MD5 signature (RFC 2385) and TCP-AO (RFC 5925): a host that has no key for the peer discards them.
const SIGNED: [u8; 2] = [19, 29];

/// Payload of a segment where the receiver has not said more (RFC 9293 §3.7.1).
const DEFAULT_MSS: u32 = 536;

/// What the receiver makes of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Standing {
    /// Nothing speaks against it.
    Sound,
    /// It has what the receiver discards, and no accident puts it there: two copies of one range are evidence.
    Odd,
    /// Its checksum is wrong. That may be an accident of the line, and is evidence of nothing.
    Corrupt,
}

/// What is remembered of one sender to tell.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sender {
    /// A right checksum was seen: its checksums mean something here.
    checked: bool,
    /// The receiver took in what a wrong checksum should have had it discard: someone edited the capture.
    edited: bool,
    /// The newest timestamp of a segment that was sound.
    newest: Option<u32>,
    /// Segments that the receiver certainly discards.
    discarded: u64,
}

impl Sender {
    /// Looks at a segment of this sender. `unsent`: it acknowledges what the peer was not seen to send.
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
        // These two may also come of an order in which packets were recorded, and of what the gate leaves out.
        if unsent || self.is_outdated(segment, syns) { Standing::Odd } else { Standing::Sound }
    }

    /// The receiver took in what it should have discarded.
    pub const fn refute(&mut self) {
        (self.edited, self.discarded) = (true, 0);
    }

    /// Segments so far that the receiver certainly discards.
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

    /// The checksum is left to the hardware, although this sender's are computed: it arrived by a wire, where that is a wrong one. What the kernel
    /// put together on arrival (GRO) has such a checksum too, and is longer than a segment.
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

    /// RFC 7323 §5.2 (PAWS): older than what was taken in already.
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
