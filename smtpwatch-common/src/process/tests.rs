//! The whole way of a packet, without a kernel: sequences as they are on the wire, and what userspace gets to see.

use std::{
    borrow::ToOwned as _,
    collections::{HashMap, HashSet},
    format,
    string::String,
    vec,
    vec::Vec,
};

use super::*;
use crate::{
    Header, PortSet, Side, Slice,
    gate::order_kind,
    headers::tcp_flag::{ACK, FIN, RST, SYN},
    record::{UID_UNKNOWN, flag},
};

const CLIENT_ISN: u32 = 0xffff_fff0; // wraps within the session
const SERVER_ISN: u32 = 7_000;

/// The sides that may be this host's own, and a capture that does not say.
const OWN: [Option<Side>; 3] = [Some(Side::Client), Some(Side::Server), None];
/// The sides that may be this host's own.
const SIDES: [Side; 2] = [Side::Client, Side::Server];
/// The watched interface, which is not loopback.
const INTERFACE: u32 = 2;
/// Ethernet address that frames are sent to.
const TARGET: [u8; 6] = [2, 0, 0, 0, 0, 1];

#[derive(Default)]
struct Table {
    open: HashMap<FlowKey, FlowState>,
    opening: HashMap<FlowKey, FlowState>,
}

impl Table {
    fn all(&self) -> impl Iterator<Item = (FlowKey, FlowState)> {
        self.open.iter().chain(&self.opening).map(|(key, state)| (*key, *state))
    }
}

impl Flows for Table {
    fn find(&mut self, key: &FlowKey, opened: bool) -> Option<&mut FlowState> {
        if opened && let Some(state) = self.opening.remove(key) {
            self.open.insert(*key, state);
        }
        self.open.get_mut(key).or_else(|| self.opening.get_mut(key))
    }

    fn insert(&mut self, key: &FlowKey, state: &FlowState, opened: bool) -> Option<&mut FlowState> {
        let room = if opened { &mut self.open } else { &mut self.opening };
        room.insert(*key, *state);
        room.get_mut(key)
    }
}

/// A host with the gate on its interface, and a client and a server that number their bytes: one of them is this host, unless the capture
/// does not say.
struct Wire {
    own: Option<Side>,
    /// Which way the packet goes that is on its way.
    direction: Option<Direction>,
    link_address: Option<[u8; 6]>,
    ports: (u16, u16),
    flows: Table,
    orders: HashMap<FlowKey, Order>,
    muted: HashSet<Tag>,
    client: u32,
    server: u32,
    now: u64,
    serial: u32,
    records: Vec<(Header, Vec<u8>)>,
    counts: HashMap<u32, u64>,
    /// Bits of the encapsulations that were noted.
    encapsulated: u32,
}

impl Env for Wire {
    fn now(&self) -> u64 {
        self.now
    }
    fn direction(&self) -> Direction {
        self.direction.unwrap_or(Direction::Ingress)
    }
    fn direction_of(&self, _: &Segment) -> Option<Direction> {
        self.direction
    }
    fn link_address(&self) -> Option<[u8; 6]> {
        self.link_address
    }
    fn interface(&self) -> u32 {
        INTERFACE
    }
    fn owner(&self) -> (u64, u32) {
        (0, UID_UNKNOWN)
    }
    fn ports(&self, word: usize) -> u64 {
        PortSet::default().as_words()[word]
    }
    fn seed(&self, index: usize) -> u64 {
        0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(index as u64 + 1)
    }
    fn is_muted(&self, tag: Tag) -> bool {
        self.muted.contains(&tag)
    }
    fn mute(&mut self, tag: Tag) {
        self.muted.insert(tag);
    }
    fn unmute(&mut self, tag: Tag) {
        self.muted.remove(&tag);
    }
    fn order(&self, key: &FlowKey) -> Option<Order> {
        self.orders.get(key).copied()
    }
    fn submit(&mut self, record: &RecordBuffer) -> bool {
        self.records.push((record.header, record.payload[..usize::from(record.header.captured)].to_vec()));
        true
    }
    fn count(&mut self, counter: Counter) {
        *self.counts.entry(counter as u32).or_default() += 1;
    }
    fn note_encapsulated(&mut self, encapsulation: Encapsulation) {
        self.encapsulated |= encapsulation.bit();
    }
}

impl Wire {
    /// After the three-way handshake.
    fn open(own: Option<Side>) -> Self {
        let mut wire = Self::new(own);
        wire.handshake();
        wire
    }

    fn handshake(&mut self) {
        self.segment(Side::Client, SYN, &[]);
        self.segment(Side::Server, SYN | ACK, &[]);
        self.segment(Side::Client, ACK, &[]);
        assert_eq!(self.seen(), ["C:", "S:", "C:"]);
    }

    fn new(own: Option<Side>) -> Self {
        Self {
            own,
            direction: None,
            link_address: None,
            ports: (41_234, 25),
            flows: Table::default(),
            orders: HashMap::new(),
            muted: HashSet::new(),
            client: CLIENT_ISN,
            server: SERVER_ISN,
            now: 0,
            serial: 0,
            records: Vec::new(),
            counts: HashMap::new(),
            encapsulated: 0,
        }
    }

    fn client(&mut self, payload: &[u8]) -> &mut Self {
        self.segment(Side::Client, ACK, payload)
    }

    fn server(&mut self, payload: &[u8]) -> &mut Self {
        self.segment(Side::Server, ACK, payload)
    }

    fn segment(&mut self, from: Side, flags: u8, payload: &[u8]) -> &mut Self {
        self.at(from, flags, self.next(from), payload);
        let numbers = u32::try_from(payload.len()).unwrap() + u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
        let next = if from == Side::Client { &mut self.client } else { &mut self.server };
        *next = next.wrapping_add(numbers);
        self
    }

    fn next(&self, from: Side) -> u32 {
        if from == Side::Client { self.client } else { self.server }
    }

    /// A segment at a sequence number of its own choice.
    fn at(&mut self, from: Side, flags: u8, seq: u32, payload: &[u8]) -> Outcome {
        let direction = self.own.map(|own| if own == from { Direction::Egress } else { Direction::Ingress });
        let packet = self.packet(from, flags, seq, payload);
        self.pass(&packet, direction)
    }

    /// A segment of this host's own side that arrives.
    fn forge(&mut self, flags: u8, seq: u32, payload: &[u8]) -> Outcome {
        let packet = self.packet(self.own.unwrap(), flags, seq, payload);
        self.pass(&packet, Some(Direction::Ingress))
    }

    /// A frame with its IPv4 header's sum.
    fn packet(&self, from: Side, flags: u8, seq: u32, payload: &[u8]) -> Vec<u8> {
        let (client, server) = ([192, 0, 2, 10], [198, 51, 100, 25]);
        let (ack, ports, addresses) = match from {
            Side::Client => (self.server, self.ports, [client, server]),
            Side::Server => (self.client, (self.ports.1, self.ports.0), [server, client]),
        };
        let mut packet = TARGET.to_vec();
        packet.extend([2, 0, 0, 0, 0, 2, 0x08, 0x00, 0x45, 0]);
        packet.extend(u16::try_from(40 + payload.len()).unwrap().to_be_bytes());
        packet.extend([0, 1, 0x40, 0, 64, 6, 0, 0]);
        packet.extend(addresses.concat());
        let sum = checksum(&packet[IP_START..]);
        packet[IP_START + 10..IP_START + 12].copy_from_slice(&sum);
        packet.extend(ports.0.to_be_bytes());
        packet.extend(ports.1.to_be_bytes());
        packet.extend(seq.to_be_bytes());
        packet.extend(ack.to_be_bytes());
        packet.extend([0x50, flags, 2, 0, 0, 0, 0, 0]);
        packet.extend(payload);
        packet
    }

    fn pass(&mut self, packet: &[u8], direction: Option<Direction>) -> Outcome {
        let length = u32::try_from(packet.len()).unwrap();
        self.now += 1;
        self.direction = direction;
        let mut flows = core::mem::take(&mut self.flows);
        let mut scratch = Scratch::EMPTY;
        let outcome = process(&Slice::new(packet, length), Link::Ethernet, &mut flows, self, || Some(&mut scratch));
        self.flows = flows;
        outcome
    }

    fn counted(&self, counter: Counter) -> u64 {
        self.counts.get(&(counter as u32)).copied().unwrap_or(0)
    }

    /// What userspace saw since the last call: sender, and payload or `-n` for bytes that were not copied.
    fn seen(&mut self) -> Vec<String> {
        core::mem::take(&mut self.records)
            .into_iter()
            .map(|(header, payload)| {
                let from = if header.from() == Side::Client { 'C' } else { 'S' };
                let text = String::from_utf8_lossy(&payload).trim_end().replace("\r\n", "|");
                let end = if header.has_flags(flag::BODY_ENDED) { "end" } else { "" };
                let separator = if payload.is_empty() { "" } else { end };
                if payload.is_empty() && header.length > 0 && end.is_empty() {
                    format!("{from}:-{}", header.length)
                } else {
                    format!("{from}:{end}{}{text}", if separator.is_empty() { "" } else { " " })
                }
            })
            .collect()
    }

    fn state(&self) -> FlowState {
        self.flows.all().next().unwrap().1
    }

    fn send_order(&mut self, kind: u32, position: u32) {
        self.serial += 1;
        let (key, state) = self.flows.all().next().unwrap();
        // The daemon knows the ends as records tell them.
        let key = if state.swapped { key.swapped() } else { key };
        self.orders.insert(key, Order { flow: state.flow, serial: self.serial, kind, position, reserved: 0 });
    }
}

/// Where the IP header of a frame begins.
const IP_START: usize = 14;

/// The sum of an IPv4 header whose sum is zero (RFC 1071).
fn checksum(header: &[u8]) -> [u8; 2] {
    let sum: u32 = header.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    (!u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap()).to_be_bytes()
}

#[test]
fn a_body_is_not_copied_and_the_dialogue_after_it_is() {
    for own in OWN {
        let mut wire = Wire::open(own);
        wire.client(b"DATA\r\n")
            .server(b"354 go ahead\r\n")
            .client(b"")
            .client(b"Subject: secret\r\n")
            .client(b"more\r\n.\r\n");
        assert_eq!(
            wire.seen(),
            ["C:DATA", "S:354 go ahead", "C:", "C:end"],
            "the acknowledgment of 354 and the end are told, the body is not"
        );
        wire.server(b"").server(b"250 queued\r\n").client(b"QUIT\r\n");
        assert_eq!(wire.seen(), ["S:250 queued", "C:QUIT"]);
    }
}

#[test]
fn the_first_packet_of_a_body_is_told_without_its_octets() {
    for own in OWN {
        let mut wire = Wire::open(own);
        wire.client(b"data  \r\n").server(b"354 go\r\n").client(b"Subject: x\r\n");
        assert_eq!(wire.seen(), ["C:data", "S:354 go", "C:-12"]);
    }
}

#[test]
fn pipelined_data_is_followed() {
    for own in OWN {
        let mut wire = Wire::open(own);
        wire.client(b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n")
            .server(b"250 ok\r\n250 ok\r\n354 go\r\n")
            .client(b"body");
        assert_eq!(wire.seen().last().unwrap(), "C:-4");
        // The replies may also come one by one.
        let mut wire = Wire::open(own);
        wire.client(b"RCPT TO:<c@d>\r\nDATA\r\n").server(b"250 ok\r\n").server(b"354 go\r\n").client(b"body");
        assert_eq!(wire.seen().last().unwrap(), "C:-4");
    }
}

#[test]
fn neither_end_alone_mutes_a_body() {
    for own in OWN {
        for (client, server, why) in [
            (&b"NOOP\r\n"[..], &b"354 go\r\n"[..], "no DATA"),
            (b"DATA\r\n", b"250 x 354 y\r\n", "354 within the line"),
            (b"DATA\r\n", b"354-go\r\n", "not the last line of the reply"),
            (b"DATA\r\n", b"354 go", "the line has not ended"),
            (b"XDATA\r\n", b"354 go\r\n", "another verb"),
            (b"DATA\r\nNOOP\r\n", b"354 go\r\n", "DATA is not the last line"),
            (b"DATA", b"354 go\r\n", "the command has not ended"),
        ] {
            let mut wire = Wire::open(own);
            wire.client(client).server(server).client(b"AUTH PLAIN x\r\n");
            assert_eq!(wire.seen().last().unwrap(), "C:AUTH PLAIN x", "{why}");
        }
    }
}

#[test]
fn a_command_split_oddly_is_left_to_the_daemon() {
    for own in OWN {
        let mut wire = Wire::open(own);
        for octet in b"DATA\r\n" {
            wire.client(&[*octet]);
        }
        wire.server(b"354 go\r\n").client(b"body");
        assert_eq!(wire.seen().last().unwrap(), "C:body");
        let position = wire.server;
        wire.send_order(order_kind::MUTE_BODY, position);
        wire.client(b"more").client(b"and more");
        assert_eq!(wire.seen(), ["C:-4"], "told once, then silent");
        wire.server(b"250 ok\r\n").client(b"QUIT\r\n");
        assert_eq!(wire.seen(), ["S:250 ok", "C:QUIT"]);
    }
}

#[test]
fn an_order_that_the_server_overtook_is_void() {
    for own in OWN {
        let mut wire = Wire::open(own);
        let position = wire.server;
        wire.server(b"250 ok\r\n");
        wire.send_order(order_kind::MUTE_BODY, position);
        wire.client(b"AUTH PLAIN x\r\n");
        assert_eq!(wire.seen(), ["S:250 ok", "C:AUTH PLAIN x"]);
    }
}

#[test]
fn an_error_within_the_body_does_not_open_it() {
    for own in OWN {
        let mut wire = Wire::open(own);
        wire.client(b"DATA\r\n").server(b"354 go\r\n").client(b"").seen();
        wire.server(b"451 try later\r\n").client(b"still body\r\n");
        assert_eq!(wire.seen(), ["S:451 try later"]);
        wire.server(b"421 bye\r\n").client(b"QUIT\r\n");
        assert_eq!(wire.seen(), ["S:421 bye", "C:QUIT"], "a second reply does");
    }
}

#[test]
fn the_end_of_a_body_counts_in_every_cut() {
    for own in OWN {
        for end in [
            &[&b"x\r\n.\r\n"[..]][..],
            &[b"x\r\n", b".\r\n"],
            &[b"x\r\n.\r\nQUIT\r\n"],
            &[b"x\r\n", b".\r\nQUIT\r\n"],
            &[b".\r\n"],
        ] {
            let mut wire = Wire::open(own);
            wire.client(b"DATA\r\n").server(b"354 go\r\n");
            end.iter().for_each(|piece| drop(wire.client(piece).seen()));
            wire.server(b"552 too much\r\n").client(b"RSET\r\n");
            assert_eq!(wire.seen(), ["S:552 too much", "C:RSET"], "{end:?}");
        }
    }
}

#[test]
fn commands_behind_a_message_are_copied_and_it_is_not() {
    for own in OWN {
        let body = "x".repeat(300);
        for (pieces, seen) in [
            (vec!["secret\r\n.\r\nAUTH PLAIN AGEAYg==\r\n".to_owned()], vec!["C:-32", "C:end AUTH PLAIN AGEAYg=="]),
            (
                vec!["secret\r\n.\r\nMAIL FROM:<a@b>\r\nDATA\r\n".to_owned()],
                vec!["C:-34", "C:end MAIL FROM:<a@b>|DATA"],
            ),
            (vec![format!("{body}\r\n.\r\nRSET\r\n")], vec!["C:-311", "C:end RSET"]),
            (vec![body.clone(), "\r\n.\r\n".to_owned(), "RSET\r\n".to_owned()], vec!["C:-300", "C:end", "C:end RSET"]),
            (vec![format!("{body}\r\n"), ".\r\nRS".to_owned(), "ET\r\n".to_owned()], vec!["C:-302"]),
            (
                vec!["a\r\n.\r\n".to_owned(), "NO".to_owned(), "OP\r\n".to_owned()],
                vec!["C:-6", "C:end", "C:end NO", "C:end OP"],
            ),
            (vec!["dots\r\n..\r\n.x\r\nmore\r\n".to_owned()], vec!["C:-20"]),
        ] {
            let mut wire = Wire::open(own);
            wire.client(b"DATA\r\n").server(b"354 go\r\n").seen();
            for piece in &pieces {
                wire.client(piece.as_bytes());
            }
            assert_eq!(wire.seen(), seen, "{pieces:?}");
        }
    }
}

#[test]
fn a_message_that_is_sent_again_is_not_copied() {
    for own in OWN {
        let mut wire = Wire::open(own);
        wire.client(b"DATA\r\n").server(b"354 go\r\n");
        let seq = wire.client;
        wire.client(b"secret\r\n.\r\n").seen();
        wire.at(Side::Client, ACK, seq, b"secret\r\n.\r\n");
        wire.at(Side::Client, ACK, seq, b"secret\r\n.\r\nRSET\r\n");
        assert_eq!(wire.seen(), ["C:end RSET"]);
    }
}

#[test]
fn tls_is_muted_after_its_handshake_only() {
    for own in OWN {
        let mut wire = Wire::open(own);
        wire.client(b"STARTTLS\r\n").server(b"220 go\r\n").client(b"\x16\x03\x01hello").server(b"\x16\x03\x03hello");
        assert_eq!(wire.seen().len(), 4);
        assert_eq!(wire.state().phase, Phase::Tls);
        let mut copied = 0;
        for _ in 0..20 {
            wire.server(&[0x17; 1_400]);
            wire.client(&[0x17; 1_400]);
            copied = wire.records.iter().map(|(_, payload)| payload.len()).sum();
        }
        let budgets = gate::TLS_CLIENT_BUDGET + gate::TLS_SERVER_BUDGET - 8;
        assert_eq!(copied, usize::from(budgets));
        assert_eq!(wire.state().phase, Phase::Muted);
    }
}

#[test]
fn what_only_looks_like_tls_is_copied() {
    for own in OWN {
        let steps: [&[(Side, &[u8])]; 4] = [
            &[(Side::Client, b"\x16\x03\x01hello"), (Side::Server, b"\x16\x03\x03hello")],
            &[
                (Side::Client, b"STARTTLS\r\n"),
                (Side::Client, b"\x16\x03\x01hello"),
                (Side::Server, b"\x16\x03\x03hello"),
            ],
            &[(Side::Client, b"STARTTLS\r\n"), (Side::Server, b"454 no\r\n"), (Side::Client, b"\x16\x03\x01hello")],
            &[
                (Side::Client, b"STARTTLS\r\n"),
                (Side::Server, b"220 go\r\n"),
                (Side::Client, b"\x16\x03\x01hello"),
                (Side::Server, b"220 what\r\n"),
            ],
        ];
        for step in steps {
            let mut wire = Wire::open(own);
            for (from, octets) in step {
                wire.segment(*from, ACK, octets);
            }
            wire.seen();
            wire.client(b"AUTH PLAIN x\r\n");
            assert_eq!(wire.seen(), ["C:AUTH PLAIN x"], "{step:?}");
            assert_eq!(wire.state().phase, Phase::Clear);
        }
    }
}

#[test]
fn bdat_is_skipped_by_sequence_number() {
    for own in OWN {
        let mut wire = Wire::open(own);
        wire.client(b"BDAT 30 LAST\r\n").seen();
        let until = wire.client.wrapping_add(30); // past the wrap of the sequence numbers
        wire.send_order(order_kind::SKIP_CLIENT, until);
        wire.client(&[b'x'; 10]).client(&[b'x'; 10]).client(b"xxxxxxxxxxQUIT\r\n");
        assert_eq!(wire.seen(), ["C:-10", "C:QUIT"], "told once; the straddling segment from the offset on");
        wire.client(b"NOOP\r\n");
        assert_eq!(wire.seen(), ["C:NOOP"]);
    }
}

#[test]
fn an_order_is_for_one_life_of_a_flow() {
    for own in OWN {
        let mut wire = Wire::open(own);
        wire.send_order(order_kind::MUTE, 0);
        wire.client(b"x");
        assert_eq!(wire.seen(), Vec::<String>::new());
        wire.segment(Side::Client, FIN | ACK, b"body");
        assert_eq!(wire.seen(), ["C:-4"], "an end is told of a muted flow too, without payload");
        wire.client = 5_555;
        wire.segment(Side::Client, SYN, b"").segment(Side::Server, SYN | ACK, b"").client(b"EHLO x\r\n");
        assert_eq!(wire.seen(), ["C:", "S:", "C:EHLO x"], "the order does not reach the next life");
    }
}

#[test]
fn a_flood_of_resets_ends() {
    for own in OWN {
        let mut wire = Wire::open(own);
        wire.send_order(order_kind::MUTE, 0);
        for _ in 0..100 {
            wire.segment(Side::Client, RST, b"");
        }
        assert_eq!(wire.seen().len(), usize::from(gate::CONTROL_RECORDS));
    }
}

#[test]
fn a_spent_budget_is_told() {
    for own in OWN {
        let mut wire = Wire::open(own);
        wire.seen();
        while wire.at(Side::Client, ACK, 9, &[b'x'; 1_400]) == Outcome::Forwarded {}
        let (last, payload) = wire.records.last().unwrap();
        assert!(last.has_flags(flag::BUDGET) && payload.is_empty());
        let copied: usize = wire.records.iter().map(|(_, payload)| payload.len()).sum();
        let budget = usize::try_from(gate::FLOW_BUDGET).unwrap();
        assert!((budget * 9 / 10..=budget).contains(&copied), "{copied}");
    }
}

#[test]
fn ev1_ev16_the_longest_auth_line_crosses_octet_by_octet() {
    for own in OWN {
        let mut wire = Wire::open(own);
        wire.seen();
        for _ in 0..12_288 {
            assert_eq!(wire.at(Side::Client, ACK, 9, b"A"), Outcome::Forwarded);
        }
        assert_eq!(wire.seen().len(), 12_288);
    }
}

#[test]
fn a_flow_joined_midstream_is_marked_and_small() {
    for own in OWN {
        let mut wire = Wire::new(own);
        // Of the side that leaves: what arrives alone makes no flow.
        while wire.at(own.unwrap_or(Side::Server), ACK, 9, &[b'x'; 500]) == Outcome::Forwarded {}
        assert!(wire.records.iter().all(|(header, _)| header.has_flags(flag::MIDSTREAM)));
        let copied: usize = wire.records.iter().map(|(_, payload)| payload.len()).sum();
        assert!((3_000..=4_096).contains(&copied), "{copied}");
    }
}

#[test]
fn data_in_a_syn_is_copied() {
    for own in OWN {
        let mut wire = Wire::new(own);
        wire.segment(Side::Client, SYN, b"EHLO early\r\n")
            .segment(Side::Server, SYN | ACK, b"220 early\r\n")
            .client(b"DATA\r\n");
        // What arrives before anything has left makes no flow, and is told without its payload.
        let early = if own == Some(Side::Server) { "C:-12" } else { "C:EHLO early" };
        assert_eq!(wire.seen(), [early, "S:220 early", "C:DATA"]);
        assert_eq!(wire.state().awaited, gate::Awaited::Data, "the line after it is known to begin a line");
    }
}

#[test]
fn a_retransmission_is_copied_and_concludes_nothing() {
    for own in OWN {
        let mut wire = Wire::open(own);
        let at = wire.client;
        // Acknowledged: which of two copies an end took in is known from there on.
        wire.client(b"NOOP\r\n").server(b"250 ok\r\n");
        wire.at(Side::Client, ACK, at, b"DATA\r\n");
        wire.server(b"354 go\r\n").client(b"AUTH PLAIN x\r\n");
        assert_eq!(wire.seen(), ["C:NOOP", "S:250 ok", "C:DATA", "S:354 go", "C:AUTH PLAIN x"]);
    }
}

#[test]
fn ev10_ev12_a_large_segment_crosses_in_chunks() {
    for own in OWN {
        let mut wire = Wire::open(own);
        wire.seen();
        wire.client(&[b'x'; 5_000]);
        let chunks: Vec<_> =
            wire.records.iter().map(|(header, _)| (header.length, header.offset, header.captured)).collect();
        assert_eq!(chunks, [(5_000, 0, 2048), (5_000, 2048, 2048), (5_000, 4096, 904)]);
    }
}

#[test]
fn a_muted_flow_is_told_at_a_glance_until_its_end_points_meet_again() {
    for own in OWN {
        for forgotten in [false, true] {
            let mut wire = Wire::open(own);
            wire.send_order(order_kind::MUTE, 0);
            for _ in 0..2 {
                wire.client(b"x\r\n").server(b"y\r\n");
            }
            assert_eq!(wire.muted.len(), 2, "one tag for each direction");
            if forgotten {
                // The flow table had no room, the tags are still there: the flow is not taken for one joined midstream.
                wire.flows = Table::default();
                wire.client(b"x\r\n");
                assert_eq!(wire.flows.all().count(), 0);
            }
            assert_eq!(wire.seen(), Vec::<String>::new());
            (wire.client, wire.server) = (99, 999);
            wire.segment(Side::Client, SYN, &[]).segment(Side::Server, SYN | ACK, &[]);
            assert!(wire.muted.is_empty());
            wire.server(b"220 hi\r\n").client(b"EHLO x\r\n");
            assert_eq!(wire.seen(), ["C:", "S:", "S:220 hi", "C:EHLO x"]);
        }
    }
}

#[test]
fn state_made_midstream_clears_the_tags_of_both_directions() {
    for own in OWN {
        let mut wire = Wire::open(own);
        wire.send_order(order_kind::MUTE, 0);
        for _ in 0..2 {
            wire.client(b"x\r\n").server(b"y\r\n");
        }
        let (key, _) = wire.flows.all().next().unwrap();
        wire.flows = Table::default();
        // Another flow had the slot of the tag of the side that leaves: the other side's packets alone make no flow.
        let first = own.unwrap_or(Side::Client);
        let kept = Tag::of(&Wire::new(own), &key, 4, first.peer());
        wire.muted.retain(|tag| [kept, kept.other_direction()].contains(tag));
        assert_eq!(wire.muted.len(), 1);
        wire.segment(first, ACK, b"x\r\n").segment(first.peer(), ACK, b"y\r\n");
        let seen = if first == Side::Client { ["C:x", "S:y"] } else { ["S:x", "C:y"] };
        assert_eq!(wire.seen(), seen);
    }
}

#[test]
fn what_arrives_mutes_nothing_that_leaves() {
    for own in [Side::Client, Side::Server] {
        let mut wire = Wire::new(Some(own));
        assert_eq!(wire.forge(ACK, 9, b"x"), Outcome::Forwarded, "{own:?}: a claim, sent once");
        assert_eq!(wire.forge(ACK, 9, b"x"), Outcome::Muted, "{own:?}");
        wire.records.clear();
        wire.segment(own, ACK, b"x\r\n");
        assert_eq!(wire.records.len(), 1, "{own:?}: the flow was joined midstream");
        assert_eq!(wire.forge(ACK, 9, b"x"), Outcome::Forged, "{own:?}");
    }
}

/// In a body, whose first packet was told.
fn in_body(own: Option<Side>) -> Wire {
    let mut wire = Wire::open(own);
    wire.client(b"DATA\r\n").server(b"354 go\r\n").client(b"Subject: secret\r\n");
    assert_eq!(wire.seen(), ["C:DATA", "S:354 go", "C:-17"]);
    wire
}

#[test]
fn a_forged_frame_of_the_own_side_is_counted_and_changes_nothing() {
    for own in SIDES {
        for (flags, payload) in [
            (ACK, &b"DATA\r\n"[..]),
            (ACK, b"STARTTLS\r\n"),
            (ACK, b"220 go\r\n"),
            (ACK, b""),
            (SYN, b""),
            (SYN | ACK, b""),
            (RST, b""),
            (FIN | ACK, b""),
        ] {
            let mut wire = Wire::open(Some(own));
            wire.client(b"NOOP\r\n").server(b"250 ok\r\n").seen();
            let before = wire.state();
            for seq in [wire.next(own), 4_711] {
                assert_eq!(wire.forge(flags, seq, payload), Outcome::Forged, "{own:?} {flags:x}");
            }
            assert_eq!(wire.counted(Counter::Forged), 2);
            assert_eq!(wire.seen(), Vec::<String>::new());
            assert_eq!(wire.state(), before, "{own:?} {flags:x}");
        }
    }
}

#[test]
fn a_decoy_far_ahead_hides_no_answer() {
    for decoy in [&b"250 ok\r\n"[..], b"half a line", b"\x16\x03\x03hello"] {
        for distance in [50_000, 0x7000_0000, 0x9000_0000] {
            let mut wire = Wire::open(Some(Side::Client));
            wire.client(b"DATA\r\n");
            wire.at(Side::Server, ACK, wire.server.wrapping_add(distance), decoy);
            wire.server(b"354 go\r\n").seen();
            wire.client(b"body");
            assert_eq!(wire.seen(), ["C:-4"], "{decoy:?} {distance:x}");

            let mut wire = Wire::open(Some(Side::Client));
            wire.client(b"STARTTLS\r\n");
            wire.at(Side::Server, ACK, wire.server.wrapping_add(distance), decoy);
            wire.server(b"220 go\r\n").client(b"\x16\x03\x01hello").server(b"\x16\x03\x03hello");
            assert_eq!(wire.state().phase, Phase::Tls, "{decoy:?} {distance:x}");

            let mut wire = Wire::open(Some(Side::Server));
            wire.at(Side::Client, ACK, wire.client.wrapping_add(distance), decoy);
            wire.client(b"DATA\r\n").server(b"354 go\r\n").seen();
            wire.client(b"body");
            assert_eq!(wire.seen(), ["C:-4"], "as a server: {decoy:?} {distance:x}");
        }
    }
}

#[test]
fn a_decoy_in_the_answers_place_does_not_hide_it() {
    for decoy in [&b"250 ok\r\n"[..], b"250 longer than the answer\r\n", b"354", b"x"] {
        let mut wire = Wire::open(Some(Side::Client));
        wire.client(b"DATA\r\n");
        wire.at(Side::Server, ACK, wire.server, decoy);
        wire.server(b"354 go\r\n").seen();
        wire.client(b"body");
        assert_eq!(wire.seen(), ["C:-4"], "{decoy:?}");
    }
    for decoy in [&b"454 no\r\n"[..], b"x"] {
        let mut wire = Wire::open(Some(Side::Client));
        wire.client(b"STARTTLS\r\n");
        wire.at(Side::Server, ACK, wire.server, decoy);
        wire.server(b"220 go\r\n").client(b"\x16\x03\x01hello").server(b"\x16\x03\x03hello");
        assert_eq!(wire.state().phase, Phase::Tls, "{decoy:?}");
    }
}

#[test]
fn what_arrives_with_a_syn_opens_no_body() {
    for own in SIDES {
        for flags in [SYN, SYN | ACK] {
            let mut wire = in_body(Some(own));
            let before = wire.state();
            for seq in [4_711, wire.next(own.peer())] {
                wire.at(own.peer(), flags, seq, b"");
            }
            assert!(wire.seen().iter().all(|record| record.len() == 2), "told without octets");
            wire.client(b"more of it\r\n").client(b"AUTH PLAIN x\r\n");
            assert_eq!(wire.seen(), Vec::<String>::new(), "{own:?} {flags:x}");
            let after = wire.state();
            assert_eq!((after.flow, after.phase, after.isn), (before.flow, Phase::Body, before.isn));
            let budgets = |state: &FlowState| match own {
                Side::Client => state.client.budget,
                Side::Server => state.server.budget,
            };
            assert_eq!(budgets(&after), budgets(&before), "{own:?} {flags:x}");
        }
    }
}

/// How far a connection has come, and what brings it there.
type Stage = (&'static str, fn(&mut Wire));

#[test]
fn ev23_a_syn_of_the_own_side_begins_another_life() {
    for own in SIDES {
        for same in [true, false] {
            let stages: [Stage; 4] = [
                ("muted", |wire| {
                    wire.send_order(order_kind::MUTE, 0);
                    wire.client(b"x").server(b"y");
                }),
                ("TLS", |wire| {
                    wire.client(b"STARTTLS\r\n").server(b"220 go\r\n");
                    wire.client(b"\x16\x03\x01hello").server(b"\x16\x03\x03hello");
                }),
                ("a body", |wire| {
                    wire.client(b"DATA\r\n").server(b"354 go\r\n").client(b"x\r\n");
                }),
                ("dialogue", |wire| {
                    wire.server(b"220 hi\r\n").client(b"NOOP\r\n");
                }),
            ];
            for (stage, reach) in stages {
                let mut wire = Wire::open(Some(own));
                reach(&mut wire);
                wire.seen();
                let before = wire.state().flow;
                // A server with SYN cookies may choose the same number again, whatever the client's is (EV-23).
                (wire.client, wire.server) = match (own, same) {
                    (Side::Client, true) => (CLIENT_ISN, 99),
                    (Side::Server, true) => (99, SERVER_ISN),
                    (_, false) => (99, 999),
                };
                wire.handshake();
                let state = wire.state();
                assert_ne!(state.flow, before, "{own:?} {same} after {stage}");
                assert_eq!(state.phase, Phase::Clear);
                assert!(!state.midstream);
                wire.client(b"AUTH PLAIN x\r\n");
                assert_eq!(wire.seen(), ["C:AUTH PLAIN x"], "{own:?} {same} after {stage}");
            }
        }
    }
}

#[test]
fn a_retransmitted_opening_begins_no_other_life() {
    for own in OWN {
        for early in [&b""[..], b"EHLO early\r\n"] {
            let mut wire = Wire::new(own);
            wire.segment(Side::Client, SYN, early);
            wire.at(Side::Client, SYN, CLIENT_ISN, early);
            wire.segment(Side::Server, SYN | ACK, b"");
            let flow = wire.state().flow;
            // Also one of the client that crosses the answer on its way.
            wire.at(Side::Client, SYN, CLIENT_ISN, early);
            wire.at(Side::Server, SYN | ACK, SERVER_ISN, b"");
            wire.segment(Side::Client, ACK, b"");
            wire.at(Side::Server, SYN | ACK, SERVER_ISN, b"");
            assert_eq!(wire.state().flow, flow, "{own:?} {early:?}");
            assert!(!wire.state().midstream);
            if own.is_none() {
                let lives: HashSet<u64> = wire.records.iter().map(|(header, _)| header.flow).collect();
                assert_eq!(lives, HashSet::from([flow]), "SYN and SYN-ACK are of one life");
            }
            wire.seen();
            wire.server(b"220 hi\r\n").client(b"DATA\r\n").server(b"354 go\r\n").seen();
            wire.client(b"body");
            assert_eq!(wire.seen(), ["C:-4"], "{own:?} {early:?}");
        }
    }
}

#[test]
fn what_arrives_makes_no_state() {
    for own in SIDES {
        let peer = own.peer();
        let mut wire = Wire::new(Some(own));
        for _ in 0..2 {
            assert_eq!(wire.at(peer, SYN, 5, b""), Outcome::Forwarded);
        }
        assert!(wire.records.iter().all(|(header, _)| (header.flow, header.flags) == (0, 0)));
        assert_eq!(wire.seen().len(), 2, "each SYN is told");
        assert_eq!(wire.at(peer, ACK, 5, b"AUTH PLAIN x\r\n"), Outcome::Forwarded);
        let (header, payload) = &wire.records[0];
        assert_eq!((header.flow, header.flags, payload.len()), (0, flag::MIDSTREAM, 0));
        wire.seen();
        for payload in [&b"more\r\n"[..], b""] {
            assert_eq!(wire.at(peer, ACK, 5, payload), Outcome::Muted);
        }
        assert_eq!(wire.seen(), Vec::<String>::new(), "one packet is told");
        assert_eq!(wire.flows.all().count(), 0);
        wire.segment(own, ACK, b"x\r\n").segment(peer, ACK, b"y\r\n");
        assert_eq!(wire.seen().len(), 2, "{own:?}: both sides are seen after something has left");
        assert!(wire.state().midstream);
    }
}

#[test]
fn a_refusal_makes_no_state_and_opens_none() {
    for own in SIDES {
        let mut wire = Wire::new(Some(own));
        for flags in [RST, RST | ACK, RST | SYN] {
            assert_eq!(wire.at(own, flags, 5, b""), Outcome::Muted);
            assert_eq!(wire.flows.all().count(), 0, "{own:?} {flags:x}");
        }
        assert_eq!(wire.seen(), Vec::<String>::new());
    }
    // A SYN, and an acknowledgment of what was not sent: a flood of both must not reach the room of open flows (EV-24).
    let mut wire = Wire::new(Some(Side::Server));
    wire.segment(Side::Client, SYN, b"").segment(Side::Server, SYN | ACK, b"");
    wire.at(Side::Server, SYN | ACK, SERVER_ISN, b"");
    wire.at(Side::Client, ACK, 4_711, b"");
    wire.at(Side::Server, RST, wire.server, b"");
    assert_eq!((wire.flows.opening.len(), wire.flows.open.len()), (1, 0));
    wire.server(b"220 hi\r\n");
    assert_eq!((wire.flows.opening.len(), wire.flows.open.len()), (0, 1));
}

#[test]
fn the_peers_budget_is_its_own() {
    for own in SIDES {
        let peer = own.peer();
        let mut wire = Wire::open(Some(own));
        while wire.at(peer, ACK, 9, &[b'x'; 1_400]) == Outcome::Forwarded {}
        assert!(wire.records.last().unwrap().0.has_flags(flag::BUDGET));
        wire.seen();
        assert_eq!(wire.state().phase, Phase::Clear);
        wire.segment(own, ACK, b"AUTH PLAIN x\r\n");
        let seen = wire.seen();
        assert!(seen.len() == 1 && seen[0].ends_with("AUTH PLAIN x"), "{own:?}: {seen:?}");
        wire.at(peer, FIN | ACK, 9, b"");
        assert_eq!(wire.seen().len(), 1, "its end is told");
        for _ in 0..100 {
            wire.at(peer, RST, 9, b"");
        }
        assert!(wire.seen().len() < usize::from(gate::CONTROL_RECORDS), "and no flood of them");
    }
}

#[test]
fn ends_of_messages_cost_what_the_peers_budget_has() {
    let mut wire = Wire::open(Some(Side::Server));
    while wire.at(Side::Client, ACK, 9, &[b'x'; 1_400]) == Outcome::Forwarded {}
    wire.seen();
    for _ in 0..8 {
        wire.client(b"DATA\r\n").server(b"354 go\r\n");
        assert_eq!(wire.state().phase, Phase::Body, "it is followed all the same");
        assert_eq!(wire.at(Side::Client, ACK, wire.client, b"x\r\n.\r\n"), Outcome::Muted);
        wire.client = wire.client.wrapping_add(6);
        wire.server(b"250 queued\r\n");
        assert_eq!(wire.seen(), ["S:354 go", "S:250 queued"]);
    }
}

#[test]
fn ends_of_a_message_are_bounded_where_they_arrive() {
    let copied = |wire: &Wire| -> usize { wire.records.iter().map(|(_, payload)| payload.len()).sum() };
    let behind = usize::try_from(gate::BEHIND_BODY).unwrap();
    let mut wire = in_body(Some(Side::Server));
    for _ in 0..gate::BODY_ENDS {
        wire.client(b"x\r\n.\r\n");
        assert!(wire.state().dot);
        let before = copied(&wire);
        for _ in 0..=behind / 1_000 {
            wire.client(&[b'x'; 1_000]);
        }
        assert!((behind - 1_000..=behind).contains(&(copied(&wire) - before)));
        assert!(!wire.state().dot, "more than a group of commands is the message, which goes on");
        wire.client(b"\r\n");
    }
    wire.seen();
    wire.client(b"x\r\n.\r\nAUTH PLAIN x\r\n").client(b"AUTH PLAIN x\r\n");
    assert_eq!(wire.seen(), Vec::<String>::new(), "no more ends than that");
    wire.server(b"250 queued\r\n").client(b"QUIT\r\n");
    assert_eq!(wire.seen(), ["S:250 queued", "C:QUIT"]);

    // What leaves is true: its message has ended there, and all that follows are commands.
    let mut wire = in_body(Some(Side::Client));
    wire.client(b"x\r\n.\r\n");
    for _ in 0..2 * behind / 1_000 {
        wire.client(&[b'x'; 1_000]);
    }
    assert_eq!(copied(&wire), 2 * behind / 1_000 * 1_000);
}

#[test]
fn ev9_a_wrong_header_sum_counts_where_it_arrives() {
    for own in OWN {
        let mut wire = Wire::open(own);
        let before = wire.state();
        for from in SIDES {
            let direction = own.map(|own| if own == from { Direction::Egress } else { Direction::Ingress });
            let mut packet = wire.packet(from, ACK, wire.next(from), b"NOOP\r\n");
            packet[IP_START + 10] ^= 1;
            let outcome = wire.pass(&packet, direction);
            if direction == Some(Direction::Ingress) {
                assert_eq!(outcome, Outcome::Unparsed, "{own:?} {from:?}: the receiver discards it");
                assert_eq!(wire.state(), before);
                assert_eq!(wire.seen(), Vec::<String>::new());
            } else {
                // The network card fills the sum in, or the capture is edited.
                assert_eq!(outcome, Outcome::Forwarded, "{own:?} {from:?}");
                assert_eq!(wire.seen().len(), 1);
                wire = Wire::open(own);
            }
        }
    }
}

/// What is done to a frame.
type Change<'a> = (&'static str, &'a dyn Fn(&mut Vec<u8>));

#[test]
fn ev6_ev9_nothing_is_concluded_from_what_the_host_may_discard() {
    let with_options = |packet: &mut Vec<u8>| {
        let after = IP_START + 20;
        packet.splice(after..after, [0x94, 4, 0, 0]);
        packet[IP_START] = 0x46;
        packet[IP_START + 3] += 4;
        // Of options the receiver's sum covers all; the gate takes no view of it.
    };
    let to_another = |packet: &mut Vec<u8>| packet[5] ^= 1;
    let to_all = |packet: &mut Vec<u8>| packet[..6].fill(0xff);
    let as_usual = |_: &mut Vec<u8>| {};
    let changes: [Change<'_>; 4] =
        [("IP options", &with_options), ("another address", &to_another), ("broadcast", &to_all), ("", &as_usual)];
    for (what, change) in changes {
        let unusual = !what.is_empty();
        // As a server: DATA arrives so. As a client: the answer to it does.
        for own in SIDES {
            let mut wire = Wire::new(Some(own));
            wire.link_address = Some(TARGET);
            wire.handshake();
            if own == Side::Client {
                wire.client(b"DATA\r\n").seen();
            }
            let text: &[u8] = if own == Side::Client { b"354 go\r\n" } else { b"DATA\r\n" };
            let mut packet = wire.packet(own.peer(), ACK, wire.next(own.peer()), text);
            change(&mut packet);
            assert_eq!(wire.pass(&packet, Some(Direction::Ingress)), Outcome::Forwarded);
            let (header, payload) = &wire.records[0];
            assert_eq!((header.has_flags(flag::UNUSUAL), &payload[..]), (unusual, text), "{what}");
            let half = if own == Side::Client { wire.state().server } else { wire.state().client };
            let end = wire.next(own.peer()).wrapping_add(u32::try_from(text.len()).unwrap());
            assert_eq!(half.next != end, unusual, "{what}: its stream does not stand there");
            if own == Side::Client {
                wire.server += 8;
            } else {
                wire.client = wire.client.wrapping_add(6);
                wire.server(b"354 go\r\n");
            }
            wire.seen();
            wire.client(b"AUTH PLAIN x\r\n");
            let seen = if unusual { "C:AUTH PLAIN x" } else { "C:-14" };
            assert_eq!(wire.seen(), [seen], "{what} {own:?}");
        }
    }
}

#[test]
fn ev11_a_packet_without_a_length_is_believed_where_it_is_too_long_for_one() {
    for own in OWN {
        for (payload, outcome) in
            [(1_000, Outcome::Unparsed), (65_495, Outcome::Unparsed), (65_496, Outcome::Forwarded)]
        {
            let mut wire = Wire::open(own);
            let mut packet = wire.packet(Side::Client, ACK, wire.client, b"");
            packet[IP_START + 2..IP_START + 4].fill(0);
            packet[IP_START + 10..IP_START + 12].fill(0);
            let sum = checksum(&packet[IP_START..IP_START + 20]);
            packet[IP_START + 10..IP_START + 12].copy_from_slice(&sum);
            packet.resize(packet.len() + payload, b'x');
            let direction = own.map(|own| if own == Side::Client { Direction::Egress } else { Direction::Ingress });
            assert_eq!(wire.pass(&packet, direction), outcome, "{own:?} {payload}");
        }
    }
}

#[test]
fn ev25_the_opening_tells_the_ends_between_two_watched_ports() {
    for own in OWN {
        for ports in [(25, 587), (587, 25), (25, 25)] {
            for whole in [true, false] {
                // The SYN of this host's own side is always seen.
                if !whole && own == Some(Side::Client) {
                    continue;
                }
                let mut wire = Wire::new(own);
                wire.ports = ports;
                if whole {
                    wire.segment(Side::Client, SYN, b"");
                } else {
                    wire.client = wire.client.wrapping_add(1);
                }
                wire.segment(Side::Server, SYN | ACK, b"").segment(Side::Client, ACK, b"");
                let what = format!("{own:?} {ports:?} {whole}");
                let ends = FlowKey::new(
                    format!("192.0.2.10:{}", ports.0).parse().unwrap(),
                    format!("198.51.100.25:{}", ports.1).parse().unwrap(),
                );
                assert!(wire.records.iter().all(|(header, _)| header.key == ends), "{what}");
                assert_eq!(wire.seen(), if whole { &["C:", "S:", "C:"][..] } else { &["S:", "C:"] }, "{what}");
                wire.server(b"220 hi\r\n")
                    .client(b"NOOP\r\n")
                    .server(b"250 ok\r\n")
                    .client(b"DATA\r\n")
                    .server(b"354 go\r\n");
                assert_eq!(wire.seen(), ["S:220 hi", "C:NOOP", "S:250 ok", "C:DATA", "S:354 go"], "{what}");
                wire.client(b"secret\r\n.\r\nRSET\r\n");
                assert_eq!(wire.seen(), ["C:-17", "C:end RSET"], "{what}");
                wire.server(b"250 ok\r\n").client(b"BDAT 30 LAST\r\n");
                let until = wire.client.wrapping_add(30);
                wire.send_order(order_kind::SKIP_CLIENT, until);
                wire.seen();
                wire.client(&[b'x'; 10]).client(b"xxxxxxxxxxxxxxxxxxxxQUIT\r\n");
                assert_eq!(wire.seen(), ["C:-10", "C:QUIT"], "{what}");
                wire.send_order(order_kind::MUTE, 0);
                wire.client(b"x").server(b"y").client(b"x").server(b"y");
                assert_eq!(wire.seen(), Vec::<String>::new(), "{what}");
                assert_eq!(wire.muted.len(), 2, "{what}: one tag for each direction");
                // The next connection goes the other way.
                wire.now += 1;
                if let Some(own) = own {
                    assert_eq!(wire.forge(ACK, 9, b"x"), Outcome::Muted, "{own:?}");
                }
            }
        }
    }
}

#[test]
fn a_decoy_of_the_go_ahead_to_data_hides_no_command() {
    for own in [Some(Side::Client), None] {
        let mut wire = Wire::open(own);
        wire.client(b"DATA\r\n");
        let at = wire.server;
        wire.at(Side::Server, ACK, at, b"354 go\r\n");
        assert_eq!(wire.state().phase, Phase::Body, "{own:?}");
        wire.seen();
        // An acknowledgment of before, and then a command: this host did not take the decoy in.
        wire.client(b"").client(b"AUTH PLAIN x\r\n");
        assert_eq!(wire.seen(), ["C:", "C:AUTH PLAIN x"], "{own:?}");
    }
}

#[test]
fn any_3yz_reply_to_data_begins_the_body() {
    for reply in [&b"354 go\r\n"[..], b"300 go\r\n", b"353 go\r\n", b"399\r\n"] {
        let mut wire = Wire::open(Some(Side::Client));
        wire.client(b"DATA\r\n").server(reply).client(b"body");
        assert_eq!(wire.seen().last().unwrap(), "C:-4", "{reply:?}");
    }
    for reply in [&b"35x go\r\n"[..], b"3 54 go\r\n", b"250 go\r\n", b"354-go\r\n"] {
        let mut wire = Wire::open(Some(Side::Client));
        wire.client(b"DATA\r\n").server(reply).client(b"body");
        assert_eq!(wire.seen().last().unwrap(), "C:body", "{reply:?}");
    }
}

/// This frame within an IPv4 packet of protocol 4 (RFC 2003).
fn within_ip(frame: &[u8]) -> Vec<u8> {
    let inner = &frame[IP_START..];
    let mut outer = [&frame[..IP_START], &inner[..20]].concat();
    outer[IP_START + 2..IP_START + 4].copy_from_slice(&u16::try_from(20 + inner.len()).unwrap().to_be_bytes());
    outer[IP_START + 9] = 4;
    outer.extend(inner);
    outer
}

/// The device at the end of a tunnel shows the inner packets, if it is watched: then nothing is hidden.
#[test]
fn ev29_mail_in_an_encapsulation_counts_where_its_flow_is_not_seen() {
    for own in OWN {
        let direction = own.map(|_| Direction::Ingress);
        let mut wire = Wire::new(own);
        let syn = wire.packet(Side::Client, SYN, CLIENT_ISN, b"");
        let line = wire.packet(Side::Client, ACK, CLIENT_ISN, b"EHLO gw\r\n");
        let answer = wire.packet(Side::Server, ACK, SERVER_ISN, b"250 mx\r\n");
        assert_eq!(wire.pass(&within_ip(&syn), direction), Outcome::Other);
        assert_eq!((wire.counted(Counter::Ipip), wire.encapsulated), (0, 0), "the inner device may show it later");
        for packet in [&line, &answer] {
            assert_eq!(wire.pass(&within_ip(packet), direction), Outcome::Other);
        }
        assert_eq!((wire.counted(Counter::Ipip), wire.encapsulated), (2, Encapsulation::Ipip.bit()));
        assert_eq!((wire.counted(Counter::OtherIngress), wire.seen()), (3, vec![]), "each is counted once as such");
        wire.handshake();
        for packet in [&line, &answer] {
            wire.pass(&within_ip(packet), direction);
        }
        assert_eq!(wire.counted(Counter::Ipip), 2, "the flow is seen");
    }
}
