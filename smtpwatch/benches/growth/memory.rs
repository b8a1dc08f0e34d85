//! The system's allocator with a byte counter per owner.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicU8, AtomicUsize, Ordering::Relaxed},
};

/// The owner of an allocation. Each owner frees only what it allocated: nothing is passed between them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Owner {
    /// The benchmark.
    Other,
    /// The gate: the state of each flow, as the kernel's map stores it.
    Gate,
    /// The engine.
    Engine,
}

static OWNER: AtomicU8 = AtomicU8::new(Owner::Other as u8);
static HELD: [AtomicUsize; 3] = [const { AtomicUsize::new(0) }; 3];

/// Attributes the following allocations and frees to `owner`; returns the previous owner.
pub fn serve(owner: Owner) -> Owner {
    match OWNER.swap(owner as u8, Relaxed) {
        1 => Owner::Gate,
        2 => Owner::Engine,
        _ => Owner::Other,
    }
}

/// Bytes that `owner` has allocated and not freed.
pub fn held(owner: Owner) -> usize {
    HELD[owner as usize].load(Relaxed)
}

/// The sum over all owners. Sums and differences wrap: an owner may free what another one has allocated.
pub fn total() -> usize {
    HELD.iter().fold(0, |sum, held| sum.wrapping_add(held.load(Relaxed)))
}

/// The global allocator of the benchmark; see the module.
pub struct Counting;

fn count(bytes: usize) {
    HELD[usize::from(OWNER.load(Relaxed))].fetch_add(bytes, Relaxed);
}

// SAFETY: every call is passed to the system allocator with the same arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(layout.size().wrapping_neg());
        // SAFETY: the caller keeps the contract of `GlobalAlloc::dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size.wrapping_sub(layout.size()));
        // SAFETY: the caller keeps the contract of `GlobalAlloc::realloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}
