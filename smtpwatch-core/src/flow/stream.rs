//! One direction of a connection: what was sent, what the peer acknowledged, and what may be delivered.
//!
//! [`Stream`] is the main type. [`Connection`](super::Connection) has two, and calls [`Stream::next`] for each delivery
//! step.

use crate::{Segment, TcpFlags};

use super::{
    GapCause,
    assembler::{Assembler, Difference, Stamp},
    seq::Origin,
    standing::Standing,
};

/// The largest TCP window (RFC 7323 §2.3): no honest segment is farther from what the peer acknowledged.
const WINDOW: u64 = 1 << 30;
/// FINs of one side that wait for this host's acknowledgment; the oldest is evicted.
const FIN_CLAIMS: usize = 4;
/// Urgent bytes of one side that are removed from the stream: no mail program sends any.
const URGENT_BYTES: usize = 4;

/// Which buffered bytes may be delivered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Mode {
    /// No bytes, only gaps that are certain.
    Gaps,
    /// Bytes that the peer acknowledged.
    Acked,
    /// All bytes up to the first gap.
    Rest,
    /// All bytes, with their gaps.
    All,
    /// Bytes that the peer acknowledged, with their gaps: no more segments will come.
    Taken,
}

/// Next delivery step of a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// Bytes are missing; the stream has moved past them.
    Gap { length: u64, cause: GapCause },
    /// Bytes up to `limit` may be taken.
    Data { limit: u64, acked: bool },
    /// The FIN.
    Finished,
}

#[derive(Default)]
pub(super) struct Stream {
    /// The receiver is this host: bytes that it has not acknowledged are never delivered.
    strict: bool,
    /// Any segment of this side was seen.
    pub seen: bool,
    /// A segment with payload was seen.
    pub payload: bool,
    /// The SYN was seen.
    pub syn: bool,
    /// Where the stream starts.
    pub origin: Option<Origin>,
    pub pieces: Assembler,
    /// The start was inferred from the middle of the stream, and this is not yet reported.
    untold_start: bool,
    /// End of the bytes that were seen being sent.
    highest: u64,
    /// End of the bytes that were seen only in segments with a wrong checksum.
    corrupt: u64,
    /// End of such a segment that also carried a FIN.
    corrupt_fin: Option<u64>,
    /// The sender has sent from this offset on: earlier bytes will not follow.
    gone: u64,
    /// Acknowledged by the peer, limited to bytes that were seen.
    confirmed: u64,
    /// The peer's latest acknowledgment. It is replaced, not raised, so that the next honest one corrects a forged one.
    latest: u64,
    /// The peer has acknowledged something.
    acknowledged: bool,
    /// If the receiver is this host: offsets of FINs that it has not acknowledged, the newest [`FIN_CLAIMS`].
    fin_claims: Vec<u64>,
    /// Offsets of urgent bytes, the newest [`URGENT_BYTES`]: by default a host removes them from the stream that its
    /// program reads (Linux: tcp_check_urg, SO_OOBINLINE).
    urgent: Vec<u64>,
    /// Offset of the FIN. `finished`: the FIN was reported.
    fin: Option<u64>,
    finished: bool,
}

impl Stream {
    /// Creates an empty stream. `strict`: the receiver is this host, and its acknowledgments are true.
    pub fn new(strict: bool) -> Self {
        Self { strict, ..Self::default() }
    }

    /// Sets the start of the stream, from a SYN or from the peer's acknowledgment.
    pub fn start(&mut self, seq: u32) {
        self.origin = Some(Origin(seq));
        self.untold_start = false;
    }

    /// Number of acknowledged bytes.
    pub fn acked(&self) -> u64 {
        self.confirmed.max(self.latest)
    }

    /// End of the bytes that were seen being sent.
    pub const fn highest(&self) -> u64 {
        self.highest
    }

    /// A FIN was accepted, acknowledged or not.
    pub const fn has_fin(&self) -> bool {
        self.fin.is_some()
    }

    /// A FIN was seen; it may be a decoy.
    pub const fn claims_fin(&self) -> bool {
        self.fin.is_some() || !self.fin_claims.is_empty()
    }

    /// The peer acknowledged the FIN.
    pub fn is_fin_acked(&self) -> bool {
        self.fin.is_some_and(|fin| self.acked() > fin)
    }

    /// Whether this acknowledgment number covers the FIN and no more.
    pub fn is_after_fin(&self, ack: u32) -> bool {
        self.fin.is_some_and(|fin| self.offset(ack) == Some(fin + 1))
    }

    /// An RST with this sequence number is one that the peer must obey (RFC 5961 §3.2), or one at its sender's current
    /// position.
    pub fn expects(&self, seq: u32) -> bool {
        let Some(offset) = self.offset(seq) else { return false };
        [self.pieces.contiguous_end(), self.acked(), self.highest].contains(&offset)
            || self.fin.is_some_and(|fin| offset == fin + 1)
    }

    /// Whether this sequence number is ahead of what the peer acknowledged, within the largest window.
    pub fn is_ahead(&self, seq: u32) -> bool {
        self.offset(seq).is_some_and(|offset| (self.position()..=self.position() + WINDOW).contains(&offset))
    }

    /// Whether this acknowledgment number covers only bytes that were seen being sent.
    pub fn is_sent(&self, ack: u32) -> bool {
        self.offset(ack).is_some_and(|offset| offset <= self.highest)
    }

    /// Whether this acknowledgment covers bytes that were seen only with a wrong checksum. The receiver accepted them
    /// anyway, so they are as good as any other bytes.
    pub fn refutes(&mut self, ack: u32) -> bool {
        if self.corrupt <= self.highest && self.corrupt_fin.is_none() {
            return false;
        }
        let Some(offset) = self.offset(ack).filter(|&offset| offset > self.highest) else { return false };
        let fin = self.corrupt_fin.filter(|&fin| offset == fin + 1);
        if offset > self.corrupt && fin.is_none() {
            return false;
        }
        self.highest = self.highest.max(self.corrupt);
        if let Some(fin) = fin {
            self.note_fin(fin);
        }
        true
    }

    /// Applies an acknowledgment of the peer; returns the number of bytes that it covers.
    pub fn acknowledge(&mut self, ack: u32) -> u64 {
        if self.origin.is_none() {
            self.infer(ack);
        }
        // The acknowledgment may be far ahead of what was seen: the gate leaves out message bodies.
        let Some(offset) = self.offset(ack).filter(|&offset| offset <= self.position() + WINDOW) else {
            return self.acked();
        };
        self.acknowledged = true;
        self.latest = offset;
        self.pieces.acknowledged(offset);
        if self.strict {
            self.confirm_fin(offset);
        }
        self.confirm();
        self.fin.map_or(offset, |fin| offset.min(fin))
    }

    /// Processes a segment of this side: payload, FIN, and position of the sender. Of a damaged segment only the
    /// payload is used, and only if no better copy arrives.
    pub fn receive(&mut self, segment: &Segment<'_>, knew: u64, standing: Standing) -> Option<Difference> {
        let syn = u32::from(segment.flags.contains(TcpFlags::SYN));
        let seq = segment.seq.wrapping_add(syn);
        if self.origin.is_none() {
            self.infer(seq);
        }
        let near = self.position();
        let start = self.origin?.offset(seq, near);
        if start.abs_diff(near.cast_signed()) > WINDOW {
            return None;
        }
        let end = u64::try_from(start + i64::from(segment.length)).unwrap_or(0);
        if self.strict && standing == Standing::Sound && segment.flags.contains(TcpFlags::URG) && segment.urgent > 0 {
            // The pointer is the offset of the byte after the urgent one (Linux, as BSD: net.ipv4.tcp_stdurg is off).
            self.note_urgent(u64::try_from(start + i64::from(segment.urgent) - 1).unwrap_or(0));
        }
        // A keep-alive repeats the last byte's number with any byte or none (RFC 9293 §3.8.4): it is not a second copy.
        let keep_alive = segment.length == 1 && end == self.highest && (self.acked() >= end || !self.acknowledged);
        if standing == Standing::Corrupt {
            self.corrupt = self.corrupt.max(end);
            if segment.flags.contains(TcpFlags::FIN) {
                self.corrupt_fin = Some(end);
            }
        } else {
            // Bytes that the gate cut off before this payload will not follow either.
            let left_out =
                if segment.payload.is_empty() || segment.offset > segment.length { 0 } else { segment.offset };
            self.gone = self.gone.max(u64::try_from(start + i64::from(left_out)).unwrap_or(0));
            self.highest = self.highest.max(end);
            self.confirm();
            if segment.length > 0 && !self.strict && self.fin.is_some_and(|fin| end > fin) {
                // No stack sends beyond its FIN: that FIN was a decoy.
                (self.fin, self.finished) = (None, false);
            }
            if segment.flags.contains(TcpFlags::FIN) {
                self.note_fin(end);
            }
        }
        if segment.payload.is_empty() || keep_alive {
            return None;
        }
        self.payload = true;
        let (offset, bytes) = from_origin(start, segment)?;
        self.pieces.insert(offset, bytes, Stamp { at: segment.at, knew, standing }, self.strict)
    }

    /// The next step that `mode` allows.
    #[inline]
    pub fn next(&mut self, mode: Mode) -> Option<Step> {
        if self.is_idle() { None } else { self.next_of_some(mode) }
    }

    fn next_of_some(&mut self, mode: Mode) -> Option<Step> {
        self.skip_urgent();
        let step = self.decide(mode)?;
        // Reported with the first bytes, not earlier: a SYN-ACK that a second tap delivers late still defines the
        // start.
        if std::mem::take(&mut self.untold_start) {
            return Some(Step::Gap { length: 0, cause: GapCause::CaptureStart });
        }
        match step {
            Step::Gap { length, cause: _ } => self.pieces.skip_to(self.pieces.front() + length),
            Step::Data { limit: _, acked: _ } => {}
            Step::Finished => self.finished = true,
        }
        Some(step)
    }

    /// Nothing is buffered or missing, and no FIN waits. This is the state after most segments.
    #[inline]
    fn is_idle(&self) -> bool {
        let front = self.pieces.front();
        self.fin.is_none() && self.pieces.holds_none() && self.acked().max(self.highest) <= front
    }

    fn decide(&mut self, mode: Mode) -> Option<Step> {
        let front = self.pieces.front();
        loop {
            let first = self.pieces.first();
            if first == Some(front) {
                return self.decide_data(mode, front);
            }
            // Bytes are missing at the front. That is certain once the peer has them and the sender has sent more;
            // until then the capture may only be late, or the acknowledgment may be forged.
            let certain = match mode {
                Mode::Gaps | Mode::Acked | Mode::Rest => self.acked().min(self.gone),
                Mode::Taken => self.acked(),
                Mode::All => self.acked().max(self.highest),
            };
            let end = certain.min(first.unwrap_or(u64::MAX)).min(self.fin.unwrap_or(u64::MAX));
            if end > front {
                let cause = if self.pieces.was_cut(front, end) { GapCause::Window } else { GapCause::Lost };
                return Some(Step::Gap { length: end - front, cause });
            }
            let Some(first) = first.filter(|_| mode != Mode::Gaps && self.pieces.is_over_bound()) else {
                return self.decide_end(mode, front);
            };
            if !self.acknowledged && !self.strict {
                return Some(Step::Gap { length: first - front, cause: GapCause::Window });
            }
            // The peer waits for the front, so it will come. The chunk that is farthest ahead may be a decoy.
            self.pieces.drop_last();
        }
    }

    fn decide_data(&mut self, mode: Mode, front: u64) -> Option<Step> {
        let acked = self.acked();
        while self.strict && self.pieces.is_over_bound() && self.pieces.end() > acked {
            self.pieces.drop_last();
        }
        let rest = match mode {
            Mode::Gaps => return None,
            Mode::Taken => false,
            Mode::Acked => !self.strict && self.pieces.is_over_bound(),
            Mode::Rest | Mode::All => true,
        };
        if acked > front {
            return Some(Step::Data { limit: acked, acked: true });
        }
        rest.then_some(Step::Data { limit: u64::MAX, acked: false })
    }

    fn decide_end(&self, mode: Mode, front: u64) -> Option<Step> {
        let taken = match mode {
            Mode::Gaps => false,
            Mode::Acked | Mode::Taken => self.acked() > front,
            Mode::Rest | Mode::All => true,
        };
        (self.fin == Some(front) && !self.finished && taken).then_some(Step::Finished)
    }

    fn infer(&mut self, seq: u32) {
        self.origin = Some(Origin(seq));
        self.untold_start = true;
    }

    fn note_urgent(&mut self, offset: u64) {
        if offset < self.pieces.front() || self.urgent.contains(&offset) {
            return;
        }
        if self.urgent.len() == URGENT_BYTES {
            self.urgent.remove(0);
        }
        self.urgent.push(offset);
    }

    /// Removes an acknowledged urgent byte at the front.
    fn skip_urgent(&mut self) {
        while !self.urgent.is_empty() {
            let front = self.pieces.front();
            self.urgent.retain(|&offset| offset >= front);
            if !self.urgent.contains(&front) || self.acked() <= front || self.pieces.first() != Some(front) {
                return;
            }
            self.pieces.take(front + 1);
        }
    }

    /// End of the bytes that may be delivered at once: the next urgent byte, or `limit`.
    pub fn before_urgent(&self, limit: u64) -> u64 {
        let front = self.pieces.front();
        self.urgent.iter().copied().filter(|&offset| offset > front).fold(limit, u64::min)
    }

    /// The receiver is this host and has acknowledged up to `offset`: it accepted a FIN just before that.
    fn confirm_fin(&mut self, offset: u64) {
        self.fin_claims.retain(|&claim| claim + 1 >= offset);
        let Some(before) = offset.checked_sub(1).filter(|before| self.fin_claims.contains(before)) else { return };
        // If there were a longer copy in its place, the host would have acknowledged more.
        if self.fin.is_none() && self.pieces.contiguous_end() != offset {
            self.fin = Some(before);
            self.pieces.cut(before);
        }
    }

    fn note_fin(&mut self, offset: u64) {
        if self.strict {
            if self.fin.is_none() && offset + 1 >= self.acked() && !self.fin_claims.contains(&offset) {
                if self.fin_claims.len() == FIN_CLAIMS {
                    self.fin_claims.remove(0);
                }
                self.fin_claims.push(offset);
                // A capture may contain the acknowledgment before the FIN.
                self.confirm_fin(self.acked());
            }
            return;
        }
        let contradicted = offset < self.pieces.end() || offset + 1 < self.acked();
        if !self.finished && !contradicted {
            self.fin = Some(offset);
        }
    }

    fn confirm(&mut self) {
        let top = self.fin.map_or(self.highest, |fin| self.highest.max(fin + 1));
        if self.latest <= top {
            self.confirmed = self.confirmed.max(self.latest);
        }
    }

    /// Position of the receiver. Distances are measured from here, so that a decoy far ahead does not change them.
    fn position(&self) -> u64 {
        self.pieces.front().max(self.confirmed)
    }

    pub fn offset(&self, seq: u32) -> Option<u64> {
        u64::try_from(self.origin?.offset(seq, self.position())).ok()
    }
}

/// The captured bytes that belong to the stream, with their offset: none before its origin, none beyond the segment.
fn from_origin<'a>(start: i64, segment: &Segment<'a>) -> Option<(u64, &'a [u8])> {
    let room = usize::try_from(segment.length.checked_sub(segment.offset)?).ok()?;
    let bytes = &segment.payload[..segment.payload.len().min(room)];
    let start = start + i64::from(segment.offset);
    let before = usize::try_from(start.min(0).unsigned_abs()).ok()?;
    Some((u64::try_from(start.max(0)).ok()?, bytes.get(before..)?))
}
