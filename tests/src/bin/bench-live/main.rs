//! The live part of `cargo xtask bench`: what the daemon costs a mail host under load, and what it misses.
//!
//! Standard output is a section of `docs/performance.md`, standard error tells of the progress. Everything happens in
//! network namespaces of its own, over veth pairs; it needs root, and the peers to compare with are used where they are
//! installed. With `SMTPWATCH_BENCH_QUICK` set it is a trial of a minute, whose figures say nothing.

mod beside;
mod bulk;
mod cpu;
mod latency;
mod pairs;
mod plan;
mod replay;
mod sessions;
mod site;
mod stream;
mod table;
mod watcher;

use anyhow::Result;
use smtpwatch_tests::daemon::Profile;

use plan::Plan;
use site::Site;

fn main() -> Result<()> {
    let plan = Plan::asked();
    eprintln!("bench-live: building the daemon (cargo build --release -p smtpwatch)");
    Profile::Release.binary()?;
    let site = Site::create()?;
    let sections = [
        plan.note().to_owned(),
        bulk::section(&site, &plan)?,
        sessions::section(&site, &plan)?,
        latency::section(&site, &plan)?,
        beside::section(&site, &plan)?,
    ];
    let sections: Vec<_> =
        sections.iter().map(|section| section.trim()).filter(|section| !section.is_empty()).collect();
    println!("{}", sections.join("\n\n"));
    Ok(())
}
