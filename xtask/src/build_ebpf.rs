//! `cargo xtask build-ebpf`: builds the kernel object that the daemon embeds.
//!
//! The object is committed, so that a plain `cargo build` needs no BPF toolchain; this task rebuilds it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail, ensure};
use aya::{
    Ebpf, EbpfLoader,
    programs::{Program, ProgramError},
};
use smtpwatch_testkit::object_digest;

use crate::bench::object;

const TARGET: &str = "bpfel-unknown-none";
/// The linker must support the LLVM version of the compiler; this release supports LLVM 22.
const LINKER: &str = "0.10.0";
/// Programs that can remove debugging sections from an ELF file of any machine.
const STRIP: [&str; 4] = ["llvm-strip-22", "/usr/lib/llvm-22/bin/llvm-strip", "llvm-strip", "rust-strip"];

#[derive(clap::Args)]
pub struct Arguments {
    /// Build, load and compare with the committed object, but do not write it
    #[arg(long)]
    pub check: bool,
}

/// Builds the object, loads it into the kernel's verifier if that is permitted, and writes it to its place.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let workspace = crate::host::workspace().to_owned();
    let toolchain = Toolchain::find()?;
    let linker = linker(&workspace)?;
    eprintln!("kernel object: {} with {}", toolchain.name(), linker.display());
    let built = build(&workspace, &toolchain, &linker)?;
    let bytes = named_for_the_kernel(strip(&built)?);
    budget(&bytes)?;
    load(&bytes)?;
    let sources = object_digest::of_sources(&workspace).context("cannot read the sources")?;
    let (object, digest) = (
        workspace.join("smtpwatch-capture/bpf/smtpwatch.bpf.o"),
        workspace.join("smtpwatch-capture/bpf/smtpwatch.bpf.o.sources"),
    );
    if arguments.check {
        let committed = fs::read_to_string(&digest).unwrap_or_default();
        ensure!(
            committed.trim() == sources,
            "the committed object is not built from these sources: run `cargo xtask build-ebpf` and commit smtpwatch-capture/bpf"
        );
        let same = fs::read(&object).is_ok_and(|old| old == bytes);
        eprintln!(
            "kernel object: the fresh one is {} the committed one",
            if same { "identical to" } else { "not bit for bit" }
        );
        return Ok(());
    }
    fs::create_dir_all(workspace.join("smtpwatch-capture/bpf"))?;
    fs::write(&object, &bytes).with_context(|| format!("cannot write {}", object.display()))?;
    fs::write(&digest, format!("{sources}\n")).with_context(|| format!("cannot write {}", digest.display()))?;
    eprintln!("kernel object: {} bytes, sources sha256:{sources}", bytes.len());
    Ok(())
}

/// Installs the compiler for the kernel object if it is missing.
pub fn prepare() -> anyhow::Result<()> {
    Toolchain::find().map(drop)
}

fn build(workspace: &Path, toolchain: &Toolchain, linker: &Path) -> anyhow::Result<PathBuf> {
    let target_dir = workspace.join("target/ebpf");
    // The object contains no path of the building machine, and the same sources yield the same bytes.
    let home = env::var("CARGO_HOME")
        .map_or_else(|_| PathBuf::from(env::var("HOME").unwrap_or_default()).join(".cargo"), PathBuf::from);
    let flags = [
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        format!("-Clinker={}", linker.display()),
        format!("--remap-path-prefix={}=.", workspace.display()),
        format!("--remap-path-prefix={}=cargo", home.display()),
        format!("--remap-path-prefix={}=rust", toolchain.sources().display()),
    ];
    let mut command = toolchain.cargo();
    command
        .current_dir(workspace)
        .args(["build", "--profile", "dist", "--package", "smtpwatch-ebpf", "-Z", "build-std=core", "--target", TARGET])
        .arg("--target-dir")
        .arg(&target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .env_remove("RUSTFLAGS")
        .env_remove("RUSTC_WORKSPACE_WRAPPER");
    if let Some(library) = toolchain.llvm()? {
        // The linker takes the first libLLVM in a directory of this list: the directory holds one only.
        let folder = workspace.join("target/tools/llvm");
        fs::create_dir_all(&folder)?;
        let link = folder.join(library.file_name().context("libLLVM has a name")?);
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(&library, &link)?;
        command.env("LD_LIBRARY_PATH", &folder);
    }
    let status = command.status().context("cannot run cargo")?;
    ensure!(status.success(), "the kernel object does not build");
    Ok(target_dir.join(TARGET).join("dist/smtpwatch-ebpf"))
}

/// Removes what only a debugger reads; BTF stays, and with it the source lines in the verifier's log.
fn strip(built: &Path) -> anyhow::Result<Vec<u8>> {
    let stripped = built.with_extension("stripped");
    for program in STRIP {
        let status = Command::new(program).arg("--strip-debug").arg(built).arg("-o").arg(&stripped).status();
        if status.is_ok_and(|status| status.success()) {
            return fs::read(&stripped).with_context(|| format!("cannot read {}", stripped.display()));
        }
    }
    bail!("cannot strip the kernel object: none of {} runs; Debian's package llvm-22 has one", STRIP.join(", "))
}

/// Replaces the characters of the type names `core::mem::MaybeUninit<…>` with underscores: the linker leaves them as
/// they are, and the kernel accepts BTF only if every name is valid in C. Without BTF the programs load, but verifier
/// and bpftool show no source.
fn named_for_the_kernel(mut object: Vec<u8>) -> Vec<u8> {
    const UNION: &[u8] = b"MaybeUninit<";
    let mut from = 0;
    while let Some(found) = object[from..].windows(UNION.len()).position(|octets| octets == UNION) {
        from += found;
        for octet in object[from..].iter_mut().take_while(|octet| **octet != 0) {
            if !octet.is_ascii_alphanumeric() {
                *octet = b'_';
            }
        }
    }
    object
}

/// Stack limit of a call chain, bytes: one frame of 32 bytes less than the kernel allows, as a margin for another
/// compiler version.
const STACK_BUDGET: u64 = object::MAX_STACK - 32;

/// Rejects an object that kernels before 6.8 would reject, because they round each frame up to 32 bytes; the running
/// kernel may accept it.
fn budget(bytes: &[u8]) -> anyhow::Result<()> {
    for program in object::programs(bytes)? {
        let chain: Vec<String> = program.chain.iter().map(|(name, frame)| format!("{name} {frame}")).collect();
        let chain = chain.join(", ");
        ensure!(
            program.stack <= STACK_BUDGET,
            "{} takes {} bytes of stack, and the budget is {STACK_BUDGET} of the {} that kernels before 6.8 give: {chain}",
            program.name,
            program.stack,
            object::MAX_STACK
        );
        eprintln!("kernel object: {}: {} bytes of stack of {STACK_BUDGET}: {chain}", program.name, program.stack);
    }
    Ok(())
}

/// Loads the programs into the verifier, if this process may.
fn load(bytes: &[u8]) -> anyhow::Result<()> {
    let mut object = match EbpfLoader::new().load(bytes) {
        Ok(object) => object,
        Err(error) => {
            eprintln!("kernel object: not loaded, because this kernel or user may not: {error}");
            return Ok(());
        }
    };
    for (name, count) in verified(&mut object)? {
        eprintln!("kernel object: {name}: {} instructions verified", count.unwrap_or(0));
    }
    Ok(())
}

/// Loads every program and returns how many instructions the verifier examined; `None` if the kernel does not report
/// it.
pub fn verified(object: &mut Ebpf) -> anyhow::Result<Vec<(String, Option<u32>)>> {
    let mut counts = Vec::new();
    for (name, program) in object.programs_mut() {
        let loaded = match program {
            Program::Xdp(program) => program.load(),
            Program::SchedClassifier(program) => program.load(),
            other => bail!("program {name} is of the unexpected type {:?}", other.prog_type()),
        };
        match loaded {
            Ok(()) => {
                counts.push((name.to_owned(), program.info()?.verified_instruction_count()));
            }
            Err(ProgramError::LoadError { io_error, verifier_log }) => bail!("{name}: {io_error}\n{verifier_log}"),
            Err(error) => return Err(error).with_context(|| name.to_owned()),
        }
    }
    counts.sort();
    Ok(counts)
}

/// Debian packages of the compiler for the kernel object.
const DEBIAN_PACKAGES: [&str; 4] = ["rustc-web", "cargo-web", "rust-web-src", "llvm-22"];

/// Installs Debian packages; returns whether it succeeded. A fresh machine may have outdated package lists or none: if
/// a package is not found, the lists are updated once.
fn install(packages: &[&str]) -> bool {
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
        command.status().is_ok_and(|status| status.success())
    };
    let install: Vec<&str> = ["install", "--yes", "--no-install-recommends"].iter().chain(packages).copied().collect();
    if apt(&install) {
        return true;
    }
    eprintln!("kernel object: the lists of packages may be old or missing; fetching them with apt-get update");
    apt(&["update"]) && apt(&install)
}

/// A compiler that can build `core` for BPF.
enum Toolchain {
    /// rustup's nightly, with the component rust-src.
    Nightly,
    /// Debian's `rustc-web`, `cargo-web` and `rust-web-src`.
    Debian,
}

impl Toolchain {
    fn find() -> anyhow::Result<Self> {
        if Self::Nightly.is_complete() {
            return Ok(Self::Nightly);
        }
        if !Self::Debian.is_complete() {
            eprintln!(
                "kernel object: no nightly with rust-src (`rustup toolchain install nightly --component rust-src`); \
                 installing Debian's rustc-web, cargo-web, rust-web-src and llvm-22"
            );
            if !install(&DEBIAN_PACKAGES) || !Self::Debian.is_complete() {
                bail!(
                    "no compiler for the kernel object: install a nightly with `rustup toolchain install nightly \
                     --component rust-src`, or Debian's rustc-web, cargo-web and rust-web-src"
                );
            }
        }
        Ok(Self::Debian)
    }

    fn is_complete(&self) -> bool {
        let cargo = match self {
            Self::Nightly => true,
            Self::Debian => Path::new("/usr/bin/cargo").exists(),
        };
        cargo && self.sources().join("library/core/Cargo.toml").exists()
    }

    fn name(&self) -> String {
        self.ask("--version")
    }

    /// The directory of the sources of `core`, whether it exists or not.
    fn sources(&self) -> PathBuf {
        PathBuf::from(self.ask("--print=sysroot")).join("lib/rustlib/src/rust")
    }

    /// Output of the compiler for this option; empty if it does not run.
    fn ask(&self, question: &str) -> String {
        let mut rustc = match self {
            Self::Nightly => {
                let mut command = Command::new("rustup");
                command.args(["run", "nightly", "rustc"]);
                command
            }
            Self::Debian => Command::new("/usr/bin/rustc"),
        };
        let answer = rustc.arg(question).env_remove("RUSTUP_TOOLCHAIN").output();
        let answer = answer.ok().filter(|output| output.status.success()).map(|output| output.stdout);
        String::from_utf8_lossy(&answer.unwrap_or_default()).trim().to_owned()
    }

    fn cargo(&self) -> Command {
        let mut command;
        match self {
            Self::Nightly => {
                command = Command::new("rustup");
                command.args(["run", "nightly", "cargo"]).env_remove("RUSTC");
            }
            Self::Debian => {
                command = Command::new("/usr/bin/cargo");
                // Lets a release compiler accept nightly options.
                command.env("RUSTC", "/usr/bin/rustc").env("RUSTC_BOOTSTRAP", "1");
            }
        }
        // This process runs under a cargo that has set its own compiler.
        for variable in ["RUSTUP_TOOLCHAIN", "CARGO", "RUSTDOC", "RUSTC_WRAPPER"] {
            command.env_remove(variable);
        }
        command
    }

    /// The LLVM library that the linker must open; `None` for rustup's, which is where the linker looks by default.
    fn llvm(&self) -> anyhow::Result<Option<PathBuf>> {
        match self {
            Self::Nightly => Ok(None),
            Self::Debian => {
                let linked = Command::new("ldd").arg("/usr/bin/rustc").output().context("cannot run ldd")?;
                let linked = String::from_utf8_lossy(&linked.stdout);
                let path = linked.split_whitespace().find(|word| word.starts_with('/') && word.contains("libLLVM"));
                let path = path.context("/usr/bin/rustc is linked to no libLLVM")?;
                Ok(Some(fs::canonicalize(path)?))
            }
        }
    }
}

/// bpf-linker: the one on PATH if it has the right release, else one built under `target/tools`.
fn linker(workspace: &Path) -> anyhow::Result<PathBuf> {
    let own = workspace.join("target/tools");
    let built = own.join("bin/bpf-linker");
    for candidate in [PathBuf::from("bpf-linker"), built.clone()] {
        if is_right_linker(&candidate) {
            return Ok(candidate);
        }
    }
    eprintln!("kernel object: building bpf-linker {LINKER} under target/tools");
    let status = Command::new("cargo")
        .args(["install", "bpf-linker", "--version", LINKER, "--locked", "--root"])
        .arg(&own)
        .arg("--target-dir")
        .arg(own.join("build"))
        .status()
        .context("cannot run cargo install")?;
    ensure!(status.success() && is_right_linker(&built), "bpf-linker {LINKER} does not build");
    Ok(built)
}

fn is_right_linker(path: &Path) -> bool {
    Command::new(path)
        .arg("--version")
        .output()
        .is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(LINKER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_object_is_within_the_budget() {
        let bytes = fs::read(crate::host::workspace().join("smtpwatch-capture/bpf/smtpwatch.bpf.o")).expect("readable");
        budget(&bytes).expect("within the budget");
    }
}
