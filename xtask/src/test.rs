//! `cargo xtask test`: every suite, a table, and one last line that says how it stands.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::{bench::check, build_ebpf, fuzz, host};

/// `cargo xtask test`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Run these suites only
    #[arg(long, value_name = "SUITE", value_parser = SUITES.map(|suite| suite.name))]
    only: Vec<String>,
}

/// Runs the suites; an error when anything failed.
pub fn run(arguments: &Arguments) -> Result<()> {
    host::ensure_tools(&host::TESTS)?;
    // All of it before the lab, whose roots lie over this machine's own.
    for tools in [&host::ORACLE[..], &host::BROWSER, &host::CONTAINER] {
        if let Err(error) = host::ensure_tools(tools) {
            println!("{error:#}");
        }
    }
    // Fetched and unpacked while the first suites are built; without it the lab says what it skips.
    let root = (arguments.only.is_empty()).then(debian_root);
    let chosen = |suite: &&Suite| arguments.only.is_empty() || arguments.only.iter().any(|name| name == suite.name);
    let mut results = Vec::new();
    for suite in SUITES.iter().filter(chosen) {
        println!("\n== {}: {}", suite.name, suite.about);
        let start = Instant::now();
        let tally = suite.step.run().unwrap_or_else(|error| {
            println!("FAILED {}: {error:#}", suite.name);
            Tally { failed: 1, ..Tally::default() }
        });
        results.push((suite.name, tally, start.elapsed().as_secs_f64()));
    }
    if let Some(Ok(mut root)) = root {
        // The lab has waited for it.
        let _ = root.wait();
    }
    let mut total = Tally::default();
    println!("\n{:<10} {:>7} {:>7} {:>8} {:>8}", "suite", "passed", "failed", "skipped", "seconds");
    for (name, tally, seconds) in results {
        println!("{name:<10} {:>7} {:>7} {:>8} {seconds:>8.1}", tally.passed, tally.failed, tally.skipped);
        total.add(tally);
    }
    println!("{} passed, {} failed, {} skipped", total.passed, total.failed, total.skipped);
    // The exit code alone: the line above is the last one.
    std::process::exit(i32::from(total.failed > 0));
}

/// Runs the acceptance alone: from a fresh Debian to the pager, each step with its time.
pub fn acceptance() -> Result<()> {
    host::ensure_tools(&host::TESTS)?;
    cargo(&["test", "-q", "-p", "smtpwatch-tests", "--test", "lab", "acceptance::acceptance", "--", "--nocapture"])
}

/// Runs the red team's long form: the test command tries each attack once, this every combination.
pub fn adversary() -> Result<()> {
    host::ensure_tools(&host::TESTS)?;
    let arguments = ["test", "-q", "-p", "smtpwatch-tests", "--test", "lab", "adversary::", "--", "--nocapture"];
    let status = host::cargo(&arguments).env("SMTPWATCH_ADVERSARY", "all").status().context("cannot start cargo")?;
    if status.success() { Ok(()) } else { bail!("an attack of the lab's red team is not withstood") }
}

/// Makes the manifests of `deploy/kubernetes` anew.
pub fn manifests() -> Result<()> {
    cargo(&["run", "-q", "-p", "smtpwatch-tests", "--bin", "manifests"])
}

fn cargo(arguments: &[&str]) -> Result<()> {
    let status = host::cargo(arguments).status().context("cannot start cargo")?;
    if status.success() { Ok(()) } else { bail!("cargo {} ended with {status}", arguments.join(" ")) }
}

/// Makes the root of the lab's machines, beside all else.
fn debian_root() -> std::io::Result<Child> {
    let workspace = host::workspace();
    let mut make = Command::new("nice");
    make.arg(workspace.join("tests/debian-root.sh")).arg(workspace.join("target/lab/debian"));
    make.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
}

struct Suite {
    name: &'static str,
    about: &'static str,
    step: Step,
}

enum Step {
    /// One cargo command that passes or fails; skipped when cargo lacks the component.
    Check { component: &'static str, arguments: &'static [&'static str] },
    /// A task of ours that passes or fails.
    Call(fn() -> Result<()>),
    /// A task of ours that counts by itself.
    Counted(fn() -> Result<Tally>),
    /// A test harness, whose results are counted.
    Harness { needs_root: bool, arguments: &'static [&'static str] },
}

const SUITES: [Suite; 10] = [
    Suite {
        name: "format",
        about: "cargo fmt",
        step: Step::Check { component: "fmt", arguments: &["fmt", "--all", "--check"] },
    },
    Suite {
        name: "lints",
        about: "cargo clippy, every target, warnings are errors",
        step: Step::Check {
            component: "clippy",
            arguments: &["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"],
        },
    },
    Suite {
        name: "unit",
        about: "unit, property and replay tests, the digest of the kernel object",
        step: Step::Harness {
            needs_root: false,
            arguments: &["test", "--workspace", "--exclude", "smtpwatch-ebpf", "--exclude", "smtpwatch-tests"],
        },
    },
    Suite {
        name: "fuzz",
        about: "every fuzz target, a fixed number of runs over the kept corpus",
        step: Step::Call(fuzz::suite),
    },
    Suite {
        name: "object",
        about: "a kernel object built from the sources here",
        step: Step::Call(|| build_ebpf::run(&build_ebpf::Arguments { check: true })),
    },
    Suite {
        name: "figures",
        about: "instruction counts and stack beside the committed figures",
        step: Step::Counted(figures),
    },
    Suite {
        name: "kernel",
        about: "the kernel programs in this kernel",
        step: Step::Harness { needs_root: true, arguments: &["test", "-p", "smtpwatch-tests", "--test", "kernel"] },
    },
    Suite {
        name: "rules",
        about: "the alert rules, by promtool",
        step: Step::Harness { needs_root: true, arguments: &["test", "-p", "smtpwatch-tests", "--test", "rules"] },
    },
    Suite {
        name: "policies",
        about: "TLS reports, written, mailed and posted, read by somebody else's parser",
        step: Step::Harness { needs_root: false, arguments: &["test", "-p", "smtpwatch-tests", "--test", "policies"] },
    },
    Suite {
        name: "lab",
        about: "real mail servers, a real attacker, the real daemon, a real Prometheus",
        step: Step::Harness {
            needs_root: true,
            arguments: &["test", "-p", "smtpwatch-tests", "--lib", "--test", "lab"],
        },
    },
];

impl Step {
    fn run(&self) -> Result<Tally> {
        match self {
            Self::Check { component, .. } if !has(component) => {
                println!("SKIPPED: cargo {component} is not installed (rustup component add)");
                Ok(Tally { skipped: 1, ..Tally::default() })
            }
            Self::Check { arguments, .. } => {
                cargo(arguments)?;
                Ok(Tally { passed: 1, ..Tally::default() })
            }
            Self::Call(task) => task().map(|()| Tally { passed: 1, ..Tally::default() }),
            Self::Counted(task) => task(),
            Self::Harness { needs_root: true, .. } if !is_root() => {
                println!("SKIPPED: needs root");
                Ok(Tally { skipped: 1, ..Tally::default() })
            }
            Self::Harness { arguments, .. } => harness(arguments),
        }
    }
}

/// What the tests of a suite came to.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct Tally {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Tally {
    const fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    /// Takes in one line of a test harness: its verdict, or a test that says that it was skipped.
    fn line(&mut self, line: &str) {
        if let Some(rest) = line.strip_prefix("test result: ") {
            for part in rest.split(['.', ';']) {
                let mut words = part.split_whitespace();
                let (Some(Ok(count)), Some(what)) = (words.next().map(str::parse::<usize>), words.next()) else {
                    continue;
                };
                match what {
                    "passed" => self.passed += count,
                    "failed" => self.failed += count,
                    "ignored" => self.skipped += count,
                    _ => {}
                }
            }
        } else if line.get(..7).is_some_and(|word| word.eq_ignore_ascii_case("skipped")) {
            self.skipped += 1;
        }
    }
}

/// Runs `cargo test …` with its output shown and counted. A test that skips itself passes for libtest: it is moved.
fn harness(arguments: &[&str]) -> Result<Tally> {
    let mut command = host::cargo(arguments);
    command.args(["--no-fail-fast", "--", "--show-output"]);
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot start cargo")?;
    let stdout = child.stdout.take().context("standard output is piped")?;
    let (mut tally, mut ignored) = (Tally::default(), Tally::default());
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        println!("{line}");
        if line.starts_with("test result: ") { tally.line(&line) } else { ignored.line(&line) }
    }
    let status = child.wait()?;
    tally.passed = tally.passed.saturating_sub(ignored.skipped);
    tally.skipped += ignored.skipped;
    if !status.success() && tally.failed == 0 {
        println!("FAILED: cargo {} ended with {status} before its verdict", arguments.join(" "));
        tally.failed = 1;
    }
    if status.success() && tally == Tally::default() {
        bail!("cargo {} ran no test at all", arguments.join(" "));
    }
    Ok(tally)
}

fn figures() -> Result<Tally> {
    let check::Comparison { held, worse, skipped } = check::compare()?;
    worse.iter().for_each(|line| println!("FAILED {line}"));
    skipped.iter().for_each(|reason| println!("SKIPPED {reason}"));
    Ok(Tally { passed: held, failed: worse.len(), skipped: skipped.len() })
}

fn has(component: &str) -> bool {
    let out = host::cargo(&[component, "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    out.is_ok_and(|status| status.success())
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|out| out.stdout == b"0\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_and_skips_are_counted() {
        let mut tally = Tally::default();
        for line in [
            "test result: ok. 4 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 7 filtered out; finished in 1.00s",
            "SKIPPED strip: needs root",
            "test a_skipped_test ... ok",
        ] {
            tally.line(line);
        }
        assert_eq!(tally, Tally { passed: 5, failed: 2, skipped: 2 });
    }
}
