//! Operations on one connection: segments near the streams' positions, gaps, overlaps, SYN, FIN, RST, ends.
//!
//! Asserted: memory stays under its bound, by the connection's own account and by the allocator's; the bytes and gaps
//! of each stream are contiguous; a closed connection buffers nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use smtpwatch_common::Direction;
use smtpwatch_core::{
    FlowKey, Role, Segment, Side, TcpFlags, Timestamp,
    flow::{Connection, FlowEvent, SynClaims},
    limits,
};
use smtpwatch_fuzz::{
    allocation::{Counting, Watch},
    operation::{Operation, what},
};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocation bound, bytes: the connection's own bound twice, because its largest list is copied while it grows.
const ALLOCATED: usize = 2 * Connection::MEMORY;

/// Source of the payloads: each of the 256 start offsets yields different bytes.
static OCTETS: [u8; 66_000] = {
    let mut octets = [0; 66_000];
    let mut i = 0;
    while i < octets.len() {
        octets[i] = (i ^ (i >> 8).wrapping_mul(31)) as u8;
        i += 1;
    }
    octets
};

fuzz_target!(|operations: Vec<Operation>| {
    let mut owner = Owner::default();
    let watch = Watch::start();
    for operation in &operations {
        owner.step(operation);
        assert!(watch.peak() <= ALLOCATED, "{} octets allocated", watch.peak());
    }
    owner.close();
    assert!(watch.peak() <= ALLOCATED, "{} octets allocated", watch.peak());
});

#[derive(Default)]
struct Owner {
    connection: Option<Connection>,
    /// Which side this host is, if known; set by the first operation.
    own: Option<Option<Side>>,
    /// Next sequence number of both ends.
    next: [u32; 2],
    /// Events of this connection were left undrained at some time. While they wait, events that do not fit are missing
    /// in the evidence too.
    undrained: bool,
    /// Position of both streams in the delivered data.
    delivered: [u64; 2],
    now: Timestamp,
}

impl Owner {
    fn step(&mut self, operation: &Operation) {
        let is = |bit| operation.what & bit != 0;
        let from = if is(what::SERVER) { Side::Server } else { Side::Client };
        let own =
            *self.own.get_or_insert([None, Some(Side::Client), Some(Side::Server)][usize::from(operation.after % 3)]);
        self.now.0 += i64::from(operation.after) * 1_000_000;
        let far = if is(what::FAR) { 1_000 } else { 1 };
        let ahead = i32::from(operation.ahead) * far;
        for tooth in 0..if is(what::COMB) { 100 } else { 1 } {
            let seq = self.next[from as usize].wrapping_add_signed(ahead).wrapping_add(2 * tooth);
            let ack = self.next[from.peer() as usize].wrapping_add_signed(i32::from(operation.ack));
            let length = if is(what::COMB) { 1 } else { usize::from(operation.length) };
            let start = usize::from(operation.fill);
            let captured = if is(what::HOLE) { 0 } else { length.saturating_sub(usize::from(operation.offset)) };
            let segment = Segment {
                at: self.now,
                flow: flow(),
                from,
                role: Role::Client,
                direction: own.map(|own| if own == from { Direction::Egress } else { Direction::Ingress }),
                interface: "",
                interface_index: 2,
                seq,
                ack,
                flags: TcpFlags(operation.flags),
                urgent: 0,
                window: 64_240,
                ttl: 64,
                ip_id: 0,
                options: &OCTETS[start..start + usize::from(operation.fill % 41)],
                checksum_right: [None, Some(true), Some(false)][usize::from(operation.fill % 3)],
                unusual: operation.fill & 0x40 != 0,
                length: u32::try_from(length).expect("a segment is short"),
                offset: u32::from(operation.offset),
                payload: &OCTETS[start..start + captured],
                body_ended: false,
                budget_spent: false,
                sender: None,
            };
            if is(what::ADVANCE) {
                self.next[from as usize] =
                    seq.wrapping_add(segment.length).wrapping_add(u32::from(operation.flags & 3 != 0));
            }
            self.push(&segment);
            if is(what::UNDRAINED) {
                self.undrained = true;
            } else {
                self.drain();
            }
        }
        if is(what::SETTLE)
            && let Some(connection) = &mut self.connection
        {
            connection.settle();
        }
        if is(what::CLOSE) {
            self.close();
        }
    }

    fn push(&mut self, segment: &Segment<'_>) {
        if self.connection.as_ref().is_some_and(|connection| connection.is_new_connection(segment)) {
            self.close();
        }
        match &mut self.connection {
            Some(connection) => connection.push(segment),
            None => {
                self.delivered = [0; 2];
                self.undrained = false;
                self.connection = Some(Connection::new(segment, self.own.flatten(), SynClaims::default()));
            }
        }
        self.weigh();
    }

    fn drain(&mut self) {
        let Some(connection) = &mut self.connection else { return };
        while let Some(event) = connection.poll() {
            match event {
                FlowEvent::Data { from, offset, bytes, .. } => {
                    assert!(!bytes.is_empty());
                    assert_eq!(offset, self.delivered[from as usize], "a jump in the stream of the {from:?}");
                    self.delivered[from as usize] += bytes.len() as u64;
                }
                FlowEvent::Gap { from, length, .. } => self.delivered[from as usize] += length,
                FlowEvent::Finished { .. } | FlowEvent::Reset { .. } => {}
            }
        }
        self.weigh();
    }

    fn close(&mut self) {
        if let Some(connection) = &mut self.connection {
            connection.close(self.now);
        }
        self.drain();
        let Some(mut connection) = self.connection.take() else { return };
        assert!(connection.poll().is_none(), "an event after the last one");
        assert!(connection.conflicts().len() <= limits::CONFLICTS);
        for conflict in connection.conflicts() {
            assert!(self.undrained || conflict.first != conflict.other, "copies that do not differ");
            assert!(conflict.first.len() == conflict.other.len() && conflict.first.len() <= limits::CONFLICT_BYTES);
        }
    }

    fn weigh(&self) {
        let memory = self.connection.as_ref().map_or(0, Connection::memory);
        assert!(memory <= Connection::MEMORY, "{memory} octets, not {}", Connection::MEMORY);
    }
}

fn flow() -> FlowKey {
    FlowKey { client: ([192, 0, 2, 10], 41_234).into(), server: ([198, 51, 100, 25], 25).into() }
}
