//! `cargo xtask test`: runs every suite and prints a table and a last line with the overall result.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::{bench::check, build_ebpf, fuzz, host, package};

/// `cargo xtask test`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Run these suites only, one after the other
    #[arg(long, value_name = "SUITE", value_parser = SUITES.map(|suite| suite.name))]
    only: Vec<String>,
    /// Fail when a test is skipped that xtask/skips.tsv does not name
    #[arg(long)]
    deny_skips: bool,
    /// Write the results to this file
    #[arg(long, value_name = "FILE", hide = true)]
    results: Option<PathBuf>,
}

/// Runs the suites; an error if anything failed.
///
/// Suites that mostly wait run in parallel with those that mostly compute. The latter have the lowest priority, and
/// their output is shown at their end.
pub fn run(arguments: &Arguments) -> Result<()> {
    let chosen = |suite: &&Suite| arguments.only.is_empty() || arguments.only.iter().any(|name| name == suite.name);
    let results = if arguments.only.is_empty() {
        let tools = std::thread::spawn(tools);
        let mut results = in_order(SUITES.iter().filter(|suite| suite.lane == Lane::First));
        let root = tools.join().map_err(|_| anyhow::anyhow!("the installation of tools panicked"))??;
        let beside = Beside::start()?;
        results.extend(in_order(SUITES.iter().filter(|suite| suite.lane == Lane::Waits)));
        results.extend(beside.end()?);
        // The lab has waited for it, or reports what it skips.
        let _ = root.map(|mut root| root.wait());
        results
    } else {
        if SUITES.iter().filter(chosen).any(|suite| suite.lane != Lane::Computes) {
            install()?;
        }
        in_order(SUITES.iter().filter(chosen))
    };
    if let Some(path) = &arguments.results {
        return write_results(path, &results);
    }
    let mut total = Tally::default();
    println!("\n{:<10} {:>7} {:>7} {:>8} {:>8}", "suite", "passed", "failed", "skipped", "seconds");
    for (name, tally, seconds) in &results {
        println!("{name:<10} {:>7} {:>7} {:>8} {seconds:>8.1}", tally.passed, tally.failed, tally.skips.len());
        total.add(tally.clone());
    }
    let denied = if arguments.deny_skips { denied(&results)? } else { Vec::new() };
    denied.iter().for_each(|skip| println!("DENIED {skip}: {SKIPS} does not name it"));
    let Tally { passed, failed, skips } = &total;
    println!("{passed} passed, {} failed, {} skipped", failed + denied.len(), skips.len());
    // Only the exit code: the line above stays the last one.
    std::process::exit(i32::from(*failed > 0 || !denied.is_empty()));
}

/// A suite, the results of its tests, and its duration in seconds.
type Row = (String, Tally, f64);

fn in_order<'a>(suites: impl Iterator<Item = &'a Suite>) -> Vec<Row> {
    let run = |suite: &Suite| {
        println!("\n== {}: {}", suite.name, suite.about);
        let start = Instant::now();
        let tally = suite.step.run().unwrap_or_else(|error| {
            println!("FAILED {}: {error:#}", suite.name);
            Tally { failed: 1, ..Tally::default() }
        });
        (suite.name.to_owned(), tally, start.elapsed().as_secs_f64())
    };
    suites.map(run).collect()
}

/// Installs what the tests need; without the last group only single tests are skipped.
fn install() -> Result<()> {
    host::ensure_tools(&host::TESTS)?;
    // All of it before the lab, whose roots are overlays over the machine's own.
    for tools in [&host::ORACLE[..], &host::BROWSER, &host::CONTAINER] {
        if let Err(error) = host::ensure_tools(tools) {
            println!("{error:#}");
        }
    }
    Ok(())
}

/// As [`install`], with what parallel suites install: two installations at one time disturb each other. Returns the
/// process that makes the lab's root, which is downloaded and unpacked while other suites are built; without it the lab
/// reports what it skips.
fn tools() -> Result<Option<Child>> {
    install()?;
    host::ensure_tools(&package::TOOLS)?;
    host::ensure_tools(&check::TOOLS)?;
    // Without it, its suite fails with a message.
    if let Err(error) = build_ebpf::prepare() {
        println!("{error:#}");
    }
    Ok(debian_root().ok())
}

/// The suites of [`Lane::Computes`], in a process of their own.
struct Beside {
    child: Child,
    said: PathBuf,
    results: PathBuf,
}

impl Beside {
    fn start() -> Result<Self> {
        let home = host::workspace().join("target/tmp");
        fs::create_dir_all(&home)?;
        let (said, results) = (home.join("beside.log"), home.join("beside.tsv"));
        let _ = fs::remove_file(&results);
        let out = File::create(&said)?;
        let mut command = Command::new("nice");
        command.args(["-n", "19"]).arg(std::env::current_exe()?).args(["test", "--results"]).arg(&results);
        let names: Vec<_> =
            SUITES.iter().filter(|suite| suite.lane == Lane::Computes).map(|suite| suite.name).collect();
        names.iter().for_each(|name| _ = command.args(["--only", name]));
        println!("\n== {}: beside what follows", names.join(", "));
        let child = command.stdin(Stdio::null()).stderr(out.try_clone()?).stdout(out).spawn();
        Ok(Self { child: child.context("cannot start the suites that run beside others")?, said, results })
    }

    fn end(mut self) -> Result<Vec<Row>> {
        let status = self.child.wait()?;
        print!("{}", String::from_utf8_lossy(&fs::read(&self.said)?));
        ensure!(status.success(), "the suites that run beside others ended with {status}");
        read_results(&self.results)
    }
}

fn write_results(path: &Path, results: &[Row]) -> Result<()> {
    let line = |(name, tally, seconds): &Row| {
        format!("{name}\t{}\t{}\t{seconds}\t{}\n", tally.passed, tally.failed, tally.skips.join("\t"))
    };
    fs::write(path, results.iter().map(line).collect::<String>())
        .with_context(|| format!("cannot write {}", path.display()))
}

fn read_results(path: &Path) -> Result<Vec<Row>> {
    let row = |line: &str| {
        let mut fields = line.split('\t');
        let mut next = || fields.next().context("a field is missing");
        let (name, passed, failed, seconds) = (next()?, next()?.parse()?, next()?.parse()?, next()?.parse()?);
        let skips = fields.filter(|skip| !skip.is_empty()).map(str::to_owned).collect();
        Ok((name.to_owned(), Tally { passed, failed, skips }, seconds))
    };
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    text.lines().map(row).collect()
}

/// The tests that may be skipped, each with its suite and the reason.
const SKIPS: &str = "xtask/skips.tsv";

/// Tests that were skipped and may not be.
fn denied(results: &[Row]) -> Result<Vec<String>> {
    let text = fs::read_to_string(host::workspace().join(SKIPS)).with_context(|| format!("cannot read {SKIPS}"))?;
    let allowed = allowed(&text)?;
    let skipped = results.iter().flat_map(|(suite, tally, _)| tally.skips.iter().map(move |skip| (suite, skip)));
    let denied = skipped.filter(|(suite, skip)| !allowed.contains(&(suite.as_str(), skip.as_str())));
    Ok(denied.map(|(suite, skip)| format!("{suite} {skip}")).collect())
}

/// Suite and test of each line; a line without a reason is an error.
fn allowed(text: &str) -> Result<Vec<(&str, &str)>> {
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let entry = |line| match str::split(line, '\t').collect::<Vec<_>>()[..] {
        [suite, test, reason] if !reason.trim().is_empty() => Ok((suite, test)),
        _ => bail!("{SKIPS}: {line:?} is not suite, test and reason, each after a tab"),
    };
    lines.map(entry).collect()
}

/// Runs the acceptance test alone: from a fresh Debian to the notification, with the time of each step.
pub fn acceptance() -> Result<()> {
    host::ensure_tools(&host::TESTS)?;
    cargo(&["test", "-q", "-p", "smtpwatch-tests", "--test", "lab", "acceptance::acceptance", "--", "--nocapture"])
}

/// Runs the adversary suite in its long form: the test command tries each attack once, this task every combination.
pub fn adversary() -> Result<()> {
    host::ensure_tools(&host::TESTS)?;
    let arguments = ["test", "-q", "-p", "smtpwatch-tests", "--test", "lab", "adversary::", "--", "--nocapture"];
    let status = host::cargo(&arguments).env("SMTPWATCH_ADVERSARY", "all").status().context("cannot start cargo")?;
    if status.success() { Ok(()) } else { bail!("an attack of the lab's red team is not withstood") }
}

/// Regenerates the manifests of `deploy/kubernetes`.
pub fn manifests() -> Result<()> {
    cargo(&["run", "-q", "-p", "smtpwatch-tests", "--bin", "manifests"])
}

fn cargo(arguments: &[&str]) -> Result<()> {
    let status = host::cargo(arguments).status().context("cannot start cargo")?;
    if status.success() { Ok(()) } else { bail!("cargo {} ended with {status}", arguments.join(" ")) }
}

/// Builds the Debian root of the lab's machines in the background.
fn debian_root() -> std::io::Result<Child> {
    let workspace = host::workspace();
    let mut make = Command::new("nice");
    make.arg(workspace.join("tests/debian-root.sh")).arg(workspace.join("target/lab/debian"));
    make.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
}

struct Suite {
    name: &'static str,
    about: &'static str,
    lane: Lane,
    step: Step,
}

/// When a suite runs, if all of them run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Lane {
    /// Before all others.
    First,
    /// In the order of the list, in parallel with those that compute.
    Waits,
    /// With separate build directories, and measuring counts instead of times: they can run at low priority.
    Computes,
}

enum Step {
    /// One cargo command that passes or fails; skipped when cargo lacks the component.
    Check { component: &'static str, arguments: &'static [&'static str] },
    /// A task that passes or fails.
    Call(fn() -> Result<()>),
    /// A task that counts its own results.
    Counted(fn() -> Result<Tally>),
    /// A test harness, whose results are counted.
    Harness { needs_root: bool, threads: Option<&'static str>, arguments: &'static [&'static str] },
}

const SUITES: [Suite; 10] = [
    Suite {
        name: "format",
        about: "cargo fmt",
        lane: Lane::First,
        step: Step::Check { component: "fmt", arguments: &["fmt", "--all", "--check"] },
    },
    Suite {
        name: "lints",
        about: "cargo clippy, every target, warnings are errors",
        lane: Lane::First,
        step: Step::Check {
            component: "clippy",
            arguments: &["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"],
        },
    },
    Suite {
        name: "unit",
        about: "unit, property and replay tests, the digest of the kernel object",
        lane: Lane::Waits,
        step: Step::Harness {
            needs_root: false,
            threads: None,
            arguments: &["test", "--workspace", "--exclude", "smtpwatch-ebpf", "--exclude", "smtpwatch-tests"],
        },
    },
    Suite {
        name: "fuzz",
        about: "every fuzz target, a fixed number of runs over the kept corpus",
        lane: Lane::Computes,
        step: Step::Call(fuzz::suite),
    },
    Suite {
        name: "object",
        about: "a kernel object built from the sources here",
        lane: Lane::Computes,
        step: Step::Call(|| build_ebpf::run(&build_ebpf::Arguments { check: true })),
    },
    Suite {
        name: "figures",
        about: "instruction counts and stack beside the committed figures",
        lane: Lane::Computes,
        step: Step::Counted(figures),
    },
    Suite {
        name: "kernel",
        about: "the kernel programs in this kernel",
        lane: Lane::Waits,
        step: Step::Harness {
            needs_root: true,
            threads: None,
            arguments: &["test", "-p", "smtpwatch-tests", "--test", "kernel"],
        },
    },
    Suite {
        name: "rules",
        about: "the alert rules, by promtool",
        lane: Lane::Waits,
        step: Step::Harness {
            needs_root: true,
            threads: None,
            arguments: &["test", "-p", "smtpwatch-tests", "--test", "rules"],
        },
    },
    Suite {
        name: "policies",
        about: "TLS reports, written, mailed and posted, read by somebody else's parser",
        lane: Lane::Waits,
        step: Step::Harness {
            needs_root: false,
            threads: None,
            arguments: &["test", "-p", "smtpwatch-tests", "--test", "policies"],
        },
    },
    Suite {
        name: "lab",
        about: "real mail servers, a real attacker, the real daemon, a real Prometheus",
        lane: Lane::Waits,
        step: Step::Harness {
            needs_root: true,
            // They wait for mail servers and for time to pass.
            threads: Some("4"),
            arguments: &["test", "-p", "smtpwatch-tests", "--lib", "--test", "lab"],
        },
    },
];

impl Step {
    fn run(&self) -> Result<Tally> {
        match self {
            Self::Check { component, .. } if !has(component) => {
                println!("SKIPPED: cargo {component} is not installed (rustup component add)");
                Ok(Tally::skipped(component))
            }
            Self::Check { arguments, .. } => {
                cargo(arguments)?;
                Ok(Tally { passed: 1, ..Tally::default() })
            }
            Self::Call(task) => task().map(|()| Tally { passed: 1, ..Tally::default() }),
            Self::Counted(task) => task(),
            Self::Harness { needs_root: true, .. } if !is_root() => {
                println!("SKIPPED: needs root");
                Ok(Tally::skipped("root"))
            }
            Self::Harness { arguments, threads, .. } => harness(arguments, *threads),
        }
    }
}

/// The results of the tests of a suite.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
struct Tally {
    passed: usize,
    failed: usize,
    /// Names of skipped tests.
    skips: Vec<String>,
}

impl Tally {
    fn skipped(name: &str) -> Self {
        Self { skips: vec![name.to_owned()], ..Self::default() }
    }

    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skips.extend(other.skips);
    }

    /// Parses the final line of a test harness. A test that skips itself passes for libtest.
    fn verdict(&mut self, verdict: &str) {
        for part in verdict.split(['.', ';']) {
            let mut words = part.split_whitespace();
            let (Some(Ok(count)), Some(what)) = (words.next().map(str::parse::<usize>), words.next()) else {
                continue;
            };
            match what {
                "passed" => self.passed += count,
                "failed" => self.failed += count,
                _ => {}
            }
        }
    }
}

/// Parses the output of a test harness line by line.
#[derive(Default)]
struct Reader {
    tally: Tally,
    /// The test whose output is being shown.
    shown: Option<String>,
    /// Number of tests that reported that they were skipped, and passed for libtest.
    itself: usize,
}

impl Reader {
    fn line(&mut self, line: &str) {
        if let Some(verdict) = line.strip_prefix("test result: ") {
            self.tally.verdict(verdict);
            self.shown = None;
        } else if let Some(test) = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----")) {
            self.shown = Some(test.to_owned());
        } else if let Some((test, result)) = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... "))
            && result.starts_with("ignored")
        {
            self.tally.skips.push(test.to_owned());
        } else if line.get(..7).is_some_and(|word| word.eq_ignore_ascii_case("skipped")) {
            self.tally.skips.push(self.shown.clone().unwrap_or_else(|| line.to_owned()));
            self.itself += 1;
        }
    }

    fn end(mut self) -> Tally {
        self.tally.passed = self.tally.passed.saturating_sub(self.itself);
        self.tally
    }
}

/// Runs `cargo test …` with its output shown and counted.
fn harness(arguments: &[&str], threads: Option<&str>) -> Result<Tally> {
    let mut command = host::cargo(arguments);
    command.args(["--no-fail-fast", "--", "--show-output"]);
    if let Some(threads) = threads {
        command.args(["--test-threads", threads]);
    }
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot start cargo")?;
    let stdout = child.stdout.take().context("standard output is piped")?;
    let mut reader = Reader::default();
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        println!("{line}");
        reader.line(&line);
    }
    let status = child.wait()?;
    let mut tally = reader.end();
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
    // Named without the cause, which contains the kernel's message.
    let skips = skipped.iter().map(|reason| reason.split(':').next().unwrap_or_default().to_owned()).collect();
    Ok(Tally { passed: held, failed: worse.len(), skips })
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
        let mut reader = Reader::default();
        for line in [
            "test slow ... ignored, takes hours",
            "test result: ok. 4 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test strip::on_the_way ... ok",
            "---- strip::on_the_way stdout ----",
            "SKIPPED on_the_way: needs root",
            "test result: FAILED. 2 passed; 2 failed; 0 ignored; 0 measured; 7 filtered out; finished in 1.00s",
            "test a_skipped_test ... ok",
        ] {
            reader.line(line);
        }
        let skips = vec!["slow".to_owned(), "strip::on_the_way".to_owned()];
        assert_eq!(reader.end(), Tally { passed: 5, failed: 2, skips });
    }

    #[test]
    fn a_skip_is_denied_unless_the_list_names_it_with_a_reason() {
        let text = fs::read_to_string(host::workspace().join(SKIPS)).expect("the list");
        let allowed = allowed(&text).expect("suite, test and reason");
        let suites = SUITES.map(|suite| suite.name);
        assert!(allowed.iter().all(|(suite, _)| suites.contains(suite)), "{allowed:?}");
        let (suite, test) = allowed[0];
        let row = |test: &str| vec![(suite.to_owned(), Tally::skipped(test), 1.0)];
        assert_eq!(denied(&row(test)).expect("the list"), Vec::<String>::new());
        assert_eq!(denied(&row("another")).expect("the list"), [format!("{suite} another")]);
        assert!(super::allowed("kernel\tattach\t \n").is_err(), "no reason");
    }

    #[test]
    fn results_of_another_process_are_the_same() {
        let path = std::env::temp_dir().join(format!("smtpwatch-results-{}", std::process::id()));
        let tally = Tally { passed: 3, failed: 1, skips: vec!["a::b".to_owned(), "c".to_owned()] };
        let rows = vec![("fuzz".to_owned(), tally, 1.5), ("object".to_owned(), Tally::default(), 0.25)];
        write_results(&path, &rows).expect("written");
        let read = read_results(&path);
        fs::remove_file(&path).expect("removed");
        assert_eq!(read.expect("read"), rows);
    }
}
