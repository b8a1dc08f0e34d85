//! The gate for packets that do not come from the kernel: capture files.
//!
//! It runs the very code of the kernel programs ([`smtpwatch_common::process()`]); a differential test holds the two
//! together. Only the maps differ: here the flow table is exact, there it is the kernel's approximate LRU.

use std::collections::hash_map::Entry;

use smtpwatch_common::{
    Counter, Direction, FlowKey, FlowState, Flows, Host, Link, Order, Outcome, PortSet, Record, RecordBuffer, Scratch,
    Slice, Tag, gate, process, record::UID_UNKNOWN,
};
use smtpwatch_core::{engine::GateOrder, hash::HashMap};

use super::control::{self, Position};

/// Flows whose state is held, where nothing else is said; the least recently active ones make room.
pub const FLOWS: usize = 262_144;

/// A packet as a capture file tells it.
#[derive(Clone, Copy, Debug)]
pub struct CapturedFrame<'a> {
    /// What `bytes` begins with.
    pub link: Link,
    /// The octets captured, from the link layer on.
    pub bytes: &'a [u8],
    /// Octets that the packet had on the wire, counted as `bytes` is.
    pub wire_len: u32,
    /// Nanoseconds since the Unix epoch.
    pub at_ns: u64,
    /// Number of the interface in the capture.
    pub interface: u32,
    /// Which way it went, as seen by the host that is judged.
    pub direction: Direction,
}

/// The gate with its flow table.
///
/// ```
/// # use smtpwatch::capture::userspace_gate::{CapturedFrame, UserspaceGate};
/// # use smtpwatch_common::{Direction, Link, Outcome, PortSet};
/// let mut gate = UserspaceGate::new(PortSet::new(&[25]));
/// let frame = CapturedFrame {
///     link: Link::Ethernet, bytes: &[0; 60], wire_len: 60, at_ns: 1, interface: 1, direction: Direction::Ingress,
/// };
/// let outcome = gate.packet(&frame, |record| println!("{} octets", record.payload.len()));
/// assert_eq!(outcome, Outcome::Other); // no mail
/// ```
pub struct UserspaceGate {
    ports: PortSet,
    flows: Table,
    scratch: Box<Scratch>,
    counters: [u64; Counter::COUNT as usize],
    serial: u32,
}

impl UserspaceGate {
    /// A gate that watches `ports`.
    #[must_use]
    pub fn new(ports: PortSet) -> Self {
        Self::bounded(ports, FLOWS)
    }

    /// The same, with room for `flows`.
    #[must_use]
    pub fn bounded(ports: PortSet, flows: usize) -> Self {
        Self {
            ports,
            flows: Table::new(flows),
            scratch: Box::new(Scratch::EMPTY),
            counters: [0; Counter::COUNT as usize],
            serial: 0,
        }
    }

    /// Takes one packet through the gate; `emit` gets every record that the kernel would have sent, in order.
    pub fn packet(&mut self, frame: &CapturedFrame<'_>, emit: impl FnMut(Record<'_>)) -> Outcome {
        let packet = Slice::new(frame.bytes, frame.wire_len);
        let mut host = Run { frame, ports: &self.ports, counters: &mut self.counters, emit };
        let scratch = &mut *self.scratch;
        process(&packet, frame.link, &mut self.flows, &mut host, || Some(scratch))
    }

    /// Obeys the engine, from the flow's next packet on. An order for a flow that the gate does not hold is void.
    pub fn order(&mut self, order: &GateOrder) {
        let Some(state) = self.flows.peek_mut(&control::key(&order.flow)) else { return };
        let at = Position { flow: state.flow, server_next: state.server.next };
        self.serial = self.serial.wrapping_add(1).max(1);
        // The kernel finds the order with the flow's next packet; until then nothing else of the flow can change. Only a
        // packet that is cut short is counted there as such if it is the first one behind an order to mute, and here as muted.
        if state.phase != gate::Phase::Muted {
            gate::obey(state, &control::translate(order, at, self.serial).1);
        }
    }

    /// The value of a counter.
    #[must_use]
    pub fn counter(&self, counter: Counter) -> u64 {
        self.counters[counter as usize]
    }
}

impl Drop for UserspaceGate {
    fn drop(&mut self) {
        // It holds what was copied of the newest packets.
        *self.scratch = Scratch::EMPTY;
        zeroize::optimization_barrier(&*self.scratch);
    }
}

/// One packet's surroundings.
struct Run<'a, E> {
    frame: &'a CapturedFrame<'a>,
    ports: &'a PortSet,
    counters: &'a mut [u64; Counter::COUNT as usize],
    emit: E,
}

impl<E: FnMut(Record<'_>)> Host for Run<'_, E> {
    fn now(&self) -> u64 {
        self.frame.at_ns
    }

    fn direction(&self) -> Direction {
        self.frame.direction
    }

    fn interface(&self) -> u32 {
        self.frame.interface
    }

    fn owner(&self) -> (u64, u32) {
        (0, UID_UNKNOWN)
    }

    fn ports(&self, word: usize) -> u64 {
        self.ports.as_words()[word]
    }

    // The flow table is exact and costs no more than this table would.
    fn seed(&self, _: usize) -> u64 {
        0
    }

    fn is_muted(&self, _: Tag) -> bool {
        false
    }

    fn mute(&mut self, _: Tag) {}

    fn unmute(&mut self, _: Tag) {}

    // They are obeyed as they come.
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
}

/// The states of flows, bounded, in two generations: when the younger one is full, the older one, which nobody asked for
/// since, goes.
struct Table {
    young: HashMap<FlowKey, FlowState>,
    old: HashMap<FlowKey, FlowState>,
    half: usize,
}

impl Table {
    fn new(capacity: usize) -> Self {
        Self { young: HashMap::default(), old: HashMap::default(), half: capacity / 2 }
    }

    fn peek_mut(&mut self, key: &FlowKey) -> Option<&mut FlowState> {
        self.young.get_mut(key).or_else(|| self.old.get_mut(key))
    }
}

impl Flows for Table {
    fn entry(&mut self, key: &FlowKey, fresh: impl FnOnce() -> FlowState) -> Option<&mut FlowState> {
        if self.young.len() >= self.half && !self.young.contains_key(key) {
            self.old = std::mem::take(&mut self.young);
        }
        Some(match self.young.entry(*key) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(self.old.remove(key).unwrap_or_else(fresh)),
        })
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
        let state = |port: u16| FlowState::new(port.into(), &Segment::EMPTY);
        for port in 0..1_000 {
            table.entry(&key(port), || state(port));
            table.entry(&key(7), || state(7));
            assert!(table.young.len() + table.old.len() <= 64);
        }
        assert_eq!(table.peek_mut(&key(7)).map(|state| state.flow), Some(7));
        assert!(table.peek_mut(&key(1)).is_none());
    }
}
