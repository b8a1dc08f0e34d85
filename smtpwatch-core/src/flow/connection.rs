//! One TCP connection: both streams, and the order in which their bytes are handed on.

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
/// Where it is known which side is this host's own, that side is the witness (see [`smtpwatch_common::binding`]): its segments are
/// true, and of the other side only what it has acknowledged is handed on. So the other side's initial sequence number, its
/// bytes and its FIN count once our own side has taken them in; a SYN of the other side begins nothing; and our own SYN or SYN-ACK begins
/// another connection whatever the other side's numbers are. Where that is not known (a capture without directions), both sides
/// are taken for what they claim to be.
///
/// Every segment goes in by [`push`](Self::push), then [`poll`](Self::poll) is drained. Events come in the order in
/// which the two ends can have known of each other's bytes: a command, the reply that acknowledges it, the next
/// command.
pub struct Connection {
    client: Stream,
    server: Stream,
    fingerprints: [Option<SynFingerprint>; 2],
    senders: [Sender; 2],
    conflicts: Vec<Conflict>,
    conflicts_dropped: u64,
    /// Start of the client's stream in a SYN that contradicts this connection: real once the server answers it.
    other_start: Option<u32>,
    /// This host's side, where it is known.
    own: Option<Side>,
    /// SYNs and SYN-ACKs of the other side that our own side has not acknowledged: the newest [`SYN_CLAIMS`].
    claims: SynClaims,
    /// Segments of the other side with payload that came before that: a capture may have two directions out of order.
    early: Vec<EarlySegment>,
    /// Our own side has acknowledged the other side's start.
    confirmed: bool,
    /// When the SYN or SYN-ACK was seen that our own side has acknowledged.
    confirmed_at: Option<Timestamp>,
    /// Our own side has sent something after its SYN, other than a reset.
    spoke: bool,
    /// Two sound copies of one range that our own side had not acknowledged: which one it took in cannot be told.
    undecided: bool,
    closed: Option<CloseCause>,
    closing: bool,
    settled: bool,
    untold_reset: Option<Side>,
    phase: Phase,
    now: Timestamp,
}

/// What a connection has to say.
#[derive(Clone, Copy)]
pub enum FlowEvent<'a> {
    /// Bytes in stream order.
    Data {
        /// Who sent them.
        from: Side,
        /// When the segment with the first copy was seen.
        at: Timestamp,
        /// Offset of the first byte in the stream.
        offset: u64,
        /// The bytes. May hold credentials.
        bytes: &'a [u8],
        /// The peer acknowledged them. Otherwise they were handed on because the flow ended or no more could be held.
        acked: bool,
        /// Bytes of the peer's stream that the sender had acknowledged when it sent these.
        knew: u64,
    },
    /// Bytes that were not captured.
    Gap {
        /// Who sent them.
        from: Side,
        /// When that became certain.
        at: Timestamp,
        /// Bytes missing; zero where a capture starts in the middle and no one can say.
        length: u64,
        /// Why.
        cause: GapCause,
    },
    /// The end of a stream: FIN, with all bytes before it handed on. Data may follow only where the FIN was a decoy.
    Finished {
        /// Who ended it.
        from: Side,
        /// When the FIN's place in the stream was reached.
        at: Timestamp,
    },
    /// A reset with the exact sequence number (RFC 5961 §3.2).
    Reset {
        /// Who sent it.
        from: Side,
        /// When.
        at: Timestamp,
    },
}

/// Why bytes are missing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum GapCause {
    /// The capture began in the middle of the stream.
    CaptureStart,
    /// The peer acknowledged what was not captured: a lost record, or a body that the gate leaves out.
    Lost,
    /// More would have had to be held than [`crate::limits::REASSEMBLY_BYTES`] or
    /// [`crate::limits::REASSEMBLY_CHUNKS`].
    Window,
}

/// How a connection ended.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum CloseCause {
    /// Both sides sent FIN, and one of them is acknowledged (the gate may leave the last acknowledgment out); or a reset
    /// acknowledges the other side's FIN.
    Finished,
    /// A reset.
    Reset,
}

/// Two different copies of one range of bytes (docs/threats.md EV-2, EV-3, FO-1).
///
/// The first copy seen is the one that is delivered. The bytes may hold credentials, so `Debug` shows lengths alone.
#[derive(Clone, PartialEq, Eq)]
pub struct Conflict {
    /// Whose stream.
    pub from: Side,
    /// Stream offset of the first byte of both copies.
    pub offset: u64,
    /// The copy that came first, and is delivered; at most [`CONFLICT_BYTES`] bytes around the first difference.
    pub first: SecretBuffer,
    /// The copy that came later, as long.
    pub other: SecretBuffer,
    /// When the later copy was seen.
    pub at: Timestamp,
    /// The peer had acknowledged the range before the later copy came: it has taken the first copy in.
    pub first_acked: bool,
    /// Time to live (hop limit) of the later copy (docs/threats.md FO-4).
    pub ttl: u8,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Idle,
    /// Gaps of the sender's own stream: they come before the bytes that it acknowledges.
    Own(Side),
    /// The peer's bytes that the segment acknowledges.
    Acknowledged(Side),
    /// Bytes of the sender that were acknowledged before they were seen.
    Late(Side),
    /// What is left, as the connection ends.
    Rest(Mode),
}

impl Connection {
    /// The most bytes that [`memory`](Self::memory) can be.
    pub const MEMORY: usize = size_of::<Self>()
        + 2 * Assembler::MEMORY
        + CONFLICTS.next_power_of_two() * (size_of::<Conflict>() + 2 * CONFLICT_BYTES);

    /// A connection, from its first segment: SYN, SYN-ACK, or any other where the capture starts in the middle. The
    /// segment is taken in: drain [`poll`](Self::poll). `own` is this host's side, where it is known; `claims` are what the other side has
    /// sent of it before.
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

    /// Takes a segment in; drain [`poll`](Self::poll) afterwards.
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
        // A host resets what is not a connection of it, and acknowledges what it has not taken in (RFC 9293 §3.10.7.1).
        let acknowledges = segment.flags.contains(TcpFlags::ACK) && !(own && reset);
        let knew = if acknowledges { peer.acknowledge(segment.ack) } else { peer.acked() };
        if reset {
            if self.closed != Some(CloseCause::Reset) {
                self.untold_reset = Some(from);
            }
            // A reset that answers a FIN: each end has said for itself that it is done, and only one of them can be forged here.
            let peer = self.stream(from.peer());
            let answers =
                peer.is_fin_acked() || segment.flags.contains(TcpFlags::ACK) && peer.is_after_fin(segment.ack);
            self.closed = Some(if answers { CloseCause::Finished } else { CloseCause::Reset });
        } else {
            self.receive(segment, knew, standing);
        }
        self.phase = Phase::Own(from);
    }

    /// The next event; call until there is none.
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

    /// Ends the connection from outside: idle, evicted, end of the capture, or [`closed`](Self::closed). What is still
    /// held comes out of [`poll`](Self::poll), with its gaps.
    pub fn close(&mut self, at: Timestamp) {
        self.now = self.now.max(at);
        self.closing = true;
        self.phase = Phase::Rest(Mode::All);
    }

    /// No SYN was seen: joined in the middle (docs/threats.md FP-7).
    #[must_use]
    pub const fn midstream(&self) -> bool {
        !self.client.syn && !self.server.syn
    }

    /// Payload from one side, and no packet at all from the other (docs/threats.md EV-26): no acknowledgment proves anything.
    #[must_use]
    pub const fn one_sided(&self) -> bool {
        self.client.payload && !self.server.seen || self.server.payload && !self.client.seen
    }

    /// `segment` begins another connection on the same four-tuple (docs/threats.md EV-23).
    ///
    /// A SYN with another initial sequence number says so at once while this connection is closed or not established.
    /// An established end answers such a SYN with a challenge (RFC 5961 §4.2), so there it counts once a SYN-ACK
    /// answers it: a forged SYN must not make the monitor forget a live session.
    ///
    /// Where our own side is known, its SYN or SYN-ACK alone says so.
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

    /// How the connection ended, if it did. Payload that follows takes it back: the end was a decoy (docs/threats.md EV-22).
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

    /// Two sound copies of one range of the other side differ, and our own side had acknowledged neither: which one it took in
    /// cannot be told.
    #[must_use]
    pub const fn is_undecided(&self) -> bool {
        self.undecided
    }

    /// What the other side has sent of a connection that is still to come.
    #[must_use]
    pub fn take_claims(&mut self) -> SynClaims {
        std::mem::take(&mut self.claims)
    }

    /// When the other side's SYN or SYN-ACK was seen, once our own side has acknowledged it.
    #[must_use]
    pub const fn confirmed_at(&self) -> Option<Timestamp> {
        self.confirmed_at
    }

    /// Our own side has sent a SYN, a SYN-ACK, or anything but a reset; or both sides are taken for what they claim to be.
    #[must_use]
    pub const fn is_witnessed(&self) -> bool {
        match self.own {
            Some(own) => self.stream(own).seen && (self.stream(own).syn || self.spoke),
            None => true,
        }
    }

    /// Ranges of which two different copies were seen, at most [`CONFLICTS`], the first ones.
    #[must_use]
    pub fn conflicts(&self) -> &[Conflict] {
        &self.conflicts
    }

    /// Conflicts that did not fit.
    #[must_use]
    pub const fn conflicts_dropped(&self) -> u64 {
        self.conflicts_dropped
    }

    /// Segments of one side that its peer's stack discards (docs/threats.md EV-8, EV-9).
    #[must_use]
    pub const fn discarded(&self, side: Side) -> u64 {
        self.senders[side as usize].discarded()
    }

    /// The stack behind one side, from its SYN or SYN-ACK.
    #[must_use]
    pub const fn fingerprint(&self, side: Side) -> Option<&SynFingerprint> {
        self.fingerprints[side as usize].as_ref()
    }

    /// Stream offset of a sequence number; `None` of a stream about which nothing is known, or before its start.
    #[must_use]
    pub fn offset_at(&self, side: Side, seq: u32) -> Option<u64> {
        self.stream(side).offset(seq)
    }

    /// Sequence number of a stream offset; of a stream about which nothing is known, the offset itself.
    #[must_use]
    pub fn seq_at(&self, side: Side, offset: u64) -> u32 {
        self.stream(side).origin.unwrap_or(super::seq::Origin(0)).seq(offset)
    }

    /// Bytes of memory in use, this structure included.
    #[must_use]
    pub fn memory(&self) -> usize {
        let conflict = |conflict: &Conflict| conflict.first.capacity() + conflict.other.capacity();
        size_of::<Self>()
            + self.client.pieces.memory()
            + self.server.pieces.memory()
            + self.conflicts.capacity() * size_of::<Conflict>()
            + self.conflicts.iter().map(conflict).sum::<usize>()
    }

    /// The verdict stands, and the gate may leave out what follows: frees the delivered bytes that were kept to
    /// compare late copies with, keeps none more, and believes a reset ahead, whose exact place cannot be known.
    pub fn settle(&mut self) {
        self.settled = true;
        self.client.pieces.forget();
        self.server.pieces.forget();
    }

    /// Takes what our own side has not confirmed yet. A reset may be the answer to our own SYN (RFC 9293 §3.10.7.3).
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

    /// Our own side acknowledges the other side for the first time: the claim that this fits is the true one.
    fn confirm(&mut self, segment: &Segment<'_>) {
        self.confirmed = true;
        let peer = segment.from.peer();
        let claim = self.claims.take(segment.ack);
        // A connection of ours from its start: what we acknowledge first is where the other side starts.
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

    /// The verdict stands: overwrites and frees the bytes of both streams. Of two copies of one range what `shown` gives is kept.
    pub fn forget_secrets(&mut self, shown: impl Fn(&Conflict) -> [Vec<u8>; 2]) {
        self.client.pieces.give_up();
        self.server.pieces.give_up();
        self.early = Vec::new();
        for conflict in &mut self.conflicts {
            let [first, other] = shown(conflict);
            (conflict.first, conflict.other) = (first.as_slice().into(), other.as_slice().into());
        }
    }

    /// Takes a SYN or SYN-ACK; false when it contradicts what is known, and is to be left alone.
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

    /// Whether an RST is to be believed: exact, or the answer to a SYN (RFC 9293 §3.10.7.3).
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

    /// What the receiver makes of a segment.
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
        // Of a settled connection the gate leaves acknowledgments out.
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

    /// How much of what a side has sent is handed on as the connection ends: of the other side what our own side took in.
    fn rest_of(&self, side: Side, mode: Mode) -> Mode {
        if self.own == Some(side.peer()) { Mode::Taken } else { mode }
    }

    /// Whose bytes come first when no acknowledgment tells: not who has taken bytes of the other that are still to
    /// come; else who spoke first.
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

    /// A SYN-ACK that is the first word of its sender, and acknowledges the SYN of this connection.
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

/// A segment that is kept until our own side has acknowledged the start of its stream.
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

    /// Hands it on as it came; `other` is a segment of the other side.
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

/// A SYN or SYN-ACK that nothing has confirmed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SynClaim {
    /// Sequence number of the first byte of the stream.
    pub start: u32,
    /// When it was seen.
    pub at: Timestamp,
    /// The stack after it.
    pub fingerprint: SynFingerprint,
}

/// Bytes that a SYN may carry (RFC 7413): no more than a packet.
const SYN_DATA: u32 = u16::MAX as u32;

impl SynClaim {
    fn of(segment: &Segment<'_>) -> Self {
        Self { start: segment.seq.wrapping_add(1), at: segment.at, fingerprint: SynFingerprint::of(segment) }
    }
}

/// The newest [`SYN_CLAIMS`] claims of one side, each start once.
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

    /// The claim that an acknowledgment fits: of the start itself, or else of data in the SYN. The others go.
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
