//! Packets through the way of one packet, as the kernel programs take it: walk, state, orders, gate, records.
//!
//! Asserted: every packet is counted once; every record decodes and holds octets of its packet; no flow sends more than
//! its budget, whatever the packets say.
#![no_main]

use std::collections::HashMap;

use libfuzzer_sys::fuzz_target;
use smtpwatch_common::{
    Counter, Direction, FlowKey, FlowState, Flows, Host, Link, Order, Outcome, PortSet, Record, RecordBuffer, Scratch,
    Slice,
    counters::Label,
    gate::{CONTROL_RECORDS, FLOW_BUDGET, MIDSTREAM_BUDGET, RECORD_COST, order_kind},
    process,
    record::{UID_UNKNOWN, mark},
};
use smtpwatch_fuzz::{
    frames::{CUT_OCTETS, Frame, Streams, kind},
    wire,
};

/// Beside its budget a flow may send the record that tells of its end, and a few of SYN, FIN and RST.
const BEYOND_BUDGET: u32 = RECORD_COST * (1 + CONTROL_RECORDS as u32);

fuzz_target!(|input: &[u8]| {
    let mut input = input;
    let mut gate = Gate::default();
    let mut streams = Streams::default();
    while let Some(frame) = Frame::take(&mut input) {
        let built = (!frame.is(kind::RAW)).then(|| streams.build(&frame));
        gate.packet(&frame, built.as_deref().unwrap_or(frame.body), built.is_some());
        gate.order(&frame);
    }
});

struct Gate {
    ports: PortSet,
    flows: Table,
    orders: HashMap<FlowKey, Order>,
    scratch: Box<Scratch>,
    now: u64,
    packets: u64,
    counted: u64,
    /// What each life of a flow cost, and whether it was joined after its SYN.
    spent: HashMap<u64, (u32, bool)>,
    newest: Option<(FlowKey, u64, u32)>,
    serial: u32,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            ports: PortSet::default(),
            flows: Table::default(),
            orders: HashMap::new(),
            scratch: Box::new(Scratch::EMPTY),
            now: 1,
            packets: 0,
            counted: 0,
            spent: HashMap::new(),
            newest: None,
            serial: 0,
        }
    }
}

impl Gate {
    fn packet(&mut self, frame: &Frame<'_>, bytes: &[u8], built: bool) {
        let extra = if frame.is(kind::CUT) { CUT_OCTETS } else { 0 };
        let wire_len = u32::try_from(bytes.len() + extra).expect("a packet is short");
        let link = if frame.is(kind::IP) { Link::Ip } else { Link::Ethernet };
        let direction = if frame.is(kind::EGRESS) { Direction::Egress } else { Direction::Ingress };
        self.now += 1;
        self.packets += 1;
        let Self { ports, flows, orders, scratch, now, counted, spent, newest, .. } = self;
        let mut records = 0;
        let mut host = Run {
            now: *now,
            direction,
            ports,
            orders,
            counted,
            emit: |record: Record<'_>| {
                records += 1;
                judge(&record, bytes, built.then_some(frame.body));
                let header = &record.header;
                let midstream = header.marked(mark::MIDSTREAM);
                let (spent, _) = spent.entry(header.flow).or_insert((0, midstream));
                *spent += RECORD_COST + u32::from(header.captured);
                let budget = if midstream { MIDSTREAM_BUDGET } else { FLOW_BUDGET };
                assert!(*spent <= budget + BEYOND_BUDGET, "a flow sent {spent} octets of {budget}");
                *newest = Some((header.key, header.flow, header.seq));
            },
        };
        let outcome = process(&Slice::new(bytes, wire_len), link, flows, &mut host, || Some(scratch));
        assert_eq!(records > 0, outcome == Outcome::Forwarded, "{outcome:?} with {records} records");
        assert_eq!(self.counted, self.packets, "a packet that was not counted once: {outcome:?}");
    }

    /// What the daemon may order of the flow that it heard of last.
    fn order(&mut self, frame: &Frame<'_>) {
        let Some((key, flow, seq)) = self.newest else { return };
        let kind = match frame.order {
            0 => return,
            order => match order % 5 {
                0 => order_kind::MUTE,
                1 => order_kind::MUTE_BODY,
                2 => order_kind::SKIP_CLIENT,
                3 => order_kind::SKIP_SERVER,
                _ => u32::MAX,
            },
        };
        self.serial += 1;
        let position = seq.wrapping_add(u32::from(frame.order / 5));
        self.orders.insert(key, Order { flow, serial: self.serial, kind, position, reserved: 0 });
    }
}

/// A record is what the kernel would put on the ring, and tells of its packet nothing that is not there.
fn judge(record: &Record<'_>, packet: &[u8], body: Option<&[u8]>) {
    let header = &record.header;
    let bytes = wire::encode(header, record.payload);
    assert_eq!(Record::decode(&bytes).as_ref(), Ok(record));
    let captured = u32::from(header.captured);
    assert!(header.offset + captured <= header.length, "captured beyond the segment");
    assert!(is_part(record.payload, packet), "octets that are not in the packet");
    assert!(is_part(header.options(), packet), "options that are not in the packet");
    if let Some(body) = body {
        let start = usize::try_from(header.offset).expect("an offset");
        assert_eq!(body.get(start..start + record.payload.len()), Some(record.payload), "not the place it tells");
    }
}

fn is_part(part: &[u8], whole: &[u8]) -> bool {
    part.is_empty() || whole.windows(part.len()).any(|window| window == part)
}

#[derive(Default)]
struct Table(HashMap<FlowKey, FlowState>);

impl Flows for Table {
    fn entry(&mut self, key: &FlowKey, fresh: impl FnOnce() -> FlowState) -> Option<&mut FlowState> {
        Some(self.0.entry(*key).or_insert_with(fresh))
    }
}

struct Run<'a, E> {
    now: u64,
    direction: Direction,
    ports: &'a PortSet,
    orders: &'a HashMap<FlowKey, Order>,
    counted: &'a mut u64,
    emit: E,
}

impl<E: FnMut(Record<'_>)> Host for Run<'_, E> {
    fn now(&self) -> u64 {
        self.now
    }

    fn direction(&self) -> Direction {
        self.direction
    }

    fn interface(&self) -> u32 {
        1
    }

    fn owner(&self) -> (u64, u32) {
        (0, UID_UNKNOWN)
    }

    fn watched(&self, port: u16) -> bool {
        self.ports.contains(port)
    }

    fn order(&self, key: &FlowKey) -> Option<Order> {
        self.orders.get(key).copied()
    }

    fn submit(&mut self, record: &RecordBuffer) -> bool {
        let payload = &record.payload[..usize::from(record.header.captured)];
        (self.emit)(Record { header: record.header, payload });
        true
    }

    fn count(&mut self, counter: Counter) {
        match counter.label() {
            Label::Packets { .. } => *self.counted += 1,
            // Of a packet that was forwarded all the same: what was left out of it.
            Label::Dropped { .. } => *self.counted += u64::from(counter != Counter::RingFull),
        }
    }
}
