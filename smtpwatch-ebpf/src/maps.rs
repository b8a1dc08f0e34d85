//! Every map and global. The loader may change the sizes of `FLOWS`, `ORDERS` and `RING`, and sets the globals.

use aya_ebpf::{
    Global,
    macros::map,
    maps::{LruHashMap, PerCpuArray, RingBuf},
};
use smtpwatch_common::{
    Counter, FlowKey, FlowState, Order, PortSet, Scratch,
    ports::{self, BITMAP_LEN},
};

/// Flow state: 64 octets and a key of 36, so about 32 MiB when full. The least recently used flows make room.
#[map]
pub static FLOWS: LruHashMap<FlowKey, FlowState> = LruHashMap::with_max_entries(262_144, 0);

/// Orders of the daemon, for flows of which more is seen than is needed.
#[map]
pub static ORDERS: LruHashMap<FlowKey, Order> = LruHashMap::with_max_entries(65_536, 0);

/// Records on their way to the daemon: about 3,600 full ones, some 50,000 headers.
#[map]
pub static RING: RingBuf = RingBuf::with_byte_size(8 * 1024 * 1024, 0);

/// One slot per [`Counter`].
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Counter::COUNT, 0);

/// Where a record is built: it is larger than a kernel program's stack.
#[map]
pub static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// The watched ports, as [`PortSet::as_bytes`].
#[unsafe(no_mangle)]
pub static PORTS: [Global<u8>; BITMAP_LEN] = {
    let bits = *PortSet::new(&ports::DEFAULT_PORTS).as_bytes();
    let mut globals = [const { Global::new(0) }; BITMAP_LEN];
    let mut i = 0;
    while i < BITMAP_LEN {
        globals[i] = Global::new(bits[i]);
        i += 1;
    }
    globals
};

/// Whether the sending socket's user and cgroup are looked up at egress: 0 where the kernel lacks the helper.
#[unsafe(no_mangle)]
pub static ATTRIBUTION: Global<u8> = Global::new(1);
