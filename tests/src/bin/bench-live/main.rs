//! The live part of `cargo xtask bench`: measures what the daemon costs a mail host under load, and which sessions it
//! misses.
//!
//! Standard output is a section of `docs/performance.md`; standard error reports progress. The measurement runs in its
//! own network namespaces over veth pairs and needs root. Monitors to compare with are used if they are installed. With
//! `SMTPWATCH_BENCH_QUICK` set it is a trial run of a minute whose figures are not valid.

mod beside;
mod bulk;
mod cpu;
mod empty_xdp;
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

/// A measurement; names on the command line select which ones run.
type Section = fn(&Site, &Plan) -> Result<String>;
const SECTIONS: [(&str, Section); 4] = [
    ("bulk", bulk::section),
    ("sessions", sessions::section),
    ("latency", latency::section),
    ("beside", beside::section),
];

fn main() -> Result<()> {
    let plan = Plan::asked();
    eprintln!("bench-live: building the daemon (cargo build --profile dist -p smtpwatch)");
    Profile::Dist.binary()?;
    let site = Site::create()?;
    let asked: Vec<String> = std::env::args().skip(1).collect();
    let mut sections = vec![plan.note().to_owned()];
    for (name, section) in SECTIONS {
        if asked.is_empty() || asked.iter().any(|asked| asked == name) {
            sections.push(section(&site, &plan)?);
        }
    }
    let sections: Vec<_> =
        sections.iter().map(|section| section.trim()).filter(|section| !section.is_empty()).collect();
    println!("{}", sections.join("\n\n"));
    Ok(())
}
