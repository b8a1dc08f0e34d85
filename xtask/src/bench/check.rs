//! `cargo xtask bench --check`: compares instruction counts with the committed ones. Counts, unlike times, are the same
//! on a busy machine.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::EbpfLoader;

use super::object;
use crate::{
    build_ebpf,
    host::{self, Tool},
};

/// Required tools.
pub const TOOLS: [Tool; 1] = [("valgrind", "valgrind")];
/// Factor above which a count is too high.
const TOLERANCE: f64 = 1.05;
/// The committed figures.
const FIGURES: &str = "xtask/figures.tsv";

/// Userspace: case of the benchmark `work`, its count, and the unit.
const WORK: [(&str, u32, &str); 4] = [
    ("short", 2_000, "a session in cleartext, 33 packets"),
    ("starttls", 2_000, "a session with STARTTLS, 25 packets"),
    ("body", 20_000, "a segment of a message and its acknowledgment, muted"),
    ("tls", 20_000, "a segment under TLS and its acknowledgment, muted"),
];

/// One instruction count.
#[derive(Clone, Debug)]
struct Count {
    /// Its name in the committed figures.
    name: String,
    /// The count.
    value: u64,
}

/// Result of the comparison with the committed figures.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Comparison {
    /// Number of figures that were compared and are within the tolerance.
    pub held: usize,
    /// Messages about counts that are too high, or that have no committed figure.
    pub worse: Vec<String>,
    /// Counts that were not compared, with the reason.
    pub skipped: Vec<String>,
}

/// Counts instructions and compares them with the committed figures.
pub fn compare() -> Result<Comparison> {
    let (counts, skipped) = count()?;
    let figures = committed(&host::workspace().join(FIGURES))?;
    let mut comparison = Comparison { skipped, ..Comparison::default() };
    for Count { name, value } in counts {
        let Some(&before) = figures.get(&name) else {
            comparison.worse.push(format!("{name}: no figure is committed"));
            continue;
        };
        #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
        let ratio = value as f64 / before.max(1) as f64;
        let told = format!("{name}: {value}, {:+.2} % beside {before}", (ratio - 1.0) * 100.0);
        println!("{told}");
        if ratio > TOLERANCE { comparison.worse.push(told) } else { comparison.held += 1 }
    }
    Ok(comparison)
}

/// Fails if a count is more than 5 % above its committed figure.
pub fn run() -> Result<()> {
    let Comparison { held, worse, skipped } = compare()?;
    skipped.iter().for_each(|reason| println!("SKIPPED {reason}"));
    ensure!(
        worse.is_empty(),
        "more than {FIGURES} has:\n{}\nmend it, or say in the commit why it is worth it, and run \
         `cargo xtask bench --check --accept`",
        worse.join("\n")
    );
    println!("{held} figures hold");
    Ok(())
}

/// Writes the present counts as the committed figures.
pub fn accept() -> Result<()> {
    let (counts, skipped) = count()?;
    ensure!(skipped.is_empty(), "not all can be counted here: {}", skipped.join("; "));
    let lines: Vec<_> = counts.iter().map(|Count { name, value }| format!("{name}\t{value}\n")).collect();
    fs::write(host::workspace().join(FIGURES), lines.concat())?;
    println!("{} figures written to {FIGURES}", counts.len());
    Ok(())
}

fn count() -> Result<(Vec<Count>, Vec<String>)> {
    host::ensure_tools(&TOOLS)?;
    let mut skipped = Vec::new();
    let mut counts = kernel(&mut skipped)?;
    counts.extend(userspace()?);
    Ok((counts, skipped))
}

fn committed(path: &Path) -> Result<BTreeMap<String, u64>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let figure = |line: &str| {
        let (name, value) = line.split_once('\t').with_context(|| format!("{FIGURES}: {line:?} has no tab"))?;
        Ok((name.to_owned(), value.parse().with_context(|| format!("{FIGURES}: {value:?} is no count"))?))
    };
    text.lines().map(figure).collect()
}

/// The counts as tables.
pub fn section() -> Result<String> {
    let (counts, skipped) = count()?;
    let value = |name: String| {
        counts.iter().find(|count| count.name == name).map_or_else(|| "-".to_owned(), |count| count.value.to_string())
    };
    let mut text = String::from("| kernel program | instructions | verified | stack, bytes |\n|---|---:|---:|---:|\n");
    for name in counts.iter().filter_map(|count| count.name.strip_suffix(" instructions")) {
        let [instructions, verified, stack] =
            ["instructions", "verified", "stack"].map(|what| value(format!("{name} {what}")));
        let program = name.trim_start_matches("kernel ");
        writeln!(text, "| `{program}` | {instructions} | {verified} | {stack} of {} |", object::MAX_STACK)?;
    }
    text.push_str("\n| `smtpwatch replay`, for each | instructions |\n|---|---:|\n");
    for (case, _, unit) in WORK {
        writeln!(text, "| {unit} | {} |", value(format!("userspace {case}")))?;
    }
    for reason in skipped {
        writeln!(text, "\nNot counted: {reason}.")?;
    }
    Ok(text)
}

/// Instructions of the engine per unit of work, by callgrind.
fn userspace() -> Result<Vec<Count>> {
    let program = work()?;
    let count = |&(case, units, _): &(&str, u32, &str)| {
        let instructions = callgrind(&program, case, units)?;
        Ok(Count { name: format!("userspace {case}"), value: instructions / u64::from(units) })
    };
    WORK.iter().map(count).collect()
}

fn work() -> Result<PathBuf> {
    let arguments = [
        "bench",
        "--no-run",
        "--quiet",
        "--profile",
        "figures",
        "--package",
        "smtpwatch-pipeline",
        "--bench",
        "work",
        "--message-format=json",
    ];
    let out = host::cargo(&arguments).stderr(std::process::Stdio::inherit()).output().context("cannot start cargo")?;
    ensure!(out.status.success(), "the benchmark `work` does not build");
    host::executables(&out.stdout)
        .into_iter()
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("work-")))
        .context("cargo names no executable `work`")
}

fn callgrind(program: &Path, case: &str, units: u32) -> Result<u64> {
    let mut command = Command::new("valgrind");
    command
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=*replayed*"])
        .arg(program)
        .args([case, &units.to_string()]);
    let out = command.output().context("cannot start valgrind")?;
    let said = String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.success(), "{command:?} ended with {}: {said}", out.status);
    let collected = said.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok());
    match collected {
        Some(0) | None => bail!("callgrind has counted nothing: {said}"),
        Some(count) => Ok(count),
    }
}

/// Instructions and stack of each kernel program, and the verifier's instruction count if this process may load
/// programs. The verifier's count depends on the kernel release.
fn kernel(skipped: &mut Vec<String>) -> Result<Vec<Count>> {
    let bytes = fs::read(host::workspace().join("smtpwatch-capture/bpf/smtpwatch.bpf.o"))?;
    let mut counts = Vec::new();
    for program in object::programs(&bytes)? {
        ensure!(
            program.stack <= object::MAX_STACK,
            "{} takes {} bytes of stack; the kernel allows {}",
            program.name,
            program.stack,
            object::MAX_STACK
        );
        counts.push(Count { name: format!("kernel {} instructions", program.name), value: program.instructions });
        counts.push(Count { name: format!("kernel {} stack", program.name), value: program.stack });
    }
    match verified(&bytes) {
        Ok(verified) => counts.extend(verified),
        Err(error) => skipped.push(format!("instructions verified: the kernel was not asked ({error:#})")),
    }
    Ok(counts)
}

fn verified(bytes: &[u8]) -> Result<Vec<Count>> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let release: Vec<_> = release.split('.').take(2).collect();
    let release = release.join(".");
    ensure!(release == VERIFIER, "the figures are of Linux {VERIFIER}, this is {release}");
    let count = |(name, value): (String, Option<u32>)| {
        let value = value.context("this kernel does not tell")?.into();
        Ok(Count { name: format!("kernel {name} verified"), value })
    };
    build_ebpf::verified(&mut EbpfLoader::new().load(bytes)?)?.into_iter().map(count).collect()
}

/// The kernel release of the committed verifier counts.
const VERIFIER: &str = "6.18";
