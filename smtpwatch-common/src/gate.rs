//! The gate decides which bytes of a packet are copied to userspace.
//!
//! The cleartext dialogue is copied, message bodies and TLS are not. First rule: **no segment that one end can send alone may
//! blind the daemon.** A body is muted after `DATA` from the client *and* a 3yz reply from the server; TLS is muted after
//! `STARTTLS`, a positive reply, a handshake record from the client *and* one from the server. The gate draws no conclusion
//! from a line that is split over segments in an unusual way: the daemon, which reassembles the streams, sends an [`Order`]
//! instead.
//!
//! Second rule: **an arriving packet resets no state.** A SYN or SYN-ACK of the local side starts another life of a flow
//! ([`reopens`]); one that arrives is only forwarded. The position of the remote side's stream is what the local side has
//! acknowledged: a segment that this host did not accept changes nothing ([`inspect`]). See [`binding`](crate::binding).
//!
//! [`decide`] runs before the copy, [`inspect`] after it.

use crate::{
    Admission, Binding, CHUNK, Direction, Packet, Segment, Side,
    binding::Leaves,
    headers::{
        flaw,
        tcp_flag::{ACK, FIN, RST, SYN},
    },
    record::flag,
    tail::{LastLine, NO_END, Tail, TailBuffer},
};

/// Bytes of each side of a flow that may cross the ring: enough for a dialogue with hundreds of recipients, and for the longest
/// AUTH line (RFC 4954 §4) in segments of one byte (EV-1, EV-16). One budget per side: arriving packets cannot spend the
/// budget of the local side.
pub const FLOW_BUDGET: u32 = 1024 * 1024;
/// The same for a flow joined after its SYN: enough to see which protocol it is; such a flow gets no verdict.
pub const MIDSTREAM_BUDGET: u32 = 4 * 1024;
/// Budget that a record costs in addition to its payload bytes.
pub const RECORD_COST: u32 = 64;
/// Client bytes copied once TLS has begun: the ClientHello is among them.
pub const TLS_CLIENT_BUDGET: u16 = 8 * 1024;
/// Server bytes copied once TLS has begun: a certificate chain before TLS 1.3 is cleartext (RFC 5246 §7.4.2).
pub const TLS_SERVER_BUDGET: u16 = 16 * 1024;
/// Arriving bytes after the end of a message that are copied before the reply to it: a group of commands (RFC 2920 §3.1).
/// More bytes than this belong to the message: this host did not accept that end of it.
pub const BEHIND_BODY: u32 = 16 * 1024;
/// Ends of one message that are accepted from the remote side.
pub const BODY_ENDS: u8 = 4;
/// SYN, FIN and RST records of a muted flow: a flood of them must not fill the ring.
pub const CONTROL_RECORDS: u8 = 32;
/// Segments with one of these flags are forwarded for a muted flow too.
pub const CONTROL: u8 = SYN | FIN | RST;

/// Phase of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Phase {
    /// Cleartext dialogue: everything is copied.
    Clear = 0,
    /// A message body: the client is muted until the server replies.
    Body = 1,
    /// TLS handshake: a bounded number of bytes is copied.
    Tls = 2,
    /// Only SYN, FIN and RST.
    Muted = 3,
}

/// What the dialogue waits for, by its last lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Awaited {
    /// Nothing that the gate tracks.
    Nothing = 0,
    /// The client's last line is `DATA`.
    Data = 1,
    /// The client's last line is `STARTTLS`.
    StartTls = 2,
    /// The server answered STARTTLS with `2yz`.
    GoAhead = 3,
    /// The client began a TLS handshake after the go-ahead.
    Hello = 4,
}

/// State of a flow. Value of a kernel map: no padding.
///
/// Two CPUs may write it at once, one per direction. Each [`DirectionState`] is written by packets of its own side alone; a write
/// lost to the shared fields costs a mute or copies a little more, and the daemon's orders mend both.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct FlowState {
    /// Identifies this life of the flow: the time of its creation in nanoseconds.
    pub flow: u64,
    /// Initial sequence number of the local side, or of the client if the capture has no directions; undefined if the flow was
    /// joined after its SYN.
    pub isn: u32,
    /// Latest acknowledgment number of the local side: the position of the remote side's stream. See `acked_at`.
    pub acked: u32,
    /// [`Order::serial`] of the last order obeyed.
    pub obeyed: u32,
    /// Body: with `dot`, the sequence number after it.
    pub body_end: u32,
    /// Which side is local.
    pub binding: Binding,
    /// See [`Phase`].
    pub phase: Phase,
    /// See [`Awaited`].
    pub awaited: Awaited,
    /// The flow was joined after its SYN.
    pub midstream: bool,
    /// SYN, FIN and RST records sent since the flow was muted.
    pub control: u8,
    /// Body: the client's first packet was forwarded.
    pub announced: bool,
    /// Body: its end, a line of one dot, was seen.
    pub dot: bool,
    /// Body: segments with payload from the server.
    pub replies: u8,
    /// Both ports are watched, and the client is the end with the lower one (EV-25).
    pub swapped: bool,
    /// Line position at `acked`.
    pub acked_at: Stream,
    /// Body: ends of it that were seen.
    pub dots: u8,
    /// Zero.
    pub reserved: [u8; 6],
    /// What the client sent.
    pub client: DirectionState,
    /// What the server sent.
    pub server: DirectionState,
}

const _: () = assert!(size_of::<FlowState>() == FlowState::SIZE && size_of::<DirectionState>() == 16);

/// State of one direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct DirectionState {
    /// The sequence number after the highest byte seen.
    pub next: u32,
    /// End of the range that is skipped.
    pub skip_until: u32,
    /// Bytes that may still cross the ring; see [`RECORD_COST`].
    pub budget: u32,
    /// Bytes that may still be copied in [`Phase::Tls`].
    pub tls: u16,
    /// See [`Stream`].
    pub stream: Stream,
    /// See [`Skip`].
    pub skip: Skip,
}

/// Position of the next byte of a direction within a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Stream {
    /// Nothing was seen: [`DirectionState::next`] is undefined.
    Unknown = 0,
    /// At the start of a line.
    LineStart = 1,
    /// Within a line, or after a gap.
    WithinLine = 2,
}

/// Whether bytes before [`DirectionState::skip_until`] are skipped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Skip {
    /// Nothing is skipped.
    Off = 0,
    /// The next packet in the range is forwarded as a header.
    Announce = 1,
    /// Packets in the range are not forwarded.
    Silent = 2,
}

impl DirectionState {
    const fn new(budget: u32, tls: u16) -> Self {
        Self { next: 0, skip_until: 0, budget, tls, stream: Stream::Unknown, skip: Skip::Off }
    }
}

impl FlowState {
    /// Bytes of the value in a map.
    pub const SIZE: usize = 80;

    /// Placeholder until [`Self::new`].
    pub const EMPTY: Self = Self::new(0, &Segment::EMPTY, None, 0, false);

    /// The state of a flow whose first packet is `segment`, seen at `now` (nanoseconds) in this direction at `interface`.
    #[inline(always)]
    #[must_use]
    pub const fn new(now: u64, segment: &Segment, direction: Option<Direction>, interface: u32, swapped: bool) -> Self {
        let opens = opens(segment);
        let budget = if opens { FLOW_BUDGET } else { MIDSTREAM_BUDGET };
        let binding = Binding::of(segment.from, direction, interface);
        Self {
            flow: now,
            isn: initial_number(segment, binding.leaves),
            acked: segment.ack,
            obeyed: 0,
            body_end: 0,
            binding,
            phase: Phase::Clear,
            awaited: Awaited::Nothing,
            midstream: !opens,
            control: 0,
            announced: false,
            dot: false,
            replies: 0,
            swapped,
            acked_at: Stream::Unknown,
            dots: 0,
            reserved: [0; 6],
            client: DirectionState::new(budget, TLS_CLIENT_BUDGET),
            server: DirectionState::new(budget, TLS_SERVER_BUDGET),
        }
    }

    /// [`FlowState::flow`] of a map value.
    #[must_use]
    pub fn flow_of(value: &[u8; Self::SIZE]) -> u64 {
        value.first_chunk().map_or(0, |flow| u64::from_ne_bytes(*flow))
    }

    #[inline(always)]
    const fn direction_state(&mut self, side: Side) -> &mut DirectionState {
        match side {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        }
    }

    /// Whether the server's stream is at `position`: as seen, or as acknowledged by the local side.
    #[inline(always)]
    const fn is_server_at(&self, position: u32, acked: u32) -> bool {
        position == self.server.next || matches!(self.binding.leaves, Leaves::Client) && position == acked
    }

    #[inline(always)]
    const fn enter_body(&mut self) {
        self.phase = Phase::Body;
        self.awaited = Awaited::Nothing;
        self.announced = false;
        self.dot = false;
        self.dots = 0;
        self.replies = 0;
    }
}

/// An instruction of the daemon not to forward a part of a flow. Value of a kernel map: no padding.
///
/// An order is for one life of a flow and is obeyed once. An order for an earlier life is ignored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Order {
    /// [`FlowState::flow`] of its flow.
    pub flow: u64,
    /// Differs from the serial of the flow's previous order; never zero.
    pub serial: u32,
    /// One of [`order_kind`].
    pub kind: u32,
    /// [`order_kind::MUTE_BODY`]: void unless this is the next sequence number of the server, so that an order that the
    /// server's next reply overtook does not mute the dialogue. [`order_kind::SKIP_CLIENT`] and
    /// [`order_kind::SKIP_SERVER`]: first sequence number that is wanted again.
    pub position: u32,
    /// Zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<Order>() == Order::SIZE);

/// Values of [`Order::kind`]. Numbers, not an enum: the kernel reads what the daemon wrote, and unknown values are ignored.
pub mod order_kind {
    /// Everything but SYN, FIN and RST.
    pub const MUTE: u32 = 1;
    /// A message body follows, as after 354.
    pub const MUTE_BODY: u32 = 2;
    /// Payload of the client before a sequence number (BDAT).
    pub const SKIP_CLIENT: u32 = 3;
    /// Payload of the server before a sequence number.
    pub const SKIP_SERVER: u32 = 4;
}

impl Order {
    /// Bytes of the value in a map.
    pub const SIZE: usize = 24;

    /// The order as a map holds it.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..8].copy_from_slice(&self.flow.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.serial.to_ne_bytes());
        bytes[12..16].copy_from_slice(&self.kind.to_ne_bytes());
        bytes[16..20].copy_from_slice(&self.position.to_ne_bytes());
        bytes
    }
}

/// Which part of a segment is sent to userspace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// Nothing.
    Nothing,
    /// A record without payload.
    Header {
        /// Bits of [`flag`].
        flags: u16,
    },
    /// The payload bytes `from..until`, which are not empty.
    Copy {
        /// Offset in the segment's payload.
        from: u32,
        /// End offset in the segment's payload.
        until: u32,
        /// Bits of [`flag`].
        flags: u16,
    },
}

/// Whether `segment` is a SYN of the client, or a SYN-ACK of the server: the SYN went another way, or was before our time, and both
/// streams are still whole.
#[inline(always)]
const fn opens(segment: &Segment) -> bool {
    matches!((segment.flags & (SYN | ACK | RST), segment.from), (SYN, Side::Client) | (SYN_ACK, Side::Server))
}

const SYN_ACK: u8 = SYN | ACK;

/// The sequence number by which `segment` names a life of its flow: its own, and the client's where both sides' segments are taken
/// for what they claim to be.
#[inline(always)]
const fn initial_number(segment: &Segment, leaves: Leaves) -> u32 {
    match (leaves, segment.from) {
        (Leaves::Either, Side::Server) => segment.ack.wrapping_sub(1),
        _ => segment.seq,
    }
}

/// Whether `segment`, of the side that leaves, begins another life of the flow (EV-23): a SYN or SYN-ACK with a sequence number of its own,
/// or after the flow has moved past its handshake. An established end never sends one (RFC 9293 §3.10.7.4, RFC 5961 §4.2); a
/// server that answers with SYN cookies may choose the same number again.
#[inline(always)]
#[must_use]
pub const fn reopens(state: &FlowState, segment: &Segment) -> bool {
    if !opens(segment) {
        return false;
    }
    let direction = match segment.from {
        Side::Client => &state.client,
        Side::Server => &state.server,
    };
    let beyond = initial_number(segment, state.binding.leaves).wrapping_sub(state.isn);
    let other_number = match (state.binding.leaves, segment.from, state.client.stream) {
        // A SYN-ACK may acknowledge data in the SYN too (RFC 7413).
        (Leaves::Either, Side::Server, Stream::LineStart | Stream::WithinLine) => {
            beyond > state.client.next.wrapping_sub(state.isn).wrapping_sub(1)
        }
        _ => beyond != 0,
    };
    let further = !matches!(direction.stream, Stream::Unknown)
        && direction.next != segment.data_seq().wrapping_add(segment.length);
    state.midstream || other_number || !matches!(state.phase, Phase::Clear) || further
}

/// Obeys `order` if it is for this life of the flow and was not obeyed before. `next`: the packet that follows it and is
/// not yet inspected.
#[inline(always)]
pub const fn obey(state: &mut FlowState, order: &Order, next: Option<(&Segment, Admission)>) {
    if order.flow != state.flow || order.serial == state.obeyed {
        return;
    }
    state.obeyed = order.serial;
    let acked = match next {
        // What our own side acknowledges with it may be a reply that overtook the order.
        Some((segment, Admission::Own)) if segment.has(ACK) => segment.ack,
        _ => state.acked,
    };
    match order.kind {
        order_kind::MUTE => state.phase = Phase::Muted,
        order_kind::MUTE_BODY if matches!(state.phase, Phase::Clear) && state.is_server_at(order.position, acked) => {
            state.enter_body();
        }
        order_kind::SKIP_CLIENT => skip(&mut state.client, order.position),
        order_kind::SKIP_SERVER => skip(&mut state.server, order.position),
        _ => {}
    }
}

#[inline(always)]
const fn skip(direction: &mut DirectionState, until: u32) {
    direction.skip_until = until;
    direction.skip = Skip::Announce;
}

/// Decides which part of `segment` is sent. The caller then calls [`inspect`], unless the flow is muted.
#[inline(always)]
pub fn decide(state: &mut FlowState, segment: &Segment, admission: Admission) -> Decision {
    let control = segment.has(CONTROL);
    if state.phase == Phase::Muted {
        if !control || state.control >= CONTROL_RECORDS {
            return Decision::Nothing;
        }
        state.control += 1;
        return Decision::Header { flags: flags_of(state, segment) };
    }
    let peer = matches!(admission, Admission::Peer);
    let (from, until) = match wanted(state, segment, peer) {
        Wanted::Nothing if !control => return Decision::Nothing,
        Wanted::Nothing | Wanted::Header => (0, 0),
        Wanted::Payload { from, until } => (from, until),
    };
    let length = until.wrapping_sub(from);
    // The cost of every chunk, rounded up.
    let cost = RECORD_COST + (length / CHUNK_U32) * RECORD_COST + length;
    match spend(state, segment.from, cost, peer) {
        Spent::Paid => {}
        Spent::Last => return Decision::Header { flags: flags_of(state, segment) | flag::BUDGET },
        Spent::Nothing if control && state.control < CONTROL_RECORDS => {
            state.control += 1;
            return Decision::Header { flags: flags_of(state, segment) };
        }
        Spent::Nothing => return Decision::Nothing,
    }
    let flags = flags_of(state, segment);
    match (state.phase, segment.from) {
        _ if length == 0 => Decision::Header { flags },
        (Phase::Body, Side::Client) => Decision::Copy { from, until, flags: flags | flag::BODY_ENDED },
        _ => Decision::Copy { from, until, flags },
    }
}

/// Subtracts `cost` from the budget of a side. If the local side exceeds its budget, the flow is muted. If the remote side does, its
/// payload is not copied, and the local side is still tracked.
#[inline(always)]
const fn spend(state: &mut FlowState, from: Side, cost: u32, peer: bool) -> Spent {
    let direction = state.direction_state(from);
    if cost <= direction.budget {
        direction.budget -= cost;
        return Spent::Paid;
    }
    let had = direction.budget != 0;
    direction.budget = 0;
    if !peer {
        state.phase = Phase::Muted;
        return Spent::Last;
    }
    if had { Spent::Last } else { Spent::Nothing }
}

/// Result of [`spend`].
enum Spent {
    Paid,
    /// The budget was exceeded by this segment: one header is sent.
    Last,
    /// The budget was exceeded before.
    Nothing,
}

const CHUNK_U32: u32 = 2048;
const _: () = assert!(CHUNK_U32 as usize == CHUNK);

enum Wanted {
    Nothing,
    Header,
    Payload { from: u32, until: u32 },
}

#[inline(always)]
const fn wanted(state: &mut FlowState, segment: &Segment, peer: bool) -> Wanted {
    match state.phase {
        Phase::Muted => Wanted::Nothing,
        Phase::Clear => unskipped(state.direction_state(segment.from), segment),
        Phase::Body => match segment.from {
            // Commands may follow a message before its reply (RFC 2920 §3.1).
            Side::Client if state.dot && after(segment.data_seq().wrapping_add(segment.length), state.body_end) => {
                let start = segment.data_seq();
                if peer && after(start.wrapping_add(segment.length), state.body_end.wrapping_add(BEHIND_BODY)) {
                    state.dot = false;
                    return Wanted::Nothing;
                }
                let from = if after(state.body_end, start) { state.body_end.wrapping_sub(start) } else { 0 };
                Wanted::Payload { from, until: segment.length }
            }
            // The local client has not acknowledged the 354: it was a decoy, or is still on its way.
            Side::Client if !peer && !state.announced && after(state.server.next, segment.ack) => {
                if segment.length == 0 {
                    return Wanted::Header;
                }
                state.phase = Phase::Clear;
                unskipped(&mut state.client, segment)
            }
            // The acknowledgment in the client's first packet is the daemon's proof that the 354 arrived.
            Side::Client if !state.announced => {
                state.announced = true;
                Wanted::Header
            }
            Side::Client => Wanted::Nothing,
            Side::Server if segment.length == 0 => Wanted::Nothing,
            Side::Server => unskipped(&mut state.server, segment),
        },
        Phase::Tls => handshake(state, segment),
    }
}

/// The payload outside the range that an order skips.
#[inline(always)]
const fn unskipped(direction: &mut DirectionState, segment: &Segment) -> Wanted {
    let all = Wanted::Payload { from: 0, until: segment.length };
    if segment.length == 0 || matches!(direction.skip, Skip::Off) {
        return all;
    }
    let ahead = direction.skip_until.wrapping_sub(segment.data_seq());
    // Serial arithmetic (RFC 1982): at or past the end of the range.
    if ahead == 0 || ahead > i32::MAX as u32 {
        direction.skip = Skip::Off;
        return all;
    }
    if ahead < segment.length {
        direction.skip = Skip::Off;
        return Wanted::Payload { from: ahead, until: segment.length };
    }
    let announced = matches!(direction.skip, Skip::Silent);
    direction.skip = Skip::Silent;
    if announced { Wanted::Nothing } else { Wanted::Header }
}

#[inline(always)]
const fn handshake(state: &mut FlowState, segment: &Segment) -> Wanted {
    if segment.length == 0 {
        let both = state.client.tls != 0 && state.server.tls != 0;
        return if both { Wanted::Header } else { Wanted::Nothing };
    }
    let direction = state.direction_state(segment.from);
    if direction.tls == 0 {
        return Wanted::Nothing;
    }
    let left = direction.tls as u32;
    let until = if segment.length < left { segment.length } else { left };
    direction.tls -= (until & 0xffff) as u16;
    if state.client.tls == 0 && state.server.tls == 0 {
        state.phase = Phase::Muted;
    }
    Wanted::Payload { from: 0, until }
}

#[inline(always)]
const fn flags_of(state: &FlowState, segment: &Segment) -> u16 {
    let midstream = if state.midstream { flag::MIDSTREAM } else { 0 };
    midstream | if segment.flaws & flaw::UNUSUAL != 0 { flag::UNUSUAL } else { 0 }
}

/// Which part of a segment is sent if the end of a message was found in it, `behind` bytes before the segment's end. With no bytes
/// after the message, a header is sent.
#[inline(always)]
pub const fn behind_body(state: &mut FlowState, segment: &Segment, behind: u32) -> Decision {
    let flags = flags_of(state, segment) | flag::BODY_ENDED;
    // The end of a message does not mute the flow: without budget, the next segment of the local side does.
    match spend(state, segment.from, RECORD_COST + behind, true) {
        Spent::Last => Decision::Header { flags: flags_of(state, segment) | flag::BUDGET },
        Spent::Nothing => Decision::Nothing,
        Spent::Paid if behind == 0 => Decision::Header { flags },
        Spent::Paid => Decision::Copy { from: segment.length - behind, until: segment.length, flags },
    }
}

/// Updates the state by `segment`, whose last bytes are copied to `buffer`. True if a message may end in the segment: [`search`]
/// looks for the end.
// A function of its own, because a kernel program has 512 bytes of stack. It returns a value, and the
// caller takes it, because the verifier looks at the return register also where nothing is returned.
#[inline(never)]
pub fn inspect<P: Packet>(
    state: &mut FlowState,
    packet: &P,
    segment: &Segment,
    buffer: &mut TailBuffer,
    admission: Admission,
) -> bool {
    let peer = matches!(admission, Admission::Peer);
    if !peer && segment.has(ACK) {
        acknowledge(state, segment);
    }
    let (acked, acked_at) = (state.acked, state.acked_at);
    let start = segment.data_seq();
    let direction = state.direction_state(segment.from);
    if segment.has(SYN) && !peer {
        *direction = DirectionState { next: start, stream: Stream::LineStart, ..*direction };
    }
    // This host may have discarded the segment (EV-6, EV-9): it changes nothing.
    if segment.length == 0 || segment.flaws != 0 {
        return false;
    }
    let end = start.wrapping_add(segment.length);
    let known = direction.stream != Stream::Unknown;
    // A segment that the local side has not acknowledged is no retransmission, however far the remote side seems to be.
    let open = peer && acked_at != Stream::Unknown;
    if known && !after(end, direction.next) && !(open && after(end, acked)) {
        return false; // a retransmission
    }
    let expected = open && start == acked;
    // After a gap or an overlap the segment's first byte is not known to begin a line.
    let line_start = if expected {
        acked_at == Stream::LineStart
    } else {
        direction.stream == Stream::LineStart && start == direction.next
    };
    // No byte of it was seen before.
    let in_order = expected || !known || !after(direction.next, start);
    direction.next = end;
    let Some(tail) = Tail::of(packet, segment, line_start, buffer) else {
        direction.stream = Stream::WithinLine;
        return false;
    };
    let ends_line = tail.ends_line();
    direction.stream = if ends_line { Stream::LineStart } else { Stream::WithinLine };
    if !in_order {
        return false;
    }
    match (state.phase, segment.from) {
        (Phase::Clear, Side::Client) => follow_client(state, packet, segment, &tail),
        (Phase::Clear, Side::Server) => follow_server(state, packet, segment, &tail),
        (Phase::Body, Side::Client) => {
            // Commands end in LF, and so does the end of a message; most segments of one do not.
            return ends_line && !state.dot && !(peer && state.dots >= BODY_ENDS);
        }
        (Phase::Body, Side::Server) => {
            // A 4yz or 5yz within the body does not end it; a second reply, or any after the dot, does.
            state.replies = state.replies.saturating_add(1);
            let positive = line_start && matches!(packet.load::<1>(segment.payload), Some([b'2']));
            if positive || state.dot || state.replies > 1 {
                state.phase = Phase::Clear;
            }
        }
        (Phase::Tls | Phase::Muted, _) => {}
    }
    false
}

/// Takes the acknowledgment number of the local side as the position of the remote side's stream. A side that sends has read
/// whole lines.
#[inline(always)]
const fn acknowledge(state: &mut FlowState, segment: &Segment) {
    let other = state.direction_state(segment.from.peer());
    let at = if segment.length > 0
        || segment.has(SYN)
        || matches!(other.stream, Stream::LineStart) && other.next == segment.ack
    {
        Stream::LineStart
    } else if other.next == segment.ack || segment.ack != state.acked {
        Stream::WithinLine
    } else {
        state.acked_at
    };
    state.acked_at = at;
    state.acked = segment.ack;
}

/// Bytes after the end of a message within `segment`, whose last bytes [`inspect`] has copied to `buffer`; [`NO_END`] if no message
/// ends in it.
// A function of its own, because both stacks together are too large.
#[inline(never)]
pub fn search(state: &mut FlowState, segment: &Segment, buffer: &TailBuffer) -> u32 {
    let behind = Tail::left(segment, buffer).behind_body();
    if behind != NO_END {
        state.dot = true;
        state.dots = state.dots.saturating_add(1);
        state.body_end = segment.data_seq().wrapping_add(segment.length).wrapping_sub(behind);
    }
    behind
}

#[inline(always)]
fn follow_client<P: Packet>(state: &mut FlowState, packet: &P, segment: &Segment, tail: &Tail<'_>) {
    state.awaited = match state.awaited {
        Awaited::GoAhead if begins_handshake(packet, segment) => Awaited::Hello,
        Awaited::Hello => Awaited::Hello,
        Awaited::Nothing | Awaited::Data | Awaited::StartTls | Awaited::GoAhead => match tail.command() {
            LastLine::Data => Awaited::Data,
            LastLine::StartTls => Awaited::StartTls,
            LastLine::Other => Awaited::Nothing,
        },
    };
}

#[inline(always)]
fn follow_server<P: Packet>(state: &mut FlowState, packet: &P, segment: &Segment, tail: &Tail<'_>) {
    match state.awaited {
        Awaited::Nothing | Awaited::GoAhead => {}
        Awaited::Hello => {
            if begins_handshake(packet, segment) {
                state.phase = Phase::Tls;
                let copied = if segment.length < u16::MAX as u32 { (segment.length & 0xffff) as u16 } else { u16::MAX };
                state.server.tls = state.server.tls.saturating_sub(copied);
            }
        }
        Awaited::Data | Awaited::StartTls => {
            let Some(line) = tail.last_line() else { return };
            let Some(code) = packet.load::<4>((segment.payload + segment.length).wrapping_sub(line)) else { return };
            match code {
                // Any 3yz: clients continue by the first digit (RFC 5321 §4.2.1).
                [b'3', b'0'..=b'9', b'0'..=b'9', b' ' | b'\r' | b'\n'] if state.awaited == Awaited::Data => {
                    state.enter_body()
                }
                [b'2', ..] if state.awaited == Awaited::StartTls => state.awaited = Awaited::GoAhead,
                _ => {}
            }
        }
    }
}

/// Whether the segment starts as a TLS handshake record does (RFC 8446 §5.1: type 22, version 3.x).
#[inline(always)]
fn begins_handshake<P: Packet>(packet: &P, segment: &Segment) -> bool {
    segment.length >= 2 && packet.load::<2>(segment.payload) == Some([0x16, 0x03])
}

/// Whether `a` comes after `b` (RFC 1982).
#[inline(always)]
const fn after(a: u32, b: u32) -> bool {
    let distance = a.wrapping_sub(b);
    distance != 0 && distance <= i32::MAX as u32
}
