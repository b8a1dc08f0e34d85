//! `cargo xtask fuzz`: runs the fuzz targets one after the other.
//!
//! They are built by Cargo alone, with libFuzzer's instrumentation and without a sanitizer: the tested code is safe
//! Rust, in which a fault is a panic, a failed assertion or an exceeded bound. Therefore the stable toolchain builds
//! them.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, ensure};

use crate::host;

/// The targets (`fuzz/fuzz_targets/`) in the order of processing, with their number of runs in the test suite: some
/// seconds each.
const TARGETS: [(&str, u64); 8] = [
    ("walk_gate", 50_000),
    ("record", 500_000),
    ("reassembly", 20_000),
    ("dialogue", 20_000),
    ("engine_pcap", 5_000),
    ("sts", 200_000),
    ("starttls_list", 100_000),
    ("tlsa", 50_000),
];
/// Compiler options for libFuzzer's coverage, as cargo-fuzz sets them.
const INSTRUMENTATION: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "--cfg=fuzzing",
];
/// A further option, where thread-local storage of the runtime is linked with it.
const STACK: &str = "-Cllvm-args=-sanitizer-coverage-stack-depth";
/// Longest input, bytes: a dialogue, a small capture.
const INPUT: usize = 4096;
/// Memory above which libFuzzer stops a target, MiB.
const MEMORY_MIB: usize = 1024;

/// `cargo xtask fuzz`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Run these targets only
    #[arg(long, value_name = "TARGET", value_parser = TARGETS.map(|(target, _)| target))]
    only: Vec<String>,
    /// Run each target for this many seconds; inputs that it finds are stored in target/fuzz/corpus for the next run
    #[arg(long, value_name = "N", default_value_t = 60, conflicts_with = "runs")]
    seconds: u64,
    /// Run each target this many times from the committed corpus alone, always with the same seed
    #[arg(long, value_name = "N")]
    runs: Option<u64>,
}

/// Inputs from public reports, beside the checkout: they are read in place and never copied.
const CASES: &str = "../shared/cases";

/// Directories of [`CASES`] with inputs of this target.
const fn cases(target: &str) -> &'static [&'static str] {
    match target.as_bytes() {
        b"engine_pcap" => &["wire"],
        b"sts" => &["policy/sts"],
        b"starttls_list" => &["policy/lists"],
        _ => &[],
    }
}

/// How long each target runs.
#[derive(Clone, Copy)]
enum Extent {
    Seconds(u64),
    Runs(u64),
}

/// Runs every target; an error if one of them failed.
pub fn run(arguments: &Arguments) -> Result<()> {
    let extent = arguments.runs.map_or(Extent::Seconds(arguments.seconds), Extent::Runs);
    let chosen = |target: &str| arguments.only.is_empty() || arguments.only.iter().any(|only| only == target);
    all(chosen, |_| extent)
}

/// The suite `fuzz` of `cargo xtask test`.
pub fn suite() -> Result<()> {
    all(|_| true, Extent::Runs)
}

/// Runs the chosen targets; `extent` computes how long from the target's runs in the suite.
fn all(chosen: impl Fn(&str) -> bool, extent: impl Fn(u64) -> Extent) -> Result<()> {
    build()?;
    let mut failed = Vec::new();
    println!("{:<12} {:>12} {:>8} {:>8} {:>8}", "target", "executions", "per s", "corpus", "seconds");
    for (target, suite_runs) in TARGETS.into_iter().filter(|(target, _)| chosen(target)) {
        let start = Instant::now();
        let Outcome { executions, corpus, failed: has_failed, .. } = one(target, extent(suite_runs))?;
        let seconds = start.elapsed().as_secs_f64();
        let per_second = executions * 1000 / u64::try_from(start.elapsed().as_millis().max(1))?;
        println!("{target:<12} {executions:>12} {per_second:>8} {corpus:>8} {seconds:>8.1}");
        if has_failed {
            failed.push(target);
        }
    }
    ensure!(failed.is_empty(), "failed: {}; the input and how to run it again stand above", failed.join(", "));
    Ok(())
}

fn directory() -> PathBuf {
    host::workspace().join("target/fuzz")
}

/// Builds every target. Target directory and options are separate from every other build: instrumented code has the
/// flags of [`INSTRUMENTATION`], and an explicit target triple keeps them from build scripts and procedural macros.
fn build() -> Result<()> {
    let triple = triple()?;
    let flags = INSTRUMENTATION.iter().copied().chain(triple.contains("-linux-").then_some(STACK)).collect::<Vec<_>>();
    let status = host::cargo(&["build", "--release", "--quiet", "--bins", "--manifest-path", "fuzz/Cargo.toml"])
        .args(["--target", &triple, "--target-dir"])
        .arg(directory())
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .env_remove("RUSTFLAGS")
        .status()
        .context("cannot start cargo")?;
    ensure!(status.success(), "the fuzz targets do not build: cargo ended with {status}");
    Ok(())
}

/// The triple of this machine, as `rustc` names it.
fn triple() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let out = Command::new(rustc).arg("-vV").output().context("cannot start rustc")?;
    let said = String::from_utf8_lossy(&out.stdout);
    let triple = said.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(triple.context("rustc names no host")?.to_owned())
}

#[derive(Default)]
struct Outcome {
    executions: u64,
    corpus: u64,
    failed: bool,
    /// The next line has the message of a panic, after its location.
    message_follows: bool,
}

fn one(target: &str, extent: Extent) -> Result<Outcome> {
    let kept = host::workspace().join("fuzz/corpus").join(target);
    let artifacts = host::workspace().join("fuzz/artifacts").join(target);
    let found = match extent {
        Extent::Seconds(_) => directory().join("corpus").join(target),
        Extent::Runs(_) => fresh(&directory().join("scratch").join(target))?,
    };
    for needed in [&artifacts, &found] {
        fs::create_dir_all(needed).with_context(|| format!("cannot create {}", needed.display()))?;
    }
    let mut command = Command::new(executable(target)?);
    command
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg(format!("-max_len={INPUT}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
        .args(["-print_final_stats=1", "-timeout=10"])
        .args(match extent {
            Extent::Seconds(seconds) => vec![format!("-max_total_time={seconds}")],
            Extent::Runs(runs) => vec![format!("-runs={runs}"), "-seed=1".to_owned()],
        })
        .args([&found, &kept])
        .args(cases(target).iter().map(|part| host::workspace().join(CASES).join(part)).filter(|path| path.is_dir()));
    let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().context("cannot start the target")?;
    let stderr = child.stderr.take().context("standard error is piped")?;
    let mut outcome = Outcome::default();
    for line in BufReader::new(stderr).split(b'\n') {
        outcome.line(&String::from_utf8_lossy(&line?));
    }
    let status = child.wait()?;
    if !status.success() {
        outcome.failed = true;
        println!("FAILED: {target} ended with {status}; again: {} INPUT", executable(target)?.display());
    }
    Ok(outcome)
}

/// What a target prints when it stops early.
const REASONS: [&str; 4] = ["panicked at", "ERROR: ", "SUMMARY: ", "Test unit written to"];

impl Outcome {
    /// Parses one line of libFuzzer: its statistics, or why it stopped.
    fn line(&mut self, line: &str) {
        if let Some(rest) = line.strip_prefix("stat::") {
            if let Some(value) = rest.strip_prefix("number_of_executed_units:") {
                self.executions = value.trim().parse().unwrap_or(0);
            }
        } else if let Some(corpus) = corpus(line) {
            self.corpus = corpus;
        } else if self.message_follows || REASONS.iter().any(|reason| line.contains(reason)) {
            println!("{line}");
            self.message_follows = line.contains(REASONS[0]);
        }
    }
}

/// Number of inputs in the corpus, from a line like `#4096 pulse cov: 512 ft: 700 corp: 61/9Kb lim: 80 exec/s: 2048`.
fn corpus(line: &str) -> Option<u64> {
    let (_, rest) = line.strip_prefix('#')?.split_once(" corp: ")?;
    rest.split('/').next()?.parse().ok()
}

fn executable(target: &str) -> Result<PathBuf> {
    let file = directory().join(triple()?).join("release").join(target);
    ensure!(file.is_file(), "cargo built no {}", file.display());
    Ok(file)
}

/// Creates an empty directory.
fn fresh(path: &Path) -> Result<PathBuf> {
    if path.exists() {
        fs::remove_dir_all(path).with_context(|| format!("cannot empty {}", path.display()))?;
    }
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_statistics_of_libfuzzer_are_read() {
        let mut outcome = Outcome::default();
        for line in [
            "#4096\tpulse  cov: 512 ft: 700 corp: 61/9Kb lim: 80 exec/s: 2048 rss: 60Mb",
            "stat::number_of_executed_units: 20000",
            "stat::peak_rss_mb:              90",
        ] {
            outcome.line(line);
        }
        assert_eq!((outcome.executions, outcome.corpus), (20_000, 61));
    }

    #[test]
    fn the_cases_beside_the_checkout_are_of_targets_that_exist() {
        let with_cases: Vec<_> = TARGETS.iter().filter(|(target, _)| !cases(target).is_empty()).collect();
        assert_eq!(with_cases.len(), 3);
        let beside = host::workspace().join(CASES);
        if !beside.is_dir() {
            println!("SKIPPED: {} is not there", beside.display());
            return;
        }
        for part in with_cases.iter().flat_map(|(target, _)| cases(target)) {
            assert!(fs::read_dir(beside.join(part)).expect(part).count() > 0, "{part} is empty");
        }
    }

    #[test]
    fn every_target_has_its_source_and_its_corpus() {
        for (target, _) in TARGETS {
            let fuzz = host::workspace().join("fuzz");
            assert!(fuzz.join("fuzz_targets").join(target).with_extension("rs").is_file(), "{target}");
            let files = fs::read_dir(fuzz.join("corpus").join(target)).expect("a kept corpus").count();
            assert!((1..40).contains(&files), "{target}: {files} files");
        }
        let sources = fs::read_dir(host::workspace().join("fuzz/fuzz_targets")).expect("sources").count();
        assert_eq!(sources, TARGETS.len());
    }
}
