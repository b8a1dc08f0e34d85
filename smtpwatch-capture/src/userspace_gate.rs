//! The gate for packets from capture files: [`UserspaceGate`], used by the replay.
//!
//! It runs the same code as the kernel programs ([`smtpwatch_common::process()`]); a differential test compares the
//! two. Only the maps differ: the flow table here is an exact LRU, the kernel's is approximate.

use std::{
    hash::{BuildHasher as _, RandomState},
    net::IpAddr,
};

use indexmap::IndexMap;
use smtpwatch_common::{
    Counter, Direction, Encapsulation, Env, FlowKey, FlowState, Flows, Link, Order, Outcome, Packet as _, PortSet,
    Record, RecordBuffer, Scratch, Segment, Side, Slice, Tag,
    fast_path::{SEEDS, SLOTS},
    gate, process,
    record::UID_UNKNOWN,
};
use smtpwatch_config::Network;
use smtpwatch_core::{engine::GateOrder, hash::HashState};

use super::control::{self, Position};

/// Default bound of flows with state; the least recently active flows are evicted.
pub const FLOWS: usize = 262_144;
/// Maximum number of flows that are being opened at once.
const OPENING: usize = 32_768;

/// A packet as recorded in a capture file.
#[derive(Clone, Copy, Debug)]
pub struct CapturedFrame<'a> {
    /// Type of the first header in `bytes`.
    pub link: Link,
    /// The bytes captured, from the link layer on.
    pub bytes: &'a [u8],
    /// Length of the packet on the wire in bytes, with the same headers as `bytes`.
    pub wire_len: u32,
    /// Nanoseconds since the Unix epoch.
    pub at_ns: u64,
    /// Number of the interface in the capture.
    pub interface: u32,
    /// Direction as seen by the monitored host, if the capture records it.
    pub direction: Option<Direction>,
}

/// Number of packets that the snap length of a capture has cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cuts {
    /// Bytes of a dialogue are missing. Cuts in a message body, in TLS records, and in a session that is already
    /// unknown are not counted.
    pub dialogue: u64,
    /// Bytes of the headers are missing: whether such a packet is mail is not known.
    pub headers: u64,
}

/// The gate with its flow table.
///
/// ```
/// # use smtpwatch_capture::userspace_gate::{CapturedFrame, UserspaceGate};
/// # use smtpwatch_common::{Link, Outcome, PortSet};
/// let mut gate = UserspaceGate::new(PortSet::new(&[25]));
/// let frame = CapturedFrame {
///     link: Link::Ethernet, bytes: &[0; 60], wire_len: 60, at_ns: 1, interface: 1, direction: None,
/// };
/// let outcome = gate.packet(&frame, |record| println!("{} bytes", record.payload.len()));
/// assert_eq!(outcome, Outcome::Other); // no mail
/// ```
pub struct UserspaceGate {
    ports: PortSet,
    local: Vec<Network>,
    flows: Table,
    muted: MutedTags,
    scratch: Box<Scratch>,
    counters: [u64; Counter::COUNT as usize],
    cuts: Cuts,
    serial: u32,
}

impl UserspaceGate {
    /// A gate that watches `ports`.
    #[must_use]
    pub fn new(ports: PortSet) -> Self {
        Self::bounded(ports, FLOWS)
    }

    /// Creates a gate with a bound of `flows` flows.
    #[must_use]
    pub fn bounded(ports: PortSet, flows: usize) -> Self {
        Self {
            ports,
            local: Vec::new(),
            flows: Table::new(flows),
            muted: MutedTags::new(),
            scratch: Box::new(Scratch::EMPTY),
            counters: [0; Counter::COUNT as usize],
            cuts: Cuts::default(),
            serial: 0,
        }
    }

    /// Sets the networks of this host: for a packet without a recorded direction, the end within `local` is this
    /// host.
    #[must_use]
    pub fn with_local(mut self, local: Vec<Network>) -> Self {
        self.local = local;
        self
    }

    /// Sets the seeds of another gate's tags, so that both gates overwrite the same slots
    /// ([`mod@smtpwatch_common::fast_path`]).
    #[must_use]
    pub fn with_seeds(mut self, seeds: [u64; SEEDS]) -> Self {
        self.muted = MutedTags { seeds, slots: Vec::new() };
        self
    }

    /// Processes one packet; `emit` receives every record that the kernel would have sent, in order.
    pub fn packet(&mut self, frame: &CapturedFrame<'_>, emit: impl FnMut(Record<'_>)) -> Outcome {
        let packet = Slice::new(frame.bytes, frame.wire_len);
        let Self { ports, local, muted, counters, cuts, .. } = self;
        let mut host = Run { frame, ports, local, muted, counters, cuts, emit };
        let scratch = &mut *self.scratch;
        let outcome = process(&packet, frame.link, &mut self.flows, &mut host, || Some(scratch));
        if outcome == Outcome::Truncated && packet.captured() < packet.len() {
            self.cuts.headers += 1;
        }
        outcome
    }

    /// Applies an order of the engine, from the flow's next packet on. An order for an unknown flow has no effect.
    pub fn order(&mut self, order: &GateOrder) {
        let key = control::key(&order.flow);
        let swapped = self.flows.peek_mut(&key).is_none_or(|state| state.swapped);
        let key = if swapped { key.swapped() } else { key };
        let Some(state) = self.flows.peek_mut(&key).filter(|state| state.swapped == swapped) else { return };
        let at = Position { flow: state.flow, server_next: state.server.next };
        self.serial = self.serial.wrapping_add(1).max(1);
        // The kernel applies the order at the flow's next packet; the flow does not change before that. One
        // difference: if the first packet after an order to mute is truncated, the kernel counts it as truncated, and
        // this gate counts it as muted.
        if state.phase != gate::Phase::Muted {
            gate::obey(state, &control::translate(order, at, self.serial).1, None);
        }
    }

    /// Packets that the capture has cut: see [`Cuts`].
    #[must_use]
    pub const fn cuts(&self) -> Cuts {
        self.cuts
    }

    /// The value of a counter.
    #[must_use]
    pub fn counter(&self, counter: Counter) -> u64 {
        self.counters[counter as usize]
    }
}

impl Drop for UserspaceGate {
    fn drop(&mut self) {
        // The scratch buffer holds payload of the newest packets.
        *self.scratch = Scratch::EMPTY;
        zeroize::optimization_barrier(&*self.scratch);
    }
}

/// The [`Env`] of one packet.
struct Run<'a, E> {
    frame: &'a CapturedFrame<'a>,
    ports: &'a PortSet,
    local: &'a [Network],
    muted: &'a mut MutedTags,
    counters: &'a mut [u64; Counter::COUNT as usize],
    cuts: &'a mut Cuts,
    emit: E,
}

impl<E: FnMut(Record<'_>)> Env for Run<'_, E> {
    fn now(&self) -> u64 {
        self.frame.at_ns
    }

    // For the counters, if the capture does not record a direction.
    fn direction(&self) -> Direction {
        self.frame.direction.unwrap_or(Direction::Ingress)
    }

    fn are_sums_real(&self) -> bool {
        self.frame.direction.is_some()
    }

    #[inline]
    fn direction_of(&self, segment: &Segment) -> Option<Direction> {
        let direction = self.frame.direction;
        if direction.is_some() || self.local.is_empty() { direction } else { direction_by_address(self.local, segment) }
    }

    fn interface(&self) -> u32 {
        self.frame.interface
    }

    // The interface's address is unknown: the capture may come from a promiscuous interface.
    fn link_address(&self) -> Option<[u8; 6]> {
        None
    }

    fn owner(&self) -> (u64, u32) {
        (0, UID_UNKNOWN)
    }

    fn ports(&self, word: usize) -> u64 {
        self.ports.as_words()[word]
    }

    fn seed(&self, index: usize) -> u64 {
        self.muted.seeds[index]
    }

    fn is_muted(&self, tag: Tag) -> bool {
        self.muted.holds(tag)
    }

    fn mute(&mut self, tag: Tag) {
        self.muted.insert(tag);
    }

    fn unmute(&mut self, tag: Tag) {
        self.muted.remove(tag);
    }

    // Unused: [`UserspaceGate::order`] applies orders immediately.
    fn order(&self, _: &FlowKey) -> Option<Order> {
        None
    }

    fn submit(&mut self, record: &RecordBuffer) -> bool {
        let payload = record.payload.get(..usize::from(record.header.captured)).unwrap_or(&[]);
        (self.emit)(Record { header: record.header, payload });
        true
    }

    fn count(&mut self, counter: Counter) {
        self.counters[counter as usize] += 1;
    }

    fn note_cut(&mut self) {
        self.cuts.dialogue += 1;
    }

    // Capture files have few interfaces: the counters by encapsulation suffice.
    fn note_encapsulated(&mut self, _: Encapsulation) {}
}

/// Direction of a segment if exactly one of its ends is in `local`.
#[inline(never)]
fn direction_by_address(local: &[Network], segment: &Segment) -> Option<Direction> {
    let is_local = |address: IpAddr| local.iter().any(|network| network.contains(address));
    match (is_local(segment.key.client().ip()), is_local(segment.key.server().ip())) {
        (true, false) if segment.gate_side() == Side::Client => Some(Direction::Egress),
        (false, true) if segment.gate_side() == Side::Server => Some(Direction::Egress),
        (true, false) | (false, true) => Some(Direction::Ingress),
        (true, true) | (false, false) => None,
    }
}

/// Tags of muted flows, and of flows from which no packet has left. A flow of the second kind has no state, and only
/// its first packet is reported.
struct MutedTags {
    seeds: [u64; SEEDS],
    /// Empty until there is a tag.
    slots: Vec<u64>,
}

impl MutedTags {
    fn new() -> Self {
        // Secret, because a capture file could contain a flow with the tag of another one.
        let secret = RandomState::new();
        Self { seeds: std::array::from_fn(|index| secret.hash_one(index)), slots: Vec::new() }
    }

    fn holds(&self, tag: Tag) -> bool {
        self.slots.get(tag.slot()).is_some_and(|slot| *slot == tag.value())
    }

    fn insert(&mut self, tag: Tag) {
        if self.slots.is_empty() {
            self.slots = vec![0; SLOTS];
        }
        self.slots[tag.slot()] = tag.value();
    }

    fn remove(&mut self, tag: Tag) {
        if self.holds(tag) {
            self.slots[tag.slot()] = 0;
        }
    }
}

/// Flow states: open flows, and flows that are being opened.
struct Table {
    open: Generations,
    opening: Generations,
    /// Index in the younger generation of open flows that was found last: the next packet often belongs to the same
    /// flow.
    last: usize,
}

impl Table {
    fn new(capacity: usize) -> Self {
        Self { open: Generations::new(capacity), opening: Generations::new(OPENING.min(capacity)), last: 0 }
    }

    fn peek_mut(&mut self, key: &FlowKey) -> Option<&mut FlowState> {
        self.open.peek_mut(key).or_else(|| self.opening.peek_mut(key))
    }
}

impl Flows for Table {
    fn find(&mut self, key: &FlowKey, opened: bool) -> Option<&mut FlowState> {
        let Self { open, opening, last } = self;
        if open.young.get_index(*last).is_none_or(|(known, _)| known != key) {
            let index = open.touch(key).or_else(|| {
                let state = if opened { opening.remove(key) } else { None };
                state.map(|state| open.insert(key, state))
            });
            let Some(index) = index else {
                // An opened flow is not in `opening`.
                let index = if opened { None } else { opening.touch(key) };
                return opening.at(index?);
            };
            *last = index;
        }
        open.at(*last)
    }

    fn insert(&mut self, key: &FlowKey, state: &FlowState, opened: bool) -> Option<&mut FlowState> {
        let generations = if opened { &mut self.open } else { &mut self.opening };
        let index = generations.insert(key, *state);
        generations.at(index)
    }
}

/// Flow states with stable indexes: a look-up returns an index for direct access.
type States = IndexMap<FlowKey, FlowState, HashState>;

/// A bounded set of flow states in two generations: when the younger one is full, the older one, whose entries were
/// not looked up since, is dropped.
struct Generations {
    young: States,
    old: States,
    half: usize,
}

impl Generations {
    fn new(capacity: usize) -> Self {
        Self { young: States::default(), old: States::default(), half: capacity / 2 }
    }

    fn peek_mut(&mut self, key: &FlowKey) -> Option<&mut FlowState> {
        self.young.get_mut(key).or_else(|| self.old.get_mut(key))
    }

    /// The state at an index of the younger generation.
    fn at(&mut self, index: usize) -> Option<&mut FlowState> {
        self.young.get_index_mut(index).map(|(_, state)| state)
    }

    /// Moves a state to the younger generation, if it exists; returns its index there.
    fn touch(&mut self, key: &FlowKey) -> Option<usize> {
        self.young.get_index_of(key).or_else(|| {
            let state = self.old.swap_remove(key)?;
            Some(self.insert(key, state))
        })
    }

    /// Inserts a state; returns its index in the younger generation.
    fn insert(&mut self, key: &FlowKey, state: FlowState) -> usize {
        if self.young.len() >= self.half && !self.young.contains_key(key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert_full(*key, state).0
    }

    fn remove(&mut self, key: &FlowKey) -> Option<FlowState> {
        self.young.swap_remove(key).or_else(|| self.old.swap_remove(key))
    }
}

#[cfg(test)]
mod tests {
    use smtpwatch_common::Segment;

    use super::*;

    fn key(port: u16) -> FlowKey {
        FlowKey { client_port: port, ..FlowKey::EMPTY }
    }

    #[test]
    fn the_table_is_bounded_and_keeps_what_is_used() {
        let mut table = Table::new(64);
        let state = |port: u16| FlowState::new(port.into(), &Segment::EMPTY, Some(Direction::Egress), 2, false);
        table.insert(&key(7), &state(7), true);
        for port in 8..1_000 {
            table.insert(&key(port), &state(port), true);
            assert!(table.find(&key(7), true).is_some());
            assert!(table.open.young.len() + table.open.old.len() <= 64);
        }
        assert_eq!(table.peek_mut(&key(7)).map(|state| state.flow), Some(7));
        assert!(table.peek_mut(&key(1)).is_none());
    }

    #[test]
    fn ev24_flows_that_are_being_opened_push_out_no_open_one() {
        let mut table = Table::new(64);
        let state = |port: u16| FlowState::new(port.into(), &Segment::EMPTY, Some(Direction::Egress), 2, false);
        table.insert(&key(7), &state(7), false);
        assert!(table.find(&key(7), true).is_some(), "the next packet that leaves opens it");
        for port in 8..1_000 {
            table.insert(&key(port), &state(port), false);
            assert!(table.opening.young.len() + table.opening.old.len() <= 64);
        }
        assert_eq!(table.peek_mut(&key(7)).map(|state| state.flow), Some(7));
        assert!(table.peek_mut(&key(8)).is_none(), "others that are being opened made room");
        assert!(table.find(&key(999), false).is_some());
        assert_eq!(table.open.young.len() + table.open.old.len(), 1);
    }

    /// A frame with an IPv4 segment and a valid header checksum, between 192.0.2.10:41234 and 198.51.100.25:25.
    fn segment(from: Side, flags: u8, seq: u32, payload: &[u8]) -> Vec<u8> {
        let (client, server) = ([192, 0, 2, 10, 0xa1, 0x12], [198, 51, 100, 25, 0, 25]);
        let (source, target) = if from == Side::Client { (client, server) } else { (server, client) };
        let mut ip = vec![0x45, 0];
        ip.extend(u16::try_from(40 + payload.len()).unwrap().to_be_bytes());
        ip.extend([0, 1, 0x40, 0, 64, 6, 0, 0]);
        ip.extend([&source[..4], &target[..4]].concat());
        let sum: u32 = ip.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
        let folded = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
        ip[10..12].copy_from_slice(&(!folded).to_be_bytes());
        ip.extend([&source[4..], &target[4..]].concat());
        ip.extend(seq.to_be_bytes());
        ip.extend([0, 0, 0, 1, 0x50, flags, 2, 0, 0, 0, 0, 0]);
        ip.extend(payload);
        [&[0; 12][..], &[8, 0], &ip].concat()
    }

    /// Directions and flows of the records of these segments, and the outcome of the last one.
    fn feed(gate: &mut UserspaceGate, segments: &[Vec<u8>]) -> (Vec<(Option<Direction>, u64)>, Option<Outcome>) {
        let mut records = Vec::new();
        let mut last = None;
        for (bytes, at_ns) in segments.iter().zip(1..) {
            let wire_len = u32::try_from(bytes.len()).unwrap();
            let frame = CapturedFrame { link: Link::Ethernet, bytes, wire_len, at_ns, interface: 2, direction: None };
            let emit = |record: Record<'_>| records.push((record.header.direction(), record.header.flow));
            last = Some(gate.packet(&frame, emit));
        }
        (records, last)
    }

    #[test]
    fn local_networks_give_directions_where_the_capture_does_not() {
        let segments = [
            segment(Side::Client, 2, 0, b""),
            segment(Side::Server, 0x12, 9, b""),
            segment(Side::Client, 0x10, 1, b""),
        ];
        let (there, back) = (Some(Direction::Egress), Some(Direction::Ingress));
        for (local, expected) in [
            (&[][..], [(None, 1), (None, 1), (None, 1)]),
            (&["192.0.2.0/24"], [(there, 1), (back, 1), (there, 1)]),
            // An arriving packet creates no flow: the SYN-ACK does.
            (&["198.51.100.25"], [(back, 0), (there, 2), (back, 2)]),
            (&["0.0.0.0/0"], [(None, 1), (None, 1), (None, 1)]),
            (&["203.0.113.0/24"], [(None, 1), (None, 1), (None, 1)]),
        ] {
            let networks: Vec<Network> = local.iter().map(|network| network.parse().unwrap()).collect();
            let mut gate = UserspaceGate::new(PortSet::default()).with_local(networks);
            assert_eq!(feed(&mut gate, &segments).0, expected, "{local:?}");
        }
    }

    #[test]
    fn one_packet_is_reported_of_a_flow_from_which_nothing_left() {
        let mut gate = UserspaceGate::new(PortSet::default()).with_local(vec!["192.0.2.0/24".parse().unwrap()]);
        let arrives = segment(Side::Server, 0x18, 9, b"220 hi\r\n");
        let leaves = segment(Side::Client, 0x18, 5, b"QUIT\r\n");
        let (records, last) = feed(&mut gate, &[arrives.clone(), arrives.clone(), arrives.clone()]);
        assert_eq!((records, last), (vec![(Some(Direction::Ingress), 0)], Some(Outcome::Muted)));
        let (records, _) = feed(&mut gate, &[leaves, arrives]);
        assert_eq!(records, [(Some(Direction::Egress), 1), (Some(Direction::Ingress), 1)]);
    }
}
