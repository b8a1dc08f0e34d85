//! The gate for packets that do not come from the kernel: capture files.
//!
//! It runs the very code of the kernel programs ([`smtpwatch_common::process()`]); a differential test holds the two
//! together. Only the maps differ: here the flow table is exact, there it is the kernel's approximate LRU.

use std::{collections::HashMap, hash::Hash};

use smtpwatch_common::{
    Counter, Direction, FlowKey, FlowState, Flows, Host, Link, Order, Outcome, PortSet, Record, RecordBuffer, Scratch,
    Slice, Tag, process, record::UID_UNKNOWN,
};
use smtpwatch_core::engine::GateOrder;

use super::control::{self, Position};

/// Flows whose state is held; the least recently active ones make room.
pub const FLOWS: usize = 262_144;
/// Orders held; the oldest make room.
pub const ORDERS: usize = 65_536;

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
    flows: Table<FlowState>,
    orders: Table<Order>,
    scratch: Box<Scratch>,
    counters: [u64; Counter::COUNT as usize],
    serial: u32,
}

impl UserspaceGate {
    /// A gate that watches `ports`.
    #[must_use]
    pub fn new(ports: PortSet) -> Self {
        Self {
            ports,
            flows: Table::new(FLOWS),
            orders: Table::new(ORDERS),
            scratch: Box::new(Scratch::EMPTY),
            counters: [0; Counter::COUNT as usize],
            serial: 0,
        }
    }

    /// Takes one packet through the gate; `emit` gets every record that the kernel would have sent, in order.
    pub fn packet(&mut self, frame: &CapturedFrame<'_>, emit: impl FnMut(Record<'_>)) -> Outcome {
        let packet = Slice::new(frame.bytes, frame.wire_len);
        let mut host = Run { frame, ports: &self.ports, orders: &self.orders, counters: &mut self.counters, emit };
        let scratch = &mut *self.scratch;
        process(&packet, frame.link, &mut self.flows, &mut host, || Some(scratch))
    }

    /// Obeys the engine, from the flow's next packet on. An order for a flow that the gate does not hold is void.
    pub fn order(&mut self, order: &GateOrder) {
        let Some(state) = self.flows.peek(&control::key(&order.flow)) else { return };
        let at = Position { flow: state.flow, server_next: state.server.next };
        self.serial = self.serial.wrapping_add(1).max(1);
        let (key, order) = control::translate(order, at, self.serial);
        self.orders.insert(key, order);
    }

    /// The value of a counter.
    #[must_use]
    pub fn counter(&self, counter: Counter) -> u64 {
        self.counters[counter as usize]
    }
}

/// One packet's surroundings.
struct Run<'a, E> {
    frame: &'a CapturedFrame<'a>,
    ports: &'a PortSet,
    orders: &'a Table<Order>,
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

    fn order(&self, key: &FlowKey) -> Option<Order> {
        self.orders.peek(key).copied()
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

/// A bounded map in two generations: when the younger one is full, the older one, which nobody asked for since, goes.
struct Table<V> {
    young: HashMap<FlowKey, V>,
    old: HashMap<FlowKey, V>,
    half: usize,
}

impl<V> Table<V>
where
    FlowKey: Hash + Eq,
{
    fn new(capacity: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), half: capacity / 2 }
    }

    fn peek(&self, key: &FlowKey) -> Option<&V> {
        self.young.get(key).or_else(|| self.old.get(key))
    }

    fn insert(&mut self, key: FlowKey, value: V) {
        self.make_room();
        self.old.remove(&key);
        self.young.insert(key, value);
    }

    fn make_room(&mut self) {
        if self.young.len() >= self.half {
            self.old = std::mem::take(&mut self.young);
        }
    }
}

impl Flows for Table<FlowState> {
    fn entry(&mut self, key: &FlowKey, fresh: impl FnOnce() -> FlowState) -> Option<&mut FlowState> {
        if !self.young.contains_key(key) {
            let state = self.old.remove(key).unwrap_or_else(fresh);
            self.make_room();
            self.young.insert(*key, state);
        }
        self.young.get_mut(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(port: u16) -> FlowKey {
        FlowKey { client_port: port, ..FlowKey::EMPTY }
    }

    #[test]
    fn the_table_is_bounded_and_keeps_what_is_used() {
        let mut table = Table::new(64);
        for port in 0..1_000 {
            table.insert(key(port), port);
            table.insert(key(7), 7);
            assert!(table.young.len() + table.old.len() <= 64);
        }
        assert_eq!(table.peek(&key(7)), Some(&7));
        assert_eq!(table.peek(&key(1)), None);
    }
}
