//! `cargo xtask bench`: measures the cost of smtpwatch, part by part, compared with alternative programs in one run.
//!
//! Each part prints a section of `docs/performance.md` as Markdown. A part that needs the lab or the library is a
//! program of its own (a benchmark of its crate); its standard output is the section and its standard error reports
//! progress.

mod captures;
pub mod check;
mod kernel;
pub mod object;
mod page;
mod parts;
mod peers;
mod replay;
mod usage;

use std::process::Stdio;

use anyhow::{Result, ensure};
use clap::ValueEnum as _;

/// What to measure.
#[derive(clap::Args)]
pub struct Arguments {
    /// The parts to measure, one after the other; without one, all of them
    parts: Vec<Part>,
    /// Install the programs to compare with, from Debian
    #[arg(long)]
    install_peers: bool,
    /// Count instructions instead, and fail if a count is more than 5 % above the committed figure
    #[arg(long, conflicts_with_all = ["parts", "install_peers", "print"])]
    check: bool,
    /// With --check: write the new counts as the committed figures
    #[arg(long, requires = "check")]
    accept: bool,
    /// Print the tables without changing docs/performance.md
    #[arg(long)]
    print: bool,
}

/// One part, and one section of the page.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// The kernel programs, packet by packet, compared with an empty program
    Kernel,
    /// Instructions and stack, the same on every machine of this architecture
    Counts,
    /// The parts of the daemon, one by one
    Parts,
    /// Capture files, compared with other programs that read them
    Replay,
    /// Growth with flows and peers
    Growth,
    /// The daemon on a mail host under load, in network namespaces
    Live,
}

impl Part {
    /// Name of the part on the command line and in the marks of the page.
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    fn measure(self) -> Result<String> {
        match self {
            Self::Kernel => kernel::section(),
            Self::Counts => check::section(),
            Self::Parts => parts::section(),
            Self::Replay => replay::section(),
            Self::Growth => program(&["bench", "--quiet", "--package", "smtpwatch", "--bench", "growth"]),
            Self::Live => program(&["run", "--quiet", "--package", "smtpwatch-tests", "--bin", "bench-live"]),
        }
    }
}

/// Measures the selected parts; prints each table and writes it into the page.
pub fn run(arguments: &Arguments) -> Result<()> {
    if arguments.check {
        return if arguments.accept { check::accept() } else { check::run() };
    }
    if arguments.install_peers {
        peers::install()?;
    }
    let parts = if arguments.parts.is_empty() { Part::value_variants() } else { &arguments.parts };
    for part in parts {
        eprintln!("bench: {}", part.name());
        let section = page::dated(&part.measure()?, *part);
        println!("{section}");
        if !arguments.print {
            page::put(&part.name(), &section)?;
        }
    }
    Ok(())
}

/// Runs a program of the workspace and returns its standard output.
fn program(arguments: &[&str]) -> Result<String> {
    let out = crate::host::cargo(arguments).stderr(Stdio::inherit()).output()?;
    ensure!(out.status.success(), "cargo {} ended with {}", arguments.join(" "), out.status);
    Ok(String::from_utf8(out.stdout)?)
}
