//! The system's allocator, which counts for whom it works.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicU8, AtomicUsize, Ordering::Relaxed},
};

/// For whom memory is allocated. What one of them allocates it frees itself: nothing is handed over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Owner {
    /// The benchmark.
    Other,
    /// The gate: the state of each flow, as the kernel's map holds it.
    Gate,
    /// The engine.
    Engine,
}

static OWNER: AtomicU8 = AtomicU8::new(Owner::Other as u8);
static HELD: [AtomicUsize; 3] = [const { AtomicUsize::new(0) }; 3];

/// What follows is allocated and freed for `owner`; returns for whom it was before.
pub fn serve(owner: Owner) -> Owner {
    match OWNER.swap(owner as u8, Relaxed) {
        1 => Owner::Gate,
        2 => Owner::Engine,
        _ => Owner::Other,
    }
}

/// Bytes asked for and not given back.
pub fn held(owner: Owner) -> usize {
    HELD[owner as usize].load(Relaxed)
}

/// The same of all of them. Sums and differences wrap: an owner may free what another one has allocated.
pub fn total() -> usize {
    HELD.iter().fold(0, |sum, held| sum.wrapping_add(held.load(Relaxed)))
}

/// See the module.
pub struct Counting;

fn count(octets: usize) {
    HELD[usize::from(OWNER.load(Relaxed))].fetch_add(octets, Relaxed);
}

// SAFETY: every call is the system allocator's, with the same arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(layout.size().wrapping_neg());
        // SAFETY: as the caller's.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size.wrapping_sub(layout.size()));
        // SAFETY: as the caller's.
        unsafe { System.realloc(pointer, layout, size) }
    }
}
