//! Every map and global. The loader may change the sizes of `FLOWS`, `ORDERS` and `RING`, and sets the globals.

use core::cell::UnsafeCell;

use aya_ebpf::{
    Global,
    macros::map,
    maps::{HashMap, LruHashMap, PerCpuArray, RingBuf},
};
use smtpwatch_common::{Counter, FlowKey, FlowState, Order, PortSet, Scratch, fast_path, ports};

/// State of open flows: 80 bytes and a key of 36, so about 36 MiB when full. The least recently used flows make room.
#[map]
pub static FLOWS: LruHashMap<FlowKey, FlowState> = LruHashMap::with_max_entries(262_144, 0);

/// State of flows that are being opened: from the SYN or SYN-ACK that left to the next packet that leaves. A flood of SYNs pushes out
/// others of these, and no open flow (EV-24).
#[map]
pub static OPENING: LruHashMap<FlowKey, FlowState> = LruHashMap::with_max_entries(32_768, 0);

/// The Ethernet address of each watched interface, by interface index, and two bytes of padding. Written by the daemon.
#[map]
pub static LINK_ADDRESSES: HashMap<u32, [u8; 8]> = HashMap::with_max_entries(4_096, 0);

/// The encapsulations ([`Encapsulation::bit`](smtpwatch_common::Encapsulation::bit)) in which mail passed an interface and was not
/// followed, by interface index. The daemon removes what it has read.
#[map]
pub static ENCAPSULATED: HashMap<u32, u32> = HashMap::with_max_entries(1_024, 0);

/// Orders of the daemon for flows that need not be forwarded in full.
#[map]
pub static ORDERS: LruHashMap<FlowKey, Order> = LruHashMap::with_max_entries(65_536, 0);

/// Records on their way to the daemon: about 3,600 full ones, some 50,000 headers.
#[map]
pub static RING: RingBuf = RingBuf::with_byte_size(8 * 1024 * 1024, 0);

/// One slot per [`Counter`].
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Counter::COUNT, 0);

/// Where a record is built: it is larger than a kernel program's stack. Several for each CPU, because on PREEMPT_RT one
/// program can be preempted by another one (Linux 6.18: commit 3253cb49cbad, "softirq: Allow to drop the softirq-BKL lock").
#[map]
pub static SCRATCH: PerCpuArray<ScratchSlot> = PerCpuArray::with_max_entries(SCRATCHES, 0);

/// Programs of one CPU that can have a scratch at the same time.
pub const SCRATCHES: u32 = 8;

/// A scratch, and how many programs have it or try to have it.
#[repr(C)]
pub struct ScratchSlot {
    users: u64,
    scratch: Scratch,
}

impl ScratchSlot {
    /// Takes the slot for the calling program, if no other one has it. The caller releases it before its end.
    ///
    /// The count goes up before it is looked at: as long as a program has the slot, all others count 2 at least. Two that come
    /// at the same time may both refuse it; both can never get it.
    #[inline(always)]
    pub fn claim<'a>(slot: *mut Self) -> Option<&'a mut Scratch> {
        // SAFETY: a map value, aligned, that lives as long as the program.
        let users = unsafe { &raw mut (*slot).users };
        add(users, 1);
        // SAFETY: as above. Volatile: other programs write the word.
        if unsafe { users.read_volatile() } == 1 {
            // SAFETY: as above, and no other program has it until it is released.
            return Some(unsafe { &mut (*slot).scratch });
        }
        add(users, u64::MAX);
        None
    }

    /// Releases the slot that contains `scratch`.
    #[inline(always)]
    pub fn release(scratch: *mut Scratch) {
        add(scratch.cast::<u8>().wrapping_sub(core::mem::offset_of!(Self, scratch)).cast(), u64::MAX);
    }
}

/// Adds to a word of a map in one instruction, so that no other program of this CPU runs between its load and its store.
#[inline(always)]
fn add(word: *mut u64, amount: u64) {
    // SAFETY: the callers give words of map values, which live as long as the program. An instruction of every version of BPF
    // (`BPF_ATOMIC | BPF_ADD`); the target has no atomic types, because it lacks compare-and-swap before version 3.
    unsafe {
        core::arch::asm!(
            "lock *(u64 *)({word} + 0) += {amount}",
            word = in(reg) word,
            amount = in(reg) amount,
            options(nostack),
        );
    }
}

/// The watched ports, as [`PortSet::as_words`].
#[unsafe(no_mangle)]
pub static PORTS: [Global<u64>; ports::WORDS] = {
    let words = *PortSet::new(&ports::DEFAULT_PORTS).as_words();
    let mut globals = [const { Global::new(0) }; ports::WORDS];
    let mut i = 0;
    while i < ports::WORDS {
        globals[i] = Global::new(words[i]);
        i += 1;
    }
    globals
};

/// What the tags of muted flows are made with. The loader puts secret random numbers here; multiples of
/// the golden ratio will do for tests.
#[unsafe(no_mangle)]
pub static SEEDS: [Global<u64>; fast_path::SEEDS] = {
    let mut globals = [const { Global::new(0) }; fast_path::SEEDS];
    let mut seed = 0_u64;
    let mut i = 0;
    while i < fast_path::SEEDS {
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        globals[i] = Global::new(seed);
        i += 1;
    }
    globals
};

/// The tags of muted flows, 512 KiB for all CPUs: see [`fast_path`](mod@fast_path). Global data, because it is read without a helper.
#[unsafe(no_mangle)]
pub static MUTED: [Slot; fast_path::SLOTS] = [const { Slot(UnsafeCell::new(0)) }; fast_path::SLOTS];

/// A word that every CPU reads and writes as a whole.
#[repr(transparent)]
pub struct Slot(UnsafeCell<u64>);

// SAFETY: an aligned word is loaded and stored by one instruction, so no CPU sees half of it. The compiler for this target
// knows no atomic load (of any ordering); volatile access is the same instruction.
unsafe impl Sync for Slot {}

impl Slot {
    /// The word.
    #[inline(always)]
    pub fn load(&self) -> u64 {
        // SAFETY: aligned, initialised, and lives as long as the program.
        unsafe { self.0.get().read_volatile() }
    }

    /// Replaces the word.
    #[inline(always)]
    pub fn store(&self, word: u64) {
        // SAFETY: as above.
        unsafe { self.0.get().write_volatile(word) }
    }
}

/// Whether the sending socket's user and cgroup are looked up at egress: 0 where the kernel lacks the helper.
#[unsafe(no_mangle)]
pub static ATTRIBUTION: Global<u8> = Global::new(1);
