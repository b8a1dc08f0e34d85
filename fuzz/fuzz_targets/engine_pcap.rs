//! A capture file of arbitrary bytes through reader, gate and engine, as in `smtpwatch replay`.
//!
//! Asserted: an error, a report of damage, or findings that can be written; memory is bounded by the size of the file.
#![no_main]

use std::{path::PathBuf, sync::LazyLock};

use libfuzzer_sys::fuzz_target;
use smtpwatch_config::Config;
use smtpwatch_core::{engine::SessionResult, policy::history::History};
use smtpwatch_fuzz::allocation::{Counting, Watch};
use smtpwatch_pipeline::replay::{Event, Replay};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that a small file may allocate: the reader's buffer, which doubles up to 16 MiB for a block that declares such
/// a length, and the engine's state for the flows of a small file.
const ALLOCATED: usize = 64 * 1024 * 1024;

/// The reader takes a path: use a file in memory, one per process.
static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = PathBuf::from("/dev/shm");
    let directory = if memory.is_dir() { memory } else { std::env::temp_dir() };
    directory.join(format!("smtpwatch-fuzz-{}.pcap", std::process::id()))
});

fuzz_target!(|bytes: &[u8]| {
    std::fs::write(&*FILE, bytes).expect("room for a small file");
    let config = Config::default();
    let watch = Watch::start();
    let mut replay = Replay::new(&config, History::new(64));
    let (mut findings, mut sessions) = (0, 0);
    let mut take = |event| match event {
        Event::Finding(finding) => {
            findings += 1;
            let line = serde_json::to_string(&finding).expect("a finding is a JSON line");
            assert!(!line.contains('\n'));
        }
        Event::Session(..) => sessions += 1,
        Event::History(..) | Event::HistoryForgotten(_) => {}
    };
    let report = replay.file(&FILE, &mut take);
    if let Ok(report) = &report {
        // Each packet has at least its header in the file.
        assert!(report.packets <= bytes.len() as u64 / 8);
        assert!(report.skipped <= report.packets);
    }
    let summary = replay.finish(&mut take);
    std::fs::remove_file(&*FILE).expect("the file is ours");
    assert_eq!(summary.findings, findings);
    assert_eq!(summary.sessions.iter().sum::<u64>(), sessions);
    assert_eq!(summary.sessions.len(), SessionResult::ALL.len());
    assert!(watch.peak() <= ALLOCATED, "{} octets allocated", watch.peak());
});
