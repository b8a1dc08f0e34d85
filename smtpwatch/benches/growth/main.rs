//! Measures growth: session cost as more flows are open at once, memory per flow, history as more peers are known, and
//! the store that persists it.
//!
//! Standard output is a section of `docs/performance.md`, standard error reports progress, and the figure is written to
//! `docs/growth.svg`. `cargo bench --package smtpwatch --bench growth -- quick` goes up to 10,000 and leaves the figure
//! in the target directory; `-- flows`, `-- history` and `-- store` measure only that and print no section. `cargo test
//! --all-targets` checks with 1,000 that it runs.

mod flows;
mod history;
mod memory;
mod picture;
mod report;
mod store;
mod traffic;

use std::{path::Path, time::Duration};

use nix::time::{ClockId, clock_gettime};

/// Numbers of flows open at once, and of peers known.
const SIZES: [usize; 4] = [1_000, 10_000, 100_000, 1_000_000];

/// Counts allocations.
#[global_allocator]
static ALLOCATOR: memory::Counting = memory::Counting;

fn main() -> anyhow::Result<()> {
    let requested = |word: &str| std::env::args().any(|argument| argument == word);
    // Cargo passes it to benchmarks, and not to tests.
    let sizes = match (requested("--bench"), requested("quick")) {
        (true, false) => &SIZES[..],
        (_, true) => &SIZES[..2],
        (false, false) => &SIZES[..1],
    };
    if requested("flows") || requested("history") || requested("store") {
        for &size in sizes {
            // These measurements print their results on standard error.
            if requested("flows") {
                let _ = flows::measure(size)?;
            } else if requested("history") {
                let _ = history::measure(size);
            } else {
                let _ = store::measure(size)?;
            }
        }
        return Ok(());
    }
    let flows = sizes.iter().map(|&size| flows::measure(size)).collect::<anyhow::Result<Vec<_>>>()?;
    let bounded = flows::bounded(sizes.last().copied().unwrap_or_default())?;
    let history: Vec<_> = sizes.iter().map(|&size| history::measure(size)).collect();
    let store = sizes.iter().map(|&size| store::measure(size)).collect::<anyhow::Result<Vec<_>>>()?;

    let picture = if sizes.len() == SIZES.len() {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/growth.svg")
    } else {
        Path::new(env!("CARGO_TARGET_TMPDIR")).join("growth.svg")
    };
    std::fs::write(&picture, picture::draw(&flows, &history))?;
    eprintln!("growth: the picture is {}", picture.display());
    print!("{}", report::section(&flows, &bounded, &history, &store));
    Ok(())
}

/// Processor time of this process so far, all threads.
fn cpu() -> Duration {
    clock(ClockId::CLOCK_PROCESS_CPUTIME_ID)
}

fn clock(id: ClockId) -> Duration {
    clock_gettime(id).map_or(Duration::ZERO, Into::into)
}

/// A ratio or a mean.
#[expect(clippy::cast_precision_loss, reason = "counts and sizes far below 2^52")]
fn per(sum: usize, count: usize) -> f64 {
    sum as f64 / count.max(1) as f64
}
