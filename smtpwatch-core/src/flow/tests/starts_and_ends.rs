//! Tests of handshakes, FIN and reset, and of segments that only look like them.

use std::time::Duration;

use super::*;

#[test]
fn data_in_syn_and_syn_ack_count_from_the_next_number() {
    let mut flow = connection(&segment(C, SYN, 999, 0, b"EHLO a\r\n"));
    assert_eq!(push(&mut flow, &segment(S, SYN_ACK, 4999, 1008, b"220 mx\r\n")), [r#"C+"EHLO a\r\n""#]);
    assert_eq!(push(&mut flow, &segment(C, ACK, 1008, 5008, b"")), [r#"S+"220 mx\r\n""#]);
    // The SYN-ACK did not accept the data: the client sends it again.
    let mut flow = connection(&segment(C, SYN, 999, 0, b"EHLO a\r\n"));
    assert_eq!(push(&mut flow, &segment(S, SYN_ACK, 4999, 1000, b"")), NONE);
    flow.push(&segment(C, ACK, 1000, 5000, b"EHLO a\r\n"));
    assert_eq!(push(&mut flow, &segment(S, ACK, 5000, 1008, b"")), [r#"C+"EHLO a\r\n""#]);
    assert!(flow.conflicts().is_empty());
}

#[test]
fn resets_count_by_exact_number() {
    let cases: &[(&str, Segment<'static>, bool)] = &[
        ("next expected", segment(C, RST, 1004, 0, b""), true),
        ("end of what is held", segment(C, RST, 1006, 0, b""), true),
        ("already acknowledged", segment(C, RST, 1003, 0, b""), false),
        ("inside what is held", segment(C, RST, 1005, 0, b""), false),
        ("inside the window", segment(C, RST, 1100, 0, b""), false),
        ("server, exact", segment(S, RST_ACK, 5000, 1006, b""), true),
        ("server, off by fourteen", segment(S, RST_ACK, 4986, 1006, b""), false),
    ];
    for (name, reset, counts) in cases {
        let mut flow = established();
        flow.push(&segment(C, ACK, 1000, 5000, b"QUIT\r\n"));
        flow.push(&segment(S, ACK, 5000, 1004, b""));
        assert_eq!(drain(&mut flow), [r#"C+"QUIT""#]);
        let events = push(&mut flow, reset);
        assert_eq!(flow.closed(), counts.then_some(CloseCause::Reset), "{name}");
        assert_eq!(events.iter().any(|event| event.ends_with("rst")), *counts, "{name}: {events:?}");
        assert_eq!(events.iter().any(|event| event.contains(r"\r\n")), *counts, "{name}: {events:?}");
        assert_eq!(push(&mut flow, reset), NONE, "{name}: a second one says nothing");
    }
}

#[test]
fn a_refused_connection_is_a_reset() {
    let mut flow = connection(&segment(C, SYN, 999, 0, b""));
    assert_eq!(push(&mut flow, &segment(S, RST_ACK, 0, 77, b"")), NONE);
    assert_eq!(flow.closed(), None);
    assert_eq!(push(&mut flow, &segment(S, RST_ACK, 0, 1000, b"")), ["S rst"]);
    assert_eq!(flow.closed(), Some(CloseCause::Reset));
}

#[test]
fn an_end_that_traffic_contradicts_was_a_decoy() {
    let mut flow = established();
    assert_eq!(push(&mut flow, &segment(C, RST, 1000, 0, b"")), ["C rst"]);
    assert_eq!(push(&mut flow, &segment(C, ACK, 1000, 5000, b"")), NONE);
    assert_eq!(flow.closed(), Some(CloseCause::Reset), "a pure acknowledgment contradicts nothing");
    assert_eq!(push(&mut flow, &segment(C, ACK, 1000, 5000, b"QUIT\r\n")), NONE);
    assert_eq!(flow.closed(), None);
    assert_eq!(push(&mut flow, &segment(S, ACK, 5000, 1006, b"")), [r#"C+"QUIT\r\n""#]);

    let mut flow = established();
    assert_eq!(push(&mut flow, &segment(C, FIN, 1000, 5000, b"")), NONE, "held until the server takes it");
    flow.push(&segment(C, ACK, 1000, 5000, b"QUIT\r\n"));
    assert_eq!(push(&mut flow, &segment(S, ACK, 5000, 1006, b"")), [r#"C+"QUIT\r\n""#]);
    assert_eq!(push(&mut flow, &segment(C, FIN, 1006, 5000, b"")), NONE);
    assert_eq!(push(&mut flow, &segment(S, ACK, 5000, 1007, b"")), ["C fin"]);
}

#[test]
fn both_ends_must_be_real() {
    // Crossing FINs: neither is acknowledged yet.
    let mut flow = established();
    flow.push(&segment(C, FIN, 1000, 5000, b""));
    flow.push(&segment(S, FIN, 5000, 1000, b""));
    assert_eq!((drain(&mut flow).len(), flow.closed()), (0, None));
    assert_eq!(push(&mut flow, &segment(C, ACK, 1001, 5001, b"")), ["S fin", "C fin"]);
    assert_eq!(flow.closed(), Some(CloseCause::Finished));

    // A FIN inside buffered bytes, and one beyond the end.
    let mut flow = established();
    flow.push(&segment(C, ACK, 1000, 5000, b"QUIT\r\n"));
    flow.push(&segment(C, FIN, 1002, 5000, b""));
    assert_eq!(push(&mut flow, &segment(S, FIN, 5000, 1006, b"")), [r#"C+"QUIT\r\n""#]);
    assert_eq!(flow.closed(), None);
    let mut flow = established();
    flow.push(&segment(C, FIN, 1000, 5000, b""));
    assert_eq!(push(&mut flow, &segment(S, ACK, 5000, 1001, b"")), ["C fin"]);
    flow.push(&segment(C, FIN, 1100, 5000, b""));
    assert_eq!(push(&mut flow, &segment(S, FIN, 5000, 1001, b"")), ["S fin"]);
    assert_eq!(flow.closed(), Some(CloseCause::Finished));
}

#[test]
fn a_reset_may_follow_a_fin() {
    let mut flow = established();
    flow.push(&segment(C, FIN, 1000, 5000, b""));
    assert_eq!(push(&mut flow, &segment(C, RST, 1001, 0, b"")), ["C fin", "C rst"]);
}

#[test]
fn a_settled_flow_still_ends() {
    // The gate drops everything but SYN, FIN and RST: 300 MB one way, 900 bytes the other.
    let mut flow = established();
    flow.settle();
    assert_eq!(push(&mut flow, &segment(S, FIN, 5900, 300_001_000, b"")), NONE);
    let events = push(&mut flow, &segment(C, FIN, 300_001_000, 5901, b""));
    assert_eq!(events, ["C gap 300000000 lost_event", "S gap 900 lost_event", "S fin", "C fin"]);
    assert_eq!(flow.closed(), Some(CloseCause::Finished));

    let mut flow = established();
    assert_eq!(push(&mut flow, &segment(C, RST, 300_001_000, 0, b"")), NONE);
    flow.settle();
    assert_eq!(push(&mut flow, &segment(C, RST, 300_001_000, 0, b"")), ["C rst"]);
    assert_eq!(flow.closed(), Some(CloseCause::Reset));
}

#[test]
fn fin_waits_for_its_place() {
    let mut flow = established();
    flow.push(&segment(C, FIN, 1004, 5000, b"\r\n"));
    assert_eq!(drain(&mut flow), NONE);
    flow.push(&segment(C, ACK, 1000, 5000, b"QUIT"));
    assert_eq!(push(&mut flow, &segment(S, ACK, 5000, 1007, b"")), [r#"C+"QUIT""#, r#"C+"\r\n""#, "C fin"]);
    assert_eq!(flow.closed(), None);
    assert_eq!(push(&mut flow, &segment(S, FIN, 5000, 1007, b"")), ["S fin"]);
    assert_eq!(flow.closed(), Some(CloseCause::Finished));
}

#[test]
fn midstream_starts_are_told() {
    let mut flow = connection(&segment(C, ACK, 70_000, 90_000, b"RCPT\r\n"));
    assert!(flow.midstream());
    assert_eq!(drain(&mut flow), NONE);
    let events = push(&mut flow, &segment(S, ACK, 90_000, 70_006, b"250\r\n"));
    assert_eq!(events, ["C gap 0 capture_start", r#"C+"RCPT\r\n""#]);
    let events = push(&mut flow, &segment(C, ACK, 70_006, 90_005, b""));
    assert_eq!(events, ["S gap 0 capture_start", r#"S+"250\r\n""#]);
    assert_eq!(flow.seq_at(S, 0), 90_000);
}

#[test]
fn a_handshake_in_part_still_tells_the_start() {
    // The SYN-ACK alone defines both starts.
    let mut flow = connection(&segment(S, SYN_ACK, 4999, 1000, b""));
    flow.push(&segment(C, ACK, 1000, 5000, b"EHLO\r\n"));
    assert_eq!(push(&mut flow, &segment(S, ACK, 5000, 1006, b"")), [r#"C+"EHLO\r\n""#]);
    assert!(!flow.midstream());
    // The late SYN agrees.
    flow.push(&segment(C, SYN, 999, 0, b""));
    assert!(flow.fingerprint(C).is_some() && flow.fingerprint(S).is_some());
    // Two taps, one of them late: the SYN-ACK comes after the segment that answers it.
    let mut flow = connection(&segment(C, SYN, 999, 0, b""));
    flow.push(&segment(C, ACK, 1000, 5000, b""));
    flow.push(&segment(S, SYN_ACK, 4999, 1000, b""));
    flow.push(&segment(S, ACK, 5000, 1000, b"220\r\n"));
    assert_eq!(push(&mut flow, &segment(C, ACK, 1000, 5005, b"")), [r#"S+"220\r\n""#]);
    // Without the SYN-ACK the server's start is inferred, and reported as inferred.
    let mut flow = connection(&segment(C, SYN, 999, 0, b""));
    assert_eq!(push(&mut flow, &segment(C, ACK, 1000, 5000, b"")), NONE);
    flow.push(&segment(S, ACK, 5000, 1000, b"220\r\n"));
    let events = push(&mut flow, &segment(C, ACK, 1000, 5005, b""));
    assert_eq!(events, ["S gap 0 capture_start", r#"S+"220\r\n""#]);
}

#[test]
fn a_used_four_tuple_begins_anew() {
    let other_syn = segment(C, SYN, 7_000_000, 0, b"");
    let answer = segment(S, SYN_ACK, 8_000_000, 7_000_001, b"");
    let mut flow = established();
    assert!(!flow.is_new_connection(&segment(C, SYN, 999, 0, b"")), "a retransmission");
    assert!(!flow.is_new_connection(&other_syn), "a SYN alone may be forged");
    flow.push(&other_syn);
    assert!(!flow.is_new_connection(&segment(S, SYN_ACK, 4999, 1000, b"")));
    assert!(flow.is_new_connection(&answer), "the server took it up");
    // The live session continues unchanged.
    flow.push(&segment(C, ACK, 1000, 5000, b"EHLO\r\n"));
    assert_eq!(push(&mut flow, &segment(S, ACK, 5000, 1006, b"")), [r#"C+"EHLO\r\n""#]);
    flow.push(&segment(C, RST, 1006, 0, b""));
    assert!(flow.is_new_connection(&other_syn), "closed: nothing to protect");

    let flow = connection(&segment(C, SYN, 999, 0, b""));
    assert!(flow.is_new_connection(&other_syn), "never answered");
    let flow = connection(&segment(C, ACK, 70_000, 90_000, b""));
    assert!(flow.is_new_connection(&other_syn));
}

#[test]
fn a_syn_ack_that_answers_nothing_is_left_alone() {
    let mut flow = connection(&segment(C, SYN, 999, 0, b""));
    flow.push(&segment(S, SYN_ACK, 1, 555, b"220 forged\r\n"));
    assert!(flow.fingerprint(S).is_none());
    flow.push(&segment(S, SYN_ACK, 4999, 1000, b""));
    flow.push(&segment(S, ACK, 5000, 1000, b"220\r\n"));
    assert_eq!(push(&mut flow, &segment(C, ACK, 1000, 5005, b"")), [r#"S+"220\r\n""#]);
}

#[test]
fn a_guess_yields_to_the_answer() {
    // Forged before the server answers: they claim a wrong start of the server's stream.
    for flags in [ACK, RST_ACK] {
        let mut flow = connection(&segment(C, SYN, 999, 0, b""));
        flow.push(&segment(C, flags, 1000, 77, b""));
        let answer = segment(S, SYN_ACK, 4999, 1000, b"");
        assert!(!flow.is_new_connection(&answer));
        drain(&mut flow);
        flow.push(&answer);
        flow.push(&segment(S, ACK, 5000, 1000, b"220\r\n"));
        assert_eq!(push(&mut flow, &segment(C, ACK, 1000, 5005, b"")), [r#"S+"220\r\n""#]);
    }
}

#[test]
fn fingerprints_read_the_options() {
    // Linux: MSS 1460, SACK permitted, timestamps, NOP, window scale 7.
    let linux = [2, 4, 5, 180, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7];
    let mut syn = segment(C, SYN, 999, 0, b"");
    syn.options = &linux;
    let flow = connection(&syn);
    let print = flow.fingerprint(C).expect("a SYN was seen");
    assert_eq!((print.ttl, print.window, print.mss, print.window_scale), (64, 64_240, Some(1460), Some(7)));
    assert!(print.sack_permitted && print.timestamps && !print.multipath());
    assert_eq!(print.option_order(), [2, 4, 8, 1, 3]);
    assert!(flow.fingerprint(S).is_none());

    for (malformed, kinds) in [
        (&[2, 4, 5][..], &[][..]),
        (&[2, 0, 5, 5], &[]),
        (&[1, 2], &[1]),
        (&[0, 2, 4, 5, 180], &[0]),
        (&[1; 40], &[1; 20]),
    ] {
        syn.options = malformed;
        assert_eq!(connection(&syn).fingerprint(C).expect("a SYN was seen").option_order(), kinds);
    }
}

#[test]
fn time_never_runs_back() {
    let mut flow = established();
    let mut late = segment(C, ACK, 1000, 5000, b"");
    late.at = late.at + Duration::from_secs(5);
    flow.push(&late);
    flow.push(&segment(C, ACK, 1000, 5000, b""));
    assert_eq!(flow.last_activity(), late.at);
}
