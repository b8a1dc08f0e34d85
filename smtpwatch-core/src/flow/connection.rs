//! One TCP connection: both streams, and the order in which their octets are handed on.

use std::fmt;

use crate::{
    Segment, Side, TcpFlags, Timestamp,
    limits::{CONFLICT_BYTES, CONFLICTS},
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
/// Every segment goes in by [`push`](Self::push), then [`poll`](Self::poll) is drained. Events come in the order in
/// which the two ends can have known of each other's octets: a command, the reply that acknowledges it, the next
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
    /// Octets in stream order.
    Data {
        /// Who sent them.
        from: Side,
        /// When the segment with the first copy was seen.
        at: Timestamp,
        /// Offset of the first octet in the stream.
        offset: u64,
        /// The octets. May hold credentials.
        bytes: &'a [u8],
        /// The peer acknowledged them. Otherwise they were handed on because the flow ended or no more could be held.
        acked: bool,
        /// Octets of the peer's stream that the sender had acknowledged when it sent these.
        knew: u64,
    },
    /// Octets that were not captured.
    Gap {
        /// Who sent them.
        from: Side,
        /// When that became certain.
        at: Timestamp,
        /// Octets missing; zero where a capture starts in the middle and nobody can say.
        length: u64,
        /// Why.
        cause: GapCause,
    },
    /// The end of a stream: FIN, with all octets before it handed on. Data may follow only where the FIN was a decoy.
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

/// Why octets are missing.
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

/// Two different copies of one range of octets (THREATS EV-2, EV-3, FO-1).
///
/// The first copy seen is the one that is delivered. The octets may hold credentials, so `Debug` shows lengths alone.
#[derive(Clone, PartialEq, Eq)]
pub struct Conflict {
    /// Whose stream.
    pub from: Side,
    /// Stream offset of the first octet of both copies.
    pub offset: u64,
    /// The copy that came first, and is delivered; at most [`CONFLICT_BYTES`] octets around the first difference.
    pub first: SecretBuffer,
    /// The copy that came later, as long.
    pub other: SecretBuffer,
    /// When the later copy was seen.
    pub at: Timestamp,
    /// The peer had acknowledged the range before the later copy came: it has taken the first copy in.
    pub first_acked: bool,
    /// Time to live (hop limit) of the later copy (THREATS FO-4).
    pub ttl: u8,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Idle,
    /// Holes of the sender's own stream: they come before the octets that it acknowledges.
    Own(Side),
    /// The peer's octets that the segment acknowledges.
    Acknowledged(Side),
    /// Octets of the sender that were acknowledged before they were seen.
    Late(Side),
    /// What is left, as the connection ends.
    Rest(Mode),
}

impl Connection {
    /// The most octets that [`memory`](Self::memory) can be.
    pub const MEMORY: usize = size_of::<Self>()
        + 2 * Assembler::MEMORY
        + CONFLICTS.next_power_of_two() * (size_of::<Conflict>() + 2 * CONFLICT_BYTES);

    /// A connection, from its first segment: SYN, SYN-ACK, or any other where the capture starts in the middle. The
    /// segment is taken in: drain [`poll`](Self::poll).
    #[must_use]
    pub fn new(first: &Segment<'_>) -> Self {
        let mut connection = Self {
            client: Stream::default(),
            server: Stream::default(),
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
        let peer = self.stream_mut(from.peer());
        let knew = if segment.flags.contains(TcpFlags::ACK) { peer.acknowledge(segment.ack) } else { peer.acked() };
        if reset {
            if self.closed != Some(CloseCause::Reset) {
                self.untold_reset = Some(from);
            }
            // A reset that answers a FIN: each end has said for itself that it is done, and only one of them can be forged here.
            let answers = self.stream(from.peer()).is_fin_acked();
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
                    let step = self.step(side, mode).or_else(|| self.step(side.peer(), mode));
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
                let (offset, stamp, bytes) = self.stream_mut(from).pieces.take(limit)?;
                Some(FlowEvent::Data { from, at: stamp.at, offset, bytes, acked, knew: stamp.knew })
            }
        }
    }

    /// Ends the connection from outside: idle, evicted, end of the capture, or [`closed`](Self::closed). What is still
    /// held comes out of [`poll`](Self::poll), with its holes.
    pub fn close(&mut self, at: Timestamp) {
        self.now = self.now.max(at);
        self.closing = true;
        self.phase = Phase::Rest(Mode::All);
    }

    /// No SYN was seen: joined in the middle (THREATS FP-7).
    #[must_use]
    pub const fn midstream(&self) -> bool {
        !self.client.syn && !self.server.syn
    }

    /// Payload from one side, and no packet at all from the other (THREATS EV-26): no acknowledgment proves anything.
    #[must_use]
    pub const fn one_sided(&self) -> bool {
        self.client.payload && !self.server.seen || self.server.payload && !self.client.seen
    }

    /// `segment` begins another connection on the same four-tuple (THREATS EV-23).
    ///
    /// A SYN with another initial sequence number says so at once while this connection is closed or not established.
    /// An established end answers such a SYN with a challenge (RFC 5961 §4.2), so there it counts once a SYN-ACK
    /// answers it: a forged SYN must not make the monitor forget a live session.
    #[must_use]
    pub fn is_new_connection(&self, segment: &Segment<'_>) -> bool {
        let known = self.starts_at(segment.from, segment.seq.wrapping_add(1)) || self.is_answer(segment);
        if known || !segment.flags.contains(TcpFlags::SYN) {
            return false;
        }
        let answered = segment.flags.contains(TcpFlags::ACK) && self.other_start == Some(segment.ack);
        let established = self.client.seen && self.server.seen;
        answered || self.closed.is_some() || !established && self.stream(segment.from).origin.is_some()
    }

    /// How the connection ended, if it did. Payload that follows takes it back: the end was a decoy (THREATS EV-22).
    #[must_use]
    pub const fn closed(&self) -> Option<CloseCause> {
        self.closed
    }

    /// One side has sent a FIN, acknowledged or not.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.client.has_fin() || self.server.has_fin()
    }

    /// When the latest segment was seen.
    #[must_use]
    pub const fn last_activity(&self) -> Timestamp {
        self.now
    }

    /// Ranges of which two different copies were seen, at most [`CONFLICTS`], the first ones.
    #[must_use]
    pub fn conflicts(&self) -> &[Conflict] {
        &self.conflicts
    }

    /// Conflicts that found no room.
    #[must_use]
    pub const fn conflicts_dropped(&self) -> u64 {
        self.conflicts_dropped
    }

    /// Segments of one side that its peer's stack discards (THREATS EV-8, EV-9).
    #[must_use]
    pub const fn discarded(&self, side: Side) -> u64 {
        self.senders[side as usize].discarded()
    }

    /// The stack behind one side, from its SYN or SYN-ACK.
    #[must_use]
    pub const fn fingerprint(&self, side: Side) -> Option<&SynFingerprint> {
        self.fingerprints[side as usize].as_ref()
    }

    /// Stream offset of a sequence number; `None` of a stream of which nothing is known, or before its start.
    #[must_use]
    pub fn offset_at(&self, side: Side, seq: u32) -> Option<u64> {
        self.stream(side).offset(seq)
    }

    /// Sequence number of a stream offset; of a stream of which nothing is known, the offset itself.
    #[must_use]
    pub fn seq_at(&self, side: Side, offset: u64) -> u32 {
        self.stream(side).origin.unwrap_or(super::seq::Origin(0)).seq(offset)
    }

    /// Octets of memory in use, this structure included.
    #[must_use]
    pub fn memory(&self) -> usize {
        let conflict = |conflict: &Conflict| conflict.first.capacity() + conflict.other.capacity();
        size_of::<Self>()
            + self.client.pieces.memory()
            + self.server.pieces.memory()
            + self.conflicts.capacity() * size_of::<Conflict>()
            + self.conflicts.iter().map(conflict).sum::<usize>()
    }

    /// The verdict stands, and the gate may leave out what follows: frees the delivered octets that were kept to
    /// compare late copies with, keeps none more, and believes a reset ahead, whose exact place cannot be known.
    pub fn settle(&mut self) {
        self.settled = true;
        self.client.pieces.forget();
        self.server.pieces.forget();
    }

    /// The verdict stands: overwrites and frees the octets of both streams. Of two copies of one range what `shown` gives is kept.
    pub fn forget_secrets(&mut self, shown: impl Fn(&Conflict) -> [Vec<u8>; 2]) {
        self.client.pieces.give_up();
        self.server.pieces.give_up();
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
        let (stream, peer) = (self.stream(segment.from), self.stream(segment.from.peer()));
        match stream.origin {
            Some(_) => stream.expects(segment.seq) || self.settled && stream.is_ahead(segment.seq),
            None => segment.flags.contains(TcpFlags::ACK) && peer.syn && peer.is_sent(segment.ack),
        }
    }

    /// What the receiver makes of a segment.
    fn look(&mut self, segment: &Segment<'_>) -> Standing {
        let peer = self.stream(segment.from.peer());
        let unsent = segment.flags.contains(TcpFlags::ACK) && peer.origin.is_some() && !peer.is_sent(segment.ack);
        let [client, server] = &self.fingerprints;
        self.senders[segment.from as usize].look(segment, [client.as_ref(), server.as_ref()], unsent)
    }

    fn receive(&mut self, segment: &Segment<'_>, knew: u64, standing: Standing) {
        let stream = self.stream_mut(segment.from);
        let highest = stream.highest();
        let difference = stream.receive(segment, knew, standing);
        let goes_on = stream.highest() > highest;
        if let Some(difference) = difference.filter(|difference| !difference.damaged) {
            self.keep(segment, difference);
        }
        if goes_on {
            self.closed = None;
        }
        let both = self.client.has_fin() && self.server.has_fin();
        if both && (self.client.is_fin_acked() || self.server.is_fin_acked()) && self.closed.is_none() {
            self.closed = Some(CloseCause::Finished);
        }
    }

    fn keep(&mut self, segment: &Segment<'_>, difference: Difference) {
        let Difference { offset, first, other, damaged: _ } = difference;
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

    /// Whose octets come first when no acknowledgment tells: not who has taken octets of the other that are still to
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
