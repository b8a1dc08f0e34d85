//! One TCP connection: both streams, and the order in which their bytes are delivered.
//!
//! [`Connection`] is the main type. The engine's flow owns one, pushes each segment and polls for [`FlowEvent`]s.

use std::fmt;

use crate::{
    Segment, Side, TcpFlags, Timestamp,
    limits::{CONFLICT_BYTES, CONFLICTS, EARLY_SEGMENTS, SYN_CLAIMS},
    secret_buffer::SecretBuffer,
};

use super::{
    SynFingerprint,
    assembler::{Assembler, Difference, Stamp},
    standing::{Sender, Standing},
    stream::{Mode, Step, Stream},
};

/// One TCP connection, both directions, in bounded memory ([`Connection::MEMORY`]).
///
/// If it is known which side is this host's own, that side is the witness (see [`smtpwatch_common::binding`]): its
/// segments are true, and bytes of the other side are delivered only after the witness has acknowledged them. The
/// initial sequence number, bytes and FIN of the other side therefore count only once the own side has accepted them. A
/// SYN of the other side begins no connection; a SYN or SYN-ACK of the own side begins another connection, whatever the
/// other side's numbers are. If the own side is not known (a capture without directions), the segments of both sides
/// are trusted.
///
/// Give every segment to [`push`](Self::push), then drain [`poll`](Self::poll). Events come in the order in which the
/// two ends can have known of each other's bytes: a command, the reply that acknowledges it, the next command.
pub struct Connection {
    client: Stream,
    server: Stream,
    fingerprints: [Option<SynFingerprint>; 2],
    senders: [Sender; 2],
    conflicts: Vec<Conflict>,
    conflicts_dropped: u64,
    /// Start of the client's stream in a SYN that contradicts this connection. It is real once the server answers it.
    other_start: Option<u32>,
    /// This host's side, if known.
    own: Option<Side>,
    /// SYNs and SYN-ACKs of the other side that the own side has not acknowledged: the newest [`SYN_CLAIMS`].
    claims: SynClaims,
    /// Segments of the other side with payload from before that acknowledgment: a capture may interleave the two
    /// directions wrongly.
    early: Vec<EarlySegment>,
    /// The own side has acknowledged the other side's start.
    confirmed: bool,
    /// When the SYN or SYN-ACK that the own side acknowledged was seen.
    confirmed_at: Option<Timestamp>,
    /// The own side has sent a segment after its SYN, other than a reset.
    spoke: bool,
    /// Two sound copies of one range differ, and the own side had acknowledged neither: it is unknown which one it
    /// accepted.
    undecided: bool,
    closed: Option<CloseCause>,
    closing: bool,
    settled: bool,
    untold_reset: Option<Side>,
    phase: Phase,
    now: Timestamp,
}

/// An event of a connection.
#[derive(Clone, Copy)]
pub enum FlowEvent<'a> {
    /// Bytes in stream order.
    Data {
        /// The sender.
        from: Side,
        /// When the segment with the first copy was seen.
        at: Timestamp,
        /// Offset of the first byte in the stream.
        offset: u64,
        /// The bytes. May hold credentials.
        bytes: &'a [u8],
        /// The peer acknowledged the bytes. Otherwise they were delivered because the flow ended or the buffer was
        /// full.
        acked: bool,
        /// Bytes of the peer's stream that the sender had acknowledged when it sent these.
        knew: u64,
    },
    /// Bytes that were not captured.
    Gap {
        /// The sender.
        from: Side,
        /// When the gap became certain.
        at: Timestamp,
        /// Number of missing bytes; zero if the capture starts midstream and the number is unknown.
        length: u64,
        /// Why they are missing.
        cause: GapCause,
    },
    /// End of a stream: FIN, after delivery of all bytes before it. Data follows only if the FIN was a decoy.
    Finished {
        /// The side that sent the FIN.
        from: Side,
        /// When delivery reached the FIN.
        at: Timestamp,
    },
    /// A reset with the exact sequence number (RFC 5961 §3.2).
    Reset {
        /// The side that sent the reset.
        from: Side,
        /// When the reset was seen.
        at: Timestamp,
    },
}

/// Why bytes are missing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum GapCause {
    /// The capture began in the middle of the stream.
    CaptureStart,
    /// The peer acknowledged bytes that were not captured: a lost record, or a body that the gate leaves out.
    Lost,
    /// The buffer limit was exceeded: [`crate::limits::REASSEMBLY_BYTES`] or [`crate::limits::REASSEMBLY_CHUNKS`].
    Window,
}

/// How a connection ended.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum CloseCause {
    /// Both sides sent FIN and one FIN is acknowledged (the gate may leave the last acknowledgment out), or a reset
    /// acknowledges the other side's FIN.
    Finished,
    /// A reset.
    Reset,
}

/// Two different copies of one range of bytes (docs/threats.md EV-2, EV-3, FO-1).
///
/// The first copy is the one delivered. The bytes may hold credentials, so `Debug` shows only lengths.
#[derive(Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The sender of both copies.
    pub from: Side,
    /// Stream offset of the first byte of both copies.
    pub offset: u64,
    /// The copy that came first and is delivered; at most [`CONFLICT_BYTES`] bytes around the first difference.
    pub first: SecretBuffer,
    /// The copy that came later; same length as `first`.
    pub other: SecretBuffer,
    /// When the later copy was seen.
    pub at: Timestamp,
    /// The peer had acknowledged the range before the later copy came: it accepted the first copy.
    pub first_acked: bool,
    /// Time to live (hop limit) of the later copy (docs/threats.md FO-4).
    pub ttl: u8,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Idle,
    /// Gaps of the sender's own stream: they precede the bytes that it acknowledges.
    Own(Side),
    /// Bytes of the peer that the segment acknowledges.
    Acknowledged(Side),
    /// Bytes of the sender that were acknowledged before they were seen.
    Late(Side),
    /// Remaining bytes, at the end of the connection.
    Rest(Mode),
}

impl Connection {
    /// Maximum of [`memory`](Self::memory), in bytes.
    pub const MEMORY: usize = size_of::<Self>()
        + 2 * Assembler::MEMORY
        + CONFLICTS.next_power_of_two() * (size_of::<Conflict>() + 2 * CONFLICT_BYTES);

    /// Creates a connection from its first segment: SYN, SYN-ACK, or any other if the capture starts midstream. The
    /// segment is processed: drain [`poll`](Self::poll). `own` is this host's side, if known; `claims` are unconfirmed
    /// SYNs that the other side sent earlier.
    #[must_use]
    pub fn new(first: &Segment<'_>, own: Option<Side>, claims: SynClaims) -> Self {
        let stream = |side| Stream::new(own.is_some_and(|own| own != side));
        let mut connection = Self {
            client: stream(Side::Client),
            server: stream(Side::Server),
            own,
            claims,
            early: Vec::new(),
            confirmed: false,
            confirmed_at: None,
            spoke: false,
            undecided: false,
            fingerprints: [None; 2],
            senders: [Sender::default(); 2],
            conflicts: Vec::new(),
            conflicts_dropped: 0,
            other_start: None,
            closed: None,
            closing: false,
            settled: false,
            untold_reset: None,
            phase: Phase::Idle,
            now: first.at,
        };
        connection.push(first);
        connection
    }

    /// Processes a segment; drain [`poll`](Self::poll) afterwards.
    pub fn push(&mut self, segment: &Segment<'_>) {
        let from = segment.from;
        self.now = self.now.max(segment.at);
        self.stream_mut(from).seen = true;
        let (is_own, is_peer) = (self.own == Some(from), self.own == Some(from.peer()));
        if is_peer && (!self.confirmed || segment.flags.contains(TcpFlags::SYN)) {
            self.claim(segment);
            return;
        }
        if is_own {
            self.spoke |= segment.flags.0 & (TcpFlags::SYN | TcpFlags::RST).0 == 0;
            if !self.confirmed && segment.flags.contains(TcpFlags::ACK) && !segment.flags.contains(TcpFlags::RST) {
                self.confirm(segment);
            }
        }
        if segment.flags.contains(TcpFlags::ACK) && self.stream_mut(from.peer()).refutes(segment.ack) {
            self.senders[from.peer() as usize].refute();
        }
        let standing = self.look(segment);
        let (syn, reset) = (segment.flags.contains(TcpFlags::SYN), segment.flags.contains(TcpFlags::RST));
        let void = standing == Standing::Corrupt && syn || standing != Standing::Sound && reset;
        if void || reset && !self.is_reset(segment) {
            return;
        }
        if syn && !self.open(segment) {
            return;
        }
        let own = self.own.is_some();
        let peer = self.stream_mut(from.peer());
        // A host resets unknown connections, and such a reset acknowledges bytes that the host did not accept (RFC 9293
        // §3.10.7.1).
        let acknowledges = segment.flags.contains(TcpFlags::ACK) && !(own && reset);
        let knew = if acknowledges { peer.acknowledge(segment.ack) } else { peer.acked() };
        if reset {
            if self.closed != Some(CloseCause::Reset) {
                self.untold_reset = Some(from);
            }
            // A reset that answers a FIN: each end has declared its own end, and only one of the two can be forged
            // here.
            let peer = self.stream(from.peer());
            let answers =
                peer.is_fin_acked() || segment.flags.contains(TcpFlags::ACK) && peer.is_after_fin(segment.ack);
            self.closed = Some(if answers { CloseCause::Finished } else { CloseCause::Reset });
        } else {
            self.receive(segment, knew, standing);
        }
        self.phase = Phase::Own(from);
    }

    /// The next event; call until it returns `None`.
    pub fn poll(&mut self) -> Option<FlowEvent<'_>> {
        let (from, step) = loop {
            let step = match self.phase {
                Phase::Idle => {
                    self.client.pieces.sweep();
                    self.server.pieces.sweep();
                    return None;
                }
                Phase::Own(side) => self.step(side, Mode::Gaps).or_else(|| self.enter(Phase::Acknowledged(side))),
                Phase::Acknowledged(side) => {
                    self.step(side.peer(), Mode::Acked).or_else(|| self.enter(Phase::Late(side)))
                }
                Phase::Late(side) => self.step(side, Mode::Acked).or_else(|| self.enter(self.ending())),
                Phase::Rest(mode) => {
                    let side = self.rest_side();
                    let step = self
                        .step(side, self.rest_of(side, mode))
                        .or_else(|| self.step(side.peer(), self.rest_of(side.peer(), mode)));
                    if step.is_none() {
                        self.phase = Phase::Idle;
                        if let Some(from) = self.untold_reset.take() {
                            return Some(FlowEvent::Reset { from, at: self.now });
                        }
                    }
                    step
                }
            };
            if let Some(step) = step {
                break step;
            }
        };
        let now = self.now;
        match step {
            Step::Gap { length, cause } => Some(FlowEvent::Gap { from, at: now, length, cause }),
            Step::Finished => Some(FlowEvent::Finished { from, at: now }),
            Step::Data { limit, acked } => {
                let limit = self.stream(from).before_urgent(limit);
                let (offset, stamp, bytes) = self.stream_mut(from).pieces.take(limit)?;
                Some(FlowEvent::Data { from, at: stamp.at, offset, bytes, acked, knew: stamp.knew })
            }
        }
    }

    /// Ends the connection from outside: idle, evicted, end of the capture, or [`closed`](Self::closed).
    /// [`poll`](Self::poll) then returns the bytes that are still buffered, with their gaps.
    pub fn close(&mut self, at: Timestamp) {
        self.now = self.now.max(at);
        self.closing = true;
        self.phase = Phase::Rest(Mode::All);
    }

    /// No SYN was seen: the capture joined midstream (docs/threats.md FP-7).
    #[must_use]
    pub const fn midstream(&self) -> bool {
        !self.client.syn && !self.server.syn
    }

    /// One side sent payload, and no packet of the other was seen (docs/threats.md EV-26): no acknowledgment proves
    /// anything.
    #[must_use]
    pub const fn one_sided(&self) -> bool {
        self.client.payload && !self.server.seen || self.server.payload && !self.client.seen
    }

    /// `segment` begins another connection on the same four-tuple (docs/threats.md EV-23).
    ///
    /// A SYN with another initial sequence number counts at once if this connection is closed or not established. An
    /// established end answers such a SYN with a challenge ACK (RFC 5961 §4.2), so there the SYN counts once a SYN-ACK
    /// answers it: a forged SYN must not make the monitor drop a live session.
    ///
    /// If the own side is known, only its SYN or SYN-ACK begins another connection.
    #[must_use]
    pub fn is_new_connection(&self, segment: &Segment<'_>) -> bool {
        if let Some(own) = self.own {
            let start = segment.seq.wrapping_add(1);
            let known = self.stream(own).origin.is_some() && !self.starts_at(own, start);
            return segment.from == own
                && segment.flags.contains(TcpFlags::SYN)
                && (known || self.spoke || self.closed.is_some());
        }
        let known = self.starts_at(segment.from, segment.seq.wrapping_add(1)) || self.is_answer(segment);
        if known || !segment.flags.contains(TcpFlags::SYN) {
            return false;
        }
        let answered = segment.flags.contains(TcpFlags::ACK) && self.other_start == Some(segment.ack);
        let established = self.client.seen && self.server.seen;
        answered || self.closed.is_some() || !established && self.stream(segment.from).origin.is_some()
    }

    /// How the connection ended; `None` while it is open. Payload that follows reverts to `None`: the end was a decoy
    /// (docs/threats.md EV-22).
    #[must_use]
    pub const fn closed(&self) -> Option<CloseCause> {
        self.closed
    }

    /// One side has sent a FIN, acknowledged or not.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.client.claims_fin() || self.server.claims_fin()
    }

    /// When the latest segment was seen.
    #[must_use]
    pub const fn last_activity(&self) -> Timestamp {
        self.now
    }

    /// Two sound copies of one range of the other side differ, and the own side had acknowledged neither: it is unknown
    /// which one it accepted.
    #[must_use]
    pub const fn is_undecided(&self) -> bool {
        self.undecided
    }

    /// Removes and returns the SYNs that the other side sent for a connection that has not begun.
    #[must_use]
    pub fn take_claims(&mut self) -> SynClaims {
        std::mem::take(&mut self.claims)
    }

    /// When the other side's SYN or SYN-ACK was seen; `None` until the own side has acknowledged it.
    #[must_use]
    pub const fn confirmed_at(&self) -> Option<Timestamp> {
        self.confirmed_at
    }

    /// The own side has sent a SYN, a SYN-ACK, or anything but a reset. Always true if the own side is not known.
    #[must_use]
    pub const fn is_witnessed(&self) -> bool {
        match self.own {
            Some(own) => self.stream(own).seen && (self.stream(own).syn || self.spoke),
            None => true,
        }
    }

    /// Ranges with two different copies: the first [`CONFLICTS`].
    #[must_use]
    pub fn conflicts(&self) -> &[Conflict] {
        &self.conflicts
    }

    /// Number of conflicts beyond [`CONFLICTS`].
    #[must_use]
    pub const fn conflicts_dropped(&self) -> u64 {
        self.conflicts_dropped
    }

    /// Number of segments of one side that its peer's stack discards (docs/threats.md EV-8, EV-9).
    #[must_use]
    pub const fn discarded(&self, side: Side) -> u64 {
        self.senders[side as usize].discarded()
    }

    /// Fingerprint of one side's stack, from its SYN or SYN-ACK.
    #[must_use]
    pub const fn fingerprint(&self, side: Side) -> Option<&SynFingerprint> {
        self.fingerprints[side as usize].as_ref()
    }

    /// Stream offset of a sequence number; `None` if the start of the stream is unknown or later.
    #[must_use]
    pub fn offset_at(&self, side: Side, seq: u32) -> Option<u64> {
        self.stream(side).offset(seq)
    }

    /// Sequence number of a stream offset; the offset itself if the start of the stream is unknown.
    #[must_use]
    pub fn seq_at(&self, side: Side, offset: u64) -> u32 {
        self.stream(side).origin.unwrap_or(super::seq::Origin(0)).seq(offset)
    }

    /// Memory in use, in bytes, this structure included.
    #[must_use]
    pub fn memory(&self) -> usize {
        let conflict = |conflict: &Conflict| conflict.first.capacity() + conflict.other.capacity();
        size_of::<Self>()
            + self.client.pieces.memory()
            + self.server.pieces.memory()
            + self.conflicts.capacity() * size_of::<Conflict>()
            + self.conflicts.iter().map(conflict).sum::<usize>()
    }

    /// Called once the verdict is final or TLS is established, when the gate may drop what follows. Frees the delivered
    /// bytes that were retained to compare late copies, retains no more, and accepts a reset ahead of the stream, whose
    /// exact position is unknown.
    pub fn settle(&mut self) {
        self.settled = true;
        self.client.pieces.forget();
        self.server.pieces.forget();
    }

    /// Processes a segment that the own side has not confirmed. A reset may be the answer to the own side's SYN (RFC
    /// 9293 §3.10.7.3).
    fn claim(&mut self, segment: &Segment<'_>) {
        if self.look(segment) == Standing::Corrupt {
            return;
        }
        let own = self.stream(segment.from.peer());
        if segment.flags.contains(TcpFlags::SYN) {
            if !self.starts_at(segment.from, segment.seq.wrapping_add(1)) {
                self.claims.push(SynClaim::of(segment));
            }
        } else if segment.flags.contains(TcpFlags::RST) {
            if segment.flags.contains(TcpFlags::ACK) && own.syn && own.is_sent(segment.ack) {
                self.untold_reset = Some(segment.from);
                self.closed = Some(CloseCause::Reset);
            }
        } else if !self.confirmed && self.early.len() < EARLY_SEGMENTS {
            self.early.push(EarlySegment::of(segment));
        }
        self.phase = Phase::Own(segment.from);
    }

    /// The own side acknowledges the other side for the first time: the claim with this number is the true one.
    fn confirm(&mut self, segment: &Segment<'_>) {
        self.confirmed = true;
        let peer = segment.from.peer();
        let claim = self.claims.take(segment.ack);
        // If the connection was seen from its start, the first acknowledgment of the own side is the start of the other
        // side.
        let from_start = segment.flags.contains(TcpFlags::SYN) || self.stream(segment.from).syn;
        if let Some(claim) = claim {
            self.fingerprints[peer as usize] = Some(claim.fingerprint);
            self.confirmed_at = Some(claim.at);
            self.stream_mut(peer).syn = true;
        }
        if let Some(start) = claim.map(|claim| claim.start).or_else(|| from_start.then_some(segment.ack)) {
            self.stream_mut(peer).start(start);
        }
        for early in std::mem::take(&mut self.early) {
            early.with(segment, |early| self.push(early));
        }
    }

    /// Called once the verdict is final: overwrites and frees the bytes of both streams. Of conflicting copies the
    /// redacted bytes that `shown` returns are retained.
    pub fn forget_secrets(&mut self, shown: impl Fn(&Conflict) -> [Vec<u8>; 2]) {
        self.client.pieces.give_up();
        self.server.pieces.give_up();
        self.early = Vec::new();
        for conflict in &mut self.conflicts {
            let [first, other] = shown(conflict);
            (conflict.first, conflict.other) = (first.as_slice().into(), other.as_slice().into());
        }
    }

    /// Processes a SYN or SYN-ACK; false if it contradicts what is known and must be ignored.
    fn open(&mut self, segment: &Segment<'_>) -> bool {
        let from = segment.from;
        let start = segment.seq.wrapping_add(1);
        let answer = segment.flags.contains(TcpFlags::ACK);
        let peer = self.stream(from.peer());
        if answer && peer.origin.is_some() && !peer.is_sent(segment.ack) {
            return false;
        }
        if self.stream(from).origin.is_some() && !self.starts_at(from, start) && !self.is_answer(segment) {
            if !answer {
                self.other_start = Some(start);
            }
            return false;
        }
        self.fingerprints[from as usize].get_or_insert_with(|| SynFingerprint::of(segment));
        let stream = self.stream_mut(from);
        stream.syn = true;
        stream.start(start);
        let peer = self.stream_mut(from.peer());
        if answer && peer.origin.is_none() {
            peer.start(segment.ack);
        }
        true
    }

    /// Whether an RST is accepted: exact sequence number, or the answer to a SYN (RFC 9293 §3.10.7.3).
    fn is_reset(&self, segment: &Segment<'_>) -> bool {
        if self.own == Some(segment.from) {
            return true;
        }
        let (stream, peer) = (self.stream(segment.from), self.stream(segment.from.peer()));
        match stream.origin {
            Some(_) => stream.expects(segment.seq) || self.settled && stream.is_ahead(segment.seq),
            None => segment.flags.contains(TcpFlags::ACK) && peer.syn && peer.is_sent(segment.ack),
        }
    }

    /// Classifies a segment: whether the receiver accepts it.
    fn look(&mut self, segment: &Segment<'_>) -> Standing {
        if self.own == Some(segment.from) {
            return Standing::Sound;
        }
        let peer = self.stream(segment.from.peer());
        let unsent = segment.flags.contains(TcpFlags::ACK) && peer.origin.is_some() && !peer.is_sent(segment.ack);
        let [client, server] = &self.fingerprints;
        self.senders[segment.from as usize].look(segment, [client.as_ref(), server.as_ref()], unsent)
    }

    fn receive(&mut self, segment: &Segment<'_>, knew: u64, standing: Standing) {
        let stream = self.stream_mut(segment.from);
        let highest = stream.highest();
        let difference = stream.receive(segment, knew, standing);
        let resume_after_reset = stream.highest() > highest;
        if let Some(difference) = difference.filter(|difference| !difference.damaged) {
            self.undecided |= self.own == Some(segment.from.peer())
                && difference.both_sound
                && difference.offset + difference.first.len() as u64 > self.stream(segment.from).acked();
            self.keep(segment, difference);
        }
        if resume_after_reset {
            self.closed = None;
        }
        // The gate drops the acknowledgments of a settled connection.
        let has_fin = |stream: &Stream| stream.has_fin() || self.settled && stream.claims_fin();
        let both = has_fin(&self.client) && has_fin(&self.server);
        if both && (self.client.is_fin_acked() || self.server.is_fin_acked()) && self.closed.is_none() {
            self.closed = Some(CloseCause::Finished);
        }
    }

    fn keep(&mut self, segment: &Segment<'_>, difference: Difference) {
        let Difference { offset, first, other, damaged: _, both_sound: _ } = difference;
        let from = segment.from;
        if self.conflicts.iter().any(|known| (known.from, known.offset, &known.other) == (from, offset, &other)) {
            return;
        }
        if self.conflicts.len() == CONFLICTS {
            self.conflicts_dropped += 1;
            return;
        }
        let first_acked = self.stream(from).acked() >= offset + first.len() as u64;
        self.conflicts.push(Conflict { from, offset, first, other, at: segment.at, first_acked, ttl: segment.ttl });
    }

    #[inline]
    fn step(&mut self, side: Side, mode: Mode) -> Option<(Side, Step)> {
        self.stream_mut(side).next(mode).map(|step| (side, step))
    }

    fn enter(&mut self, phase: Phase) -> Option<(Side, Step)> {
        self.phase = phase;
        None
    }

    const fn ending(&self) -> Phase {
        match (self.closing, self.closed) {
            (true, _) => Phase::Rest(Mode::All),
            (false, Some(_)) => Phase::Rest(Mode::Rest),
            (false, None) => Phase::Idle,
        }
    }

    /// Which bytes of a side are delivered at the end of the connection: of the other side only those that the own side
    /// accepted.
    fn rest_of(&self, side: Side, mode: Mode) -> Mode {
        if self.own == Some(side.peer()) { Mode::Taken } else { mode }
    }

    /// The side whose bytes come first if no acknowledgment decides. A side that had acknowledged bytes of the other
    /// that are still to be delivered comes second; otherwise the earlier bytes come first.
    fn rest_side(&self) -> Side {
        let (client, server) = (self.client.pieces.first_stamp(), self.server.pieces.first_stamp());
        let waits = |stamp: Option<Stamp>, peer: &Stream| stamp.is_some_and(|stamp| stamp.knew > peer.pieces.front());
        let at = |stamp: Option<Stamp>| stamp.map_or(Timestamp(i64::MAX), |stamp| stamp.at);
        match (waits(client, &self.server), waits(server, &self.client)) {
            (true, false) => Side::Server,
            (false, true) => Side::Client,
            (true, true) | (false, false) if at(server) < at(client) => Side::Server,
            (true, true) | (false, false) => Side::Client,
        }
    }

    /// A SYN-ACK that is the first segment of its sender and acknowledges the SYN of this connection.
    fn is_answer(&self, segment: &Segment<'_>) -> bool {
        let (stream, peer) = (self.stream(segment.from), self.stream(segment.from.peer()));
        let first = !stream.syn && stream.highest() == 0;
        first && segment.flags.contains(TcpFlags::SYN | TcpFlags::ACK) && peer.syn && peer.is_sent(segment.ack)
    }

    fn starts_at(&self, side: Side, start: u32) -> bool {
        self.stream(side).origin.is_some_and(|origin| origin.0 == start)
    }

    const fn stream(&self, side: Side) -> &Stream {
        match side {
            Side::Client => &self.client,
            Side::Server => &self.server,
        }
    }

    const fn stream_mut(&mut self, side: Side) -> &mut Stream {
        match side {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        }
    }
}

/// A segment that is stored until the own side has acknowledged the start of its stream.
struct EarlySegment {
    at: Timestamp,
    seq: u32,
    ack: u32,
    flags: TcpFlags,
    urgent: u16,
    window: u16,
    ttl: u8,
    ip_id: u16,
    checksum_right: Option<bool>,
    unusual: bool,
    length: u32,
    offset: u32,
    options: Vec<u8>,
    payload: SecretBuffer,
}

impl EarlySegment {
    fn of(segment: &Segment<'_>) -> Self {
        Self {
            at: segment.at,
            seq: segment.seq,
            ack: segment.ack,
            flags: segment.flags,
            urgent: segment.urgent,
            window: segment.window,
            ttl: segment.ttl,
            ip_id: segment.ip_id,
            checksum_right: segment.checksum_right,
            unusual: segment.unusual,
            length: segment.length,
            offset: segment.offset,
            options: segment.options.to_vec(),
            payload: segment.payload.into(),
        }
    }

    /// Replays the segment as it came; `other` is a segment of the other side.
    fn with(&self, other: &Segment<'_>, run: impl FnOnce(&Segment<'_>)) {
        run(&Segment {
            at: self.at,
            from: other.from.peer(),
            seq: self.seq,
            ack: self.ack,
            flags: self.flags,
            urgent: self.urgent,
            window: self.window,
            ttl: self.ttl,
            ip_id: self.ip_id,
            checksum_right: self.checksum_right,
            unusual: self.unusual,
            length: self.length,
            offset: self.offset,
            options: &self.options,
            payload: &self.payload,
            body_ended: false,
            budget_spent: false,
            sender: None,
            ..other.clone()
        });
    }
}

/// An unconfirmed SYN or SYN-ACK.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SynClaim {
    /// Sequence number of the first byte of the stream.
    pub start: u32,
    /// When the segment was seen.
    pub at: Timestamp,
    /// Fingerprint of the sender's stack.
    pub fingerprint: SynFingerprint,
}

/// Maximum payload of a SYN, in bytes (RFC 7413): at most one packet.
const SYN_DATA: u32 = u16::MAX as u32;

impl SynClaim {
    fn of(segment: &Segment<'_>) -> Self {
        Self { start: segment.seq.wrapping_add(1), at: segment.at, fingerprint: SynFingerprint::of(segment) }
    }
}

/// The newest [`SYN_CLAIMS`] claims of one side, with distinct starts.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SynClaims(Vec<SynClaim>);

impl SynClaims {
    fn push(&mut self, claim: SynClaim) {
        if self.0.iter().any(|known| known.start == claim.start) {
            return;
        }
        if self.0.len() == SYN_CLAIMS {
            self.0.remove(0);
        }
        if self.0.capacity() == 0 {
            self.0.reserve_exact(1);
        }
        self.0.push(claim);
    }

    /// Removes all claims and returns the one that an acknowledgment confirms: its start exactly, or else data in the
    /// SYN.
    fn take(&mut self, ack: u32) -> Option<SynClaim> {
        let claims = std::mem::take(&mut self.0);
        let exact = claims.iter().find(|claim| claim.start == ack);
        exact.or_else(|| claims.iter().find(|claim| ack.wrapping_sub(claim.start) <= SYN_DATA)).copied()
    }
}

impl fmt::Debug for FlowEvent<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Data { from, at: _, offset, bytes, acked, knew } => {
                write!(f, "Data({from:?} at {offset}: {} octets, acked {acked}, knew {knew})", bytes.len())
            }
            Self::Gap { from, at: _, length, cause } => write!(f, "Gap({from:?}: {length} octets, {cause:?})"),
            Self::Finished { from, at: _ } => write!(f, "Finished({from:?})"),
            Self::Reset { from, at: _ } => write!(f, "Reset({from:?})"),
        }
    }
}

impl fmt::Debug for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Conflict({:?} at {}: {} octets, ttl {})", self.from, self.offset, self.first.len(), self.ttl)
    }
}
