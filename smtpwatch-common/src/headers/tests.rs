//! Header forms, byte by byte.

use std::{string::ToString as _, vec, vec::Vec};

use super::*;
use crate::{
    Admission, Direction, FlowState, Outcome, PortSet, Slice,
    fast_path::tests::told,
    gate::{CONTROL, Decision, decide},
    record::flag,
};

const TCP: [u8; 24] = [
    0xa1, 0x12, 0, 25, 0, 0, 0, 1, 0, 0, 0, 2, 0x60, 0x18, 2, 0, 0, 0, 0, 0, // 41234 → 25, data offset 6
    1, 1, 1, 0, // options
];

fn look(bytes: &[u8], wire: usize, link: Link) -> Result<Segment, &'static str> {
    let mut scratch = Scratch::EMPTY;
    let ports = PortSet::default();
    let packet = Slice::new(bytes, u32::try_from(wire).unwrap());
    let glance = told(&packet, link);
    let found = match parse_headers(&packet, link, |port| ports.contains(port), || Some(&mut scratch)) {
        ParsedPacket::NotTcp => Err("not tcp"),
        ParsedPacket::NotWatched => Err("not watched"),
        ParsedPacket::Fragment => Err("fragment"),
        ParsedPacket::Unparsed => Err("unparsed"),
        ParsedPacket::Truncated => Err("truncated"),
        ParsedPacket::NoScratch => Err("no scratch"),
        ParsedPacket::Segment(scratch) => Ok(scratch.segment),
    };
    assert!(
        match glance {
            None => true,
            Some(Outcome::Other) => matches!(found, Err("not tcp" | "not watched")),
            Some(_) => found.is_ok_and(|segment| !segment.has(CONTROL)),
        },
        "the glance says {glance:?} where the walk says {found:?}"
    );
    found
}

fn v4(options: usize, total: Option<u16>, fragment: [u8; 2]) -> Vec<u8> {
    let header = 20 + options;
    let total = total.unwrap_or(u16::try_from(header + TCP.len() + 5).unwrap());
    let mut ip = vec![0x40 | u8::try_from(header / 4).unwrap(), 0];
    ip.extend(total.to_be_bytes());
    ip.extend([0xbe, 0xef, fragment[0], fragment[1], 61, 6, 0, 0, 192, 0, 2, 10, 198, 51, 100, 25]);
    ip.extend(vec![1; options]);
    ip.extend(TCP);
    ip.extend(b"hello");
    ip
}

/// `extensions`: type, and bytes with the next type still missing.
fn v6(extensions: &[(u8, &[u8])], payload: Option<u16>) -> Vec<u8> {
    let length: usize = extensions.iter().map(|(_, octets)| octets.len()).sum();
    let payload = payload.unwrap_or(u16::try_from(length + TCP.len() + 5).unwrap());
    let kinds: Vec<u8> = extensions.iter().map(|(kind, _)| *kind).chain([6]).collect();
    let mut ip = vec![0x60, 0, 0, 0];
    ip.extend(payload.to_be_bytes());
    ip.extend([kinds[0], 61]);
    ip.extend([0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    ip.extend([0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    for ((_, octets), next) in extensions.iter().zip(&kinds[1..]) {
        ip.push(*next);
        ip.extend(&octets[1..]);
    }
    ip.extend(TCP);
    ip.extend(b"hello");
    ip
}

fn ethernet(tags: &[u16], ip: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 12];
    for tag in tags {
        frame.extend(tag.to_be_bytes());
        frame.extend([0, 7]);
    }
    frame.extend(if ip[0] >> 4 == 6 { [0x86, 0xdd] } else { [8, 0] });
    frame.extend(ip);
    frame
}

#[test]
fn ev6_ev7_ev11_every_link_and_ip_form_leads_to_the_same_segment() {
    let plain = [0x40, 0];
    let atomic: &[u8] = &[0, 0, 0, 0, 9, 9, 9, 9];
    let forms = [
        v4(0, None, plain),
        v4(8, None, plain),
        v4(40, None, plain),
        v6(&[], None),
        v6(&[(0, &[0; 8])], None),
        v6(&[(0, &[0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), (43, &[0; 8]), (60, &[0; 8])], None),
        v6(&[(51, &[0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])], None),
        v6(&[(44, atomic)], None),
        v6(&[(60, &[0_u8; 8] as &[u8]); 8], None),
    ];
    for ip in &forms {
        let frames: Vec<(Vec<u8>, Link)> = [&[][..], &[0x8100], &[0x88a8, 0x8100], &[0x9100, 0x8100]]
            .into_iter()
            .map(|tags| (ethernet(tags, ip), Link::Ethernet))
            .chain([(ip.clone(), Link::Ip)])
            .collect();
        for (frame, link) in frames {
            let segment = look(&frame, frame.len(), link).unwrap();
            let start = usize::try_from(segment.payload).unwrap();
            assert_eq!(&frame[start..], b"hello");
            assert_eq!((segment.length, segment.options_len, segment.seq, segment.ack), (5, 4, 1, 2));
            assert_eq!((segment.from, segment.flags, segment.ttl, segment.window), (Side::Client, 0x18, 61, 512));
            let v4 = ip[0] >> 4 == 4;
            assert_eq!((segment.ip_version, segment.ip_id), if v4 { (4, 0xbeef) } else { (6, 0) });
            let client = if v4 { "192.0.2.10:41234" } else { "[2001:db8::1]:41234" };
            assert_eq!(segment.key.client().to_string(), client);
        }
    }
}

#[test]
fn padding_is_not_payload() {
    let mut frame = ethernet(&[], &v4(0, None, [0, 0]));
    frame.extend([0xaa; 20]);
    let segment = look(&frame, frame.len(), Link::Ethernet).unwrap();
    assert_eq!(segment.length, 5);
}

#[test]
fn ev5_what_is_no_segment_says_why() {
    let good = ethernet(&[], &v4(0, None, [0, 0]));
    let with = |at: usize, value: u8| {
        let mut frame = good.clone();
        frame[at] = value;
        frame
    };
    let fragment6: &[u8] = &[0, 0, 0, 8, 0, 0, 0, 1];
    let cases = [
        (with(12, 9), "not tcp"),
        (with(23, 17), "not tcp"),
        (with(14, 0x44), "unparsed"),
        (with(14, 0x65), "unparsed"),
        (with(46, 0x40), "unparsed"),
        (with(20, 0x20), "fragment"),
        (with(21, 1), "fragment"),
        (with(37, 80), "not watched"),
        (with(16, 0), "unparsed"),
        (ethernet(&[0x8100, 0x8100, 0x8100], &v4(0, None, [0, 0])), "unparsed"),
        (ethernet(&[], &v6(&[(44, fragment6)], None)), "fragment"),
        (ethernet(&[], &v6(&[(60, &[0_u8; 8] as &[u8]); 9], None)), "unparsed"),
        (ethernet(&[], &v6(&[(50, &[0; 8])], None)), "not tcp"),
        (ethernet(&[], &v6(&[(44, &[0, 0, 0, 1, 0, 0, 0, 1]), (17, &[0; 8])], None)), "not tcp"),
    ];
    for (index, (mut frame, expected)) in cases.into_iter().enumerate() {
        if index == 8 {
            frame[17] = 41; // a total length that ends within the TCP header
        }
        assert_eq!(look(&frame, frame.len(), Link::Ethernet), Err(expected), "case {index}");
    }
    assert_eq!(look(&[0; 20], 20, Link::Ip), Err("not tcp"));
}

#[test]
fn no_cut_of_a_packet_is_read_past_its_end() {
    for ip in [v4(8, None, [0, 0]), v6(&[(0, &[0; 8])], None)] {
        let frame = ethernet(&[0x8100], &ip);
        for length in 0..frame.len() - 5 {
            let found = look(&frame[..length], frame.len(), Link::Ethernet);
            // Options may be missing: they are read when the record is built.
            assert!(found == Err("truncated") || length >= frame.len() - 9, "{length}: {found:?}");
        }
        let segment = look(&frame[..frame.len() - 5], frame.len() - 5, Link::Ethernet).unwrap();
        assert!(!segment.is_whole(&Slice::new(&frame[..frame.len() - 5], 0)));
        assert!(segment.is_whole(&Slice::new(&frame[..frame.len() - 5], u32::try_from(frame.len()).unwrap())));
    }
}

/// A capture file may say that a packet had 4 GiB on the wire, and its IP header that it has no length (zero, as with
/// segmentation offload): what is counted with is bounded.
#[test]
fn a_claimed_wire_length_is_bounded() {
    for ip in [v4(0, Some(0), [0, 0]), v6(&[], Some(0))] {
        let segment = look(&ip, usize::try_from(u32::MAX).unwrap(), Link::Ip).unwrap();
        assert_eq!(segment.payload + segment.length, crate::packet::MAX_WIRE_LEN);
        assert!(!segment.is_whole(&Slice::new(&ip, 0)));
        for direction in [Some(Direction::Egress), Some(Direction::Ingress), None] {
            let mut state = FlowState::new(1, &segment, direction, 2, false);
            let decision = decide(&mut state, &segment, Admission::Own);
            assert_eq!(decision, Decision::Header { flags: flag::MIDSTREAM | flag::BUDGET });
        }
    }
}
