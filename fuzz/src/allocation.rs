//! Counts allocated bytes, so that a target can assert a bound in bytes.
//!
//! Each target has one thread, so the difference of two readings is due to the code between them.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

static CURRENT: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator with a counter. A target declares it with `#[global_allocator]`.
pub struct Counting;

/// Measures the peak of allocated bytes since [`Watch::start`], above the amount at that time.
pub struct Watch {
    start: usize,
}

impl Watch {
    /// Starts a measurement. An earlier [`Watch`] becomes invalid.
    #[must_use]
    pub fn start() -> Self {
        let start = CURRENT.load(Relaxed);
        PEAK.store(start, Relaxed);
        Self { start }
    }

    /// Bytes at the peak.
    #[must_use]
    pub fn peak(&self) -> usize {
        PEAK.load(Relaxed).saturating_sub(self.start)
    }
}

fn grown(octets: usize) {
    let current = CURRENT.fetch_add(octets, Relaxed).wrapping_add(octets);
    PEAK.fetch_max(current, Relaxed);
}

// SAFETY: every call is passed to the system's allocator with its arguments; the counter uses only atomics and
// allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, octets: *mut u8, layout: Layout) {
        CURRENT.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller keeps the contract of `GlobalAlloc::dealloc`.
        unsafe { System.dealloc(octets, layout) }
    }

    unsafe fn realloc(&self, octets: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // While a block grows, both blocks may exist for a moment.
        grown(size);
        CURRENT.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller keeps the contract of `GlobalAlloc::realloc`.
        unsafe { System.realloc(octets, layout, size) }
    }
}
