//! A muted packet costs no memory: no allocation, and no copy of its bytes.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicU64, Ordering},
};

use smtpwatch_config::Config;
use smtpwatch_core::policy::history::History;
use smtpwatch_pipeline::replay::Replay;
use smtpwatch_testkit::traffic::{self, CLIENT, SERVER, START_NS, Turn};

/// The system's allocator with counters. The file has a single test, so that no other one is counted.
struct Counted;

static CALLS: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is passed on with its arguments.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(1, Ordering::Relaxed);
        BYTES.fetch_add(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        CALLS.fetch_add(1, Ordering::Relaxed);
        BYTES.fetch_add(size as u64, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract.
        unsafe { System.realloc(place, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counted = Counted;

/// Number of allocations, and bytes allocated, during the replay of a capture.
fn cost(turns: &[Turn<'_>]) -> (u64, u64) {
    let packets = traffic::session(CLIENT, SERVER, START_NS, turns);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("capture");
    std::fs::write(&path, traffic::pcap(&packets, 1, false, false)).unwrap();
    let mut replay = Replay::new(&Config::default(), History::new(100));
    let before = (CALLS.load(Ordering::Relaxed), BYTES.load(Ordering::Relaxed));
    let report = replay.file(&path, |_| ()).unwrap();
    let summary = replay.finish(|_| ());
    let after = (CALLS.load(Ordering::Relaxed), BYTES.load(Ordering::Relaxed));
    assert_eq!((report.packets, summary.gaps), (packets.len() as u64, 0));
    assert_eq!(summary.sessions.iter().sum::<u64>(), 1);
    (after.0 - before.0, after.1 - before.1)
}

const MAIL: [Turn<'static>; 13] = traffic::dialogue("250-mx1.example.net\r\n250-STARTTLS\r\n250 8BITMIME\r\n");
/// Number of turns before STARTTLS may be sent, and before the message.
const BEGIN: usize = 3;
const DATA: usize = 9;

/// Cost of a message in cleartext of this many segments.
fn body(segments: usize) -> (u64, u64) {
    let line = format!("{}\r\n", "x".repeat(1_400));
    let mut turns = MAIL[..DATA].to_vec();
    turns.extend(std::iter::repeat_n(Turn::Client(&line), segments));
    turns.extend([Turn::Client("\r\n.\r\n"), Turn::Server("250 2.0.0 Ok: queued\r\n")]);
    cost(&turns)
}

/// Cost of a message under TLS of this many segments.
fn tls(segments: usize) -> (u64, u64) {
    let random = "\u{7}".repeat(32);
    let client = format!("\u{16}\u{3}\u{1}\0\u{2d}\u{1}\0\0\u{29}\u{3}\u{3}{random}\0\0\u{2}\u{13}\u{1}\u{1}\0");
    let server = format!("\u{16}\u{3}\u{3}\0\u{2a}\u{2}\0\0\u{26}\u{3}\u{3}{random}\0\u{13}\u{1}\0");
    let record = format!("\u{17}\u{3}\u{3}\u{5}\u{78}{}", "z".repeat(0x578));
    let mut turns = MAIL[..BEGIN].to_vec();
    turns.extend([
        Turn::Client("STARTTLS\r\n"),
        Turn::Server("220 2.0.0 Ready to start TLS\r\n"),
        Turn::Client(&client),
        Turn::Server(&server),
    ]);
    // More than is examined of a handshake: from here on both directions are muted.
    for _ in 0..16 {
        turns.extend([Turn::Client(&record), Turn::Server(&record)]);
    }
    turns.extend(std::iter::repeat_n(Turn::Client(&record), segments));
    cost(&turns)
}

#[test]
fn muted_packets_allocate_nothing() {
    // Make the process-wide initialisations before the measurement.
    body(1);
    for (what, flow) in [("a body", body as fn(usize) -> (u64, u64)), ("TLS", tls)] {
        let (few, many) = (flow(100), flow(5_000));
        assert_eq!(few, many, "{what}: allocations and bytes with 100 and with 5,000 muted segments");
        println!("{what}: {} allocations, {} bytes, with 100 and with 5,000 muted segments", many.0, many.1);
    }
}
