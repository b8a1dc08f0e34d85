//! Tags, and the verdicts of the fast path when every flow is muted. `headers::tests` compares the fast path with the header parser
//! for every header form.

use core::{cell::Cell, net::SocketAddr};
use std::collections::HashSet;

use super::*;
use crate::{Direction, Encapsulation, Order, PortSet, RecordBuffer, Slice};

/// A table of muted flows that holds every tag, or none, and remembers which it was asked for.
struct Flows {
    muted: bool,
    asked: Cell<Option<Tag>>,
}

fn flows(muted: bool) -> Flows {
    Flows { muted, asked: Cell::new(None) }
}

impl Env for Flows {
    fn now(&self) -> u64 {
        0
    }
    fn direction(&self) -> Direction {
        Direction::Ingress
    }
    fn link_address(&self) -> Option<[u8; 6]> {
        None
    }
    fn interface(&self) -> u32 {
        2
    }
    fn owner(&self) -> (u64, u32) {
        (0, 0)
    }
    fn ports(&self, word: usize) -> u64 {
        PortSet::default().as_words()[word]
    }
    fn seed(&self, index: usize) -> u64 {
        0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(index as u64 + 1).rotate_left(17)
    }
    fn is_muted(&self, tag: Tag) -> bool {
        self.asked.set(Some(tag));
        self.muted
    }
    fn mute(&mut self, _: Tag) {}
    fn unmute(&mut self, _: Tag) {}
    fn order(&self, _: &FlowKey) -> Option<Order> {
        None
    }
    fn submit(&mut self, _: &RecordBuffer) -> bool {
        true
    }
    fn count(&mut self, _: Counter) {}
    fn note_encapsulated(&mut self, _: Encapsulation) {}
}

/// The verdict of the fast path when every flow is muted.
pub(crate) fn told(packet: &Slice<'_>, link: Link) -> Option<Outcome> {
    fast_path(packet, link, &mut flows(true))
}

fn key(client: &str, server: &str) -> FlowKey {
    let parse = |text: &str| text.parse::<SocketAddr>().unwrap();
    FlowKey::new(parse(client), parse(server))
}

#[test]
fn every_bit_of_both_end_points_and_both_directions_make_another_tag() {
    let mut tags = HashSet::new();
    for (version, client, server) in
        [(4, "192.0.2.10:41234", "198.51.100.25:25"), (6, "[2001:db8::a]:41234", "[2001:db8::19]:25")]
    {
        let base = key(client, server);
        let mut keys = std::vec![base];
        let (start, bits) = if version == 4 { (12, 32) } else { (0, 128) };
        for bit in 0..bits {
            for side in [Side::Client, Side::Server] {
                let mut changed = base;
                let address = if side == Side::Client { &mut changed.client } else { &mut changed.server };
                let mut octets = address.octets();
                octets[start + bit / 8] ^= 1 << (bit % 8);
                *address = Address::from_octets(&octets);
                keys.push(changed);
            }
        }
        for bit in 0..16 {
            keys.push(FlowKey { client_port: base.client_port ^ (1 << bit), ..base });
            keys.push(FlowKey { server_port: base.server_port ^ (1 << bit), ..base });
        }
        for key in keys {
            for side in [Side::Client, Side::Server] {
                let tag = Tag::of(&flows(false), &key, version, side);
                for tag in [tag, tag.other_direction()] {
                    assert!(tags.insert(tag), "a tag twice: {key:?} {side:?}");
                }
            }
        }
    }
    assert_eq!(tags.len(), 4 * (1 + 64 + 32) + 4 * (1 + 256 + 32));
}

#[test]
fn the_packet_has_the_tag_of_its_flow_and_direction() {
    let v4: &[u8] = &[
        0x08, 0x00, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 10, 198, 51, 100, 25, // Ethernet, IPv4
        0xa1, 0x12, 0, 25, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 2, 0, 0, 0, 0, 0, // 41234 → 25
    ];
    let mut packet = std::vec![0; 12];
    packet.extend(v4);
    let flow = key("192.0.2.10:41234", "198.51.100.25:25");
    for side in [Side::Client, Side::Server] {
        if side == Side::Server {
            packet[26..30].copy_from_slice(&[198, 51, 100, 25]);
            packet[30..34].copy_from_slice(&[192, 0, 2, 10]);
            packet[34..38].copy_from_slice(&[0, 25, 0xa1, 0x12]);
        }
        let mut env = flows(false);
        assert_eq!(fast_path(&Slice::new(&packet, 54), Link::Ethernet, &mut env), None);
        assert_eq!(env.asked.get(), Some(Tag::of(&flows(false), &flow, 4, side)), "{side:?}");
    }
    let mut packet = std::vec![0; 12];
    packet.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 6, 64, 0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10]);
    packet.extend([0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x19]);
    packet.extend(&v4[22..]);
    let flow = key("[2001:db8::a]:41234", "[2001:db8::19]:25");
    let mut env = flows(false);
    assert_eq!(fast_path(&Slice::new(&packet, 74), Link::Ethernet, &mut env), None);
    assert_eq!(env.asked.get(), Some(Tag::of(&flows(false), &flow, 6, Side::Client)));
}
