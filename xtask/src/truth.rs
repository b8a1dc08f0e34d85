//! `cargo xtask truth`: plays worlds of SMTP sessions to the engine, and writes `docs/truth.md`.
//!
//! The worlds are a program of `smtpwatch-testkit`, which links the engine; its standard output is the page.

use std::{
    fs,
    process::{ExitStatus, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::host;

/// Page that is written.
const PAGE: &str = "docs/truth.md";

/// `cargo xtask truth`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Sessions of the honest and of the noisy world
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    sessions: u64,
    /// Number from which the worlds are made
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// Fail if a goal is missed, and leave the page as it is
    #[arg(long)]
    check: bool,
    /// Print the page without changing docs/truth.md
    #[arg(long)]
    print: bool,
}

/// Plays the worlds; the goals that are missed are printed, and with `--check` they are an error.
pub fn run(arguments: &Arguments) -> Result<()> {
    let program = ["run", "--quiet", "--release", "--package", "smtpwatch-testkit", "--features", "engine"];
    let mut command = host::cargo(&program);
    command.args(["--bin", "truth", "--", &arguments.sessions.to_string(), &arguments.seed.to_string()]);
    let out = command.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    ensure!(is_complete(out.status), "the worlds were not played: {}", out.status);
    let page = String::from_utf8(out.stdout)?;
    if arguments.print {
        print!("{page}");
    } else if !arguments.check {
        fs::write(host::workspace().join(PAGE), page).with_context(|| format!("cannot write {PAGE}"))?;
    }
    ensure!(!arguments.check || out.status.success(), "a goal is missed");
    Ok(())
}

/// The program played everything, whether or not the goals are met.
fn is_complete(status: ExitStatus) -> bool {
    matches!(status.code(), Some(0 | MISSED))
}

/// The program's exit code if a goal is missed. Cargo's own is 101, a panic's too.
const MISSED: i32 = 1;
