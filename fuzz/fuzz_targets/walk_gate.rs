//! Packets through the processing of the kernel programs: header parsing, flow state, orders, gate, records.
//!
//! Two gates process every packet: one with the table of muted flows that the kernel programs have, one without it and
//! without the fast path. Asserted: both have the same results; every packet is counted once; every record decodes and
//! contains bytes of its packet; no flow exceeds its budget, whatever the packets contain.
#![no_main]

use std::collections::HashMap;

use libfuzzer_sys::fuzz_target;
use smtpwatch_common::{
    Counter, Direction, Encapsulation, Env, FlowKey, FlowState, Flows, Header, Link, Order, Outcome, PortSet, Record,
    RecordBuffer, Scratch, Segment, Slice, Tag,
    binding::LOOPBACK,
    counters::Label,
    gate::{CONTROL_RECORDS, FLOW_BUDGET, MIDSTREAM_BUDGET, RECORD_COST, order_kind},
    process,
    process::{count_encapsulated, process_slow_path, scan_body_end},
    record::{UID_UNKNOWN, flag},
};
use smtpwatch_fuzz::{
    frames::{CUT_OCTETS, Frame, Streams, TARGET, kind},
    wire,
};

/// In addition to its sides' budgets a flow may send the records of their ends, and a few of SYN, FIN and RST.
const BEYOND_BUDGET: u32 = RECORD_COST * (2 + CONTROL_RECORDS as u32);

fuzz_target!(|input: &[u8]| {
    for directions in [true, false] {
        run(input, directions);
    }
});

/// Runs with the packets' directions known, or not.
fn run(mut input: &[u8], directions: bool) {
    let mut gate = Gates { directions, ..Gates::default() };
    let mut streams = Streams::default();
    while let Some(frame) = Frame::take(&mut input) {
        let built = (!frame.is(kind::RAW)).then(|| streams.build(&frame));
        gate.packet(&frame, built.as_deref().unwrap_or(frame.body), built.is_some());
        gate.order(&frame);
    }
}

/// Both gates, and the data that they share.
struct Gates {
    ports: PortSet,
    directions: bool,
    /// With the fast path, as in the kernel.
    glancing: Gate,
    /// With the flow table alone.
    closely: Gate,
    orders: HashMap<FlowKey, Order>,
    now: u64,
    packets: u64,
    /// Cost of each flow instance so far.
    spent: HashMap<u64, u32>,
    newest: Option<(FlowKey, u64, u32)>,
    serial: u32,
}

struct Gate {
    flows: Table,
    muted: Option<HashMap<usize, Tag>>,
    scratch: Box<Scratch>,
    counted: u64,
    /// Packets with mail in an encapsulation.
    encapsulated: u64,
}

/// The header and the bytes that a record carries.
type Sent = Vec<(Header, Vec<u8>)>;

impl Default for Gates {
    fn default() -> Self {
        let gate = |muted| Gate {
            flows: Table::default(),
            muted,
            scratch: Box::new(Scratch::EMPTY),
            counted: 0,
            encapsulated: 0,
        };
        Self {
            ports: PortSet::default(),
            directions: true,
            glancing: gate(Some(HashMap::new())),
            closely: gate(None),
            orders: HashMap::new(),
            now: 1,
            packets: 0,
            spent: HashMap::new(),
            newest: None,
            serial: 0,
        }
    }
}

impl Gates {
    fn packet(&mut self, frame: &Frame<'_>, bytes: &[u8], built: bool) {
        self.now += 1;
        self.packets += 1;
        let direction = if frame.is(kind::EGRESS) { Direction::Egress } else { Direction::Ingress };
        let around = Around {
            now: self.now,
            direction: self.directions.then_some(direction),
            ports: &self.ports,
            orders: &self.orders,
        };
        let (outcome, sent) = self.glancing.packet(around, frame, bytes);
        let closely = self.closely.packet(around, frame, bytes);
        // The fast path forwards one packet of a flow of which only arriving packets have been seen, and drops the next ones
        // before it looks at their checksum and length; the slow path alone keeps no state of that.
        let claimed = closely.1.iter().all(|(header, _)| header.flow == 0 && header.has_flags(flag::MIDSTREAM));
        let key = self.closely.scratch.segment.key;
        let stateless = claimed && self.closely.flows.find(&key, false).is_none();
        let later = matches!(closely.0, Outcome::Forwarded | Outcome::Unparsed | Outcome::Truncated);
        if !(outcome == Outcome::Muted && later && stateless) {
            assert_eq!((outcome, &sent), (closely.0, &closely.1), "the fast path decides otherwise");
        }
        assert_eq!(!sent.is_empty(), outcome == Outcome::Forwarded, "{outcome:?} with {} records", sent.len());
        assert_eq!(self.glancing.counted, self.packets, "a packet that was not counted once: {outcome:?}");
        assert_eq!(self.closely.counted, self.packets, "a packet that was not counted once: {outcome:?}");
        assert_eq!(self.glancing.encapsulated, self.closely.encapsulated, "the fast path hides encapsulated mail");
        for (header, payload) in &sent {
            judge(&Record { header: *header, payload }, bytes, built.then_some(frame.body));
            if header.flow == 0 {
                assert!(payload.is_empty() && around.direction == Some(Direction::Ingress), "octets of no flow");
                continue;
            }
            let spent = self.spent.entry(header.flow).or_insert(0);
            *spent += RECORD_COST + u32::from(header.captured);
            let budget = if header.has_flags(flag::MIDSTREAM) { MIDSTREAM_BUDGET } else { FLOW_BUDGET };
            assert!(*spent <= 2 * budget + BEYOND_BUDGET, "a flow sent {spent} octets of twice {budget}");
            self.newest = Some((header.key, header.flow, header.seq));
        }
    }

    /// Applies one of the daemon's possible orders to the flow of the latest record.
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

impl Gate {
    fn packet(&mut self, around: Around<'_>, frame: &Frame<'_>, bytes: &[u8]) -> (Outcome, Sent) {
        let extra = if frame.is(kind::CUT) { CUT_OCTETS } else { 0 };
        let packet = Slice::new(bytes, u32::try_from(bytes.len() + extra).expect("a packet is short"));
        let link = if frame.is(kind::IP) { Link::Ip } else { Link::Ethernet };
        let Self { flows, muted, scratch, counted, encapsulated } = self;
        let glances = muted.is_some();
        let mut host = Run { around, muted, counted, encapsulated, sent: Sent::new() };
        let outcome = if glances {
            process(&packet, link, flows, &mut host, || Some(scratch))
        } else {
            match process_slow_path(&packet, link, flows, &mut host, || Some(&mut *scratch)) {
                Outcome::Search => scan_body_end(&packet, flows, &mut host, scratch),
                Outcome::NotTcp => count_encapsulated(&packet, link, flows, &mut host, scratch),
                outcome => outcome,
            }
        };
        (outcome, host.sent)
    }
}

/// Checks that a record is what the kernel would write to the ring, and that its fields match its packet.
fn judge(record: &Record<'_>, packet: &[u8], body: Option<&[u8]>) {
    let header = &record.header;
    let bytes = wire::encode(header, record.payload);
    assert_eq!(Record::decode(&bytes).as_ref(), Ok(record));
    let captured = u32::from(header.captured);
    assert!(header.offset + captured <= header.length, "captured beyond the segment");
    assert!(is_part(record.payload, packet), "octets that are not in the packet");
    assert!(is_part(header.options(), packet), "options that are not in the packet");
    // An offset without bytes may follow the captured bytes.
    if let Some(body) = body
        && !record.payload.is_empty()
    {
        let start = usize::try_from(header.offset).expect("an offset");
        assert_eq!(body.get(start..start + record.payload.len()), Some(record.payload), "not the place it tells");
    }
}

fn is_part(part: &[u8], whole: &[u8]) -> bool {
    part.is_empty() || whole.windows(part.len()).any(|window| window == part)
}

/// Open flows, and those in the handshake.
#[derive(Default)]
struct Table([HashMap<FlowKey, FlowState>; 2]);

impl Flows for Table {
    fn find(&mut self, key: &FlowKey, opened: bool) -> Option<&mut FlowState> {
        let [opening, open] = &mut self.0;
        if opened && let Some(state) = opening.remove(key) {
            open.insert(*key, state);
        }
        open.get_mut(key).or_else(|| opening.get_mut(key))
    }

    fn insert(&mut self, key: &FlowKey, state: &FlowState, opened: bool) -> Option<&mut FlowState> {
        let room = &mut self.0[usize::from(opened)];
        room.insert(*key, *state);
        room.get_mut(key)
    }
}

/// The environment that both gates share.
#[derive(Clone, Copy)]
struct Around<'a> {
    now: u64,
    direction: Option<Direction>,
    ports: &'a PortSet,
    orders: &'a HashMap<FlowKey, Order>,
}

struct Run<'a> {
    around: Around<'a>,
    muted: &'a mut Option<HashMap<usize, Tag>>,
    counted: &'a mut u64,
    encapsulated: &'a mut u64,
    sent: Sent,
}

impl Env for Run<'_> {
    fn now(&self) -> u64 {
        self.around.now
    }

    fn direction(&self) -> Direction {
        self.around.direction.unwrap_or(Direction::Ingress)
    }

    fn direction_of(&self, _: &Segment) -> Option<Direction> {
        self.around.direction
    }

    fn link_address(&self) -> Option<[u8; 6]> {
        Some(TARGET)
    }

    // Not loopback, where arriving packets repeat those that have left.
    fn interface(&self) -> u32 {
        LOOPBACK + 1
    }

    fn owner(&self) -> (u64, u32) {
        (0, UID_UNKNOWN)
    }

    fn ports(&self, word: usize) -> u64 {
        self.around.ports.as_words()[word]
    }

    fn seed(&self, index: usize) -> u64 {
        // Numbers without a linear relation, like the daemon's random ones: SplitMix64.
        let mut number = (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        number ^ number >> 31
    }

    fn is_muted(&self, tag: Tag) -> bool {
        self.muted.as_ref().is_some_and(|muted| muted.get(&tag.slot()) == Some(&tag))
    }

    fn mute(&mut self, tag: Tag) {
        if let Some(muted) = self.muted {
            muted.insert(tag.slot(), tag);
        }
    }

    fn unmute(&mut self, tag: Tag) {
        if let Some(muted) = self.muted
            && muted.get(&tag.slot()) == Some(&tag)
        {
            muted.remove(&tag.slot());
        }
    }

    fn order(&self, key: &FlowKey) -> Option<Order> {
        self.around.orders.get(key).copied()
    }

    fn submit(&mut self, record: &RecordBuffer) -> bool {
        let payload = &record.payload[..usize::from(record.header.captured)];
        self.sent.push((record.header, payload.to_vec()));
        true
    }

    fn note_encapsulated(&mut self, _: Encapsulation) {
        *self.encapsulated += 1;
    }

    fn count(&mut self, counter: Counter) {
        match counter.label() {
            Label::Packets { .. } => *self.counted += 1,
            // The packet is among the other ones too.
            Label::Encapsulated(_) => {}
            // Counts what was omitted of a packet that was forwarded all the same.
            Label::Dropped { .. } => *self.counted += u64::from(counter != Counter::RingFull),
        }
    }
}
