//! Benchmarks of each stage that a packet passes, and of a library for the same task if there is one.
//!
//! `cargo xtask bench parts` makes a table of the results: the second component of a benchmark's name is the part, or
//! `beside NAME`.
#![expect(clippy::unwrap_used, reason = "a benchmark ends by panicking")]

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use smtpwatch_capture::{
    pcap,
    userspace_gate::{CapturedFrame, UserspaceGate},
};
use smtpwatch_common::{Checksum, Header, Link, PortSet, Record};
use smtpwatch_config::Config;
use smtpwatch_core::{
    FlowKey, Role, Segment, Side, TcpFlags, Timestamp,
    flow::{Connection, SynClaims},
    policy::history::History,
    smtp::Session,
};
use smtpwatch_pipeline::{Pipeline, RecordSource};
use smtpwatch_testkit::traffic::{self, CLIENT, Packet, SERVER, START_NS, Turn};

const TURNS: [Turn<'static>; 13] =
    traffic::dialogue("250-mx1.example.net\r\n250-PIPELINING\r\n250-SIZE 10240000\r\n250-STARTTLS\r\n250 8BITMIME\r\n");

fn ethernet(packet: &Packet) -> Vec<u8> {
    [traffic::link_header(1, true), packet.ip.clone()].concat()
}

fn frame(bytes: &[u8], at_ns: u64) -> CapturedFrame<'_> {
    let wire_len = u32::try_from(bytes.len()).unwrap();
    CapturedFrame { link: Link::Ethernet, bytes, wire_len, at_ns, interface: 2, direction: None }
}

/// Header parsing, flow state and decision, for a packet that is not mail, and for each packet of a session.
fn gate(criterion: &mut Criterion) {
    let session = traffic::session(CLIENT, SERVER, START_NS, &TURNS);
    let frames: Vec<_> = session.iter().map(|packet| (ethernet(packet), packet.at_ns)).collect();
    let other = traffic::session("192.0.2.10:51000", "198.51.100.25:443", START_NS, &TURNS);
    let others: Vec<_> = other.iter().map(|packet| (ethernet(packet), packet.at_ns)).collect();
    let mut group = criterion.benchmark_group("gate, a packet");
    group.throughput(Throughput::Elements(frames.len() as u64));
    for (name, frames) in [("not mail", &others), ("of a dialogue", &frames)] {
        group.bench_function(name, |bencher| {
            let mut gate = UserspaceGate::new(PortSet::new(&[25, 587]));
            bencher.iter(|| {
                for (bytes, at_ns) in frames {
                    gate.packet(&frame(bytes, *at_ns), |record| _ = black_box(record));
                }
            });
        });
    }
    group.bench_function("beside etherparse (headers alone)", |bencher| {
        bencher.iter(|| {
            for (bytes, _) in &frames {
                black_box(etherparse::SlicedPacket::from_ethernet(bytes).unwrap());
            }
        });
    });
    group.finish();
}

fn checksum(criterion: &mut Criterion) {
    let payload = [b'x'; 256];
    let header = Header { length: 256, captured: 256, ..Header::EMPTY };
    let record = Record { header, payload: &payload };
    let mut group = criterion.benchmark_group("checksum, a segment of 256 bytes");
    group.throughput(Throughput::Elements(1));
    group.bench_function("sum", |bencher| bencher.iter(|| Checksum::of(black_box(&record))));
    group.bench_function("beside etherparse", |bencher| {
        let tcp = etherparse::TcpHeader::new(25, 41_234, 1, 512);
        bencher.iter(|| tcp.calc_checksum_ipv6_raw([0; 16], [0; 16], black_box(&payload)));
    });
    group.finish();
}

fn segments(turns: &[(Side, &'static [u8])]) -> Vec<Segment<'static>> {
    let flow = FlowKey { client: CLIENT.parse().unwrap(), server: SERVER.parse().unwrap() };
    let mut next = [1_u32, 1];
    let mut segments = Vec::new();
    let syn = |from, flags, ack| segment(flow, from, flags, 0, ack, &[]);
    segments.push(syn(Side::Client, TcpFlags::SYN, 0));
    segments.push(syn(Side::Server, TcpFlags::SYN | TcpFlags::ACK, 1));
    for (from, bytes) in turns {
        let [client, server] = next;
        let (seq, ack) = if *from == Side::Client { (client, server) } else { (server, client) };
        segments.push(segment(flow, *from, TcpFlags::ACK, seq, ack, bytes));
        next[*from as usize] += u32::try_from(bytes.len()).unwrap();
        let [client, server] = next;
        let (seq, ack) = if *from == Side::Client { (server, client) } else { (client, server) };
        segments.push(segment(flow, from.peer(), TcpFlags::ACK, seq, ack, &[]));
    }
    segments
}

fn segment(flow: FlowKey, from: Side, flags: TcpFlags, seq: u32, ack: u32, payload: &'static [u8]) -> Segment<'static> {
    Segment {
        at: Timestamp::from_secs(1),
        flow,
        from,
        role: Role::Client,
        direction: None,
        interface: "",
        interface_index: 0,
        seq,
        ack,
        flags,
        urgent: 0,
        window: 512,
        ttl: 64,
        ip_id: 1,
        options: &[],
        checksum_right: None,
        length: u32::try_from(payload.len()).unwrap(),
        unusual: false,
        offset: 0,
        payload,
        body_ended: false,
        budget_spent: false,
        sender: None,
    }
}

fn turns() -> Vec<(Side, &'static [u8])> {
    let turns = |turn: &Turn<'static>| match turn {
        Turn::Client(text) => (Side::Client, text.as_bytes()),
        Turn::Server(text) => (Side::Server, text.as_bytes()),
    };
    TURNS.iter().map(turns).collect()
}

/// Reassembly of a session: every segment and its acknowledgment.
fn flow(criterion: &mut Criterion) {
    let segments = segments(&turns());
    let mut group = criterion.benchmark_group("reassembly, a segment");
    group.throughput(Throughput::Elements(segments.len() as u64));
    group.bench_function("in order", |bencher| {
        bencher.iter(|| {
            let mut connection = Connection::new(&segments[0], None, SynClaims::default());
            for segment in &segments[1..] {
                connection.push(segment);
                while let Some(event) = connection.poll() {
                    black_box(event);
                }
            }
            connection
        });
    });
    group.finish();
}

/// The dialogue of a session: lines, commands, replies, transcript.
fn dialogue(criterion: &mut Criterion) {
    let turns = turns();
    let lines = turns.iter().map(|(_, bytes)| bytes.iter().filter(|byte| **byte == b'\n').count()).sum::<usize>();
    let mut group = criterion.benchmark_group("dialogue, a line");
    group.throughput(Throughput::Elements(lines as u64));
    group.bench_function("session machine, with transcript", |bencher| {
        bencher.iter(|| {
            let mut session = Session::new(false);
            let mut offsets = [0, 0];
            for (from, bytes) in &turns {
                session.data(*from, Timestamp::from_secs(1), offsets[*from as usize], bytes);
                offsets[*from as usize] += bytes.len() as u64;
                while let Some(event) = session.poll() {
                    black_box(event);
                }
            }
            session
        });
    });
    group.bench_function("beside smtp-proto (parsing alone)", |bencher| {
        bencher.iter(|| {
            for (from, bytes) in &turns {
                match from {
                    Side::Client => drop(black_box(smtp_proto::Request::parse(&mut bytes.iter()))),
                    Side::Server if bytes.starts_with(b"250-") => {
                        drop(black_box(smtp_proto::EhloResponse::parse(&mut bytes.iter())));
                    }
                    Side::Server => {
                        let mut receiver = smtp_proto::response::parser::ResponseReceiver::default();
                        drop(black_box(receiver.parse(&mut bytes.iter())));
                    }
                }
            }
        });
    });
    group.finish();
}

/// Everything after the gate, for a whole session.
fn engine(criterion: &mut Criterion) {
    let packets = traffic::session(CLIENT, SERVER, START_NS, &TURNS);
    let mut gate = UserspaceGate::new(PortSet::new(&[25, 587]));
    let mut records: Vec<(Header, Vec<u8>)> = Vec::new();
    for packet in &packets {
        let bytes = ethernet(packet);
        gate.packet(&frame(&bytes, packet.at_ns), |record| records.push((record.header, record.payload.to_vec())));
    }
    let mut group = criterion.benchmark_group("engine, a session of 33 packets");
    group.throughput(Throughput::Elements(1));
    group.bench_function("from records to verdict", |bencher| {
        let mut pipeline = Pipeline::new(Config::default(), History::new(1_000), RecordSource::File);
        bencher.iter(|| {
            for (header, payload) in &records {
                let at = Timestamp(i64::try_from(header.timestamp).unwrap());
                let record = Record { header: *header, payload };
                pipeline.record(&record, at, "", &mut |output| drop(black_box(output)));
            }
        });
        assert_eq!(pipeline.engine().flows(), 0);
    });
    group.finish();
}

/// Reading a capture file without processing its packets.
fn capture_file(criterion: &mut Criterion) {
    let packets: Vec<_> = (0..1_000).flat_map(|_| traffic::session(CLIENT, SERVER, START_NS, &TURNS)).collect();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("capture");
    std::fs::write(&path, traffic::pcap(&packets, 1, false, false)).unwrap();
    let mut group = criterion.benchmark_group("capture file, a packet");
    group.throughput(Throughput::Elements(packets.len() as u64));
    group.bench_function("read", |bencher| {
        bencher.iter_batched(
            || (),
            |()| pcap::read(&path, |packet| _ = black_box(packet)).unwrap(),
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

criterion_group! {
    name = parts;
    config = Criterion::default()
        .warm_up_time(std::time::Duration::from_millis(500))
        .measurement_time(std::time::Duration::from_secs(2))
        .without_plots();
    targets = gate, checksum, flow, dialogue, engine, capture_file
}
criterion_main!(parts);
