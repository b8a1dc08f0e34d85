//! The kernel programs and the userspace gate over the same packets: every record, every counter, every verdict.

use std::{collections::HashMap as Map, os::fd::AsFd as _};

use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap, MapData, PerCpuArray, RingBuf},
    programs::Program,
};
use smtpwatch::capture::userspace_gate::{CapturedFrame, UserspaceGate};
use smtpwatch_common::{
    Counter, Direction, FlowKey, FlowState, Header, Link, Order, PortSet, Record, gate::order_kind,
};
use smtpwatch_core::engine::{GateAction, GateOrder};

use crate::{
    packet::{Dice, Packet},
    test_run::{TC_NEXT, XDP_PASS, test_run},
};

static OBJECT: &[u8] = aya::include_bytes_aligned!("../../smtpwatch/bpf/smtpwatch.bpf.o");

/// One program and the gate that must do the same.
struct Pair {
    name: &'static str,
    link: Link,
    direction: Direction,
    verdict: u32,
    object: Ebpf,
    ring: RingBuf<MapData>,
    counters: PerCpuArray<MapData, u64>,
    orders: HashMap<MapData, [u8; FlowKey::SIZE], [u8; Order::SIZE]>,
    flows: HashMap<MapData, [u8; FlowKey::SIZE], [u8; FlowState::SIZE]>,
    gate: UserspaceGate,
    /// Lives of flows: the kernel names them by its clock, the gate by ours.
    lives: Map<u64, u64>,
    now: u64,
    serial: u32,
    records: usize,
    refused: usize,
}

impl Pair {
    fn load(name: &'static str, link: Link, direction: Direction) -> Self {
        let mut object = EbpfLoader::new().override_global("AYA_LOG_LEVEL", &0_u8, true).load(OBJECT).unwrap();
        let verdict = match object.program_mut(name) {
            Some(Program::Xdp(program)) => program.load().map(|()| XDP_PASS).unwrap(),
            Some(Program::SchedClassifier(program)) => program.load().map(|()| TC_NEXT).unwrap(),
            _ => panic!("no program {name}"),
        };
        Self {
            name,
            link,
            direction,
            verdict,
            ring: object.take_map("RING").unwrap().try_into().unwrap(),
            counters: object.take_map("COUNTERS").unwrap().try_into().unwrap(),
            orders: object.take_map("ORDERS").unwrap().try_into().unwrap(),
            flows: object.take_map("FLOWS").unwrap().try_into().unwrap(),
            object,
            gate: UserspaceGate::new(PortSet::default()),
            lives: Map::new(),
            now: 0,
            serial: 0,
            records: 0,
            refused: 0,
        }
    }

    /// Every program, each with a gate of its own.
    fn all() -> Vec<Self> {
        vec![
            Self::load("smtpwatch_xdp", Link::Ethernet, Direction::Ingress),
            Self::load("smtpwatch_tc_ingress", Link::Ethernet, Direction::Ingress),
            Self::load("smtpwatch_tc_egress", Link::Ethernet, Direction::Egress),
            Self::load("smtpwatch_tc_ingress_ip", Link::Ip, Direction::Ingress),
            Self::load("smtpwatch_tc_egress_ip", Link::Ip, Direction::Egress),
        ]
    }

    fn feed(&mut self, packet: &[u8]) {
        let fd = match self.object.program(self.name) {
            Some(Program::Xdp(program)) => program.fd().unwrap(),
            Some(Program::SchedClassifier(program)) => program.fd().unwrap(),
            _ => unreachable!(),
        };
        let run = match test_run(fd.as_fd(), packet, 1) {
            Ok(run) => run,
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                // The kernel does not make this packet: too short for a frame, or too long for this hook.
                self.refused += 1;
                return;
            }
            Err(error) => panic!("{}: {error}", self.name),
        };
        assert_eq!(run.verdict, self.verdict, "{}: a packet that does not pass: {packet:02x?}", self.name);
        self.now += 1;
        let frame = CapturedFrame {
            link: self.link,
            bytes: packet,
            wire_len: u32::try_from(packet.len()).unwrap(),
            at_ns: self.now,
            interface: 1,
            direction: Some(self.direction),
        };
        let mut expected = Vec::new();
        self.gate.packet(&frame, |record| expected.push((record.header, record.payload.to_vec())));
        let mut found = Vec::new();
        while let Some(octets) = self.ring.next() {
            let record = Record::decode(&octets).unwrap();
            found.push((record.header, record.payload.to_vec()));
        }
        assert_eq!(found.len(), expected.len(), "{}: records of {packet:02x?}", self.name);
        for ((found, octets), (expected, wanted)) in found.iter().zip(&expected) {
            let life = *self.lives.entry(found.flow).or_insert(expected.flow);
            assert_eq!(life, expected.flow, "{}: life of a flow", self.name);
            assert_eq!(comparable(found), comparable(expected), "{}: {packet:02x?}", self.name);
            assert_eq!(octets, wanted, "{}: payload", self.name);
        }
        self.records += found.len();
        self.compare_counters();
    }

    fn compare_counters(&self) {
        for counter in Counter::ALL {
            let kernel: u64 = self.counters.get(&(counter as u32), 0).unwrap().iter().sum();
            assert_eq!(kernel, self.gate.counter(counter), "{}: {counter:?}", self.name);
        }
    }

    /// The same order to both.
    fn order(&mut self, order: &GateOrder) {
        let key = FlowKey::new(order.flow.client, order.flow.server);
        self.gate.order(order);
        let Ok(state) = self.flows.get(&key.to_bytes(), 0) else { return };
        let server_next = u32::from_ne_bytes(state[48..52].try_into().unwrap());
        let (kind, position) = match order.action {
            GateAction::Mute => (order_kind::MUTE, 0),
            GateAction::MuteBody => (order_kind::MUTE_BODY, server_next),
            GateAction::SkipUntil { from: smtpwatch_core::Side::Client, until } => (order_kind::SKIP_CLIENT, until),
            GateAction::SkipUntil { from: smtpwatch_core::Side::Server, until } => (order_kind::SKIP_SERVER, until),
        };
        self.serial += 1;
        let order = Order { flow: FlowState::flow_of(&state), serial: self.serial, kind, position, reserved: 0 };
        self.orders.insert(key.to_bytes(), order.to_bytes(), 0).unwrap();
    }
}

/// What must be the same: all but clocks, interface and owner; of the options only what is meant.
fn comparable(header: &Header) -> Header {
    let mut header = *header;
    let meant = usize::from(header.options_len);
    header.options[meant..].fill(0);
    Header { timestamp: 0, flow: 0, cgroup: 0, uid: 0, interface: 0, ..header }
}

/// One end of a session as the generator plays it.
struct Session {
    port: u16,
    v6: bool,
    client_next: u32,
    server_next: u32,
    tags: Vec<u16>,
    script: Vec<(bool, Vec<u8>)>,
    position: usize,
}

const LINES: [(bool, &[u8]); 26] = [
    (false, b"220 mx1.example.net ESMTP\r\n"),
    (true, b"EHLO gw.example.org\r\n"),
    (false, b"250-mx1.example.net\r\n250-STARTTLS\r\n250 SIZE\r\n"),
    (true, b"STARTTLS\r\n"),
    (true, b"starttls  \r\n"),
    (false, b"220 2.0.0 Ready\r\n"),
    (true, b"\x16\x03\x01\x02\x00hello"),
    (false, b"\x16\x03\x03\x00\x7ahello"),
    (true, b"\x17\x03\x03\x01\x00"),
    (true, b"MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n"),
    (true, b"DATA\r\n"),
    (true, b"daTa \t\r\n"),
    (true, b"DATA\n"),
    (true, b"XDATA\r\n"),
    (false, b"250 ok\r\n250 ok\r\n354 go ahead\r\n"),
    (false, b"354 End data with <CR><LF>.<CR><LF>\r\n"),
    (false, b"250 the word 354 within\r\n"),
    (false, b"354-not yet\r\n"),
    (true, b"Subject: x\r\n\r\nbody\r\n.\r\n"),
    (true, b"a line of the body without an end"),
    (true, b".\r\nQUIT\r\n"),
    (true, b".\r\n"),
    (false, b"451 4.3.0 try again\r\n"),
    (false, b"250 2.0.0 queued\r\n"),
    (true, b"BDAT 4000 LAST\r\n"),
    (false, b"221 bye\r\n"),
];

impl Session {
    fn new(dice: &mut Dice, port: u16) -> Self {
        let wrap = dice.one_in(3);
        let base = if wrap { 0xffff_ff00 } else { u32::try_from(dice.below(1 << 31)).unwrap() };
        let length = 4 + dice.below(40);
        let script = (0..length)
            .map(|_| {
                let (client, line) = *dice.pick(&LINES);
                let line = match dice.below(12) {
                    0 => vec![b'x'; dice.below(3000)],
                    1 => line.repeat(1 + dice.below(120)),
                    _ => line.to_vec(),
                };
                (client, line)
            })
            .collect();
        let tags = dice.pick(&[vec![], vec![], vec![], vec![0x8100], vec![0x88a8, 0x8100], vec![0x9100]]).clone();
        Self { port, v6: dice.one_in(3), client_next: base, server_next: !base, tags, script, position: 0 }
    }

    /// The next packets of the session; empty at its end.
    fn step(&mut self, dice: &mut Dice) -> Vec<Packet> {
        if self.position == 0 {
            self.position = 1;
            if !dice.one_in(6) {
                let mut syn = self.packet(dice, true, &[]);
                syn.flags = 0x02;
                let mut syn_ack = self.packet(dice, false, &[]);
                (syn_ack.flags, syn_ack.ack) = (0x12, self.client_next.wrapping_add(1));
                self.client_next = self.client_next.wrapping_add(1);
                self.server_next = self.server_next.wrapping_add(1);
                return vec![syn, syn_ack];
            }
        }
        let Some((client, line)) = self.script.get(self.position - 1).cloned() else { return Vec::new() };
        self.position += 1;
        let mut packets = Vec::new();
        let piece = match dice.below(6) {
            0 => 1 + dice.below(8),
            1 => 1 + dice.below(1460),
            _ => line.len().max(1),
        };
        // One octet per segment, but not for thousands of them.
        for octets in line.chunks(piece).take(64) {
            packets.push(self.packet(dice, client, octets));
            let next = if client { &mut self.client_next } else { &mut self.server_next };
            *next = next.wrapping_add(u32::try_from(octets.len()).unwrap());
            if dice.one_in(3) {
                packets.push(self.packet(dice, !client, &[]));
            }
        }
        if dice.one_in(8) && packets.len() > 1 {
            let last = packets.len() - 1;
            packets.swap(last, last - 1);
        }
        if dice.one_in(8) {
            packets.push(packets[dice.below(packets.len())].clone());
        }
        if dice.one_in(40)
            && let Some(packet) = packets.last_mut()
        {
            packet.flags |= *dice.pick(&[0x01, 0x04, 0x02]);
        }
        packets
    }

    fn packet(&self, dice: &mut Dice, client: bool, payload: &[u8]) -> Packet {
        let mut packet = Packet {
            tags: self.tags.clone(),
            v6: self.v6,
            flags: 0x18,
            payload: payload.to_vec(),
            padding: if dice.one_in(4) { dice.below(20) } else { 0 },
            no_length: false,
            options: vec![1; 4 * dice.below(11)],
            ..Packet::default()
        };
        let server_port = if self.port.is_multiple_of(2) { 25 } else { 587 };
        if client {
            (packet.source_port, packet.target_port) = (self.port, server_port);
            (packet.seq, packet.ack) = (self.client_next, self.server_next);
        } else {
            (packet.source, packet.target) = (packet.target, packet.source);
            (packet.source_port, packet.target_port) = (server_port, self.port);
            (packet.seq, packet.ack) = (self.server_next, self.client_next);
        }
        if self.v6 {
            for _ in 0..dice.below(4) / 2 {
                let kind = *dice.pick(&[0, 43, 60]);
                packet.extensions.push((kind, vec![0; 8]));
            }
        } else if dice.one_in(5) {
            packet.ip_options = vec![1; 4 * dice.below(11)];
        }
        if dice.one_in(40) {
            (packet.no_length, packet.padding) = (true, 0);
        }
        packet
    }

    fn flow(&self) -> smtpwatch_core::FlowKey {
        let packet = self.packet(&mut Dice(1), true, &[]);
        let (client, server) = if self.v6 {
            ("[2001:db8::a]".to_owned(), "[2001:db8::19]".to_owned())
        } else {
            ("192.0.2.10".to_owned(), "192.0.2.25".to_owned())
        };
        smtpwatch_core::FlowKey {
            client: format!("{client}:{}", packet.source_port).parse().unwrap(),
            server: format!("{server}:{}", packet.target_port).parse().unwrap(),
        }
    }
}

/// Everything but well-formed TCP of a watched port.
/// `start` is where the IP header begins.
fn oddity(dice: &mut Dice, packet: &[u8], start: usize) -> Vec<u8> {
    let mut odd = packet.to_vec();
    match dice.below(6) {
        // Flipped bits in the headers.
        0 => {
            for _ in 0..=dice.below(3) {
                let at = dice.below(odd.len().min(60));
                odd[at] ^= 1 << dice.below(8);
            }
        }
        1 => odd.truncate(14 + dice.below(odd.len().saturating_sub(14).max(1))),
        // A fragment, where this is IPv4 without tags.
        2 => odd[start + 6] = *dice.pick(&[0x20, 0x01, 0x40]),
        3 => odd = (0..20 + dice.below(200)).map(|_| u8::try_from(dice.below(256)).unwrap()).collect(),
        // A TCP header that is too short, where this is IPv4 without options.
        4 => odd[start + 32] = 0x10,
        // Another port.
        _ => {
            odd[start + 20..start + 24].fill(99);
        }
    }
    odd
}

fn play(seed: u64, packets: usize) -> (usize, usize) {
    let mut dice = Dice(seed);
    let mut pairs = Pair::all();
    let mut sessions: Vec<Session> = Vec::new();
    let mut port = 40_000;
    let mut fed = 0;
    while fed < packets {
        while sessions.len() < 4 {
            port += 1;
            // End points are used again.
            sessions.push(Session::new(&mut dice, 40_000 + port % 50));
        }
        let index = dice.below(sessions.len());
        let step = sessions[index].step(&mut dice);
        if step.is_empty() {
            sessions.swap_remove(index);
            continue;
        }
        for packet in step {
            fed += 1;
            let (frame, raw) = (packet.ethernet(), packet.ip());
            let odd = dice.one_in(20).then(|| (oddity(&mut dice, &frame, 14), oddity(&mut dice, &raw, 0)));
            for pair in &mut pairs {
                let (packet, odd) = match pair.link {
                    Link::Ethernet => (&frame, odd.as_ref().map(|odd| &odd.0)),
                    Link::Ip => (&raw, odd.as_ref().map(|odd| &odd.1)),
                };
                pair.feed(packet);
                odd.into_iter().for_each(|odd| pair.feed(odd));
            }
        }
        if dice.one_in(15) {
            let session = &sessions[index];
            let until = session.client_next.wrapping_add(u32::try_from(dice.below(5000)).unwrap());
            let action = *dice.pick(&[
                GateAction::Mute,
                GateAction::MuteBody,
                GateAction::MuteBody,
                GateAction::SkipUntil { from: smtpwatch_core::Side::Client, until },
                GateAction::SkipUntil { from: smtpwatch_core::Side::Client, until },
                GateAction::SkipUntil {
                    from: smtpwatch_core::Side::Server,
                    until: session.server_next.wrapping_add(90),
                },
            ]);
            let order = GateOrder { flow: session.flow(), action };
            for pair in &mut pairs {
                pair.order(&order);
            }
        }
    }
    for pair in &pairs {
        println!("{}: {} records, {} packets refused by the kernel", pair.name, pair.records, pair.refused);
        assert!(pair.records > packets / 10, "{}: the generator must reach the gate", pair.name);
        for counter in Counter::ALL {
            let reached = pair.gate.counter(counter) > 0;
            let expected = match counter {
                Counter::RingFull | Counter::FlowTableFull | Counter::Forged | Counter::NoScratch => false,
                Counter::ForwardedIngress | Counter::MutedIngress | Counter::OtherIngress => {
                    pair.direction == Direction::Ingress
                }
                Counter::ForwardedEgress | Counter::MutedEgress | Counter::OtherEgress => {
                    pair.direction == Direction::Egress
                }
                Counter::Fragment | Counter::Truncated | Counter::Unparsed => true,
            };
            assert_eq!(reached, expected, "{}: {counter:?} must be reached by the generator", pair.name);
        }
    }
    (pairs.iter().map(|pair| pair.records).sum(), pairs.iter().map(|pair| pair.refused).sum())
}

#[test]
fn kernel_and_userspace_gate_agree_on_random_sessions() {
    crate::need_root!();
    for seed in [1, 0x5eed, 0xdead_beef] {
        let (records, refused) = play(seed, 4_000);
        println!("seed {seed:#x}: {records} records compared, {refused} packets refused");
    }
}

/// Muted flows are told by their tags alone, and their end points may meet again.
#[test]
fn a_muted_flow_is_told_at_a_glance_until_a_syn() {
    crate::need_root!();
    for (v6, forgotten) in [(false, false), (false, true), (true, false), (true, true)] {
        for mut pair in Pair::all() {
            let link = pair.link;
            let octets = move |client: bool, flags: u8, seq: u32, ack: u32, payload: &[u8]| {
                let mut packet = Packet { v6, flags, seq, ack, payload: payload.to_vec(), ..Packet::default() };
                if !client {
                    (packet.source, packet.target) = (packet.target, packet.source);
                    (packet.source_port, packet.target_port) = (packet.target_port, packet.source_port);
                }
                match link {
                    Link::Ethernet => packet.ethernet(),
                    Link::Ip => packet.ip(),
                }
            };
            let (client, server) =
                if v6 { ("[2001:db8::a]:41234", "[2001:db8::19]:25") } else { ("192.0.2.10:41234", "192.0.2.25:25") };
            let flow = smtpwatch_core::FlowKey { client: client.parse().unwrap(), server: server.parse().unwrap() };
            pair.feed(&octets(true, 0x02, 100, 0, b""));
            pair.feed(&octets(false, 0x12, 500, 101, b""));
            pair.order(&GateOrder { flow, action: GateAction::Mute });
            let before = pair.records;
            for _ in 0..3 {
                pair.feed(&octets(true, 0x18, 101, 501, b"a line\r\n"));
                pair.feed(&octets(false, 0x18, 501, 101, b"another\r\n"));
            }
            assert_eq!(pair.records, before, "{}: the flow is muted", pair.name);
            if forgotten && link == Link::Ethernet {
                // Without its state the flow would be another one, joined midstream: the tags alone tell that it is muted.
                pair.flows.remove(&FlowKey::new(flow.client, flow.server).to_bytes()).unwrap();
                pair.feed(&octets(true, 0x18, 101, 501, b"a line\r\n"));
                pair.feed(&octets(false, 0x10, 501, 101, b""));
            }
            // A header that makes no sense is no muted packet.
            let mut odd = octets(true, 0x18, 101, 501, b"a line\r\n");
            let offset = odd.len() - 8 - 8;
            odd[offset] = 0x40;
            pair.feed(&odd);
            pair.feed(&octets(true, 0x02, 7_000, 0, b""));
            pair.feed(&octets(false, 0x12, 9_000, 7_001, b""));
            pair.feed(&octets(false, 0x18, 9_001, 7_001, b"220 mx1.example.net\r\n"));
            pair.feed(&octets(true, 0x18, 7_001, 9_022, b"EHLO gw.example.org\r\n"));
            assert_eq!(pair.records, before + 4, "{}: the flow is seen again in both directions", pair.name);
        }
    }
}

/// GRO segments and multi-buffer frames: as long as this kernel makes them for a test.
#[test]
fn kernel_and_userspace_gate_agree_on_large_segments() {
    crate::need_root!();
    for mut pair in Pair::all() {
        let mut longest = 0;
        for length in [2_000, 2_048, 2_049, 3_500, 4_096, 9_000, 20_000, 65_000] {
            let payload: Vec<u8> = b"RCPT TO:<someone@example.net>\r\n".iter().copied().cycle().take(length).collect();
            let packet = Packet { payload, source_port: 50_000, ..Packet::default() };
            let mut syn = Packet { flags: 2, seq: 0, ..packet.clone() };
            syn.payload.clear();
            let refused = pair.refused;
            for packet in [syn, packet] {
                let octets = match pair.link {
                    Link::Ethernet => packet.ethernet(),
                    Link::Ip => packet.ip(),
                };
                pair.feed(&octets);
            }
            if pair.refused == refused {
                longest = length;
            }
        }
        println!("{}: segments up to {longest} octets", pair.name);
        assert!(longest >= 2_049, "{}: more than one chunk must have been compared", pair.name);
    }
}
