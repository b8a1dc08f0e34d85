//! The gate's environment in the kernel.

use core::{hint::black_box, ptr, slice};

use aya_ebpf::{
    bindings::{__sk_buff, xdp_md},
    helpers::{bpf_get_socket_uid, bpf_ktime_get_ns, bpf_skb_cgroup_id},
    programs::{TcContext, XdpContext},
};
use aya_log_ebpf::debug;
use smtpwatch_common::{
    CHUNK, Counter, Direction, Encapsulation, Env, FlowKey, FlowState, Flows, Header, Link, Order, Outcome,
    RecordBuffer, Scratch, Tag, fast_path,
    process::{count_encapsulated, process_slow_path, scan_body_end},
    record::UID_UNKNOWN,
};

use crate::{
    maps::{
        ATTRIBUTION, COUNTERS, ENCAPSULATED, FLOWS, LINK_ADDRESSES, MUTED, OPENING, ORDERS, PORTS, RING, SCRATCH,
        SCRATCHES, SEEDS, ScratchSlot, Slot,
    },
    packet::{SkbPacket, XdpPacket},
};

/// Takes a packet at XDP through the gate.
#[inline(always)]
pub fn xdp(context: &XdpContext) {
    let mut env = fast_path_env(Direction::Ingress);
    if fast_path(&XdpPacket(context), Link::Ethernet, &mut env).is_some() {
        return;
    }
    let Some(scratch) = black_box(claim_scratch()) else { return };
    let follows = black_box(xdp_closely(context.ctx, scratch));
    if follows == SEARCH {
        black_box(xdp_search(context.ctx, scratch));
    } else if follows == NOT_TCP {
        black_box(xdp_encapsulated(context.ctx, scratch));
    }
    ScratchSlot::release(scratch);
}

/// What the functions below return where [`Outcome::Search`] is the outcome.
const SEARCH: u32 = 1;
/// The same for [`Outcome::NotTcp`].
const NOT_TCP: u32 = 2;

/// The step that has to follow an outcome; zero: none.
#[inline(always)]
fn follows(outcome: Outcome) -> u32 {
    match outcome {
        Outcome::Search => SEARCH,
        Outcome::NotTcp => NOT_TCP,
        Outcome::Other
        | Outcome::Muted
        | Outcome::Forwarded
        | Outcome::Fragment
        | Outcome::Unparsed
        | Outcome::Truncated
        | Outcome::FlowTableFull
        | Outcome::Forged => 0,
    }
}

// A function of its own: the fast path must not pay for its registers and stack. It returns a value, and the caller
// takes it, because the verifier looks at the return register also where nothing is returned.
#[inline(never)]
fn xdp_closely(context: *mut xdp_md, scratch: &mut Scratch) -> u32 {
    let context = &XdpContext::new(context);
    let interface = || context.ingress_ifindex() as u32;
    let mut env = KernelEnv { direction: Direction::Ingress, interface, owner: || (0, UID_UNKNOWN) };
    let outcome = process_slow_path(&XdpPacket(context), Link::Ethernet, &mut FlowTable, &mut env, || Some(scratch));
    if let Some(what) = noteworthy(outcome) {
        debug!(context, "{} at XDP on interface {}", what, interface());
    }
    follows(outcome)
}

#[inline(never)]
fn xdp_search(context: *mut xdp_md, scratch: &mut Scratch) -> u32 {
    let context = &XdpContext::new(context);
    let interface = || context.ingress_ifindex() as u32;
    let mut env = KernelEnv { direction: Direction::Ingress, interface, owner: || (0, UID_UNKNOWN) };
    scan_body_end(&XdpPacket(context), &mut FlowTable, &mut env, scratch);
    0
}

#[inline(never)]
fn xdp_encapsulated(context: *mut xdp_md, scratch: &mut Scratch) -> u32 {
    let context = &XdpContext::new(context);
    let interface = || context.ingress_ifindex() as u32;
    let mut env = KernelEnv { direction: Direction::Ingress, interface, owner: || (0, UID_UNKNOWN) };
    count_encapsulated(&XdpPacket(context), Link::Ethernet, &mut FlowTable, &mut env, scratch);
    0
}

/// Takes a packet at TC through the gate.
#[inline(always)]
pub fn skb(context: &TcContext, link: Link, direction: Direction) {
    let mut env = fast_path_env(direction);
    if fast_path(&SkbPacket(context), link, &mut env).is_some() {
        return;
    }
    let Some(scratch) = black_box(claim_scratch()) else { return };
    let follows = black_box(skb_closely(context.skb.skb, link, direction, scratch));
    if follows == SEARCH {
        black_box(skb_search(context.skb.skb, direction, scratch));
    } else if follows == NOT_TCP {
        black_box(skb_encapsulated(context.skb.skb, link, direction, scratch));
    }
    ScratchSlot::release(scratch);
}

#[inline(never)]
fn skb_closely(skb: *mut __sk_buff, link: Link, direction: Direction, scratch: &mut Scratch) -> u32 {
    let context = &TcContext::new(skb);
    let mut env = skb_env(skb, direction);
    let outcome = process_slow_path(&SkbPacket(context), link, &mut FlowTable, &mut env, || Some(scratch));
    if let Some(what) = noteworthy(outcome) {
        debug!(context, "{} at TC {} on interface {}", what, direction.as_str(), env.interface());
    }
    follows(outcome)
}

#[inline(never)]
fn skb_search(skb: *mut __sk_buff, direction: Direction, scratch: &mut Scratch) -> u32 {
    let context = &TcContext::new(skb);
    scan_body_end(&SkbPacket(context), &mut FlowTable, &mut skb_env(skb, direction), scratch);
    0
}

#[inline(never)]
fn skb_encapsulated(skb: *mut __sk_buff, link: Link, direction: Direction, scratch: &mut Scratch) -> u32 {
    let context = &TcContext::new(skb);
    count_encapsulated(&SkbPacket(context), link, &mut FlowTable, &mut skb_env(skb, direction), scratch);
    0
}

/// A scratch of this CPU that no other program has. Programs preempt each other on PREEMPT_RT; elsewhere it is the first one.
#[inline(never)]
fn claim_scratch<'a>() -> Option<&'a mut Scratch> {
    for index in 0..SCRATCHES {
        if let Some(scratch) = SCRATCH.get_ptr_mut(index).and_then(ScratchSlot::claim) {
            return Some(scratch);
        }
    }
    count(Counter::NoScratch);
    None
}

/// Environment of a packet at TC.
#[inline(always)]
fn skb_env(skb: *mut __sk_buff, direction: Direction) -> impl Env {
    // SAFETY: the context is the one that the program was called with.
    let interface = move || unsafe { (*skb).ifindex };
    let owner = move || match direction {
        // SAFETY: as above; both helpers take any skb, and also one without a socket.
        Direction::Egress if ATTRIBUTION.load() != 0 => unsafe { (bpf_skb_cgroup_id(skb), bpf_get_socket_uid(skb)) },
        Direction::Ingress | Direction::Egress => (0, UID_UNKNOWN),
    };
    KernelEnv { direction, interface, owner }
}

/// Outcomes that are logged at level debug: packets that cannot be processed.
#[inline(always)]
fn noteworthy(outcome: Outcome) -> Option<&'static str> {
    match outcome {
        Outcome::Other | Outcome::Muted | Outcome::Forwarded | Outcome::Search | Outcome::NotTcp => None,
        Outcome::Fragment => Some("TCP in a fragment"),
        Outcome::Unparsed => Some("unparsed packet"),
        Outcome::Truncated => Some("truncated packet"),
        Outcome::FlowTableFull => Some("no room for a flow"),
        Outcome::Forged => Some("forged frame"),
    }
}

/// The flow table of the kernel.
struct FlowTable;

impl Flows for FlowTable {
    #[inline(always)]
    fn find(&mut self, key: &FlowKey, opened: bool) -> Option<&mut FlowState> {
        let mut found = FLOWS.get_ptr_mut(key);
        if found.is_none() {
            found = OPENING.get_ptr_mut(key);
            if let (Some(state), true) = (found, opened) {
                // SAFETY: as below.
                FLOWS.insert(key, unsafe { &*state }, 0).ok()?;
                let _ = OPENING.remove(key);
                found = FLOWS.get_ptr_mut(key);
            }
        }
        // SAFETY: a map value lives until the program ends, also when it leaves the map meanwhile. Another CPU may write
        // it at the same time; `FlowState` says why that does no harm.
        found.map(|state| unsafe { &mut *state })
    }

    #[inline(always)]
    fn insert(&mut self, key: &FlowKey, state: &FlowState, opened: bool) -> Option<&mut FlowState> {
        let map = if opened { &FLOWS } else { &OPENING };
        map.insert(key, state, 0).ok()?;
        // SAFETY: as above.
        map.get_ptr_mut(key).map(|state| unsafe { &mut *state })
    }
}

/// Environment of the fast path, which sends nothing and needs neither the interface nor the owner.
#[inline(always)]
fn fast_path_env(direction: Direction) -> impl Env {
    KernelEnv { direction, interface: || 0, owner: || (0, UID_UNKNOWN) }
}

/// The place of a tag in the table of muted flows.
#[inline(always)]
fn slot(tag: Tag) -> &'static Slot {
    &MUTED[tag.slot()]
}

struct KernelEnv<I, O> {
    direction: Direction,
    interface: I,
    owner: O,
}

impl<I: Fn() -> u32, O: Fn() -> (u64, u32)> Env for KernelEnv<I, O> {
    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: takes nothing, returns a number.
        unsafe { bpf_ktime_get_ns() }
    }

    #[inline(always)]
    fn direction(&self) -> Direction {
        self.direction
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        (self.interface)()
    }

    #[inline(always)]
    fn link_address(&self) -> Option<[u8; 6]> {
        // SAFETY: the value is copied at once; the daemon replaces whole values.
        let address = unsafe { *LINK_ADDRESSES.get_ptr(&self.interface())? };
        let [a, b, c, d, e, f, _, _] = address;
        Some([a, b, c, d, e, f])
    }

    #[inline(always)]
    fn owner(&self) -> (u64, u32) {
        (self.owner)()
    }

    #[inline(always)]
    fn ports(&self, word: usize) -> u64 {
        PORTS[word].load()
    }

    #[inline(always)]
    fn seed(&self, index: usize) -> u64 {
        SEEDS[index].load()
    }

    #[inline(always)]
    fn is_muted(&self, tag: Tag) -> bool {
        slot(tag).load() == tag.value()
    }

    #[inline(always)]
    fn mute(&mut self, tag: Tag) {
        slot(tag).store(tag.value());
    }

    #[inline(always)]
    fn unmute(&mut self, tag: Tag) {
        if slot(tag).load() == tag.value() {
            slot(tag).store(0);
        }
    }

    #[inline(always)]
    fn order(&self, key: &FlowKey) -> Option<Order> {
        // SAFETY: the value is copied at once; the daemon replaces whole values.
        ORDERS.get_ptr(key).map(|order| unsafe { *order })
    }

    #[inline(always)]
    fn submit(&mut self, record: &RecordBuffer) -> bool {
        let captured = black_box(u64::from(record.header.captured)) as usize;
        if captured > CHUNK {
            return false;
        }
        // SAFETY: header and payload are adjacent, and `captured` bytes of the payload lie within the record.
        let octets = unsafe { slice::from_raw_parts(ptr::from_ref(record).cast::<u8>(), Header::SIZE + captured) };
        RING.output::<[u8]>(octets, 0).is_ok()
    }

    #[inline(always)]
    fn count(&mut self, counter: Counter) {
        count(counter);
    }

    #[inline(always)]
    fn note_encapsulated(&mut self, encapsulation: Encapsulation) {
        let interface = self.interface();
        match ENCAPSULATED.get_ptr_mut(&interface) {
            // SAFETY: an aligned word in a map value, which lives until the program ends. A bit that another CPU overwrites comes back
            // with its next packet.
            Some(seen) => unsafe { *seen |= encapsulation.bit() },
            // Where the map is full, the counter alone shows the packet.
            None => _ = ENCAPSULATED.insert(&interface, &encapsulation.bit(), 0),
        }
    }
}

/// Adds one to a counter.
#[inline(always)]
fn count(counter: Counter) {
    if let Some(slot) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: a slot of this CPU, in a map value that lives as long as the map. Where programs preempt each other, a
        // packet may be left out of the count.
        unsafe { *slot += 1 };
    }
}
