//! One packet from its headers to its records: parser, flow state, orders, gate. The same code in the kernel and in userspace.

use core::hint::black_box;

use crate::{
    Admission, CHUNK, Counter, Direction, Encapsulation, FlowKey, FlowState, Link, Order, Packet, ParsedPacket,
    RecordBuffer, Scratch, Segment, Side, Tag, encapsulation, fast_path,
    gate::{self, Decision, Phase},
    headers::{
        self, flaw,
        tcp_flag::{ACK, RST, SYN},
    },
    ports,
    record::{DIRECTION_UNKNOWN, flag},
    tail::NO_END,
};

/// Records that one packet can become: 64 KiB, the largest IPv4 packet. Payload past that (BIG TCP) is counted as truncated.
pub const MAX_CHUNKS: u32 = 32;

/// The flow table. Flows in their TCP handshake have a table of their own: a flood of SYNs evicts no open flow (EV-24).
pub trait Flows {
    /// The state of `key`. `opened`: moves it to the open flows first.
    fn find(&mut self, key: &FlowKey, opened: bool) -> Option<&mut FlowState>;

    /// Stores `state` for `key`, among the open flows or those in their handshake. `None` if the table is full.
    fn insert(&mut self, key: &FlowKey, state: &FlowState, opened: bool) -> Option<&mut FlowState>;
}

/// Environment of the gate: a kernel hook, or a capture file.
pub trait Env {
    /// Nanoseconds; not the same twice for two lives of one flow.
    fn now(&self) -> u64;

    /// Direction of the hook.
    fn direction(&self) -> Direction;

    /// Direction of a segment: that of the hook, unless a capture file has both directions.
    #[inline(always)]
    fn direction_of(&self, _segment: &Segment) -> Option<Direction> {
        Some(self.direction())
    }

    /// Whether a wrong header checksum means that the receiver discards the packet. Not in captures, which are edited and contain
    /// packets whose checksums the network card fills in.
    #[inline(always)]
    fn are_sums_real(&self) -> bool {
        true
    }

    /// Ethernet address of the interface; `None` if it has none or it is not known.
    fn link_address(&self) -> Option<[u8; 6]>;

    /// Interface index.
    fn interface(&self) -> u32;

    /// Cgroup and user of the sending socket, where known: see [`Header::cgroup`](crate::Header::cgroup) and [`Header::uid`](crate::Header::uid).
    fn owner(&self) -> (u64, u32);

    /// A word of the watched ports: [`PortSet::as_words`](crate::PortSet::as_words).
    fn ports(&self, word: usize) -> u64;

    /// One of [`fast_path::SEEDS`] random numbers, which never change.
    fn seed(&self, index: usize) -> u64;

    /// Whether the table of muted flows holds a tag. False is always safe: see [`fast_path`](mod@crate::fast_path).
    fn is_muted(&self, tag: Tag) -> bool;

    /// Adds a tag to it.
    fn mute(&mut self, tag: Tag);

    /// Removes a tag from it.
    fn unmute(&mut self, tag: Tag);

    /// The daemon's order for a flow.
    fn order(&self, key: &FlowKey) -> Option<Order>;

    /// Sends `record`: its header and the first bytes of its payload, as many as the header says. False if the ring has
    /// no room.
    fn submit(&mut self, record: &RecordBuffer) -> bool;

    /// Adds one to a counter.
    fn count(&mut self, counter: Counter);

    /// Remembers that a capture file has cut wanted bytes of the packet. A kernel has whole packets.
    #[inline(always)]
    fn note_cut(&mut self) {}

    /// Remembers that mail in this encapsulation passed the interface and was not followed.
    fn note_encapsulated(&mut self, encapsulation: Encapsulation);
}

/// Outcome of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Not of a watched port.
    Other,
    /// Of a watched flow, not forwarded.
    Muted,
    /// At least the header was sent, or lost to a full ring.
    Forwarded,
    /// TCP in an IP fragment.
    Fragment,
    /// Invalid headers.
    Unparsed,
    /// Shorter than its headers announce.
    Truncated,
    /// No room for the flow's state.
    FlowTableFull,
    /// Of the local side, but arrived from outside: see [`binding`](crate::binding).
    Forged,
    /// [`scan_body_end`] has to follow, and counts the packet.
    Search,
    /// Not TCP: [`count_encapsulated`] has to follow, and counts the packet.
    NotTcp,
}

impl Outcome {
    /// The counter of this outcome: each packet adds to exactly one.
    #[must_use]
    #[inline(always)]
    pub const fn counter(self, direction: Direction) -> Counter {
        match self {
            Self::Other | Self::NotTcp => Counter::other(direction),
            Self::Muted | Self::Search => Counter::muted(direction),
            Self::Forwarded => Counter::forwarded(direction),
            Self::Fragment => Counter::Fragment,
            Self::Unparsed => Counter::Unparsed,
            Self::Truncated => Counter::Truncated,
            Self::FlowTableFull => Counter::FlowTableFull,
            Self::Forged => Counter::Forged,
        }
    }
}

/// Takes one packet through the gate and counts it. `scratch` is called only if its port is watched.
#[inline(always)]
pub fn process<'s, P: Packet, F: Flows, E: Env>(
    packet: &P,
    link: Link,
    flows: &mut F,
    env: &mut E,
    scratch: impl FnOnce() -> Option<&'s mut Scratch>,
) -> Outcome {
    match fast_path(packet, link, env) {
        Some(outcome) => outcome,
        None => {
            let Some(scratch) = scratch() else { return Outcome::Unparsed };
            match process_slow_path(packet, link, flows, env, || Some(&mut *scratch)) {
                Outcome::Search => scan_body_end(packet, flows, env, scratch),
                Outcome::NotTcp => count_encapsulated(packet, link, flows, env, scratch),
                outcome => outcome,
            }
        }
    }
}

/// [`process`] for a packet that the fast path does not decide. A function of its own in the kernel programs: the fast path must
/// not pay for its registers and stack.
#[inline(always)]
pub fn process_slow_path<'s, P: Packet, F: Flows, E: Env>(
    packet: &P,
    link: Link,
    flows: &mut F,
    env: &mut E,
    scratch: impl FnOnce() -> Option<&'s mut Scratch>,
) -> Outcome {
    let outcome = match headers::parse_headers(packet, link, |port| is_watched(env, port), scratch) {
        ParsedPacket::NotTcp => Outcome::NotTcp,
        ParsedPacket::NotWatched => Outcome::Other,
        ParsedPacket::Fragment => Outcome::Fragment,
        // The kernel has a scratch for every CPU.
        ParsedPacket::Unparsed | ParsedPacket::NoScratch => Outcome::Unparsed,
        ParsedPacket::Truncated => Outcome::Truncated,
        ParsedPacket::Segment(scratch) => process_segment(packet, link, scratch, flows, env),
    };
    if !matches!(outcome, Outcome::Search | Outcome::NotTcp) {
        env.count(outcome.counter(env.direction()));
    }
    outcome
}

/// Looks for the end of a message in the segment that [`process_slow_path`] has left in `scratch`, and sends the bytes after it. A
/// function of its own, so that the verifier reaches it from one place and not from each path through the rest.
#[inline(always)]
pub fn scan_body_end<P: Packet, F: Flows, E: Env>(
    packet: &P,
    flows: &mut F,
    env: &mut E,
    scratch: &mut Scratch,
) -> Outcome {
    let Scratch { segment, tail, record, sent, .. } = scratch;
    let segment: &Segment = segment;
    let mut outcome = if *sent { Outcome::Forwarded } else { Outcome::Muted };
    if let Some(state) = flows.find(&segment.key, false) {
        let behind = black_box(gate::search(state, segment, tail));
        if behind != NO_END {
            let decision = gate::behind_body(state, segment, behind);
            record.header.flow = state.flow;
            black_box(send(packet, segment, &decision, env, record));
            if decision != Decision::Nothing {
                outcome = Outcome::Forwarded;
            }
        }
    }
    env.count(outcome.counter(env.direction()));
    outcome
}

/// Counts a packet that is not TCP, and the mail in its encapsulation unless the flow is known: then another interface shows its
/// packets. A function of its own, so that no packet of mail pays for it and the verifier reaches it from one place.
#[inline(always)]
pub fn count_encapsulated<P: Packet, F: Flows, E: Env>(
    packet: &P,
    link: Link,
    flows: &mut F,
    env: &mut E,
    scratch: &mut Scratch,
) -> Outcome {
    env.count(Counter::other(env.direction()));
    let Scratch { segment: Segment { key, .. }, walk, .. } = scratch;
    if let Some(found) = encapsulation::find_mail(packet, link, |port| is_watched(env, port), walk, key)
        && flows.find(key, false).is_none()
    {
        env.count(Counter::encapsulated(found));
        env.note_encapsulated(found);
    }
    Outcome::Other
}

#[inline(always)]
fn is_watched<E: Env>(env: &E, port: u16) -> bool {
    let wire = port.to_be();
    env.ports(ports::word_of(wire)) >> ports::bit_of(wire) & 1 != 0
}

#[inline(always)]
fn process_segment<P: Packet, F: Flows, E: Env>(
    packet: &P,
    link: Link,
    scratch: &mut Scratch,
    flows: &mut F,
    env: &mut E,
) -> Outcome {
    let Scratch { segment, tail, record, sent, fresh, ordered, walk: _ } = scratch;
    let direction = env.direction_of(segment);
    let arrives = matches!(direction, Some(Direction::Ingress));
    // A RST does not open the flow: this host sends it as the answer to any invalid segment (RFC 9293 §3.10.7.4).
    let mut found = flows.find(&segment.key, !arrives && !segment.has(SYN | RST));
    if let Some(state) = &mut found
        && state.phase == Phase::Muted
        && !segment.has(gate::CONTROL)
    {
        segment.orient(state.swapped);
        mute(state, segment, env);
        return Outcome::Muted;
    }
    if arrives && !is_for_us(packet, link, env) {
        segment.flaws |= flaw::UNUSUAL;
    }
    if !arrives {
        // Flaws matter only for packets that this host may discard, and a capture without directions does not show the receiver.
        segment.flaws = 0;
    } else if !env.are_sums_real() {
        segment.flaws &= flaw::UNUSUAL;
    }
    if segment.flaws & flaw::HEADER_SUM != 0 {
        return Outcome::Unparsed;
    }
    if !segment.is_whole(packet) {
        return Outcome::Truncated;
    }
    let (state, admission) = match found {
        Some(state) => {
            let swapped = if !arrives && segment.has(SYN) { is_swapped(segment, env) } else { state.swapped };
            segment.orient(swapped);
            let admission = state.binding.admit(segment.from, direction, env.interface());
            match admission {
                Admission::Forged => return Outcome::Forged,
                Admission::Duplicate | Admission::Claim => return Outcome::Muted,
                Admission::Own | Admission::Peer => {}
            }
            if admission == Admission::Own && gate::reopens(state, segment) {
                *state = FlowState::new(env.now(), segment, direction, env.interface(), swapped);
                unmute(segment, env);
            }
            (state, admission)
        }
        None if arrives => {
            segment.orient(segment.has(SYN) && is_swapped(segment, env));
            return black_box(claim(packet, segment, flows, env, record));
        }
        // A RST for a connection that does not exist: the answer to a packet of any stranger.
        None if segment.has(RST) => return Outcome::Muted,
        None => {
            let swapped = segment.has(SYN) && is_swapped(segment, env);
            segment.orient(swapped);
            *fresh = FlowState::new(env.now(), segment, direction, env.interface(), swapped);
            let Some(state) = flows.insert(&segment.key, fresh, !segment.has(SYN)) else {
                return Outcome::FlowTableFull;
            };
            unmute(segment, env);
            (state, Admission::Own)
        }
    };
    if state.phase != Phase::Muted {
        *ordered = segment.oriented_key();
        if let Some(order) = env.order(ordered) {
            gate::obey(state, &order, Some((segment, admission)));
        }
    }
    let muted = state.phase == Phase::Muted;
    let decision = gate::decide(state, segment, admission);
    if decision == Decision::Nothing && (muted || segment.length == 0) {
        return Outcome::Muted;
    }
    record.header.flow = state.flow;
    black_box(send(packet, segment, &decision, env, record));
    *sent = decision != Decision::Nothing;
    if !muted && black_box(gate::inspect(state, packet, segment, tail, admission)) {
        return Outcome::Search;
    }
    if decision == Decision::Nothing { Outcome::Muted } else { Outcome::Forwarded }
}

/// Whether client and server are the reverse of what the ports say: both are watched, and the SYN is of the lower one, or the SYN-ACK
/// of the higher one (EV-25).
#[inline(always)]
fn is_swapped<E: Env>(segment: &Segment, env: &E) -> bool {
    let by_server = segment.gate_side() == Side::Server;
    by_server != segment.has(ACK) && is_watched(env, segment.key.client_port)
}

/// Whether an arriving frame is addressed to this host's interface: its stack discards frames to other hosts, and TCP in broadcasts
/// (Linux: ip_rcv_core, tcp_v4_rcv). A bridge forwards them, so they are only marked as unusual.
#[inline(always)]
fn is_for_us<P: Packet, E: Env>(packet: &P, link: Link, env: &E) -> bool {
    let (Link::Ethernet, Some(own)) = (link, env.link_address()) else { return true };
    packet.load::<6>(0) == Some(own)
}

/// A packet that arrives before the local side has sent anything. A SYN is forwarded as a header and creates no state. Of other
/// packets one is forwarded: the other direction may use an interface that is not watched (EV-26).
// A function of its own, because a kernel program has 512 bytes of stack.
#[inline(never)]
fn claim<P: Packet, F: Flows, E: Env>(
    packet: &P,
    segment: &Segment,
    flows: &mut F,
    env: &mut E,
    record: &mut RecordBuffer,
) -> Outcome {
    let opens = segment.has(SYN) && !segment.has(ACK);
    let unusual = if segment.flaws & flaw::UNUSUAL != 0 { flag::UNUSUAL } else { 0 };
    let flags = unusual | if opens { 0 } else { flag::MIDSTREAM };
    record.header.flow = 0;
    fill(packet, segment, flags, env, record);
    submit(record, env);
    if !opens {
        let tag = Tag::of(env, &segment.key, segment.ip_version, segment.gate_side());
        env.mute(tag);
        // Another CPU may have processed the first packet of the local side in the meantime.
        if black_box(flows.find(&segment.key, false)).is_some() {
            env.unmute(tag);
        }
    }
    Outcome::Forwarded
}

/// Lets the fast path drop the flow's later packets in this direction.
#[inline(always)]
fn mute<E: Env>(state: &mut FlowState, segment: &Segment, env: &mut E) {
    let tag = Tag::of(env, &segment.key, segment.ip_version, segment.gate_side());
    env.mute(tag);
    // Another CPU may have processed the SYN of another life in the meantime, and cleared the tag before it was set.
    if black_box(state).phase != Phase::Muted {
        env.unmute(tag);
    }
}

#[inline(always)]
fn unmute<E: Env>(segment: &Segment, env: &mut E) {
    for side in [Side::Client, Side::Server] {
        let tag = Tag::of(env, &segment.key, segment.ip_version, side);
        env.unmute(tag);
        env.unmute(tag.other_direction());
    }
}

/// Sends the records of `decision`; returns their number.
// A function of its own, because a kernel program has 512 bytes of stack. It returns a value, and the
// caller takes it, because the verifier looks at the return register also where nothing is returned.
#[inline(never)]
fn send<P: Packet, E: Env>(
    packet: &P,
    segment: &Segment,
    decision: &Decision,
    env: &mut E,
    record: &mut RecordBuffer,
) -> u32 {
    match *decision {
        Decision::Nothing => 0,
        Decision::Header { flags } => {
            fill(packet, segment, flags, env, record);
            submit(record, env);
            1
        }
        Decision::Copy { from, until, flags } => {
            fill(packet, segment, flags, env, record);
            copy(packet, segment, (from, until), env, record)
        }
    }
}

#[inline(always)]
fn fill<P: Packet, E: Env>(packet: &P, segment: &Segment, flags: u16, env: &E, record: &mut RecordBuffer) {
    let (cgroup, uid) = env.owner();
    let header = &mut record.header;
    header.timestamp = env.now();
    header.cgroup = cgroup;
    header.uid = uid;
    header.interface = env.interface();
    header.key = segment.oriented_key();
    header.seq = segment.seq;
    header.ack = segment.ack;
    header.length = segment.length;
    header.window = segment.window;
    header.ip_id = segment.ip_id;
    header.flags = flags;
    header.abi = crate::record::WIRE_ABI;
    header.direction = match env.direction_of(segment) {
        Some(direction) => direction as u8,
        None => DIRECTION_UNKNOWN,
    };
    header.from = segment.from as u8;
    header.ip_version = segment.ip_version;
    header.tcp_flags = segment.flags;
    header.ttl = segment.ttl;
    header.offset = if flags & flag::BODY_ENDED == 0 { 0 } else { segment.length };
    header.captured = 0;
    header.options_len = 0;
    let options = u32::from(segment.options_len);
    // The last eight bytes of the fixed TCP header (RFC 9293 §3.1), read here and not by the parser: muted packets do not need them.
    if let Some([data_offset, _, _, _, c0, c1, u0, u1]) = packet.load::<8>(segment.payload - options - 8) {
        header.data_offset = data_offset;
        header.checksum = u16::from_be_bytes([c0, c1]);
        header.urgent = u16::from_be_bytes([u0, u1]);
    }
    if options > 0 && packet.copy(segment.payload - options, options, &mut header.options) {
        header.options_len = segment.options_len;
    }
}

/// Sends payload bytes `from..until`; returns how many records that took.
#[inline(always)]
fn copy<P: Packet, E: Env>(
    packet: &P,
    segment: &Segment,
    (from, mut until): (u32, u32),
    env: &mut E,
    record: &mut RecordBuffer,
) -> u32 {
    let captured = packet.captured().saturating_sub(segment.payload);
    if captured < until {
        until = captured;
        record.header.flags |= flag::CUT;
        env.note_cut();
        if until <= from {
            submit(record, env); // the snapshot ends before the wanted bytes
            return 1;
        }
    }
    let mut sent = 0;
    while sent < MAX_CHUNKS {
        let offset = from + sent * CHUNK_U32;
        if offset >= until {
            return sent;
        }
        record.header.offset = offset;
        // At most CHUNK, so it fits.
        record.header.captured = (if until - offset < CHUNK_U32 { until - offset } else { CHUNK_U32 } & 0xffff) as u16;
        // Read back, so that the verifier knows only its bounds: otherwise it follows every path to a length through every
        // iteration of this loop.
        let chunk = u32::from(black_box(&record.header).captured);
        if !packet.copy(segment.payload + offset, chunk, &mut record.payload) {
            env.count(Counter::Truncated);
            return sent;
        }
        submit(record, env);
        sent += 1;
    }
    if from + sent * CHUNK_U32 < until {
        env.count(Counter::Truncated);
    }
    sent
}

const CHUNK_U32: u32 = 2048;
const _: () = assert!(CHUNK_U32 as usize == CHUNK && CHUNK < u16::MAX as usize);

#[inline(always)]
fn submit<E: Env>(record: &RecordBuffer, env: &mut E) {
    if !env.submit(record) {
        env.count(Counter::RingFull);
    }
}

#[cfg(test)]
mod tests;
