//! Each encapsulation with either IP version outside and inside, byte by byte.

use std::{vec, vec::Vec};

use super::*;
use crate::{PortSet, Slice, fast_path::tests::told};

const FLAGS: u8 = 0x18;

/// An IPv4 or IPv6 header, and what it holds.
fn ip(v6: bool, protocol: u8, rest: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    if v6 {
        packet.extend([0x60, 0, 0, 0]);
        packet.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
        packet.extend([protocol, 64]);
        packet.extend([0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        packet.extend([0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    } else {
        packet.extend([0x45, 0]);
        packet.extend(u16::try_from(20 + rest.len()).unwrap().to_be_bytes());
        packet.extend([0, 0, 0x40, 0, 64, protocol, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
    }
    packet.extend(rest);
    packet
}

fn tcp(source: u16, target: u16, flags: u8) -> Vec<u8> {
    let ports = [source.to_be_bytes(), target.to_be_bytes()].concat();
    [&ports[..], &[0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 2, 0, 0, 0, 0, 0], b"QUIT\r\n"].concat()
}

fn udp(target: u16, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + rest.len()).unwrap().to_be_bytes();
    [&[0xc0, 0][..], &target.to_be_bytes(), &length, &[0, 0], rest].concat()
}

fn ethernet(tags: &[u16], kind: u16, rest: &[u8]) -> Vec<u8> {
    let mut frame = vec![2; 12];
    for tag in tags {
        frame.extend(tag.to_be_bytes());
        frame.extend([0, 7]);
    }
    frame.extend(kind.to_be_bytes());
    frame.extend(rest);
    frame
}

const fn kind(v6: bool) -> u16 {
    if v6 { ETHER_IPV6 } else { ETHER_IPV4 }
}

/// Each form of each encapsulation around an IP packet: what the outer Ethernet header holds, and its EtherType.
fn forms(v6: bool, inner_v6: bool, inner: &[u8]) -> Vec<(Encapsulation, u16, Vec<u8>)> {
    let frame = ethernet(&[], kind(inner_v6), inner);
    let tagged = ethernet(&[0x88a8, 0x8100], kind(inner_v6), inner);
    let inner_kind = kind(inner_v6).to_be_bytes();
    let vxlan = |rest: &[u8]| [&[8, 0, 0, 0, 0, 0, 7, 0][..], rest].concat();
    let geneve = |options: u8, kind: [u8; 2], rest: &[u8]| {
        let options_bytes = vec![0xff; usize::from(options) * 4];
        [&[options, 0][..], &kind, &[0, 0, 7, 0], &options_bytes, rest].concat()
    };
    let gre = |flags: u8, kind: [u8; 2], rest: &[u8]| {
        let optional = vec![0xff; 4 * (flags & 0xb0).count_ones() as usize];
        [&[flags, 0][..], &kind, &optional, rest].concat()
    };
    let ppp = if inner_v6 { PPP_IPV6 } else { PPP_IPV4 };
    let within_ip = |protocol: u8, rest: &[u8]| ip(v6, protocol, rest);
    let own = if inner_v6 { PROTOCOL_IPV6 } else { PROTOCOL_IPV4 };
    let mut forms = Vec::new();
    let mut add = |found, bytes: Vec<u8>| forms.push((found, kind(v6), bytes));
    for port in [PORT_VXLAN, PORT_VXLAN_LINUX] {
        add(Encapsulation::Vxlan, within_ip(PROTOCOL_UDP, &udp(port, &vxlan(&frame))));
    }
    add(Encapsulation::Vxlan, within_ip(PROTOCOL_UDP, &udp(PORT_VXLAN, &vxlan(&tagged))));
    for options in [0, 3, 63] {
        let udp = udp(PORT_GENEVE, &geneve(options, [0x65, 0x58], &frame));
        add(Encapsulation::Geneve, within_ip(PROTOCOL_UDP, &udp));
    }
    add(Encapsulation::Geneve, within_ip(PROTOCOL_UDP, &udp(PORT_GENEVE, &geneve(1, inner_kind, inner))));
    for flags in [0, 0x80, 0x20, 0x10, 0xb0] {
        add(Encapsulation::Gre, within_ip(PROTOCOL_GRE, &gre(flags, inner_kind, inner)));
        add(Encapsulation::Gre, within_ip(PROTOCOL_GRE, &gre(flags, [0x65, 0x58], &frame)));
    }
    // ERSPAN types I, II, and III with and without its optional header.
    add(Encapsulation::Gre, within_ip(PROTOCOL_GRE, &gre(0, [0x88, 0xbe], &frame)));
    add(Encapsulation::Gre, within_ip(PROTOCOL_GRE, &gre(0x10, [0x88, 0xbe], &[&[0x10; 8][..], &frame].concat())));
    let short = [&[0x20; 11][..], &[0], &frame].concat();
    let long = [&[0x20; 11][..], &[1], &[0; 8], &frame].concat();
    for erspan in [short, long] {
        add(Encapsulation::Gre, within_ip(PROTOCOL_GRE, &gre(0x10, [0x22, 0xeb], &erspan)));
    }
    add(Encapsulation::Ipip, within_ip(own, inner));
    if v6 {
        // The encapsulation limit of Linux's ip6tnl, and a fragment that is the first one.
        add(Encapsulation::Ipip, ip(true, DESTINATION, &[&[own, 0, 4, 1, 4, 1, 1, 0][..], inner].concat()));
        add(Encapsulation::Ipip, ip(true, FRAGMENT, &[&[own, 0, 0, 1, 0, 0, 0, 9][..], inner].concat()));
    } else {
        let mut with_options = ip(false, own, &[&[1; 4][..], inner].concat());
        with_options[0] = 0x46;
        add(Encapsulation::Ipip, with_options);
    }
    // The outermost encapsulation counts.
    add(Encapsulation::Gre, within_ip(PROTOCOL_GRE, &gre(0, [8, 0], &ip(false, own, inner))));
    let session = |ppp: u16, rest: &[u8]| [&[0x11, 0, 0, 7, 0, 0][..], &ppp.to_be_bytes(), rest].concat();
    forms.push((Encapsulation::Pppoe, ETHER_PPPOE, session(ppp, inner)));
    let both = ip(true, PROTOCOL_UDP, &udp(PORT_VXLAN, &vxlan(&frame)));
    forms.push((Encapsulation::Pppoe, ETHER_PPPOE, session(PPP_IPV6, &both)));
    for (labels, ether_type) in [(1, ETHER_MPLS), (4, ETHER_MPLS_UPSTREAM)] {
        let mut stack = [0, 1, 0, 64].repeat(labels);
        stack[4 * labels - 2] |= 1;
        forms.push((Encapsulation::Mpls, ether_type, [&stack[..], inner].concat()));
    }
    forms
}

fn look(bytes: &[u8], link: Link) -> Option<(Encapsulation, FlowKey)> {
    let packet = Slice::new(bytes, u32::try_from(bytes.len()).unwrap());
    let ports = PortSet::default();
    let mut key = FlowKey::EMPTY;
    let found = find_mail(&packet, link, |port| ports.contains(port), &mut Walk::START.clone(), &mut key)?;
    assert_eq!(told(&packet, link), None, "the fast path must leave it to the slow path");
    Some((found, key))
}

/// The key that the header parser finds for the inner packet.
fn key(v6: bool) -> FlowKey {
    let (client, server) =
        if v6 { ("[2001:db8::1]:41234", "[2001:db8::2]:25") } else { ("192.0.2.1:41234", "192.0.2.2:25") };
    FlowKey::new(client.parse().unwrap(), server.parse().unwrap())
}

#[test]
fn ev29_mail_is_found_in_every_encapsulation() {
    let mut forms_found = 0;
    for (v6, inner_v6) in [(false, false), (false, true), (true, false), (true, true)] {
        let inner = ip(inner_v6, PROTOCOL_TCP, &tcp(41_234, 25, FLAGS));
        for (expected, ether_type, outer) in forms(v6, inner_v6, &inner) {
            for tags in [&[][..], &[0x8100], &[0x88a8, 0x8100]] {
                let frame = ethernet(tags, ether_type, &outer);
                assert_eq!(look(&frame, Link::Ethernet), Some((expected, key(inner_v6))), "{frame:02x?}");
                forms_found += 1;
            }
            if matches!(ether_type, ETHER_IPV4 | ETHER_IPV6) {
                assert_eq!(look(&outer, Link::Ip), Some((expected, key(inner_v6))), "{outer:02x?}");
            }
        }
    }
    assert!(forms_found > 250, "{forms_found}");
}

#[test]
fn the_reply_has_the_key_of_its_connection() {
    let mut answer = ip(false, PROTOCOL_TCP, &tcp(25, 41_234, 0x12));
    let (source, target) = answer[12..20].split_at_mut(4);
    source.swap_with_slice(target);
    for (expected, ether_type, outer) in forms(false, false, &answer) {
        let frame = ethernet(&[], ether_type, &outer);
        assert_eq!(look(&frame, Link::Ethernet), Some((expected, key(false))), "{frame:02x?}");
    }
}

#[test]
fn what_is_no_mail_or_opens_a_connection_is_not_counted() {
    let inner = [
        ip(false, PROTOCOL_TCP, &tcp(41_234, 443, FLAGS)),
        ip(false, PROTOCOL_TCP, &tcp(41_234, 25, 0x02)),
        ip(false, PROTOCOL_UDP, &udp(25, &[0; 20])),
    ];
    for inner in inner {
        for (_, ether_type, outer) in forms(false, false, &inner) {
            assert_eq!(look(&ethernet(&[], ether_type, &outer), Link::Ethernet), None, "{outer:02x?}");
        }
    }
}

#[test]
fn mail_outside_an_encapsulation_and_invalid_headers_are_not_counted() {
    let inner = ip(false, PROTOCOL_TCP, &tcp(41_234, 25, FLAGS));
    assert_eq!(look(&ethernet(&[], ETHER_IPV4, &inner), Link::Ethernet), None, "no encapsulation");
    let frame = ethernet(&[], ETHER_IPV4, &inner);
    let vxlan = |flags: u8| [&[flags, 0, 0, 0, 0, 0, 7, 0][..], &frame].concat();
    let mut fragment = ip(false, PROTOCOL_IPV4, &inner);
    fragment[7] = 1;
    let cases = [
        ip(false, PROTOCOL_UDP, &udp(PORT_VXLAN, &vxlan(0))),
        ip(false, PROTOCOL_UDP, &udp(4_790, &vxlan(8))),
        ip(false, PROTOCOL_UDP, &udp(PORT_GENEVE, &[&[0x40, 0, 0x65, 0x58, 0, 0, 7, 0][..], &frame].concat())),
        ip(false, PROTOCOL_GRE, &[&[0x40, 0, 8, 0][..], &inner].concat()),
        ip(false, PROTOCOL_GRE, &[&[0, 1, 8, 0][..], &inner].concat()),
        ip(false, PROTOCOL_GRE, &[&[0, 0, 8, 6][..], &inner].concat()),
        fragment,
        // With Ethernet, the last IP header and TCP one header more than is read.
        (0..MAX_HEADERS - 2).fold(inner.clone(), |packet, _| ip(false, PROTOCOL_IPV4, &packet)),
    ];
    for case in cases {
        assert_eq!(look(&ethernet(&[], ETHER_IPV4, &case), Link::Ethernet), None, "{case:02x?}");
    }
    let most = (0..MAX_HEADERS - 3).fold(inner.clone(), |packet, _| ip(false, PROTOCOL_IPV4, &packet));
    let frame = ethernet(&[], ETHER_IPV4, &most);
    assert_eq!(look(&frame, Link::Ethernet), Some((Encapsulation::Ipip, key(false))));
    for (header, rest) in [([0x11, 9], PPP_IPV4), ([0x11, 0], 0xc021), ([0x12, 0], PPP_IPV4)] {
        let session = [&header[..], &[0, 7, 0, 0], &rest.to_be_bytes(), &inner].concat();
        assert_eq!(look(&ethernet(&[], ETHER_PPPOE, &session), Link::Ethernet), None, "{session:02x?}");
    }
    let labels = [&[0, 1, 0, 64].repeat(16)[..], &inner].concat();
    assert_eq!(look(&ethernet(&[], ETHER_MPLS, &labels), Link::Ethernet), None, "no label is the last one");
}

#[test]
fn no_cut_of_a_packet_is_read_past_its_end() {
    for (v6, inner_v6) in [(false, true), (true, false)] {
        let inner = ip(inner_v6, PROTOCOL_TCP, &tcp(41_234, 25, FLAGS));
        for (_, ether_type, outer) in forms(v6, inner_v6, &inner) {
            let frame = ethernet(&[0x8100], ether_type, &outer);
            for length in 0..frame.len() - 6 - 6 {
                assert_eq!(look(&frame[..length], Link::Ethernet), None, "{length} of {frame:02x?}");
            }
            assert!(look(&frame[..frame.len() - 6 - 6], Link::Ethernet).is_some());
        }
    }
}
