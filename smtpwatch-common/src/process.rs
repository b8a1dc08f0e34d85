//! The whole way of one packet: walk, state, orders, gate, records. The same code in the kernel and in the daemon.

use core::hint::black_box;

use crate::{
    Admission, CHUNK, Counter, Direction, FlowKey, FlowState, Link, Order, Packet, RecordBuffer, Scratch, Segment,
    Side, Tag, Walk,
    gate::{self, Decision, Phase},
    glance, ports,
    record::{DIRECTION_UNKNOWN, mark},
    tail::NO_END,
    walk::{
        self, flaw,
        tcp_flag::{ACK, RST, SYN},
    },
};

/// Records that one packet can become: 64 KiB, the largest IPv4 packet. Payload past that (BIG TCP) is counted as truncated.
pub const MAX_CHUNKS: u32 = 32;

/// Where flow state lives. Flows that are being opened have a room of their own: a flood of SYNs pushes out no open one (EV-24).
pub trait Flows {
    /// The state of `key`. `opened`: from here on it is that of an open flow.
    fn find(&mut self, key: &FlowKey, opened: bool) -> Option<&mut FlowState>;

    /// Puts `state` there for `key`, as one that is being opened or is open. `None` if there is no room.
    fn insert(&mut self, key: &FlowKey, state: &FlowState, opened: bool) -> Option<&mut FlowState>;
}

/// What the gate runs in.
pub trait Host {
    /// Nanoseconds; not the same twice for two lives of one flow.
    fn now(&self) -> u64;

    /// Which hook this is.
    fn direction(&self) -> Direction;

    /// Which way a segment goes: the hook says, unless a capture file has both ways in one.
    #[inline(always)]
    fn direction_of(&self, _segment: &Segment) -> Option<Direction> {
        Some(self.direction())
    }

    /// Whether a wrong sum of an arriving header is one for which the receiver discards the packet. Captures are edited, and hold packets
    /// whose sums the network card was to fill in.
    #[inline(always)]
    fn are_sums_real(&self) -> bool {
        true
    }

    /// Ethernet address of the interface; `None` where it has none or that is not known.
    fn link_address(&self) -> Option<[u8; 6]>;

    /// Interface index.
    fn interface(&self) -> u32;

    /// Cgroup and user of the sending socket, where known: see [`Header::cgroup`] and [`Header::uid`].
    fn owner(&self) -> (u64, u32);

    /// A word of the watched ports: [`PortSet::as_words`](crate::PortSet::as_words).
    fn ports(&self, word: usize) -> u64;

    /// One of [`glance::SEEDS`](crate::glance::SEEDS) random numbers, which stay the same.
    fn seed(&self, index: usize) -> u64;

    /// Whether the table of muted flows holds a tag. To always say no is right too: [`glance`](crate::glance).
    fn is_muted(&self, tag: Tag) -> bool;

    /// Puts a tag there.
    fn mute(&mut self, tag: Tag);

    /// Takes a tag from there.
    fn unmute(&mut self, tag: Tag);

    /// The daemon's order for a flow.
    fn order(&self, key: &FlowKey) -> Option<Order>;

    /// Sends `record`: its header and the first octets of its payload, as many as the header says. False if the ring has
    /// no room.
    fn submit(&mut self, record: &RecordBuffer) -> bool;

    /// Adds one to a counter.
    fn count(&mut self, counter: Counter);
}

/// What became of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Not of a watched port.
    Other,
    /// Of a watched flow, nothing wanted.
    Muted,
    /// At least the header was sent, or lost to a full ring.
    Forwarded,
    /// TCP in an IP fragment.
    Fragment,
    /// Headers that make no sense.
    Unparsed,
    /// Shorter than it says.
    Truncated,
    /// No room for the flow's state.
    FlowTableFull,
    /// Of this host's own side, and arrived from outside: see [`binding`](crate::binding).
    Forged,
    /// [`process_search`] has to follow, and counts the packet.
    Search,
}

impl Outcome {
    /// The counter of a packet that ended so: each packet adds to exactly one of these.
    #[must_use]
    #[inline(always)]
    pub const fn counter(self, direction: Direction) -> Counter {
        match self {
            Self::Other => Counter::other(direction),
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

/// Takes one packet through the gate and counts it. `scratch` is asked for only when its port is watched.
#[inline(always)]
pub fn process<'s, P: Packet, F: Flows, H: Host>(
    packet: &P,
    link: Link,
    flows: &mut F,
    host: &mut H,
    scratch: impl FnOnce() -> Option<&'s mut Scratch>,
) -> Outcome {
    match glance(packet, link, host) {
        Some(outcome) => outcome,
        None => {
            let Some(scratch) = scratch() else { return Outcome::Unparsed };
            match process_closely(packet, link, flows, host, || Some(&mut *scratch)) {
                Outcome::Search => process_search(packet, flows, host, scratch),
                outcome => outcome,
            }
        }
    }
}

/// [`process`] for a packet of which the first glance does not tell. Apart, so that the kernel programs can have it in a
/// function of its own: what is told at a glance shall not pay for its registers and its stack.
#[inline(always)]
pub fn process_closely<'s, P: Packet, F: Flows, H: Host>(
    packet: &P,
    link: Link,
    flows: &mut F,
    host: &mut H,
    scratch: impl FnOnce() -> Option<&'s mut Scratch>,
) -> Outcome {
    let outcome = match walk::walk(packet, link, |port| is_watched(host, port), scratch) {
        Walk::NotTcp | Walk::NotWatched => Outcome::Other,
        Walk::Fragment => Outcome::Fragment,
        // The kernel has a scratch for every CPU.
        Walk::Unparsed | Walk::NoScratch => Outcome::Unparsed,
        Walk::Truncated => Outcome::Truncated,
        Walk::Segment(scratch) => process_segment(packet, link, scratch, flows, host),
    };
    if outcome != Outcome::Search {
        host.count(outcome.counter(host.direction()));
    }
    outcome
}

/// Looks for the end of a message in a segment of one, which [`process_closely`] has left in `scratch`, and sends what stands
/// behind it. Apart, so that the verifier comes to it from one place and not from each of the ways through the rest.
#[inline(always)]
pub fn process_search<P: Packet, F: Flows, H: Host>(
    packet: &P,
    flows: &mut F,
    host: &mut H,
    scratch: &mut Scratch,
) -> Outcome {
    let Scratch { segment, tail, record, told, .. } = scratch;
    let segment: &Segment = segment;
    let mut outcome = if *told { Outcome::Forwarded } else { Outcome::Muted };
    if let Some(state) = flows.find(&segment.key, false) {
        let behind = black_box(gate::search(state, segment, tail));
        if behind != NO_END {
            let decision = gate::behind_body(state, segment, behind);
            record.header.flow = state.flow;
            black_box(send(packet, segment, &decision, host, record));
            if decision != Decision::Nothing {
                outcome = Outcome::Forwarded;
            }
        }
    }
    host.count(outcome.counter(host.direction()));
    outcome
}

#[inline(always)]
fn is_watched<H: Host>(host: &H, port: u16) -> bool {
    let wire = port.to_be();
    host.ports(ports::word_of(wire)) >> ports::bit_of(wire) & 1 != 0
}

#[inline(always)]
fn process_segment<P: Packet, F: Flows, H: Host>(
    packet: &P,
    link: Link,
    scratch: &mut Scratch,
    flows: &mut F,
    host: &mut H,
) -> Outcome {
    let Scratch { segment, tail, record, told, fresh, ordered } = scratch;
    let direction = host.direction_of(segment);
    let arrives = matches!(direction, Some(Direction::Ingress));
    // A refusal (RST) opens nothing: it answers any segment that arrives for a connection that is being opened (RFC 9293 §3.10.7.4).
    let mut found = flows.find(&segment.key, !arrives && !segment.has(SYN | RST));
    if let Some(state) = &mut found
        && state.phase == Phase::Muted
        && !segment.has(gate::CONTROL)
    {
        segment.orient(state.swapped);
        mute(state, segment, host);
        return Outcome::Muted;
    }
    if arrives && !is_for_us(packet, link, host) {
        segment.flaws |= flaw::UNUSUAL;
    }
    if !arrives {
        // What this host sends it sends on purpose; and of a capture without directions nothing is known of the receiver.
        segment.flaws = 0;
    } else if !host.are_sums_real() {
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
            let swapped = if !arrives && segment.has(SYN) { is_swapped(segment, host) } else { state.swapped };
            segment.orient(swapped);
            let admission = state.binding.admit(segment.from, direction, host.interface());
            match admission {
                Admission::Forged => return Outcome::Forged,
                Admission::Duplicate | Admission::Claim => return Outcome::Muted,
                Admission::Own | Admission::Peer => {}
            }
            if admission == Admission::Own && gate::reopens(state, segment) {
                *state = FlowState::new(host.now(), segment, direction, host.interface(), swapped);
                unmute(segment, host);
            }
            (state, admission)
        }
        None if arrives => {
            segment.orient(segment.has(SYN) && is_swapped(segment, host));
            return black_box(claim(packet, segment, flows, host, record));
        }
        // This host refuses what is no connection of it: an answer to anybody's packet.
        None if segment.has(RST) => return Outcome::Muted,
        None => {
            let swapped = segment.has(SYN) && is_swapped(segment, host);
            segment.orient(swapped);
            *fresh = FlowState::new(host.now(), segment, direction, host.interface(), swapped);
            let Some(state) = flows.insert(&segment.key, fresh, !segment.has(SYN)) else {
                return Outcome::FlowTableFull;
            };
            unmute(segment, host);
            (state, Admission::Own)
        }
    };
    if state.phase != Phase::Muted {
        *ordered = segment.oriented_key();
        if let Some(order) = host.order(ordered) {
            gate::obey(state, &order, Some((segment, admission)));
        }
    }
    let muted = state.phase == Phase::Muted;
    let decision = gate::decide(state, segment, admission);
    if decision == Decision::Nothing && (muted || segment.length == 0) {
        return Outcome::Muted;
    }
    record.header.flow = state.flow;
    black_box(send(packet, segment, &decision, host, record));
    *told = decision != Decision::Nothing;
    if !muted && black_box(gate::inspect(state, packet, segment, tail, admission)) {
        return Outcome::Search;
    }
    if decision == Decision::Nothing { Outcome::Muted } else { Outcome::Forwarded }
}

/// Whether the client is the end that the ports alone would not tell: both are watched, and the SYN is of the lower one, or the SYN-ACK of
/// the higher one (EV-25).
#[inline(always)]
fn is_swapped<H: Host>(segment: &Segment, host: &H) -> bool {
    let by_server = segment.gate_side() == Side::Server;
    by_server != segment.has(ACK) && is_watched(host, segment.key.client_port)
}

/// Whether an arriving frame is addressed to this host's interface: its stack discards frames to other hosts, and TCP in broadcasts
/// (Linux: ip_rcv_core, tcp_v4_rcv). A bridge passes them on, so that they are no more than unusual.
#[inline(always)]
fn is_for_us<P: Packet, H: Host>(packet: &P, link: Link, host: &H) -> bool {
    let (Link::Ethernet, Some(own)) = (link, host.link_address()) else { return true };
    packet.load::<6>(0) == Some(own)
}

/// What arrives of a flow before anything of it has left: a SYN is told, as a header, and takes no room here. Of anything else one
/// packet is told: the other direction may go where nobody looks (EV-26).
// A function of its own, because a kernel program has 512 bytes of stack.
#[inline(never)]
fn claim<P: Packet, F: Flows, H: Host>(
    packet: &P,
    segment: &Segment,
    flows: &mut F,
    host: &mut H,
    record: &mut RecordBuffer,
) -> Outcome {
    let opens = segment.has(SYN) && !segment.has(ACK);
    let unusual = if segment.flaws & flaw::UNUSUAL != 0 { mark::UNUSUAL } else { 0 };
    let marks = unusual | if opens { 0 } else { mark::MIDSTREAM };
    record.header.flow = 0;
    fill(packet, segment, marks, host, record);
    submit(record, host);
    if !opens {
        let tag = Tag::of(host, &segment.key, segment.ip_version, segment.gate_side());
        host.mute(tag);
        // Meanwhile another CPU may have had the first packet that leaves.
        if black_box(flows.find(&segment.key, false)).is_some() {
            host.unmute(tag);
        }
    }
    Outcome::Forwarded
}

/// Has the flow's later packets in this direction told at a glance.
#[inline(always)]
fn mute<H: Host>(state: &mut FlowState, segment: &Segment, host: &mut H) {
    let tag = Tag::of(host, &segment.key, segment.ip_version, segment.gate_side());
    host.mute(tag);
    // Meanwhile another CPU may have had the SYN of another life, and have cleared the tag before it was set.
    if black_box(state).phase != Phase::Muted {
        host.unmute(tag);
    }
}

#[inline(always)]
fn unmute<H: Host>(segment: &Segment, host: &mut H) {
    for side in [Side::Client, Side::Server] {
        let tag = Tag::of(host, &segment.key, segment.ip_version, side);
        host.unmute(tag);
        host.unmute(tag.other_direction());
    }
}

/// Sends what `decision` says; returns how many records that took.
// A function of its own, because a kernel program has 512 octets of stack. It returns a value, and the
// caller takes it, because the verifier looks at the return register also where nothing is returned.
#[inline(never)]
fn send<P: Packet, H: Host>(
    packet: &P,
    segment: &Segment,
    decision: &Decision,
    host: &mut H,
    record: &mut RecordBuffer,
) -> u32 {
    match *decision {
        Decision::Nothing => 0,
        Decision::Header { marks } => {
            fill(packet, segment, marks, host, record);
            submit(record, host);
            1
        }
        Decision::Copy { from, until, marks } => {
            fill(packet, segment, marks, host, record);
            copy(packet, segment, (from, until), host, record)
        }
    }
}

#[inline(always)]
fn fill<P: Packet, H: Host>(packet: &P, segment: &Segment, marks: u16, host: &H, record: &mut RecordBuffer) {
    let (cgroup, uid) = host.owner();
    let header = &mut record.header;
    header.timestamp = host.now();
    header.cgroup = cgroup;
    header.uid = uid;
    header.interface = host.interface();
    header.key = segment.oriented_key();
    header.seq = segment.seq;
    header.ack = segment.ack;
    header.length = segment.length;
    header.window = segment.window;
    header.ip_id = segment.ip_id;
    header.marks = marks;
    header.abi = crate::record::WIRE_ABI;
    header.direction = match host.direction_of(segment) {
        Some(direction) => direction as u8,
        None => DIRECTION_UNKNOWN,
    };
    header.from = segment.from as u8;
    header.ip_version = segment.ip_version;
    header.tcp_flags = segment.flags;
    header.ttl = segment.ttl;
    header.offset = if marks & mark::BODY_ENDED == 0 { 0 } else { segment.length };
    header.captured = 0;
    header.options_len = 0;
    let options = u32::from(segment.options_len);
    // The last eight octets of the fixed TCP header (RFC 9293 §3.1), read here and not by the walk: muted packets do not pay.
    if let Some([data_offset, _, _, _, c0, c1, u0, u1]) = packet.load::<8>(segment.payload - options - 8) {
        header.data_offset = data_offset;
        header.checksum = u16::from_be_bytes([c0, c1]);
        header.urgent = u16::from_be_bytes([u0, u1]);
    }
    if options > 0 && packet.copy(segment.payload - options, options, &mut header.options) {
        header.options_len = segment.options_len;
    }
}

/// Sends payload octets `from..until`; returns how many records that took.
#[inline(always)]
fn copy<P: Packet, H: Host>(
    packet: &P,
    segment: &Segment,
    (from, mut until): (u32, u32),
    host: &mut H,
    record: &mut RecordBuffer,
) -> u32 {
    let captured = packet.captured().saturating_sub(segment.payload);
    if captured < until {
        until = captured;
        record.header.marks |= mark::CUT;
        if until <= from {
            submit(record, host); // the snapshot ends before what is wanted
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
        // Read back, so that the verifier knows no more of it than its bounds: it would follow every way of reaching a
        // length through every turn of this loop.
        let chunk = u32::from(black_box(&record.header).captured);
        if !packet.copy(segment.payload + offset, chunk, &mut record.payload) {
            host.count(Counter::Truncated);
            return sent;
        }
        submit(record, host);
        sent += 1;
    }
    if from + sent * CHUNK_U32 < until {
        host.count(Counter::Truncated);
    }
    sent
}

const CHUNK_U32: u32 = 2048;
const _: () = assert!(CHUNK_U32 as usize == CHUNK && CHUNK < u16::MAX as usize);

#[inline(always)]
fn submit<H: Host>(record: &RecordBuffer, host: &mut H) {
    if !host.submit(record) {
        host.count(Counter::RingFull);
    }
}

#[cfg(test)]
mod tests;
