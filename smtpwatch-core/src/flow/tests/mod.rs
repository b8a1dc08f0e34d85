//! Tests of reassembly: one table or one scenario for each rule.

mod bounds;
mod starts_and_ends;

use crate::{FlowKey, Role, Segment, Side, TcpFlags, Timestamp};

use super::{CloseCause, Connection, FlowEvent, GapCause, SynClaims};
use crate::engine::LossCause;

const C: Side = Side::Client;
const S: Side = Side::Server;
const SYN: TcpFlags = TcpFlags::SYN;
const ACK: TcpFlags = TcpFlags::ACK;
const FIN: TcpFlags = TcpFlags(0x11);
const RST: TcpFlags = TcpFlags::RST;
const SYN_ACK: TcpFlags = TcpFlags(0x12);
const RST_ACK: TcpFlags = TcpFlags(0x14);

/// A segment with default header fields.
pub(super) fn segment<'a>(from: Side, flags: TcpFlags, seq: u32, ack: u32, payload: &'a [u8]) -> Segment<'a> {
    let end = |text: &str| text.parse().expect("an end point");
    Segment {
        at: Timestamp::from_secs(1),
        flow: FlowKey { client: end("192.0.2.10:41234"), server: end("198.51.100.25:25") },
        from,
        role: Role::Client,
        direction: None,
        interface: "",
        interface_index: 0,
        seq,
        ack,
        flags,
        urgent: 0,
        window: 64_240,
        ttl: 64,
        ip_id: 0,
        checksum_right: None,
        options: &[],
        length: u32::try_from(payload.len()).expect("a segment"),
        unusual: false,
        offset: 0,
        payload,
        body_ended: false,
        budget_spent: false,
        sender: None,
    }
}

/// A connection of a capture without directions.
pub(super) fn connection(first: &Segment<'_>) -> Connection {
    Connection::new(first, None, SynClaims::default())
}

/// Events as short text: `C+"EHLO x"` acknowledged data, `C~"…"` other data, `S gap 5 lost_event`, `S fin`, `C rst`.
fn drain(connection: &mut Connection) -> Vec<String> {
    let name = |side| if side == C { 'C' } else { 'S' };
    let mut events = Vec::new();
    while let Some(event) = connection.poll() {
        events.push(match event {
            FlowEvent::Data { from, bytes, acked, .. } => {
                let sign = if acked { '+' } else { '~' };
                format!("{}{sign}{:?}", name(from), String::from_utf8_lossy(bytes))
            }
            FlowEvent::Gap { from, length, cause, .. } => {
                format!("{} gap {length} {}", name(from), LossCause::from(cause).as_str())
            }
            FlowEvent::Finished { from, .. } => format!("{} fin", name(from)),
            FlowEvent::Reset { from, .. } => format!("{} rst", name(from)),
        });
    }
    events
}

fn push(connection: &mut Connection, segment: &Segment<'_>) -> Vec<String> {
    connection.push(segment);
    drain(connection)
}

fn close(connection: &mut Connection) -> Vec<String> {
    connection.close(connection.last_activity());
    drain(connection)
}

/// Both streams start at 1000 (client) and 5000 (server).
fn established() -> Connection {
    let mut connection = connection(&segment(C, SYN, 999, 0, b""));
    connection.push(&segment(S, SYN_ACK, 4999, 1000, b""));
    connection.push(&segment(C, ACK, 1000, 5000, b""));
    assert!(drain(&mut connection).is_empty());
    connection
}

const NONE: [&str; 0] = [];

#[test]
fn a_dialogue_comes_in_causal_order() {
    let mut flow = established();
    assert_eq!(push(&mut flow, &segment(S, ACK, 5000, 1000, b"220 mx\r\n")), NONE);
    assert_eq!(push(&mut flow, &segment(C, ACK, 1000, 5008, b"EHLO a\r\n")), [r#"S+"220 mx\r\n""#]);
    assert_eq!(push(&mut flow, &segment(S, ACK, 5008, 1008, b"250 mx\r\n")), [r#"C+"EHLO a\r\n""#]);
    assert_eq!(push(&mut flow, &segment(C, FIN, 1008, 5016, b"QUIT\r\n")), [r#"S+"250 mx\r\n""#]);
    assert_eq!(
        push(&mut flow, &segment(S, FIN, 5016, 1015, b"221\r\n")),
        [r#"C+"QUIT\r\n""#, "C fin", r#"S~"221\r\n""#, "S fin"]
    );
    assert_eq!(flow.closed(), Some(CloseCause::Finished));
    assert_eq!(push(&mut flow, &segment(C, ACK, 1015, 5022, b"")), NONE);
    assert_eq!(close(&mut flow), NONE);
    assert_eq!((flow.midstream(), flow.one_sided()), (false, false));
    assert_eq!((flow.seq_at(C, 8), flow.seq_at(S, 0)), (1008, 5000));
}

#[test]
fn data_tells_what_its_sender_knew() {
    let mut flow = established();
    flow.push(&segment(S, ACK, 5000, 1000, b"220 a\r\n"));
    flow.push(&segment(C, ACK, 1000, 5000, b"EHLO"));
    flow.push(&segment(C, ACK, 1004, 5007, b" x\r\n"));
    flow.push(&segment(S, ACK, 5007, 1008, b""));
    let mut seen = Vec::new();
    while let Some(event) = flow.poll() {
        if let FlowEvent::Data { from: C, offset, bytes, knew, .. } = event {
            seen.push((offset, bytes.to_vec(), knew));
        }
    }
    assert_eq!(seen, [(0, b"EHLO".to_vec(), 0), (4, b" x\r\n".to_vec(), 7)]);

    // The acknowledgment of a FIN is one number higher, and the FIN is not a byte.
    flow.push(&segment(C, FIN, 1008, 5007, b""));
    flow.push(&segment(S, ACK, 5007, 1009, b"221\r\n"));
    flow.close(flow.last_activity());
    let knew = std::iter::from_fn(|| match flow.poll()? {
        FlowEvent::Data { from: S, knew, .. } => Some(Some(knew)),
        FlowEvent::Data { .. } | FlowEvent::Gap { .. } | FlowEvent::Finished { .. } | FlowEvent::Reset { .. } => {
            Some(None)
        }
    });
    assert_eq!(knew.flatten().collect::<Vec<_>>(), [8]);
}

#[test]
fn a_partial_acknowledgment_releases_a_part() {
    let mut flow = established();
    flow.push(&segment(C, ACK, 1000, 5000, b"MAIL FROM:<>\r\n"));
    assert_eq!(push(&mut flow, &segment(S, ACK, 5000, 1004, b"")), [r#"C+"MAIL""#]);
    assert_eq!(push(&mut flow, &segment(S, ACK, 5000, 1014, b"")), [r#"C+" FROM:<>\r\n""#]);
}

/// Client segments (seq, text) of the stream that starts at 1000, then one acknowledgment of all of it.
#[test]
fn segmentation_does_not_matter() {
    let cases: &[(&str, &[(u32, &str)])] = &[
        ("one octet each (EV-1)", &[(1000, "Q"), (1001, "U"), (1002, "I"), (1003, "T")]),
        ("out of order (EV-4)", &[(1002, "IT"), (1000, "QU")]),
        ("backwards", &[(1003, "T"), (1002, "I"), (1001, "U"), (1000, "Q")]),
        ("twice (FP-8)", &[(1000, "QUIT"), (1000, "QUIT")]),
        ("segmented differently", &[(1000, "QU"), (1000, "Q"), (1001, "UIT")]),
        ("overlap on both sides", &[(1001, "U"), (1003, "T"), (1000, "QUIT")]),
        ("before the origin", &[(995, "xxxxxQU"), (1000, "QUIT")]),
        ("far outside the window", &[(1000 + (3 << 29), "zzzz"), (1000, "QUIT")]),
        ("far behind", &[(1000_u32.wrapping_sub(3 << 29), "zzzz"), (1000, "QUIT")]),
    ];
    for (name, segments) in cases {
        let mut flow = established();
        for (seq, text) in *segments {
            assert_eq!(push(&mut flow, &segment(C, ACK, *seq, 5000, text.as_bytes())), NONE, "{name}");
        }
        flow.push(&segment(S, ACK, 5000, 1004, b""));
        let text: String = drain(&mut flow).iter().map(|event| event.replace("C+", "").replace('"', "")).collect();
        assert_eq!(text, "QUIT", "{name}");
        assert!(flow.conflicts().is_empty(), "{name}");
    }
}

#[test]
fn what_lies_outside_the_largest_window_is_nothing() {
    let mut flow = established();
    flow.push(&segment(C, ACK, 1000 + (5 << 28), 5000, b"zzzz"));
    assert_eq!(close(&mut flow), NONE);
    let mut flow = established();
    flow.push(&segment(S, ACK, 5000, 1000 + (5 << 28), b""));
    assert_eq!(push(&mut flow, &segment(C, ACK, 1000, 5000, b"QUIT\r\n")), NONE);
    // A length that is smaller than the payload.
    let mut odd = segment(C, ACK, 1006, 5000, b"zzzz");
    odd.length = 2;
    flow.push(&odd);
    assert_eq!(push(&mut flow, &segment(S, ACK, 5000, 1010, b"")), [r#"C+"QUIT\r\nzz""#]);
    odd.offset = 3;
    assert_eq!(push(&mut flow, &odd), NONE);
}

#[test]
fn keep_alives_and_probes_are_no_second_copies() {
    let mut flow = established();
    flow.push(&segment(C, ACK, 1000, 5000, b"QUIT"));
    flow.push(&segment(S, ACK, 5000, 1004, b""));
    assert_eq!(drain(&mut flow), [r#"C+"QUIT""#]);
    // A keep-alive has any byte or none at the last number (EV-21); a zero-window probe sends the next byte for real.
    assert_eq!(push(&mut flow, &segment(C, ACK, 1003, 5000, b"\0")), NONE);
    assert_eq!(push(&mut flow, &segment(C, ACK, 1003, 5000, b"")), NONE);
    assert_eq!(push(&mut flow, &segment(C, ACK, 1004, 5000, b"\r")), NONE);
    assert_eq!(push(&mut flow, &segment(C, ACK, 1004, 5000, b"\r\n")), NONE);
    assert_eq!(push(&mut flow, &segment(S, ACK, 5000, 1006, b"")), [r#"C+"\r\n""#]);
    assert!(flow.conflicts().is_empty());

    let mut flow = connection(&segment(C, SYN, 999, 0, b"QUIT"));
    flow.push(&segment(C, ACK, 1003, 5000, b"\0"));
    assert!(flow.conflicts().is_empty(), "one side alone");
}

#[test]
fn an_old_acknowledgment_takes_nothing_back() {
    let mut flow = established();
    flow.push(&segment(C, ACK, 1002, 5000, b"IT"));
    flow.push(&segment(S, ACK, 5000, 1004, b""));
    flow.push(&segment(S, ACK, 5000, 1000, b""));
    assert_eq!(drain(&mut flow), ["C gap 2 lost_event", r#"C+"IT""#]);
    flow.push(&segment(C, ACK, 1004, 5000, b"\r\n"));
    assert_eq!(push(&mut flow, &segment(S, ACK, 5000, 1006, b"")), [r#"C+"\r\n""#]);

    // Acknowledged while segments were seen out of order.
    let mut flow = established();
    let mut late = segment(C, ACK, 1000, 5000, b"");
    late.length = 4;
    flow.push(&late);
    flow.push(&segment(S, ACK, 5000, 1004, b""));
    flow.push(&segment(S, ACK, 5000, 1000, b""));
    assert_eq!(push(&mut flow, &segment(C, ACK, 1000, 5000, b"QUIT")), [r#"C+"QUIT""#]);
}

#[test]
fn sequence_numbers_wrap() {
    let mut flow = connection(&segment(C, SYN, u32::MAX - 3, 0, b""));
    flow.push(&segment(S, SYN_ACK, u32::MAX, u32::MAX - 2, b""));
    flow.push(&segment(C, ACK, 2, 0, b" a.example\r\n"));
    flow.push(&segment(C, ACK, u32::MAX - 2, 0, b"EHLO "));
    assert_eq!(push(&mut flow, &segment(S, ACK, 0, 14, b"")), [r#"C+"EHLO ""#, r#"C+" a.example\r\n""#]);
    assert_eq!(flow.seq_at(C, 5), 2);
    assert_eq!(flow.seq_at(S, 0), 0);
}

#[test]
fn a_gap_needs_the_acknowledgment_and_the_sender_to_have_gone_on() {
    let mut flow = established();
    // MAIL (1000..1010) is missing from the capture. Its acknowledgment may only have been captured too early.
    assert_eq!(push(&mut flow, &segment(S, ACK, 5000, 1010, b"250 ok\r\n")), NONE);
    // The client continues: the gap comes before the reply to the missing bytes.
    assert_eq!(
        push(&mut flow, &segment(C, ACK, 1010, 5008, b"RCPT\r\n")),
        ["C gap 10 lost_event", r#"S+"250 ok\r\n""#]
    );
    assert_eq!(push(&mut flow, &segment(S, ACK, 5008, 1016, b"")), [r#"C+"RCPT\r\n""#]);
}

#[test]
fn records_that_overtake_each_other_make_no_gap() {
    let mut flow = established();
    assert_eq!(push(&mut flow, &segment(S, ACK, 5000, 1006, b"")), NONE);
    assert_eq!(push(&mut flow, &segment(C, ACK, 1000, 5000, b"QUIT\r\n")), [r#"C+"QUIT\r\n""#]);
}

#[test]
fn a_muted_body_is_a_gap() {
    let mut flow = established();
    let mut body = segment(C, ACK, 1000, 5000, b"");
    body.length = 1400;
    assert_eq!(push(&mut flow, &body), NONE);
    // More bytes passed without any record.
    assert_eq!(push(&mut flow, &segment(S, ACK, 5000, 901_000, b"250 queued\r\n")), NONE);
    let quit = segment(C, ACK, 901_000, 5012, b"QUIT\r\n");
    assert_eq!(push(&mut flow, &quit), ["C gap 900000 lost_event", r#"S+"250 queued\r\n""#]);
}

#[test]
fn a_cut_packet_leaves_a_gap_for_its_rest() {
    let mut flow = established();
    let mut cut = segment(C, ACK, 1000, 5000, b"EHLO");
    cut.length = 8;
    flow.push(&cut);
    assert_eq!(push(&mut flow, &segment(S, ACK, 5000, 1008, b"250\r\n")), [r#"C+"EHLO""#]);
    let next = segment(C, ACK, 1008, 5005, b"QUIT\r\n");
    assert_eq!(push(&mut flow, &next), ["C gap 4 lost_event", r#"S+"250\r\n""#]);
}

#[test]
fn chunks_of_one_segment_join() {
    let mut flow = established();
    for (offset, part) in [(0, "250-mx\r\n"), (8, "250 SIZE\r\n")] {
        let mut chunk = segment(S, ACK, 5000, 1000, part.as_bytes());
        (chunk.length, chunk.offset) = (18, offset);
        flow.push(&chunk);
    }
    assert_eq!(push(&mut flow, &segment(C, ACK, 1000, 5018, b"")), [r#"S+"250-mx\r\n250 SIZE\r\n""#]);
}

#[test]
fn what_nobody_acknowledged_comes_at_close_in_causal_order() {
    let mut flow = established();
    flow.push(&segment(S, ACK, 5000, 1000, b"220\r\n"));
    flow.push(&segment(C, ACK, 1000, 5005, b"EHLO\r\n"));
    drain(&mut flow);
    // The capture of the server's side runs ahead: the reply was sent after EHLO was known, and QUIT after the reply
    // was known.
    flow.push(&segment(C, ACK, 1006, 5010, b"QUIT\r\n"));
    flow.push(&segment(S, ACK, 5005, 1006, b"250\r\n"));
    flow.push(&segment(S, ACK, 5010, 1006, b"221\r\n"));
    assert_eq!(drain(&mut flow), [r#"C+"EHLO\r\n""#, r#"S+"250\r\n""#]);
    assert_eq!(close(&mut flow), [r#"C~"QUIT\r\n""#, r#"S~"221\r\n""#]);
    assert_eq!(close(&mut flow), NONE);
}

#[test]
fn a_hole_at_the_end_comes_before_what_knew_of_it() {
    let mut flow = established();
    flow.push(&segment(S, ACK, 5000, 1010, b"250\r\n"));
    assert_eq!(drain(&mut flow), NONE);
    assert_eq!(close(&mut flow), ["C gap 10 lost_event", r#"S~"250\r\n""#]);

    let mut flow = established();
    flow.push(&segment(C, ACK, 1000, 5008, b"RCPT\r\n"));
    assert_eq!(drain(&mut flow), NONE);
    assert_eq!(close(&mut flow), ["S gap 8 lost_event", r#"C~"RCPT\r\n""#]);
}

#[test]
fn who_spoke_first_comes_first_where_nobody_acknowledged() {
    let later = Timestamp::from_secs(2);
    for (first, expected) in [(C, [r#"C~"a""#, r#"S~"b""#]), (S, [r#"S~"b""#, r#"C~"a""#])] {
        let mut flow = established();
        let mut segments = [segment(C, ACK, 1000, 5000, b"a"), segment(S, ACK, 5000, 1000, b"b")];
        segments[first.peer() as usize].at = later;
        segments.iter().for_each(|segment| flow.push(segment));
        assert_eq!(close(&mut flow), expected);
    }
    let mut flow = established();
    flow.push(&segment(C, FIN, 1000, 5000, b""));
    flow.push(&segment(S, ACK, 5000, 1000, b"421\r\n"));
    assert_eq!(close(&mut flow), [r#"S~"421\r\n""#, "C fin"]);
}

#[test]
fn close_tells_holes_too() {
    let mut flow = established();
    flow.push(&segment(C, ACK, 1004, 5000, b"b"));
    assert_eq!(drain(&mut flow), NONE);
    assert_eq!(close(&mut flow), ["C gap 4 lost_event", r#"C~"b""#]);
}

#[test]
fn one_side_alone_is_told_and_delivered_at_close() {
    let mut flow = connection(&segment(S, SYN_ACK, 4999, 1000, b""));
    flow.push(&segment(S, ACK, 5000, 1000, b"220 mx\r\n"));
    assert!(flow.one_sided() && !flow.midstream());
    assert_eq!(drain(&mut flow), NONE);
    assert_eq!(close(&mut flow), [r#"S~"220 mx\r\n""#]);
    assert!(!established().one_sided());
}

#[test]
fn a_body_longer_than_what_was_seen_is_a_gap_before_its_reply() {
    let mut flow = established();
    assert_eq!(push(&mut flow, &segment(S, ACK, 5000, 200_001_000, b"250\r\n")), NONE);
    let events = push(&mut flow, &segment(C, ACK, 200_001_000, 5005, b"QUIT\r\n"));
    assert_eq!(events, ["C gap 200000000 lost_event", r#"S+"250\r\n""#]);
}

#[test]
fn forged_acknowledgments_make_no_gap() {
    let mut flow = established();
    // Ahead of everything by 1000, then by more than a window; the next honest one corrects the first.
    assert_eq!(push(&mut flow, &segment(S, ACK, 5000, 2000, b"")), NONE);
    assert_eq!(push(&mut flow, &segment(S, ACK, 5000, 1000 + (5 << 28), b"")), NONE);
    assert_eq!(push(&mut flow, &segment(S, ACK, 5000, 1000, b"")), NONE);
    assert_eq!(push(&mut flow, &segment(C, ACK, 1000, 5000, b"QUIT\r\n")), NONE);
    assert_eq!(push(&mut flow, &segment(S, ACK, 5000, 1006, b"")), [r#"C+"QUIT\r\n""#]);
    assert_eq!(close(&mut flow), NONE);
}

#[test]
fn decoys_far_ahead_do_not_blind() {
    let mut flow = established();
    for step in 1..=3 {
        flow.push(&segment(C, ACK, 1000 + step * 1_000_000_000, 5000, b"decoy"));
    }
    flow.push(&segment(C, ACK, 1000, 5000, b"QUIT\r\n"));
    assert_eq!(push(&mut flow, &segment(S, ACK, 5000, 1006, b"")), [r#"C+"QUIT\r\n""#]);
}
