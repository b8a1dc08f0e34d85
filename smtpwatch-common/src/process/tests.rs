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
    record::{UID_UNKNOWN, mark},
    walk::tcp_flag::{ACK, FIN, RST, SYN},
};

const CLIENT_ISN: u32 = 0xffff_fff0; // wraps within the session
const SERVER_ISN: u32 = 7_000;

#[derive(Default)]
struct Table(HashMap<FlowKey, FlowState>);

impl Flows for Table {
    fn entry(&mut self, key: &FlowKey, fresh: impl FnOnce() -> FlowState) -> Option<&mut FlowState> {
        Some(self.0.entry(*key).or_insert_with(fresh))
    }
}

/// A wire with the gate on it, and a client and a server that number their octets.
struct Wire {
    flows: Table,
    orders: HashMap<FlowKey, Order>,
    muted: HashSet<Tag>,
    client: u32,
    server: u32,
    now: u64,
    serial: u32,
    records: Vec<(Header, Vec<u8>)>,
    counts: HashMap<u32, u64>,
}

impl Host for Wire {
    fn now(&self) -> u64 {
        self.now
    }
    fn direction(&self) -> Direction {
        Direction::Ingress
    }
    fn interface(&self) -> u32 {
        1
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
}

impl Wire {
    /// After the three-way handshake.
    fn open() -> Self {
        let mut wire = Self::new();
        wire.segment(Side::Client, SYN, &[]);
        wire.segment(Side::Server, SYN | ACK, &[]);
        wire.segment(Side::Client, ACK, &[]);
        assert_eq!(wire.seen(), ["C:", "S:", "C:"]);
        wire
    }

    fn new() -> Self {
        Self {
            flows: Table::default(),
            orders: HashMap::new(),
            muted: HashSet::new(),
            client: CLIENT_ISN,
            server: SERVER_ISN,
            now: 0,
            serial: 0,
            records: Vec::new(),
            counts: HashMap::new(),
        }
    }

    fn client(&mut self, payload: &[u8]) -> &mut Self {
        self.segment(Side::Client, ACK, payload)
    }

    fn server(&mut self, payload: &[u8]) -> &mut Self {
        self.segment(Side::Server, ACK, payload)
    }

    fn segment(&mut self, from: Side, flags: u8, payload: &[u8]) -> &mut Self {
        let seq = if from == Side::Client { self.client } else { self.server };
        self.at(from, flags, seq, payload);
        let numbers = u32::try_from(payload.len()).unwrap() + u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
        let next = if from == Side::Client { &mut self.client } else { &mut self.server };
        *next = next.wrapping_add(numbers);
        self
    }

    /// A segment at a sequence number of its own choice.
    fn at(&mut self, from: Side, flags: u8, seq: u32, payload: &[u8]) -> Outcome {
        let (ack, ports, addresses) = match from {
            Side::Client => (self.server, (41_234_u16, 25_u16), [192, 0, 2, 10, 198, 51, 100, 25]),
            Side::Server => (self.client, (25, 41_234), [198, 51, 100, 25, 192, 0, 2, 10]),
        };
        let mut packet = vec![0; 12];
        packet.extend([0x08, 0x00, 0x45, 0]);
        packet.extend(u16::try_from(40 + payload.len()).unwrap().to_be_bytes());
        packet.extend([0, 1, 0x40, 0, 64, 6, 0, 0]);
        packet.extend(addresses);
        packet.extend(ports.0.to_be_bytes());
        packet.extend(ports.1.to_be_bytes());
        packet.extend(seq.to_be_bytes());
        packet.extend(ack.to_be_bytes());
        packet.extend([0x50, flags, 2, 0, 0, 0, 0, 0]);
        packet.extend(payload);
        let length = u32::try_from(packet.len()).unwrap();
        self.now += 1;
        let mut flows = core::mem::take(&mut self.flows);
        let mut scratch = Scratch::EMPTY;
        let outcome = process(&Slice::new(&packet, length), Link::Ethernet, &mut flows, self, || Some(&mut scratch));
        self.flows = flows;
        outcome
    }

    /// What userspace saw since the last call: sender, and payload or `-n` for octets that were not copied.
    fn seen(&mut self) -> Vec<String> {
        core::mem::take(&mut self.records)
            .into_iter()
            .map(|(header, payload)| {
                let from = if header.from() == Side::Client { 'C' } else { 'S' };
                let text = String::from_utf8_lossy(&payload).trim_end().replace("\r\n", "|");
                let end = if header.marked(mark::BODY_ENDED) { "end" } else { "" };
                let separator = if payload.is_empty() { "" } else { end };
                if payload.is_empty() && header.length > 0 && end.is_empty() {
                    format!("{from}:-{}", header.length)
                } else {
                    format!("{from}:{end}{}{text}", if separator.is_empty() { "" } else { " " })
                }
            })
            .collect()
    }

    fn state(&mut self) -> FlowState {
        *self.flows.0.values().next().unwrap()
    }

    fn send_order(&mut self, kind: u32, position: u32) {
        self.serial += 1;
        let (key, flow) = self.flows.0.iter().map(|(key, state)| (*key, state.flow)).next().unwrap();
        self.orders.insert(key, Order { flow, serial: self.serial, kind, position, reserved: 0 });
    }
}

#[test]
fn a_body_is_not_copied_and_the_dialogue_after_it_is() {
    let mut wire = Wire::open();
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

#[test]
fn the_first_packet_of_a_body_is_told_without_its_octets() {
    let mut wire = Wire::open();
    wire.client(b"data  \r\n").server(b"354 go\r\n").client(b"Subject: x\r\n");
    assert_eq!(wire.seen(), ["C:data", "S:354 go", "C:-12"]);
}

#[test]
fn pipelined_data_is_followed() {
    let mut wire = Wire::open();
    wire.client(b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n")
        .server(b"250 ok\r\n250 ok\r\n354 go\r\n")
        .client(b"body");
    assert_eq!(wire.seen().last().unwrap(), "C:-4");
    // The replies may also come one by one.
    let mut wire = Wire::open();
    wire.client(b"RCPT TO:<c@d>\r\nDATA\r\n").server(b"250 ok\r\n").server(b"354 go\r\n").client(b"body");
    assert_eq!(wire.seen().last().unwrap(), "C:-4");
}

#[test]
fn neither_end_alone_mutes_a_body() {
    for (client, server, why) in [
        (&b"NOOP\r\n"[..], &b"354 go\r\n"[..], "no DATA"),
        (b"DATA\r\n", b"250 x 354 y\r\n", "354 within the line"),
        (b"DATA\r\n", b"354-go\r\n", "not the last line of the reply"),
        (b"DATA\r\n", b"354 go", "the line has not ended"),
        (b"XDATA\r\n", b"354 go\r\n", "another verb"),
        (b"DATA\r\nNOOP\r\n", b"354 go\r\n", "DATA is not the last line"),
        (b"DATA", b"354 go\r\n", "the command has not ended"),
    ] {
        let mut wire = Wire::open();
        wire.client(client).server(server).client(b"AUTH PLAIN x\r\n");
        assert_eq!(wire.seen().last().unwrap(), "C:AUTH PLAIN x", "{why}");
    }
}

#[test]
fn a_command_split_oddly_is_left_to_the_daemon() {
    let mut wire = Wire::open();
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

#[test]
fn an_order_that_the_server_overtook_is_void() {
    let mut wire = Wire::open();
    let position = wire.server;
    wire.server(b"250 ok\r\n");
    wire.send_order(order_kind::MUTE_BODY, position);
    wire.client(b"AUTH PLAIN x\r\n");
    assert_eq!(wire.seen(), ["S:250 ok", "C:AUTH PLAIN x"]);
}

#[test]
fn an_error_within_the_body_does_not_open_it() {
    let mut wire = Wire::open();
    wire.client(b"DATA\r\n").server(b"354 go\r\n").client(b"").seen();
    wire.server(b"451 try later\r\n").client(b"still body\r\n");
    assert_eq!(wire.seen(), ["S:451 try later"]);
    wire.server(b"421 bye\r\n").client(b"QUIT\r\n");
    assert_eq!(wire.seen(), ["S:421 bye", "C:QUIT"], "a second reply does");
}

#[test]
fn the_end_of_a_body_counts_in_every_cut() {
    for end in [
        &[&b"x\r\n.\r\n"[..]][..],
        &[b"x\r\n", b".\r\n"],
        &[b"x\r\n.\r\nQUIT\r\n"],
        &[b"x\r\n", b".\r\nQUIT\r\n"],
        &[b".\r\n"],
    ] {
        let mut wire = Wire::open();
        wire.client(b"DATA\r\n").server(b"354 go\r\n");
        end.iter().for_each(|piece| drop(wire.client(piece).seen()));
        wire.server(b"552 too much\r\n").client(b"RSET\r\n");
        assert_eq!(wire.seen(), ["S:552 too much", "C:RSET"], "{end:?}");
    }
}

#[test]
fn commands_behind_a_message_are_copied_and_it_is_not() {
    let body = "x".repeat(300);
    for (pieces, seen) in [
        (vec!["secret\r\n.\r\nAUTH PLAIN AGEAYg==\r\n".to_owned()], vec!["C:-32", "C:end AUTH PLAIN AGEAYg=="]),
        (vec!["secret\r\n.\r\nMAIL FROM:<a@b>\r\nDATA\r\n".to_owned()], vec!["C:-34", "C:end MAIL FROM:<a@b>|DATA"]),
        (vec![format!("{body}\r\n.\r\nRSET\r\n")], vec!["C:-311", "C:end RSET"]),
        (vec![body.clone(), "\r\n.\r\n".to_owned(), "RSET\r\n".to_owned()], vec!["C:-300", "C:end", "C:end RSET"]),
        (vec![format!("{body}\r\n"), ".\r\nRS".to_owned(), "ET\r\n".to_owned()], vec!["C:-302"]),
        (
            vec!["a\r\n.\r\n".to_owned(), "NO".to_owned(), "OP\r\n".to_owned()],
            vec!["C:-6", "C:end", "C:end NO", "C:end OP"],
        ),
        (vec!["dots\r\n..\r\n.x\r\nmore\r\n".to_owned()], vec!["C:-20"]),
    ] {
        let mut wire = Wire::open();
        wire.client(b"DATA\r\n").server(b"354 go\r\n").seen();
        for piece in &pieces {
            wire.client(piece.as_bytes());
        }
        assert_eq!(wire.seen(), seen, "{pieces:?}");
    }
}

#[test]
fn a_message_that_is_sent_again_is_not_copied() {
    let mut wire = Wire::open();
    wire.client(b"DATA\r\n").server(b"354 go\r\n");
    let seq = wire.client;
    wire.client(b"secret\r\n.\r\n").seen();
    wire.at(Side::Client, ACK, seq, b"secret\r\n.\r\n");
    wire.at(Side::Client, ACK, seq, b"secret\r\n.\r\nRSET\r\n");
    assert_eq!(wire.seen(), ["C:end RSET"]);
}

#[test]
fn tls_is_muted_after_its_handshake_only() {
    let mut wire = Wire::open();
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
    assert_eq!(copied, usize::try_from(budgets).unwrap());
    assert_eq!(wire.state().phase, Phase::Muted);
}

#[test]
fn what_only_looks_like_tls_is_copied() {
    let steps: [&[(Side, &[u8])]; 4] = [
        &[(Side::Client, b"\x16\x03\x01hello"), (Side::Server, b"\x16\x03\x03hello")],
        &[(Side::Client, b"STARTTLS\r\n"), (Side::Client, b"\x16\x03\x01hello"), (Side::Server, b"\x16\x03\x03hello")],
        &[(Side::Client, b"STARTTLS\r\n"), (Side::Server, b"454 no\r\n"), (Side::Client, b"\x16\x03\x01hello")],
        &[
            (Side::Client, b"STARTTLS\r\n"),
            (Side::Server, b"220 go\r\n"),
            (Side::Client, b"\x16\x03\x01hello"),
            (Side::Server, b"220 what\r\n"),
        ],
    ];
    for step in steps {
        let mut wire = Wire::open();
        for (from, octets) in step {
            wire.segment(*from, ACK, octets);
        }
        wire.seen();
        wire.client(b"AUTH PLAIN x\r\n");
        assert_eq!(wire.seen(), ["C:AUTH PLAIN x"], "{step:?}");
        assert_eq!(wire.state().phase, Phase::Clear);
    }
}

#[test]
fn bdat_is_skipped_by_sequence_number() {
    let mut wire = Wire::open();
    wire.client(b"BDAT 30 LAST\r\n").seen();
    let until = wire.client.wrapping_add(30); // past the wrap of the sequence numbers
    wire.send_order(order_kind::SKIP_CLIENT, until);
    wire.client(&[b'x'; 10]).client(&[b'x'; 10]).client(b"xxxxxxxxxxQUIT\r\n");
    assert_eq!(wire.seen(), ["C:-10", "C:QUIT"], "told once; the straddling segment from the offset on");
    wire.client(b"NOOP\r\n");
    assert_eq!(wire.seen(), ["C:NOOP"]);
}

#[test]
fn an_order_is_for_one_life_of_a_flow() {
    let mut wire = Wire::open();
    wire.send_order(order_kind::MUTE, 0);
    wire.client(b"x");
    assert_eq!(wire.seen(), Vec::<String>::new());
    wire.segment(Side::Client, FIN | ACK, b"body");
    assert_eq!(wire.seen(), ["C:-4"], "an end is told of a muted flow too, without payload");
    wire.client = 5_555;
    wire.segment(Side::Client, SYN, b"").segment(Side::Server, SYN | ACK, b"").client(b"EHLO x\r\n");
    assert_eq!(wire.seen(), ["C:", "S:", "C:EHLO x"], "the order does not reach the next life");
}

#[test]
fn a_flood_of_resets_ends() {
    let mut wire = Wire::open();
    wire.send_order(order_kind::MUTE, 0);
    for _ in 0..100 {
        wire.segment(Side::Client, RST, b"");
    }
    assert_eq!(wire.seen().len(), usize::from(gate::CONTROL_RECORDS));
}

#[test]
fn a_spent_budget_is_told() {
    let mut wire = Wire::open();
    wire.seen();
    while wire.at(Side::Client, ACK, 9, &[b'x'; 1_400]) == Outcome::Forwarded {}
    let (last, payload) = wire.records.last().unwrap();
    assert!(last.marked(mark::BUDGET) && payload.is_empty());
    let copied: usize = wire.records.iter().map(|(_, payload)| payload.len()).sum();
    let budget = usize::try_from(gate::FLOW_BUDGET).unwrap();
    assert!((budget * 9 / 10..=budget).contains(&copied), "{copied}");
}

#[test]
fn ev1_ev16_the_longest_auth_line_crosses_octet_by_octet() {
    let mut wire = Wire::open();
    wire.seen();
    for _ in 0..12_288 {
        assert_eq!(wire.at(Side::Client, ACK, 9, b"A"), Outcome::Forwarded);
    }
    assert_eq!(wire.seen().len(), 12_288);
}

#[test]
fn a_flow_joined_midstream_is_marked_and_small() {
    let mut wire = Wire::new();
    while wire.at(Side::Server, ACK, 9, &[b'x'; 500]) == Outcome::Forwarded {}
    assert!(wire.records.iter().all(|(header, _)| header.marked(mark::MIDSTREAM)));
    let copied: usize = wire.records.iter().map(|(_, payload)| payload.len()).sum();
    assert!((3_000..=4_096).contains(&copied), "{copied}");
}

#[test]
fn data_in_a_syn_is_copied() {
    let mut wire = Wire::new();
    wire.segment(Side::Client, SYN, b"EHLO early\r\n")
        .segment(Side::Server, SYN | ACK, b"220 early\r\n")
        .client(b"DATA\r\n");
    assert_eq!(wire.seen(), ["C:EHLO early", "S:220 early", "C:DATA"]);
    assert_eq!(wire.state().asked, gate::Asked::Data, "the line after it is known to begin a line");
}

#[test]
fn a_retransmission_is_copied_and_concludes_nothing() {
    let mut wire = Wire::open();
    let at = wire.client;
    wire.client(b"NOOP\r\n");
    wire.at(Side::Client, ACK, at, b"DATA\r\n");
    wire.server(b"354 go\r\n").client(b"AUTH PLAIN x\r\n");
    assert_eq!(wire.seen(), ["C:NOOP", "C:DATA", "S:354 go", "C:AUTH PLAIN x"]);
}

#[test]
fn ev10_ev12_a_large_segment_crosses_in_chunks() {
    let mut wire = Wire::open();
    wire.seen();
    wire.client(&[b'x'; 5_000]);
    let chunks: Vec<_> =
        wire.records.iter().map(|(header, _)| (header.length, header.offset, header.captured)).collect();
    assert_eq!(chunks, [(5_000, 0, 2048), (5_000, 2048, 2048), (5_000, 4096, 904)]);
}

#[test]
fn a_muted_flow_is_told_at_a_glance_until_its_end_points_meet_again() {
    for forgotten in [false, true] {
        let mut wire = Wire::open();
        wire.send_order(order_kind::MUTE, 0);
        for _ in 0..2 {
            wire.client(b"x\r\n").server(b"y\r\n");
        }
        assert_eq!(wire.muted.len(), 2, "one tag for each direction");
        if forgotten {
            // The flow table had no room, the tags are still there: the flow is not taken for one joined midstream.
            wire.flows.0.clear();
            wire.client(b"x\r\n");
            assert!(wire.flows.0.is_empty());
        }
        assert_eq!(wire.seen(), Vec::<String>::new());
        (wire.client, wire.server) = (99, 999);
        wire.segment(Side::Client, SYN, &[]).segment(Side::Server, SYN | ACK, &[]);
        assert!(wire.muted.is_empty());
        wire.server(b"220 hi\r\n").client(b"EHLO x\r\n");
        assert_eq!(wire.seen(), ["C:", "S:", "S:220 hi", "C:EHLO x"]);
    }
}

#[test]
fn state_made_midstream_clears_the_tags_of_both_directions() {
    let mut wire = Wire::open();
    wire.send_order(order_kind::MUTE, 0);
    wire.client(b"x\r\n").server(b"y\r\n");
    let (key, _) = wire.flows.0.drain().next().unwrap();
    // Another flow had the slot of the client's tag.
    wire.muted.retain(|tag| *tag == Tag::of(&Wire::new(), &key, 4, Side::Server));
    assert_eq!(wire.muted.len(), 1);
    wire.client(b"x\r\n").server(b"y\r\n");
    assert_eq!(wire.seen(), ["C:x", "S:y"]);
}
