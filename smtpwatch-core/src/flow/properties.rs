//! Property tests: invariants of reassembly for every order of segments.

use std::collections::HashMap;

use proptest::{collection::vec, prelude::*, sample::Index};

use crate::{Segment, Side, TcpFlags, Timestamp};

use super::{
    CloseCause, Connection, FlowEvent,
    tests::{connection, segment},
};

/// One write of one side.
#[derive(Clone, Debug)]
struct Write {
    from: Side,
    bytes: Vec<u8>,
    /// Where the write is split into segments.
    cuts: Vec<Index>,
    /// Range that is retransmitted later, split differently.
    repeat: Option<(Index, Index)>,
}

/// A segment that owns its payload.
#[derive(Clone, Debug)]
struct Packet {
    from: Side,
    flags: u8,
    seq: u32,
    ack: u32,
    payload: Vec<u8>,
    /// Index of the write, if this is the first copy of a segment of it.
    first_of: Option<usize>,
}

impl Packet {
    fn with<T>(&self, index: usize, run: impl FnOnce(&Segment<'_>) -> T) -> T {
        let mut segment = segment(self.from, TcpFlags(self.flags), self.seq, self.ack, &self.payload);
        segment.at = Timestamp(i64::try_from(index).expect("small"));
        run(&segment)
    }
}

/// Output of a connection, by side, and whether it was consistent.
#[derive(Default, Debug)]
struct Heard {
    /// Bytes by stream offset; `None` for a missing byte.
    streams: HashMap<Side, Vec<Option<u8>>>,
    finished: Vec<Side>,
    unacknowledged: usize,
    /// Bytes delivered before bytes of the peer that their sender had already acknowledged.
    premature: usize,
}

impl Heard {
    fn drain(&mut self, connection: &mut Connection) {
        while let Some(event) = connection.poll() {
            match event {
                FlowEvent::Data { from, offset, bytes, acked, knew, .. } => {
                    self.premature += if knew > self.stream(from.peer()).len() as u64 { bytes.len() } else { 0 };
                    let stream = self.streams.entry(from).or_default();
                    assert_eq!(offset, stream.len() as u64, "every octet once and in order");
                    assert!(!bytes.is_empty());
                    stream.extend(bytes.iter().copied().map(Some));
                    self.unacknowledged += if acked { 0 } else { bytes.len() };
                }
                FlowEvent::Gap { from, length, .. } => {
                    let length = usize::try_from(length).expect("a length");
                    let stream = self.streams.entry(from).or_default();
                    stream.resize(stream.len() + length, None);
                }
                FlowEvent::Finished { from, .. } => self.finished.push(from),
                FlowEvent::Reset { .. } => {}
            }
        }
    }

    fn stream(&self, side: Side) -> &[Option<u8>] {
        self.streams.get(&side).map_or(&[], Vec::as_slice)
    }
}

fn side() -> impl Strategy<Value = Side> {
    prop_oneof![Just(Side::Client), Just(Side::Server)]
}

fn isn() -> impl Strategy<Value = u32> {
    prop_oneof![any::<u32>(), u32::MAX - 300..=u32::MAX, 0..3_u32]
}

fn writes() -> impl Strategy<Value = Vec<Write>> {
    let write = (side(), vec(any::<u8>(), 1..200), vec(any::<Index>(), 0..6), any::<Option<(Index, Index)>>())
        .prop_map(|(from, bytes, cuts, repeat)| Write { from, bytes, cuts, repeat });
    vec(write, 1..16)
}

/// A whole connection between two honest stacks: handshake, writes that the other side acknowledges with its next
/// segment, retransmissions that are split differently, both FINs and the last acknowledgment.
fn packets(writes: &[Write], isns: [u32; 2]) -> (Vec<Packet>, [Vec<u8>; 2]) {
    let mut streams = [Vec::new(), Vec::new()];
    let seq_at = |side: Side, offset: usize| {
        isns[side as usize].wrapping_add(1).wrapping_add(u32::try_from(offset).expect("small"))
    };
    let packet = |from, flags, seq, ack, payload: &[u8]| Packet {
        from,
        flags,
        seq,
        ack,
        payload: payload.to_vec(),
        first_of: None,
    };
    let (client, server) = (Side::Client, Side::Server);
    let mut packets = vec![
        packet(client, 0x02, isns[0], 0, &[]),
        packet(server, 0x12, isns[1], seq_at(client, 0), &[]),
        packet(client, 0x10, seq_at(client, 0), seq_at(server, 0), &[]),
    ];
    for (number, write) in writes.iter().enumerate() {
        let from = write.from;
        let start = streams[from as usize].len();
        streams[from as usize].extend_from_slice(&write.bytes);
        let stream = &streams[from as usize];
        let ack = seq_at(from.peer(), streams[from.peer() as usize].len());
        let mut cuts: Vec<_> = write.cuts.iter().map(|cut| cut.index(write.bytes.len())).collect();
        cuts.extend([0, write.bytes.len()]);
        cuts.sort_unstable();
        for piece in cuts.windows(2).filter(|piece| piece[0] < piece[1]) {
            let bytes = &write.bytes[piece[0]..piece[1]];
            let packet = packet(from, 0x18, seq_at(from, start + piece[0]), ack, bytes);
            packets.push(Packet { first_of: Some(number), ..packet });
        }
        packets.push(packet(from.peer(), 0x10, ack, seq_at(from, stream.len()), &[]));
        if let Some((a, b)) = write.repeat {
            let (a, b) = (a.index(stream.len()), b.index(stream.len()));
            packets.push(packet(from, 0x18, seq_at(from, a.min(b)), ack, &stream[a.min(b)..=a.max(b)]));
        }
    }
    let [sent, received] = [streams[0].len(), streams[1].len()];
    packets.extend([
        packet(client, 0x11, seq_at(client, sent), seq_at(server, received), &[]),
        packet(server, 0x11, seq_at(server, received), seq_at(client, sent + 1), &[]),
        packet(client, 0x10, seq_at(client, sent + 1), seq_at(server, received + 1), &[]),
    ]);
    (packets, streams)
}

/// How the order of capture differs from the order of sending.
#[derive(Clone, Debug)]
enum Disorder {
    /// The network reorders: the segments of a write arrive in any order. The acknowledgment comes after them.
    Network(Vec<Index>),
    /// The capture delays one side by this many packets, as two taps do.
    Capture(Side, usize),
}

fn disorder() -> impl Strategy<Value = Disorder> {
    prop_oneof![
        vec(any::<Index>(), 0..64).prop_map(Disorder::Network),
        (side(), 1..5_usize).prop_map(|(side, by)| Disorder::Capture(side, by)),
    ]
}

fn disturb(packets: &mut Vec<Packet>, disorder: &Disorder) {
    match disorder {
        Disorder::Network(swaps) => {
            for swap in swaps {
                let from = swap.index(packets.len() - 1);
                if packets[from].first_of.is_some() && packets[from].first_of == packets[from + 1].first_of {
                    packets.swap(from, from + 1);
                }
            }
        }
        Disorder::Capture(side, by) => {
            let mut keyed: Vec<_> = packets.drain(..).enumerate().collect();
            // The handshake stays in front.
            keyed.sort_by_key(|(index, packet)| if *index > 2 && packet.from == *side { index + by } else { *index });
            packets.extend(keyed.into_iter().map(|(_, packet)| packet));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_way_of_sending_changes_nothing(
        writes in writes(),
        isns in [isn(), isn()],
        disorder in disorder(),
        copies in vec(any::<Index>(), 0..6),
    ) {
        let (mut packets, streams) = packets(&writes, isns);
        disturb(&mut packets, &disorder);
        for copy in copies {
            let at = 3 + copy.index(packets.len() - 3);
            packets.insert(at, packets[at].clone());
        }
        let mut connection = packets[0].with(0, connection);
        let mut heard = Heard::default();
        for (index, packet) in packets.iter().enumerate().skip(1) {
            packet.with(index, |segment| connection.push(segment));
            heard.drain(&mut connection);
        }
        connection.close(connection.last_activity());
        heard.drain(&mut connection);
        for side in [Side::Client, Side::Server] {
            let expected: Vec<_> = streams[side as usize].iter().copied().map(Some).collect();
            prop_assert_eq!(heard.stream(side), &expected[..], "{:?}", side);
        }
        prop_assert!(connection.conflicts().is_empty(), "{:?}", connection.conflicts());
        heard.finished.sort_unstable();
        prop_assert_eq!(&heard.finished, &[Side::Client, Side::Server]);
    }

    #[test]
    fn in_order_everything_is_acknowledged_and_the_end_is_seen(writes in writes(), isns in [isn(), isn()]) {
        let (packets, _) = packets(&writes, isns);
        let mut connection = packets[0].with(0, connection);
        let mut heard = Heard::default();
        for (index, packet) in packets.iter().enumerate().skip(1) {
            packet.with(index, |segment| connection.push(segment));
            heard.drain(&mut connection);
        }
        prop_assert_eq!((heard.unacknowledged, heard.premature), (0, 0));
        prop_assert_eq!(connection.closed(), Some(CloseCause::Finished));
        prop_assert!(connection.memory() <= size_of::<Connection>() + 16 * 1024);
    }

    #[test]
    fn what_is_lost_is_told_and_the_rest_is_right(
        writes in writes(),
        isns in [isn(), isn()],
        lost in vec(any::<Index>(), 1..12),
    ) {
        let (mut packets, streams) = packets(&writes, isns);
        // The handshake and the end stay: they define where the streams start and how long they are.
        for lost in lost {
            let body = packets.len() - 6;
            if body > 0 {
                packets.remove(3 + lost.index(body));
            }
        }
        let mut connection = packets[0].with(0, connection);
        let mut heard = Heard::default();
        for (index, packet) in packets.iter().enumerate().skip(1) {
            packet.with(index, |segment| connection.push(segment));
            heard.drain(&mut connection);
        }
        connection.close(connection.last_activity());
        heard.drain(&mut connection);
        for side in [Side::Client, Side::Server] {
            let (heard, sent) = (heard.stream(side), &streams[side as usize]);
            prop_assert_eq!(heard.len(), sent.len(), "{:?}: delivered and gaps account for every octet once", side);
            for (heard, sent) in heard.iter().zip(sent) {
                prop_assert!(heard.is_none_or(|heard| heard == *sent));
            }
            // Bytes captured before their acknowledgment are not reported as a gap.
            let captured = |offset: usize| packets.iter().any(|packet| {
                let origin = isns[side as usize].wrapping_add(1);
                let start = packet.seq.wrapping_sub(origin) as usize;
                let first = packet.from == side && packet.first_of.is_some();
                first && (start..start + packet.payload.len()).contains(&offset)
            });
            for (offset, heard) in heard.iter().enumerate() {
                prop_assert!(heard.is_some() || !captured(offset), "{:?} at {}", side, offset);
            }
        }
        prop_assert!(connection.conflicts().is_empty(), "{:?}", connection.conflicts());
    }

    #[test]
    fn a_second_copy_that_differs_is_kept_and_not_delivered(
        writes in writes(),
        isns in [isn(), isn()],
        chosen in any::<Index>(),
        octet in any::<Index>(),
        later in any::<Index>(),
    ) {
        let (mut packets, streams) = packets(&writes, isns);
        let first: Vec<_> = (0..packets.len()).filter(|&index| packets[index].first_of.is_some()).collect();
        let index = first[chosen.index(first.len())];
        let mut copy = Packet { first_of: None, ..packets[index].clone() };
        let octet = octet.index(copy.payload.len());
        copy.payload[octet] ^= 0x20;
        // A single byte that repeats the last one is a keep-alive.
        prop_assume!(copy.payload.len() > 1);
        // Before the acknowledgment or long after it.
        packets.insert(index + 1 + later.index(packets.len() - index), copy.clone());
        let mut connection = packets[0].with(0, connection);
        let mut heard = Heard::default();
        for (index, packet) in packets.iter().enumerate().skip(1) {
            packet.with(index, |segment| connection.push(segment));
            heard.drain(&mut connection);
        }
        let expected: Vec<_> = streams[copy.from as usize].iter().copied().map(Some).collect();
        prop_assert_eq!(heard.stream(copy.from), &expected[..]);
        prop_assert_eq!(connection.conflicts().len(), 1);
        let conflict = &connection.conflicts()[0];
        prop_assert_eq!(conflict.from, copy.from);
        let start = usize::try_from(conflict.offset).expect("small");
        prop_assert_eq!(&conflict.first[..], &streams[copy.from as usize][start..start + conflict.first.len()]);
        let differing = conflict.first.iter().zip(&conflict.other).filter(|(a, b)| a != b).count();
        prop_assert_eq!(differing, 1);
    }

    #[test]
    fn anything_may_come_and_memory_stays_bounded(
        packets in vec(garbage(), 1..120),
        drains in any::<bool>(),
        options in vec(any::<u8>(), 0..40),
    ) {
        let mut connection = packets[0].0.with(0, connection);
        for (index, (packet, offset, length)) in packets.iter().enumerate() {
            packet.with(index, |segment| {
                let segment = Segment { offset: *offset, length: *length, options: &options, ..segment.clone() };
                let _ = connection.is_new_connection(&segment);
                connection.push(&segment);
            });
            if drains {
                let mut offsets = HashMap::new();
                while let Some(event) = connection.poll() {
                    if let FlowEvent::Data { from, offset, bytes, .. } = event {
                        let next = offsets.insert(from, offset + bytes.len() as u64);
                        prop_assert!(next.is_none_or(|next| next <= offset));
                    }
                }
            }
            prop_assert!(connection.memory() <= Connection::MEMORY, "{}", connection.memory());
        }
        connection.close(connection.last_activity());
        while connection.poll().is_some() {}
        prop_assert!(connection.memory() <= 64 * 1024 - 16 * 1024, "{}", connection.memory());
    }
}

/// Numbers near a start so that segments overlap, all flags, sizes up to the largest, lengths and offsets that do not
/// match the payload.
fn garbage() -> impl Strategy<Value = (Packet, u32, u32)> {
    let number = || {
        prop_oneof![
            8 => (0..3000_u32).prop_map(|near| near.wrapping_sub(1000)),
            4 => (0..200_000_u32).prop_map(|near| near.wrapping_sub(1000)),
            1 => any::<u32>(),
        ]
    };
    let size = prop_oneof![6 => 0..8_usize, 3 => 0..1500_usize, 1 => 0..70_000_usize];
    let flags = prop_oneof![8 => Just(0x10_u8), 1 => any::<u8>()];
    let payload = (size, any::<u8>()).prop_map(|(size, octet)| vec![octet; size]);
    (side(), flags, number(), number(), payload, prop_oneof![9 => Just(None), 1 => any::<Option<(u32, u32)>>()])
        .prop_map(|(from, flags, seq, ack, payload, odd)| {
            let (offset, length) = odd.unwrap_or((0, u32::try_from(payload.len()).expect("small")));
            (Packet { from, flags, seq, ack, payload, first_of: None }, offset, length)
        })
}
