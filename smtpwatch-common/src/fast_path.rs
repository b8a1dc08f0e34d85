//! Fast path: drops non-mail packets and packets of muted flows before the headers are parsed or a map is looked up.
//!
//! Most packets of a host are not mail, and most packets of mail belong to muted flows. Straight-line code over the first
//! bytes of a packet recognizes both. A packet that is not plain (VLAN tags, options, extension headers, fragments) takes the
//! slow path: [`process_slow_path`](crate::process::process_slow_path).
//!
//! A muted flow has a [`Tag`] for each direction, in a table without collision handling that all CPUs share: 2¹⁶ slots of
//! one tag each; a later tag overwrites an earlier one. An overwritten tag costs one look-up in the flow table, which sets
//! it again.
//!
//! A tag that is found must never silence a flow that is not muted, because that would blind the daemon:
//! * Two given pairs of end points share a tag with probability 2⁻⁶⁴, and an attacker cannot search for a collision: a tag is
//!   two sums, 32 bits of each, of products with secret seeds (multilinear hashing, strongly universal: Lemire and Kaser,
//!   "Strongly universal string hashing is fast", The Computer Journal 57 (11), 2014). A tag of zero, which equals an empty
//!   slot, is as improbable.
//! * A flow's tags are cleared after its state is created or starts another life, and with every SYN and SYN-ACK. The program
//!   that sets a tag reads the flow's state once more and removes the tag if the flow is no longer muted.

use crate::{
    Counter, Env, FlowKey, Link, Outcome, Packet, Side,
    encapsulation::{is_encapsulating_protocol, is_encapsulating_type},
    flow_key::Address,
    gate::CONTROL,
    headers::{
        ETHER_IPV4, ETHER_IPV6, ETHER_QINQ, ETHER_QINQ_OLD, ETHER_VLAN, ETHERNET_LEN, IPV4_LEN, IPV6_LEN, PROTOCOL_TCP,
        TCP_LEN, is_extension,
    },
    packet::Words,
    ports,
};

/// Tags that the table of muted flows holds.
pub const SLOTS: usize = 1 << 16;
/// Secret random numbers that tags are made with.
pub const SEEDS: usize = 2 * SEEDS_OF_SUM;

const _: () = assert!(SLOTS == 1 << u16::BITS);

/// One for the sum itself, three words of an IPv4 packet, nine of an IPv6 packet.
const SEEDS_OF_SUM: usize = 1 + 3 + 9;
const FIRST_V4: usize = 1;
const FIRST_V6: usize = 4;

/// Names the packets that one end of a connection sends, as one direction of hook sees them. What arrives is a claim, so its tag
/// must not mute what leaves with the same end points.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(transparent)]
pub struct Tag(u64);

impl Tag {
    /// The tag as stored in the table. An empty slot is zero.
    #[inline(always)]
    #[must_use]
    pub const fn value(self) -> u64 {
        self.0
    }

    /// Index of its slot, below [`SLOTS`].
    #[inline(always)]
    #[must_use]
    pub const fn slot(self) -> usize {
        // A tag is compared as a whole, so its slot may be a part of it.
        (self.0 & 0xffff) as u16 as usize
    }

    /// The same end points in the other direction of hook. It is in the neighbouring slot: loopback has both directions of
    /// every packet.
    #[inline(always)]
    #[must_use]
    pub const fn other_direction(self) -> Self {
        Self(self.0 ^ 1)
    }

    /// The tag of the packets that `from` sends, at the hook of `env`.
    #[inline(always)]
    pub fn of<E: Env>(env: &E, key: &FlowKey, ip_version: u8, from: Side) -> Self {
        let (source, target, source_port, target_port) = match from {
            Side::Client => (&key.client, &key.server, key.client_port, key.server_port),
            Side::Server => (&key.server, &key.client, key.server_port, key.client_port),
        };
        let ([a, b], [c, d]) = (source_port.to_be_bytes(), target_port.to_be_bytes());
        let ports = u32::from_ne_bytes([a, b, c, d]);
        if ip_version == 4 {
            return Sums::start(env, FIRST_V4).add(last(source)).add(last(target)).add(ports).tag();
        }
        let mut sums = Sums::start(env, FIRST_V6);
        let mut i = 0;
        while i < 8 {
            sums = sums.add(if i < 4 { source.words()[i] } else { target.words()[i - 4] });
            i += 1;
        }
        sums.add(ports).tag()
    }
}

/// The two sums of a tag. A word is added when it is read: all words of a packet at once would take the kernel programs' stack.
#[derive(Clone, Copy)]
struct Sums<'a, E> {
    env: &'a E,
    next: usize,
    high: u64,
    low: u64,
}

impl<'a, E: Env> Sums<'a, E> {
    #[inline(always)]
    fn start(env: &'a E, first: usize) -> Self {
        Self { env, next: first, high: env.seed(0), low: env.seed(SEEDS_OF_SUM) }
    }

    #[inline(always)]
    fn add(self, word: u32) -> Self {
        let Self { env, next, high, low } = self;
        let word = u64::from(word);
        let high = high.wrapping_add(env.seed(next).wrapping_mul(word));
        let low = low.wrapping_add(env.seed(SEEDS_OF_SUM + next).wrapping_mul(word));
        Self { env, next: next + 1, high, low }
    }

    #[inline(always)]
    fn tag(self) -> Tag {
        // Only the upper halves of the sums are strongly universal.
        Tag((self.high & !0xffff_ffff | self.low >> 32) ^ self.env.direction() as u64)
    }
}

#[inline(always)]
const fn last(address: &Address) -> u32 {
    let [_, _, _, last] = address.words();
    last
}

/// Classifies `packet` and counts it if it is not mail or its flow is muted. `None`: the slow path decides.
#[inline(always)]
pub fn fast_path<P: Packet, E: Env>(packet: &P, link: Link, env: &mut E) -> Option<Outcome> {
    let verdict = match link {
        Link::Ethernet => classify(packet, env)?,
        Link::Ip => return None,
    };
    Some(match verdict {
        Verdict::Other => {
            env.count(Counter::other(env.direction()));
            Outcome::Other
        }
        Verdict::Muted => {
            env.count(Counter::muted(env.direction()));
            Outcome::Muted
        }
    })
}

enum Verdict {
    Other,
    Muted,
}

const IPV4: u16 = ETHER_IPV4.to_be();
const IPV6: u16 = ETHER_IPV6.to_be();
const VLAN: u16 = ETHER_VLAN.to_be();
const QINQ: u16 = ETHER_QINQ.to_be();
const QINQ_OLD: u16 = ETHER_QINQ_OLD.to_be();

#[inline(always)]
fn classify<P: Packet, E: Env>(packet: &P, env: &E) -> Option<Verdict> {
    let head = packet.words::<{ ETHERNET_LEN + IPV4_LEN + TCP_LEN }>()?;
    match head.half::<12>() {
        IPV4 => classify_ipv4(&head, env),
        IPV6 => classify_ipv6(&packet.words::<{ ETHERNET_LEN + IPV6_LEN + TCP_LEN }>()?, env),
        VLAN | QINQ | QINQ_OLD => None,
        // It may hold mail in an encapsulation: the slow path decides.
        kind if is_encapsulating_type(u16::from_be(kind)) => None,
        _ => Some(Verdict::Other),
    }
}

#[inline(always)]
fn classify_ipv4<W: Words, E: Env>(head: &W, env: &E) -> Option<Verdict> {
    // IPv4 options, or an invalid version or length: the slow path decides.
    if head.octet::<14>() != 0x45 {
        return None;
    }
    let protocol = head.octet::<23>();
    if protocol != PROTOCOL_TCP {
        return other(protocol, || u16::from_be(head.half::<36>()));
    }
    // A fragment (RFC 791): the slow path counts it.
    if head.half::<20>() & 0x3fff_u16.to_be() != 0 {
        return None;
    }
    let ports = head.word::<34>();
    if !any_watched(env, ports) {
        return Some(Verdict::Other);
    }
    let total = u32::from(u16::from_be(head.half::<16>()));
    if !is_plain(head.octet::<46>(), head.octet::<47>(), total, 20) {
        return None;
    }
    let tag = Sums::start(env, FIRST_V4).add(head.word::<26>()).add(head.word::<30>()).add(ports).tag();
    if env.is_muted(tag) { Some(Verdict::Muted) } else { None }
}

#[inline(always)]
fn classify_ipv6<W: Words, E: Env>(head: &W, env: &E) -> Option<Verdict> {
    if head.octet::<14>() >> 4 != 6 {
        return None;
    }
    let next = head.octet::<20>();
    if next != PROTOCOL_TCP {
        return if is_extension(next) { None } else { other(next, || u16::from_be(head.half::<56>())) };
    }
    let ports = head.word::<54>();
    if !any_watched(env, ports) {
        return Some(Verdict::Other);
    }
    let payload = u32::from(u16::from_be(head.half::<18>()));
    if !is_plain(head.octet::<66>(), head.octet::<67>(), payload, 0) {
        return None;
    }
    let sums = Sums::start(env, FIRST_V6);
    let sums = sums.add(head.word::<22>()).add(head.word::<26>()).add(head.word::<30>()).add(head.word::<34>());
    let sums = sums.add(head.word::<38>()).add(head.word::<42>()).add(head.word::<46>()).add(head.word::<50>());
    let tag = sums.add(ports).tag();
    if env.is_muted(tag) { Some(Verdict::Muted) } else { None }
}

/// The verdict on a packet that is not TCP. It may hold mail in an encapsulation: the slow path decides.
#[inline(always)]
fn other(protocol: u8, target: impl FnOnce() -> u16) -> Option<Verdict> {
    if is_encapsulating_protocol(protocol, target) { None } else { Some(Verdict::Other) }
}

/// Whether the source or the destination port is watched; `ports` is the first word of the TCP header.
#[inline(always)]
fn any_watched<E: Env>(env: &E, ports: u32) -> bool {
    let one = (ports & 0xffff) as u16;
    let other = (ports >> 16) as u16;
    let bits =
        env.ports(ports::word_of(one)) >> ports::bit_of(one) | env.ports(ports::word_of(other)) >> ports::bit_of(other);
    bits & 1 != 0
}

/// Whether the segment has none of SYN, FIN and RST, and headers of a valid length.
#[inline(always)]
const fn is_plain(data_offset: u8, flags: u8, total: u32, before: u32) -> bool {
    let header = (data_offset >> 4) as u32 * 4;
    flags & CONTROL == 0 && header >= 20 && total >= before + header
}

#[cfg(test)]
pub(crate) mod tests;
