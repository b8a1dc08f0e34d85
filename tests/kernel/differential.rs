//! Differential test: the kernel programs and the userspace gate process the same packets and must agree in every
//! record, counter and verdict.

use std::{collections::HashMap as Map, mem::offset_of, os::fd::AsFd as _};

use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap, MapData, PerCpuArray, RingBuf},
    programs::Program,
};
use smtpwatch_capture::userspace_gate::{CapturedFrame, UserspaceGate};
use smtpwatch_common::{
    Counter, Direction, FlowKey, FlowState, Header, Link, Order, PortSet, Record,
    fast_path::SEEDS,
    gate::{DirectionState, order_kind},
    record::flag,
};
use smtpwatch_core::engine::{GateAction, GateOrder};
use smtpwatch_tests::netns::{Namespace, join};

use crate::{
    packet::{Dice, Packet, TARGET},
    test_run::{Kind, TC_NEXT, XDP_PASS, test_run},
};

static OBJECT: &[u8] = aya::include_bytes_aligned!("../../smtpwatch-capture/bpf/smtpwatch.bpf.o");

/// The end of a session that this host is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Own {
    Client,
    Server,
}

/// Both programs of an interface, and the gate that must behave identically. The programs share every map, as when they
/// are attached.
struct Pair {
    link: Link,
    ingress: (&'static str, Kind),
    egress: (&'static str, Kind),
    /// The interface of the packets, and a second one.
    interfaces: [u32; 2],
    object: Ebpf,
    ring: RingBuf<MapData>,
    counters: PerCpuArray<MapData, u64>,
    orders: HashMap<MapData, [u8; FlowKey::SIZE], [u8; Order::SIZE]>,
    flows: HashMap<MapData, [u8; FlowKey::SIZE], [u8; FlowState::SIZE]>,
    opening: HashMap<MapData, [u8; FlowKey::SIZE], [u8; FlowState::SIZE]>,
    link_addresses: HashMap<MapData, u32, [u8; 8]>,
    gate: UserspaceGate,
    /// Flow instances: the kernel's ids come from its clock, the gate's from the test's.
    lives: Map<u64, u64>,
    now: u64,
    serial: u32,
    records: usize,
    refused: usize,
}

impl Pair {
    fn load(link: Link, ingress: (&'static str, Kind), egress: &'static str, interfaces: [u32; 2]) -> Self {
        let seeds: [u64; SEEDS] = std::array::from_fn(|index| 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(index as u64 + 1));
        let mut object = EbpfLoader::new()
            .override_global("AYA_LOG_LEVEL", &0_u8, true)
            .override_global("SEEDS", seeds.as_slice(), true)
            .load(OBJECT)
            .unwrap();
        for name in [ingress.0, egress] {
            match object.program_mut(name) {
                Some(Program::Xdp(program)) => program.load().unwrap(),
                Some(Program::SchedClassifier(program)) => program.load().unwrap(),
                _ => panic!("no program {name}"),
            }
        }
        Self {
            link,
            ingress,
            egress: (egress, Kind::Tc),
            interfaces,
            ring: object.take_map("RING").unwrap().try_into().unwrap(),
            counters: object.take_map("COUNTERS").unwrap().try_into().unwrap(),
            orders: object.take_map("ORDERS").unwrap().try_into().unwrap(),
            flows: object.take_map("FLOWS").unwrap().try_into().unwrap(),
            opening: object.take_map("OPENING").unwrap().try_into().unwrap(),
            link_addresses: object.take_map("LINK_ADDRESSES").unwrap().try_into().unwrap(),
            object,
            gate: UserspaceGate::new(PortSet::default()).with_seeds(seeds),
            lives: Map::new(),
            now: 0,
            serial: 0,
            records: 0,
            refused: 0,
        }
    }

    /// Every program, each pair with a gate of its own.
    fn all(interfaces: [u32; 2]) -> Vec<Self> {
        vec![
            Self::load(Link::Ethernet, ("smtpwatch_xdp", Kind::Xdp), "smtpwatch_tc_egress", interfaces),
            Self::load(Link::Ethernet, ("smtpwatch_tc_ingress", Kind::Tc), "smtpwatch_tc_egress", interfaces),
            Self::load(Link::Ip, ("smtpwatch_tc_ingress_ip", Kind::Tc), "smtpwatch_tc_egress_ip", interfaces),
        ]
    }

    fn name(&self) -> &'static str {
        self.ingress.0
    }

    fn octets(&self, packet: &Packet) -> Vec<u8> {
        match self.link {
            Link::Ethernet => packet.ethernet(),
            Link::Ip => packet.ip(),
        }
    }

    /// Runs one packet through the program of its direction and through the gate.
    fn feed(&mut self, packet: &[u8], direction: Direction, interface: u32) {
        let (name, kind) = if direction == Direction::Ingress { self.ingress } else { self.egress };
        let fd = match self.object.program(name) {
            Some(Program::Xdp(program)) => program.fd().unwrap(),
            Some(Program::SchedClassifier(program)) => program.fd().unwrap(),
            _ => unreachable!(),
        };
        let run = match test_run(fd.as_fd(), kind, packet, 1, interface) {
            Ok(run) => run,
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                // The kernel cannot build this packet for a test run: too short for a frame, or too long for this hook.
                self.refused += 1;
                return;
            }
            Err(error) => panic!("{name}: {error}"),
        };
        let verdict = if kind == Kind::Xdp { XDP_PASS } else { TC_NEXT };
        assert_eq!(run.verdict, verdict, "{name}: a packet that does not pass: {packet:02x?}");
        self.now += 1;
        let frame = CapturedFrame {
            link: self.link,
            bytes: packet,
            wire_len: u32::try_from(packet.len()).unwrap(),
            at_ns: self.now,
            interface,
            direction: Some(direction),
        };
        let mut expected = Vec::new();
        self.gate.packet(&frame, |record| expected.push((record.header, record.payload.to_vec())));
        let mut found = Vec::new();
        while let Some(octets) = self.ring.next() {
            let record = Record::decode(&octets).unwrap();
            found.push((record.header, record.payload.to_vec()));
        }
        assert_eq!(found.len(), expected.len(), "{name}: records of {packet:02x?}");
        for ((found, octets), (expected, wanted)) in found.iter().zip(&expected) {
            let life = *self.lives.entry(found.flow).or_insert(expected.flow);
            assert_eq!(life, expected.flow, "{name}: life of a flow");
            assert_eq!(comparable(found), comparable(expected), "{name}: {packet:02x?}");
            assert_eq!(octets, wanted, "{name}: payload");
        }
        self.records += found.len();
        self.compare_counters();
    }

    /// Passes the packets of a session through the hooks of a host that is `own`.
    fn pass(&mut self, own: Own, packets: &[(Own, &Packet)]) {
        for (from, packet) in packets {
            let direction = if own == *from { Direction::Egress } else { Direction::Ingress };
            let octets = self.octets(packet);
            self.feed(&octets, direction, self.interfaces[0]);
        }
    }

    fn compare_counters(&self) {
        for counter in Counter::ALL {
            let kernel: u64 = self.counters.get(&(counter as u32), 0).unwrap().iter().sum();
            assert_eq!(kernel, self.gate.counter(counter), "{}: {counter:?}", self.name());
        }
    }

    /// Passes the same order to both gates.
    fn order(&mut self, order: &GateOrder) {
        self.gate.order(order);
        let key = FlowKey::new(order.flow.client, order.flow.server);
        // Orders are accepted for the flow keyed by its ports; the order itself names the ends as they are.
        let Some(state) = [(key, false), (key.swapped(), true)].into_iter().find_map(|(key, swapped)| {
            let state = self.flows.get(&key.to_bytes(), 0).or_else(|_| self.opening.get(&key.to_bytes(), 0)).ok()?;
            (state[offset_of!(FlowState, swapped)] == u8::from(swapped)).then_some(state)
        }) else {
            return;
        };
        let at = offset_of!(FlowState, server) + offset_of!(DirectionState, next);
        let server_next = u32::from_ne_bytes(state[at..at + 4].try_into().unwrap());
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

/// The fields that must be equal: all but clocks and owner, and of the options only the length in use.
fn comparable(header: &Header) -> Header {
    let mut header = *header;
    let meant = usize::from(header.options_len);
    header.options[meant..].fill(0);
    Header { timestamp: 0, flow: 0, cgroup: 0, uid: 0, ..header }
}

/// One generated session.
struct Session {
    own: Own,
    /// Ports of client and server.
    ports: (u16, u16),
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
    fn new(dice: &mut Dice, number: u16) -> Self {
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
        // With both ports watched, only the opening shows which end is the client.
        let ports = match dice.below(6) {
            0 => *dice.pick(&[(25, 587), (587, 25), (25, 25)]),
            _ => (number, if number.is_multiple_of(2) { 25 } else { 587 }),
        };
        let own = *dice.pick(&[Own::Client, Own::Server]);
        let v6 = dice.one_in(3);
        Self { own, ports, v6, client_next: base, server_next: !base, tags, script, position: 0 }
    }

    /// The next packets of the session, each with whether the client sends it; empty at its end.
    fn step(&mut self, dice: &mut Dice) -> Vec<(bool, Packet)> {
        if self.position == 0 {
            self.position = 1;
            if !dice.one_in(6) {
                let mut syn = self.packet(dice, true, &[]);
                syn.flags = 0x02;
                let mut syn_ack = self.packet(dice, false, &[]);
                (syn_ack.flags, syn_ack.ack) = (0x12, self.client_next.wrapping_add(1));
                self.client_next = self.client_next.wrapping_add(1);
                self.server_next = self.server_next.wrapping_add(1);
                let mut packets = vec![(true, syn), (false, syn_ack)];
                // One packet sent twice, or the first one lost, so that the flow is joined at its answer.
                match dice.below(4) {
                    0 => packets.push(packets[dice.below(2)].clone()),
                    1 => drop(packets.remove(0)),
                    _ => {}
                }
                return packets;
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
        // One byte per segment, limited to 64 segments.
        for octets in line.chunks(piece).take(64) {
            if dice.one_in(10) {
                packets.push((client, self.decoy(dice, client)));
            }
            packets.push((client, self.packet(dice, client, octets)));
            let next = if client { &mut self.client_next } else { &mut self.server_next };
            *next = next.wrapping_add(u32::try_from(octets.len()).unwrap());
            if dice.one_in(3) {
                packets.push((!client, self.packet(dice, !client, &[])));
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
            && let Some((_, packet)) = packets.last_mut()
        {
            packet.flags |= *dice.pick(&[0x01, 0x04, 0x02]);
        }
        packets
    }

    /// A packet that an attacker may send in the name of an end: an answer early or far off in sequence, a SYN, an RST.
    fn decoy(&self, dice: &mut Dice, client: bool) -> Packet {
        let (_, line) = *dice.pick(&LINES);
        let mut packet = self.packet(dice, client, line);
        let ahead = *dice.pick(&[0, 0, 1, 600, 40_000, 0x7fff_ffff, 0x8000_0001, 0xffff_ff00]);
        packet.seq = packet.seq.wrapping_add(ahead);
        if dice.one_in(3) {
            packet.flags = *dice.pick(&[0x02, 0x12, 0x04, 0x14, 0x11]);
            packet.payload.clear();
        }
        packet
    }

    /// The direction of a packet: the expected one, or rarely the opposite.
    fn direction(&self, dice: &mut Dice, client: bool) -> Direction {
        if (self.own == Own::Client) == client && !dice.one_in(25) || dice.one_in(60) {
            Direction::Egress
        } else {
            Direction::Ingress
        }
    }

    fn packet(&self, dice: &mut Dice, client: bool, payload: &[u8]) -> Packet {
        let mut packet = self.plain(client, payload);
        packet.tags.clone_from(&self.tags);
        packet.padding = if dice.one_in(4) { dice.below(20) } else { 0 };
        packet.options = vec![1; 4 * dice.below(11)];
        if self.v6 {
            for _ in 0..dice.below(4) / 3 {
                let kind = *dice.pick(&[0, 43, 60]);
                packet.extensions.push((kind, vec![0; 8]));
            }
        } else if dice.one_in(8) {
            packet.ip_options = vec![1; 4 * dice.below(11)];
        }
        if dice.one_in(40) {
            (packet.no_length, packet.padding) = (true, 0);
        }
        packet.wrong_sum = dice.one_in(30);
        packet
    }

    fn plain(&self, client: bool, payload: &[u8]) -> Packet {
        let packet = Packet {
            v6: self.v6,
            flags: 0x18,
            payload: payload.to_vec(),
            source_port: self.ports.0,
            target_port: self.ports.1,
            seq: self.client_next,
            ack: self.server_next,
            ..Packet::default()
        };
        if client { packet } else { Packet { seq: self.server_next, ack: self.client_next, ..packet.reversed() } }
    }

    fn flow(&self) -> smtpwatch_core::FlowKey {
        let (client, server) = if self.v6 { ("[2001:db8::a]", "[2001:db8::19]") } else { ("192.0.2.10", "192.0.2.25") };
        smtpwatch_core::FlowKey {
            client: format!("{client}:{}", self.ports.0).parse().unwrap(),
            server: format!("{server}:{}", self.ports.1).parse().unwrap(),
        }
    }
}

/// Everything other than well-formed TCP of a watched port. `start` is the offset of the IP header.
fn oddity(dice: &mut Dice, packet: &[u8], start: usize) -> Vec<u8> {
    let mut odd = packet.to_vec();
    match dice.below(6) {
        // Flip bits in the headers.
        0 => {
            for _ in 0..=dice.below(3) {
                let at = dice.below(odd.len().min(60));
                odd[at] ^= 1 << dice.below(8);
            }
        }
        1 => odd.truncate(14 + dice.below(odd.len().saturating_sub(14).max(1))),
        // A fragment, if the packet is untagged IPv4.
        2 => odd[start + 6] = *dice.pick(&[0x20, 0x01, 0x40]),
        3 => odd = (0..20 + dice.below(200)).map(|_| u8::try_from(dice.below(256)).unwrap()).collect(),
        // A TCP header that is too short, if the packet is IPv4 without options.
        4 => odd[start + 32] = 0x10,
        // A port that is not watched.
        _ => {
            odd[start + 20..start + 24].fill(99);
        }
    }
    odd
}

/// A packet within an encapsulation, now and then with damaged headers. `start` is the offset of its IP header.
fn encapsulated(dice: &mut Dice, packet: &[u8], start: usize) -> Vec<u8> {
    let ip = &packet[start..];
    let v6 = ip[0] >> 4 == 6;
    let kind: [u8; 2] = if v6 { [0x86, 0xdd] } else { [8, 0] };
    let frame = [&[0; 12][..], &kind, ip].concat();
    let udp = |port: u16, rest: &[u8]| {
        let length = u16::try_from(8 + rest.len()).unwrap_or(u16::MAX).to_be_bytes();
        [&[0xc0, 0][..], &port.to_be_bytes(), &length, &[0, 0], rest].concat()
    };
    let (mut protocol, mut ether_type) = (17, None);
    let rest;
    match dice.below(if start > 0 { 6 } else { 4 }) {
        0 => rest = udp(*dice.pick(&[4789, 8472]), &[&[8, 0, 0, 0, 0, 0, 7, 0][..], &frame].concat()),
        1 => {
            let options = u8::try_from(dice.below(8)).unwrap();
            let header = [options, 0, 0x65, 0x58, 0, 0, 7, 0];
            rest = udp(6081, &[&header[..], &vec![0; usize::from(options) * 4], &frame].concat());
        }
        2 => {
            protocol = 47;
            let flags = *dice.pick(&[0, 0x20, 0x30, 0xb0]);
            let optional = vec![0; 4 * (flags & 0xb0_u8).count_ones() as usize];
            rest = [&[flags, 0][..], &kind, &optional, ip].concat();
        }
        3 => (protocol, rest) = (if v6 { 41 } else { 4 }, ip.to_vec()),
        4 => {
            let ppp = if v6 { 0x57 } else { 0x21 };
            (ether_type, rest) = (Some([0x88, 0x64]), [&[0x11, 0, 0, 7, 0, 0, 0, ppp], ip].concat());
        }
        _ => (ether_type, rest) = (Some([0x88, 0x47]), [&[0, 1, 0, 64, 0, 2, 1, 64], ip].concat()),
    }
    let mut outer = match ether_type {
        Some(kind) => [&TARGET[..], &[2, 0, 0, 0, 0, 2], &kind, &rest].concat(),
        None => {
            let total = u16::try_from(20 + rest.len()).unwrap_or(u16::MAX).to_be_bytes();
            let header = [0x45, 0, total[0], total[1], 0, 1, 0, 0, 64, protocol, 0, 0, 203, 0, 113, 1, 203, 0, 113, 2];
            let link = [&TARGET[..], &[2, 0, 0, 0, 0, 2, 8, 0]].concat();
            [if start > 0 { &link[..] } else { &[] }, &header, &rest].concat()
        }
    };
    match dice.below(8) {
        0 => {
            let at = dice.below(outer.len().min(90));
            outer[at] ^= 1 << dice.below(8);
        }
        1 => outer.truncate(start + 20 + dice.below(outer.len() - start - 20)),
        _ => {}
    }
    outer
}

fn play(seed: u64, packets: usize, interfaces: [u32; 2]) -> (usize, usize) {
    let mut dice = Dice(seed);
    let mut pairs = Pair::all(interfaces);
    let mut sessions: Vec<Session> = Vec::new();
    let mut port = 40_000;
    let mut fed = 0;
    while fed < packets {
        while sessions.len() < 4 {
            port += 1;
            // End points are reused.
            sessions.push(Session::new(&mut dice, 40_000 + port % 50));
        }
        let index = dice.below(sessions.len());
        let step = sessions[index].step(&mut dice);
        if step.is_empty() {
            sessions.swap_remove(index);
            continue;
        }
        for (client, packet) in step {
            fed += 1;
            let direction = sessions[index].direction(&mut dice, client);
            let interface = interfaces[usize::from(dice.one_in(30))];
            let (frame, raw) = (packet.ethernet(), packet.ip());
            // Of another connection than the one that is followed, or of that one.
            let hidden = dice.one_in(15).then(|| {
                let inner =
                    if dice.one_in(4) { packet.clone() } else { Packet { source_port: 39_999, ..packet.clone() } };
                let inner = Packet { tags: Vec::new(), ..inner };
                (encapsulated(&mut dice, &inner.ethernet(), 14), encapsulated(&mut dice, &inner.ip(), 0))
            });
            let odd = dice.one_in(20).then(|| (oddity(&mut dice, &frame, 14), oddity(&mut dice, &raw, 0)));
            for pair in &mut pairs {
                let (packet, odd) = match pair.link {
                    Link::Ethernet => (&frame, odd.as_ref().map(|odd| &odd.0)),
                    Link::Ip => (&raw, odd.as_ref().map(|odd| &odd.1)),
                };
                pair.feed(packet, direction, interface);
                odd.into_iter().for_each(|odd| pair.feed(odd, direction, interface));
                if let Some((frame, raw)) = &hidden {
                    pair.feed(if pair.link == Link::Ethernet { frame } else { raw }, direction, interface);
                }
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
            // The gate applies an order at once, the kernel with the flow's next packet that is not forged: so send
            // such a packet.
            let next = session.plain(session.own == Own::Client, &[]);
            for pair in &mut pairs {
                pair.order(&order);
                let octets = pair.octets(&next);
                pair.feed(&octets, Direction::Egress, interfaces[0]);
            }
        }
    }
    for pair in &pairs {
        println!("{}: {} records, {} packets refused by the kernel", pair.name(), pair.records, pair.refused);
        assert!(pair.records > packets / 10, "{}: the generator must reach the gate", pair.name());
        for counter in Counter::ALL {
            let reached = pair.gate.counter(counter) > 0;
            let expected = match counter {
                Counter::RingFull | Counter::FlowTableFull | Counter::NoScratch => false,
                Counter::ForwardedIngress
                | Counter::MutedIngress
                | Counter::OtherIngress
                | Counter::ForwardedEgress
                | Counter::MutedEgress
                | Counter::OtherEgress
                | Counter::Fragment
                | Counter::Truncated
                | Counter::Unparsed
                | Counter::Forged
                | Counter::Vxlan
                | Counter::Geneve
                | Counter::Gre
                | Counter::Ipip => true,
                // Devices without a link layer have neither.
                Counter::Pppoe | Counter::Mpls => pair.link == Link::Ethernet,
            };
            assert_eq!(reached, expected, "{}: {counter:?} must be reached by the generator", pair.name());
        }
    }
    (pairs.iter().map(|pair| pair.records).sum(), pairs.iter().map(|pair| pair.refused).sum())
}

/// Runs `test` with two interfaces, neither of them loopback.
fn at_interfaces(test: impl FnOnce([u32; 2]) + Send) {
    let namespace = Namespace::create("gate").unwrap();
    join((&namespace, "gate0"), (&namespace, "gate1")).unwrap();
    namespace
        .run(|| {
            let index = |name: &str| nix::net::if_::if_nametoindex(name).unwrap();
            test([index("gate0"), index("gate1")]);
        })
        .unwrap();
}

#[test]
fn kernel_and_userspace_gate_agree_on_random_sessions() {
    crate::need_root!();
    at_interfaces(|interfaces| {
        for seed in [1, 0x5eed, 0xdead_beef] {
            let (records, refused) = play(seed, 4_000, interfaces);
            println!("seed {seed:#x}: {records} records compared, {refused} packets refused");
        }
    });
}

/// A segment of one session, from the client or from the server.
fn segment((v6, source_port): (bool, u16), client: bool, flags: u8, seq: u32, ack: u32, payload: &[u8]) -> Packet {
    let packet = Packet { v6, source_port, flags, seq, ack, payload: payload.to_vec(), ..Packet::default() };
    if client { packet } else { packet.reversed() }
}

/// The fast path recognises muted flows by their tags alone; end points may be reused.
#[test]
fn a_muted_flow_is_told_at_a_glance_until_a_syn() {
    crate::need_root!();
    at_interfaces(|interfaces| {
        for mut pair in Pair::all(interfaces) {
            let mut port = 41_000;
            for v6 in [false, true] {
                // Without stored state, the flow is created by the side that leaves the host: its SYN is the client's.
                for (own, forgotten) in [(Own::Client, false), (Own::Client, true), (Own::Server, false)] {
                    port += 1;
                    muted_until_a_syn(&mut pair, (v6, port), own, forgotten);
                }
            }
        }
    });
}

fn muted_until_a_syn(pair: &mut Pair, (v6, port): (bool, u16), own: Own, forgotten: bool) {
    let (client, server) = if v6 { ("[2001:db8::a]", "[2001:db8::19]:25") } else { ("192.0.2.10", "192.0.2.25:25") };
    let client = format!("{client}:{port}");
    let flow = smtpwatch_core::FlowKey { client: client.parse().unwrap(), server: server.parse().unwrap() };
    let from_client = |flags, seq, ack, payload: &[u8]| segment((v6, port), true, flags, seq, ack, payload);
    let from_server = |flags, seq, ack, payload: &[u8]| segment((v6, port), false, flags, seq, ack, payload);
    pair.pass(own, &[(Own::Client, &from_client(0x02, 100, 0, b"")), (Own::Server, &from_server(0x12, 500, 101, b""))]);
    pair.order(&GateOrder { flow, action: GateAction::Mute });
    let before = pair.records;
    let line = from_client(0x18, 101, 501, b"a line\r\n");
    for _ in 0..3 {
        pair.pass(own, &[(Own::Client, &line), (Own::Server, &from_server(0x18, 501, 101, b"another\r\n"))]);
    }
    assert_eq!(pair.records, before, "{}: the flow is muted", pair.name());
    if forgotten && pair.link == Link::Ethernet {
        // Without its state the flow would count as another one, joined midstream: only the tag shows that it is muted.
        let key = FlowKey::new(flow.client, flow.server).to_bytes();
        pair.flows.remove(&key).or_else(|_| pair.opening.remove(&key)).unwrap();
        pair.pass(own, &[(Own::Client, &line), (Own::Server, &from_server(0x10, 501, 101, b""))]);
    }
    // A malformed header is not a packet of the muted flow.
    let mut odd = pair.octets(&line);
    let offset = odd.len() - 8 - 8;
    odd[offset] = 0x40;
    let direction = if own == Own::Client { Direction::Egress } else { Direction::Ingress };
    pair.feed(&odd, direction, pair.interfaces[0]);
    pair.pass(
        own,
        &[
            (Own::Client, &from_client(0x02, 7_000, 0, b"")),
            (Own::Server, &from_server(0x12, 9_000, 7_001, b"")),
            (Own::Server, &from_server(0x18, 9_001, 7_001, b"220 mx1.example.net\r\n")),
            (Own::Client, &from_client(0x18, 7_001, 9_022, b"EHLO gw.example.org\r\n")),
        ],
    );
    assert_eq!(pair.records, before + 4, "{}: the flow is seen again in both directions", pair.name());
}

/// An arriving frame to another host changes no state: this host's stack discards it (EV-6).
#[test]
fn ev6_a_frame_to_another_address_is_unusual() {
    crate::need_root!();
    at_interfaces(|interfaces| {
        for mut pair in Pair::all(interfaces).into_iter().filter(|pair| pair.link == Link::Ethernet) {
            let [a, b, c, d, e, f] = TARGET;
            pair.link_addresses.insert(interfaces[0], [a, b, c, d, e, f, 0, 0], 0).unwrap();
            for (unusual, port) in [(true, 41_001), (false, 41_002)] {
                let own = Own::Server;
                let fd = |pair: &Pair, name: &str| match pair.object.program(name) {
                    Some(Program::Xdp(program)) => program.fd().unwrap().try_clone().unwrap(),
                    Some(Program::SchedClassifier(program)) => program.fd().unwrap().try_clone().unwrap(),
                    _ => unreachable!(),
                };
                let mut records = Vec::new();
                for (from, packet) in [
                    (Own::Client, segment((false, port), true, 0x02, 100, 0, b"")),
                    (Own::Server, segment((false, port), false, 0x12, 500, 101, b"")),
                    (Own::Client, segment((false, port), true, 0x18, 101, 501, b"DATA\r\n")),
                    (Own::Server, segment((false, port), false, 0x18, 501, 107, b"354 go\r\n")),
                    (Own::Client, segment((false, port), true, 0x18, 107, 509, b"AUTH PLAIN x\r\n")),
                    (Own::Server, segment((false, port), false, 0x14, 509, 121, b"")),
                ] {
                    let mut frame = packet.ethernet();
                    let is_data = packet.payload.starts_with(b"DATA");
                    if is_data && unusual {
                        frame[5] ^= 1;
                    }
                    let (name, kind) = if from == own { pair.egress } else { pair.ingress };
                    test_run(fd(&pair, name).as_fd(), kind, &frame, 1, interfaces[0]).unwrap();
                    let octets = pair.ring.next().unwrap();
                    let record = Record::decode(&octets).unwrap();
                    assert_eq!(record.header.has_flags(flag::UNUSUAL), is_data && unusual, "{name}");
                    records.push(record.payload.to_vec());
                }
                let seen: &[u8] = if unusual { b"AUTH PLAIN x\r\n" } else { b"" };
                assert_eq!(records[4], seen, "{}: a body is muted after a DATA that this host took in", pair.name());
            }
        }
    });
}

/// GRO segments and multi-buffer frames, up to the length that this kernel allows in a test run.
#[test]
fn kernel_and_userspace_gate_agree_on_large_segments() {
    crate::need_root!();
    at_interfaces(|interfaces| {
        for mut pair in Pair::all(interfaces) {
            for (own, port) in [(Own::Client, 41_001), (Own::Server, 41_002)] {
                let mut longest = 0;
                for length in [2_000, 2_048, 2_049, 3_500, 4_096, 9_000, 20_000, 65_000] {
                    let text: Vec<u8> =
                        b"RCPT TO:<someone@example.net>\r\n".iter().copied().cycle().take(length).collect();
                    let refused = pair.refused;
                    pair.pass(
                        own,
                        &[
                            (Own::Client, &segment((false, port), true, 0x02, 0, 0, b"")),
                            (Own::Server, &segment((false, port), false, 0x12, 0, 1, b"")),
                            (Own::Client, &segment((false, port), true, 0x10, 1, 1, &text)),
                        ],
                    );
                    if pair.refused == refused {
                        longest = length;
                    }
                }
                println!("{} {own:?}: segments up to {longest} octets", pair.name());
                assert!(longest >= 2_049, "{}: more than one chunk must have been compared", pair.name());
            }
        }
    });
}
