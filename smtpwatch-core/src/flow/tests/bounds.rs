//! Tests of conflicting copies, and of every bound of reassembly.

use crate::limits::{CONFLICT_BYTES, CONFLICTS, REASSEMBLY_BYTES, RETAINED_BYTES};

use super::*;

#[test]
fn one_side_alone_is_delivered_when_the_bound_is_reached() {
    let mut flow = connection(&segment(C, SYN, 999, 0, b""));
    let block = [b'x'; 1000];
    let (mut sent, mut delivered) = (0, 0);
    for _ in 0..100 {
        flow.push(&segment(C, ACK, 1000 + sent, 5000, &block));
        sent += 1000;
        while let Some(event) = flow.poll() {
            match event {
                FlowEvent::Data { acked: false, bytes, .. } => delivered += bytes.len(),
                FlowEvent::Gap { length: 0, cause: GapCause::CaptureStart, .. } => {}
                other => unreachable!("{other:?}"),
            }
        }
    }
    assert!(delivered >= 100_000 - REASSEMBLY_BYTES, "{delivered}");
}

#[test]
fn a_hole_that_fills_the_window_is_given_up() {
    // One side alone: no acknowledgment says that the gap will be filled.
    let mut flow = connection(&segment(C, SYN, 999, 0, b""));
    let block = [b'x'; 1000];
    let mut events = Vec::new();
    for index in 1..=70 {
        events.extend(push(&mut flow, &segment(C, ACK, 1000 + index * 1000, 5000, &block)));
    }
    assert!(events.contains(&"C gap 1000 window".to_owned()), "{events:?}");

    // The server acknowledges and waits for the gap: the missing bytes come, and what was dropped after them is a gap.
    let mut flow = established();
    for index in 1..=70 {
        assert_eq!(push(&mut flow, &segment(C, ACK, 1000 + index * 1000, 5000, &block)), NONE);
    }
    flow.push(&segment(C, ACK, 1000, 5000, &block));
    flow.push(&segment(C, ACK, 1000 + 71_000, 5000, b""));
    let events = push(&mut flow, &segment(S, ACK, 5000, 1000 + 71_000, b""));
    let delivered: usize = events.iter().map(|event| event.matches('x').count()).sum();
    let last = events.last().expect("events");
    assert_eq!(*last, format!("C gap {} window", 71_000 - delivered));
    assert!(delivered >= REASSEMBLY_BYTES - 2 * 4096, "{delivered}");
}

#[test]
fn a_conflict_before_the_acknowledgment_keeps_both_copies() {
    let mut flow = established();
    let mut late = segment(S, ACK, 5000, 1000, b"250-XXXXXXXA\r\n");
    flow.push(&segment(S, ACK, 5000, 1000, b"250-STARTTLS\r\n"));
    late.ttl = 57;
    flow.push(&late);
    flow.push(&late);
    assert_eq!(push(&mut flow, &segment(C, ACK, 1000, 5014, b"")), [r#"S+"250-STARTTLS\r\n""#]);
    assert_eq!(flow.conflicts().len(), 1);
    let conflict = &flow.conflicts()[0];
    assert_eq!((conflict.from, conflict.offset, conflict.ttl, conflict.first_acked), (S, 0, 57, false));
    assert_eq!((&*conflict.first, &*conflict.other), (&b"250-STARTTLS\r\n"[..], &b"250-XXXXXXXA\r\n"[..]));
    assert!(!format!("{conflict:?}").contains("STARTTLS"));
}

#[test]
fn a_conflict_with_delivered_octets_is_seen() {
    let mut flow = established();
    flow.push(&segment(S, ACK, 5000, 1000, b"250-mx\r\n250-XXXXXXXA\r\n"));
    flow.push(&segment(C, ACK, 1000, 5014, b""));
    assert_eq!(drain(&mut flow), [r#"S+"250-mx\r\n250-XX""#]);
    // Half delivered, half buffered, one byte more than before.
    flow.push(&segment(S, ACK, 5008, 1000, b"250-STARTTLS\r\n2"));
    assert_eq!(flow.conflicts().len(), 1);
    let conflict = &flow.conflicts()[0];
    assert_eq!((conflict.offset, conflict.first_acked), (8, false));
    assert_eq!((&*conflict.first, &*conflict.other), (&b"250-XXXXXXXA\r\n2"[..], &b"250-STARTTLS\r\n2"[..]));
    flow.push(&segment(C, ACK, 1000, 5023, b""));
    drain(&mut flow);
    flow.push(&segment(S, ACK, 5000, 1000, b"550-no\r\n"));
    assert_eq!(flow.conflicts().len(), 2);
    assert!(flow.conflicts()[1].first_acked);
    // The verdict is final: nothing is compared from here on.
    flow.settle();
    flow.push(&segment(S, ACK, 5000, 1000, b"421-no\r\n"));
    assert_eq!(flow.conflicts().len(), 2);
}

#[test]
fn conflicts_and_their_copies_are_bounded() {
    let mut flow = established();
    let long = vec![b'a'; 5000];
    flow.push(&segment(C, ACK, 1000, 5000, &long));
    flow.push(&segment(S, ACK, 5000, 6000, b""));
    drain(&mut flow);
    let mut other = long.clone();
    for index in 0..CONFLICTS + 3 {
        other[4000 + index] = b'b';
        flow.push(&segment(C, ACK, 1000, 5000, &other));
        other[4000 + index] = b'a';
    }
    assert_eq!((flow.conflicts().len(), flow.conflicts_dropped()), (CONFLICTS, 3));
    let conflict = &flow.conflicts()[0];
    assert_eq!((conflict.offset, conflict.first.len()), (4000 - CONFLICT_BYTES as u64 / 2, CONFLICT_BYTES));
    assert_eq!(conflict.first.iter().zip(&conflict.other).position(|(a, b)| a != b), Some(CONFLICT_BYTES / 2));
}

#[test]
fn only_the_last_delivered_octets_are_compared() {
    let mut flow = established();
    let long = vec![b'a'; RETAINED_BYTES + 10];
    flow.push(&segment(C, ACK, 1000, 5000, &long));
    flow.push(&segment(S, ACK, 5000, 1000 + u32::try_from(long.len()).expect("small"), b""));
    drain(&mut flow);
    flow.push(&segment(C, ACK, 1000, 5000, b"bbbbbbbbbb"));
    assert!(flow.conflicts().is_empty());
    flow.push(&segment(C, ACK, 1001, 5000, b"bbbbbbbbbb"));
    assert_eq!((flow.conflicts()[0].offset, flow.conflicts()[0].first.len()), (10, 1));
}

#[test]
fn tiny_pieces_pin_little() {
    let mut flow = established();
    for index in (1..20_000).step_by(2) {
        flow.push(&segment(C, ACK, 1000 + index, 5000, b"x"));
        while flow.poll().is_some() {}
        assert!(flow.memory() <= 40 * 1024, "{} after {index}", flow.memory());
    }
}

#[test]
fn memory_is_bounded_even_if_nobody_drains() {
    let block = vec![b'x'; 60_000];
    let mut large = established();
    let mut tiny = established();
    for index in 0..400 {
        large.push(&segment(C, ACK, 1000 + index * 60_000, 5000, &block));
        large.push(&segment(S, ACK, 5000 + index * 60_000, 1000, &block));
        assert!(large.memory() <= Connection::MEMORY, "{}", large.memory());
    }
    for index in 0..20_000 {
        tiny.push(&segment(S, ACK, 5001 + index * 2, 1000, b"x"));
        assert!(tiny.memory() <= Connection::MEMORY, "{}", tiny.memory());
    }
    // Conflicts that did not fit are counted.
    let events = close(&mut large);
    assert!(events.last().is_some_and(|event| event.ends_with("window")), "{:?}", events.last().map(String::len));
}

#[test]
fn an_idle_flow_is_small() {
    let mut flow = established();
    flow.push(&segment(S, ACK, 5000, 1000, &[b'2'; 400]));
    flow.push(&segment(C, ACK, 1000, 5400, b"EHLO client.example\r\n"));
    flow.push(&segment(S, ACK, 5400, 1021, b""));
    drain(&mut flow);
    // The dialogue so far is retained for comparison until the verdict.
    let kept = (421..=421 + 600).contains(&(flow.memory() - size_of::<Connection>()));
    assert!(kept && flow.memory() <= 1536, "{}", flow.memory());
    flow.settle();
    assert!(flow.memory() <= 1024, "{}", flow.memory());
}
