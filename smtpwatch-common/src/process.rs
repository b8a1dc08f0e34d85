//! The whole way of one packet: walk, state, orders, gate, records. The same code in the kernel and in the daemon.

use crate::{
    CHUNK, Counter, Direction, FlowKey, FlowState, Header, Link, Order, Packet, Scratch, Segment, Walk,
    gate::{self, Decision, Phase},
    record::mark,
    walk,
};

/// Records that one packet can become: 64 KiB, the largest IPv4 packet. Payload past that (BIG TCP) is counted as truncated.
pub const MAX_CHUNKS: u32 = 32;

/// Where flow state lives.
pub trait Flows {
    /// The state of `key`, or that which `fresh` makes. `None` if there is no room.
    fn entry(&mut self, key: &FlowKey, fresh: impl FnOnce() -> FlowState) -> Option<&mut FlowState>;
}

/// What the gate runs in.
pub trait Host {
    /// Nanoseconds; not the same twice for two lives of one flow.
    fn now(&self) -> u64;

    /// Which hook this is.
    fn direction(&self) -> Direction;

    /// Interface index.
    fn interface(&self) -> u32;

    /// Cgroup and user of the sending socket, where known: see [`Header::cgroup`] and [`Header::uid`].
    fn owner(&self) -> (u64, u32);

    /// Whether a port is watched.
    fn watched(&self, port: u16) -> bool;

    /// The daemon's order for a flow.
    fn order(&self, key: &FlowKey) -> Option<Order>;

    /// Sends the record in `scratch`: its header and the first [`Header::captured`] octets of its payload. False if the
    /// ring has no room.
    fn submit(&mut self, scratch: &Scratch) -> bool;

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
}

impl Outcome {
    /// The counter of a packet that ended so: each packet adds to exactly one of these.
    #[must_use]
    #[inline(always)]
    pub const fn counter(self, direction: Direction) -> Counter {
        match self {
            Self::Other => Counter::other(direction),
            Self::Muted => Counter::muted(direction),
            Self::Forwarded => Counter::forwarded(direction),
            Self::Fragment => Counter::Fragment,
            Self::Unparsed => Counter::Unparsed,
            Self::Truncated => Counter::Truncated,
            Self::FlowTableFull => Counter::FlowTableFull,
        }
    }
}

/// Takes one packet through the gate and counts it. `scratch` is asked for only when a record is to be sent.
#[inline(always)]
pub fn process<'s, P: Packet, F: Flows, H: Host>(
    packet: &P,
    link: Link,
    flows: &mut F,
    host: &mut H,
    scratch: impl FnOnce() -> Option<&'s mut Scratch>,
) -> Outcome {
    let outcome = match walk::walk(packet, link, |port| host.watched(port)) {
        Walk::NotTcp | Walk::NotWatched => Outcome::Other,
        Walk::Fragment => Outcome::Fragment,
        Walk::Unparsed => Outcome::Unparsed,
        Walk::Truncated => Outcome::Truncated,
        Walk::Segment(segment) => process_segment(packet, &segment, flows, host, scratch),
    };
    host.count(outcome.counter(host.direction()));
    outcome
}

#[inline(always)]
fn process_segment<'s, P: Packet, F: Flows, H: Host>(
    packet: &P,
    segment: &Segment,
    flows: &mut F,
    host: &mut H,
    scratch: impl FnOnce() -> Option<&'s mut Scratch>,
) -> Outcome {
    let Some(state) = flows.entry(&segment.key, || FlowState::new(host.now(), segment)) else {
        return Outcome::FlowTableFull;
    };
    if gate::reopens(state, segment) {
        *state = FlowState::new(host.now(), segment);
    }
    if state.phase != Phase::Muted
        && let Some(order) = host.order(&segment.key)
    {
        gate::obey(state, &order);
    }
    let muted = state.phase == Phase::Muted;
    let decision = gate::decide(state, segment);
    if decision == Decision::Nothing && (muted || segment.length == 0) {
        return Outcome::Muted;
    }
    let Some(scratch) = scratch() else {
        // The kernel has one for every CPU; were it missing, the record could not be sent.
        host.count(Counter::RingFull);
        return Outcome::Forwarded;
    };
    let flow = state.flow;
    let chunk_len = match decision {
        Decision::Nothing => 0,
        Decision::Header { marks } => {
            fill(packet, segment, flow, marks, host, scratch);
            send(scratch, 0, 0, host);
            0
        }
        Decision::Copy { from, until, marks } => {
            fill(packet, segment, flow, marks, host, scratch);
            copy(packet, segment, from, until, host, scratch)
        }
    };
    if !muted {
        gate::inspect(state, packet, segment, &scratch.payload, chunk_len);
    }
    if decision == Decision::Nothing { Outcome::Muted } else { Outcome::Forwarded }
}

#[inline(always)]
fn fill<P: Packet, H: Host>(packet: &P, segment: &Segment, flow: u64, marks: u16, host: &H, scratch: &mut Scratch) {
    let (cgroup, uid) = host.owner();
    let header = &mut scratch.header;
    header.timestamp = host.now();
    header.flow = flow;
    header.cgroup = cgroup;
    header.uid = uid;
    header.interface = host.interface();
    header.key = segment.key;
    header.seq = segment.seq;
    header.ack = segment.ack;
    header.length = segment.length;
    header.window = segment.window;
    header.ip_id = segment.ip_id;
    header.marks = marks;
    header.abi = crate::record::WIRE_ABI;
    header.direction = host.direction() as u8;
    header.from = segment.from as u8;
    header.ip_version = segment.ip_version;
    header.tcp_flags = segment.flags;
    header.ttl = segment.ttl;
    header.reserved = [0; 5];
    header.options_len = 0;
    let options = u32::from(segment.options_len);
    if options > 0 && packet.copy(segment.payload - options, options, &mut header.options) {
        header.options_len = segment.options_len;
    }
}

/// Sends payload octets `from..until`; returns how many octets of the segment's end are at the start of the scratch.
#[inline(always)]
fn copy<P: Packet, H: Host>(
    packet: &P,
    segment: &Segment,
    from: u32,
    until: u32,
    host: &mut H,
    scratch: &mut Scratch,
) -> u32 {
    let mut until = until;
    let captured = packet.captured().saturating_sub(segment.payload);
    if captured < until {
        until = captured;
        scratch.header.marks |= mark::CUT;
    }
    let mut offset = from;
    let mut chunk = 0;
    let mut sent = 0;
    while sent < MAX_CHUNKS {
        if offset >= until {
            break;
        }
        chunk = until - offset;
        if chunk > CHUNK_U32 {
            chunk = CHUNK_U32;
        }
        if !packet.copy(segment.payload + offset, chunk, &mut scratch.payload) {
            host.count(Counter::Truncated);
            return 0;
        }
        send(scratch, offset, chunk, host);
        offset += chunk;
        sent += 1;
    }
    if sent == 0 {
        send(scratch, from, 0, host); // the snapshot ends before the payload
        return 0;
    }
    if offset < until {
        host.count(Counter::Truncated);
    }
    if offset == segment.length { chunk } else { 0 }
}

const CHUNK_U32: u32 = 2048;
const _: () = assert!(CHUNK_U32 as usize == CHUNK && CHUNK < u16::MAX as usize);

#[inline(always)]
fn send<H: Host>(scratch: &mut Scratch, offset: u32, captured: u32, host: &mut H) {
    let header: &mut Header = &mut scratch.header;
    header.offset = offset;
    // At most CHUNK.
    header.captured = (captured & 0xffff) as u16;
    if !host.submit(scratch) {
        host.count(Counter::RingFull);
    }
}

#[cfg(test)]
mod tests;
