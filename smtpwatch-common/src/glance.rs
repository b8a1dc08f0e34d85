//! The first glance: most packets of a host are not mail, and most packets of mail belong to flows of which nothing more is
//! wanted. Both are told here, in straight-line code over the first octets of the packet, before the headers are walked and
//! the flow table is asked. Whatever is not plain (tags, options, extension headers, fragments) is left to the walk.
//!
//! Muted flows are known by a [`Tag`] for each direction, in a table without collision handling that all CPUs share: 2¹⁶
//! slots of one tag each, of which the later one stays. What is forgotten costs a look-up in the flow table and is learned
//! again from there.
//!
//! That a tag is found must never silence a flow that is not muted, for this would blind the daemon:
//! * Two given pairs of end points share a tag with probability 2⁻⁶⁴, and nobody can search for such: a tag is two sums, 32
//!   bits of each, of products with secret seeds (multilinear hashing, strongly universal: Lemire and Kaser, "Strongly
//!   universal string hashing is fast", The Computer Journal 57 (11), 2014). A tag of zero, which an empty slot would seem
//!   to hold, is as improbable.
//! * A flow's tags are cleared after its state is made or begins another life, and with every SYN and SYN-ACK. Whoever sets
//!   a tag looks at the flow's state once more and takes it back if the flow is no longer muted.

use crate::{
    Counter, FlowKey, Host, Link, Outcome, Packet, Side,
    flow_key::Address,
    gate::CONTROL,
    packet::Words,
    ports,
    walk::{
        ETHER_IPV4, ETHER_IPV6, ETHER_QINQ, ETHER_QINQ_OLD, ETHER_VLAN, ETHERNET_LEN, IPV4_LEN, IPV6_LEN, PROTOCOL_TCP,
        TCP_LEN, is_extension,
    },
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
    /// The tag as the table holds it. An empty slot is zero.
    #[inline(always)]
    #[must_use]
    pub const fn value(self) -> u64 {
        self.0
    }

    /// Its slot, below [`SLOTS`].
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

    /// The tag of the packets that `from` sends, at the hook of `host`.
    #[inline(always)]
    pub fn of<H: Host>(host: &H, key: &FlowKey, ip_version: u8, from: Side) -> Self {
        let (source, target, source_port, target_port) = match from {
            Side::Client => (&key.client, &key.server, key.client_port, key.server_port),
            Side::Server => (&key.server, &key.client, key.server_port, key.client_port),
        };
        let ([a, b], [c, d]) = (source_port.to_be_bytes(), target_port.to_be_bytes());
        let ports = u32::from_ne_bytes([a, b, c, d]);
        if ip_version == 4 {
            return Sums::start(host, FIRST_V4).add(last(source)).add(last(target)).add(ports).tag();
        }
        let mut sums = Sums::start(host, FIRST_V6);
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
struct Sums<'a, H> {
    host: &'a H,
    next: usize,
    high: u64,
    low: u64,
}

impl<'a, H: Host> Sums<'a, H> {
    #[inline(always)]
    fn start(host: &'a H, first: usize) -> Self {
        Self { host, next: first, high: host.seed(0), low: host.seed(SEEDS_OF_SUM) }
    }

    #[inline(always)]
    fn add(self, word: u32) -> Self {
        let Self { host, next, high, low } = self;
        let word = u64::from(word);
        let high = high.wrapping_add(host.seed(next).wrapping_mul(word));
        let low = low.wrapping_add(host.seed(SEEDS_OF_SUM + next).wrapping_mul(word));
        Self { host, next: next + 1, high, low }
    }

    #[inline(always)]
    fn tag(self) -> Tag {
        // Only the upper halves of the sums are strongly universal.
        Tag((self.high & !0xffff_ffff | self.low >> 32) ^ self.host.direction() as u64)
    }
}

#[inline(always)]
const fn last(address: &Address) -> u32 {
    let [_, _, _, last] = address.words();
    last
}

/// Whether a first glance tells that nothing is wanted of `packet`, which is counted then. `None` means nothing.
#[inline(always)]
pub fn glance<P: Packet, H: Host>(packet: &P, link: Link, host: &mut H) -> Option<Outcome> {
    let told = match link {
        Link::Ethernet => tell(packet, host)?,
        Link::Ip => return None,
    };
    Some(match told {
        Told::Other => {
            host.count(Counter::other(host.direction()));
            Outcome::Other
        }
        Told::Muted => {
            host.count(Counter::muted(host.direction()));
            Outcome::Muted
        }
    })
}

enum Told {
    Other,
    Muted,
}

const IPV4: u16 = ETHER_IPV4.to_be();
const IPV6: u16 = ETHER_IPV6.to_be();
const VLAN: u16 = ETHER_VLAN.to_be();
const QINQ: u16 = ETHER_QINQ.to_be();
const QINQ_OLD: u16 = ETHER_QINQ_OLD.to_be();

#[inline(always)]
fn tell<P: Packet, H: Host>(packet: &P, host: &H) -> Option<Told> {
    let head = packet.words::<{ ETHERNET_LEN + IPV4_LEN + TCP_LEN }>()?;
    match head.half::<12>() {
        IPV4 => tell_ipv4(&head, host),
        IPV6 => tell_ipv6(&packet.words::<{ ETHERNET_LEN + IPV6_LEN + TCP_LEN }>()?, host),
        VLAN | QINQ | QINQ_OLD => None,
        _ => Some(Told::Other),
    }
}

#[inline(always)]
fn tell_ipv4<W: Words, H: Host>(head: &W, host: &H) -> Option<Told> {
    // A packet whose version or length field is nonsense is not glanced over.
    if head.octet::<14>() != 0x45 {
        return None;
    }
    if head.octet::<23>() != PROTOCOL_TCP {
        return Some(Told::Other);
    }
    // A fragment: RFC 791, see the walk.
    if head.half::<20>() & 0x3fff_u16.to_be() != 0 {
        return None;
    }
    let ports = head.word::<34>();
    if !any_watched(host, ports) {
        return Some(Told::Other);
    }
    let total = u32::from(u16::from_be(head.half::<16>()));
    if !is_plain(head.octet::<46>(), head.octet::<47>(), total, 20) {
        return None;
    }
    let tag = Sums::start(host, FIRST_V4).add(head.word::<26>()).add(head.word::<30>()).add(ports).tag();
    if host.is_muted(tag) { Some(Told::Muted) } else { None }
}

#[inline(always)]
fn tell_ipv6<W: Words, H: Host>(head: &W, host: &H) -> Option<Told> {
    if head.octet::<14>() >> 4 != 6 {
        return None;
    }
    let next = head.octet::<20>();
    if next != PROTOCOL_TCP {
        return if is_extension(next) { None } else { Some(Told::Other) };
    }
    let ports = head.word::<54>();
    if !any_watched(host, ports) {
        return Some(Told::Other);
    }
    let payload = u32::from(u16::from_be(head.half::<18>()));
    if !is_plain(head.octet::<66>(), head.octet::<67>(), payload, 0) {
        return None;
    }
    let sums = Sums::start(host, FIRST_V6);
    let sums = sums.add(head.word::<22>()).add(head.word::<26>()).add(head.word::<30>()).add(head.word::<34>());
    let sums = sums.add(head.word::<38>()).add(head.word::<42>()).add(head.word::<46>()).add(head.word::<50>());
    let tag = sums.add(ports).tag();
    if host.is_muted(tag) { Some(Told::Muted) } else { None }
}

/// Whether either of two ports, as they stand at the start of a TCP header, is watched.
#[inline(always)]
fn any_watched<H: Host>(host: &H, ports: u32) -> bool {
    let one = (ports & 0xffff) as u16;
    let other = (ports >> 16) as u16;
    let bits = host.ports(ports::word_of(one)) >> ports::bit_of(one)
        | host.ports(ports::word_of(other)) >> ports::bit_of(other);
    bits & 1 != 0
}

/// Whether this is a segment that says nothing of a connection's begin or end, with headers that are as long as they say.
#[inline(always)]
const fn is_plain(data_offset: u8, flags: u8, total: u32, before: u32) -> bool {
    let header = (data_offset >> 4) as u32 * 4;
    flags & CONTROL == 0 && header >= 20 && total >= before + header
}

#[cfg(test)]
pub(crate) mod tests;
