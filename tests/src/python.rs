//! Python programs of others, in an environment of their own below `target/lab`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::root::lab_directory;
use crate::{Skip, command};

/// Fetching and unpacking every package.
const INSTALL_LIMIT: Duration = Duration::from_secs(400);

/// What is installed, each in one version: a parser of TLS reports, and a mail server that keeps what it gets.
const PACKAGES: [&str; 2] = ["parsedmarc==11.1.0", "aiosmtpd==1.4.6"];

/// The interpreter of an environment that has [`PACKAGES`], installed if this has not been done yet.
///
/// # Errors
/// [`Skip`] with the reason when it cannot be had here.
pub fn interpreter() -> Result<&'static Path> {
    static PYTHON: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let found = PYTHON.get_or_init(|| install().map_err(|error| format!("{error:#}")));
    found
        .as_deref()
        .map_err(|reason| Skip(format!("no Python environment with {}: {reason}", PACKAGES.join(" "))).into())
}

fn install() -> Result<PathBuf> {
    let home = lab_directory().join("python");
    std::fs::create_dir_all(&home)?;
    let lock = File::create(home.join("lock"))?;
    // Another test process may be at it: whoever is second finds it done.
    lock.lock()?;
    let (environment, stamp) = (home.join("environment"), home.join("stamp"));
    let python = environment.join("bin/python");
    let wanted = PACKAGES.join("\n");
    if std::fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) && python.exists() {
        return Ok(python);
    }
    eprintln!("lab: installing {} into {} (not into this machine)", PACKAGES.join(" "), home.display());
    let create = || run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&environment));
    if let Err(error) = create() {
        // Debian keeps the module that makes environments in a package of its own.
        ensure!(nix::unistd::geteuid().is_root(), "{error:#}: install python3-venv");
        eprintln!("lab: installing on this machine, because it is missing: python3-venv");
        let mut install = Command::new("apt-get");
        install.args(["install", "-y", "-q", "--no-install-recommends", "python3-venv"]);
        run(install.env("DEBIAN_FRONTEND", "noninteractive")).context("install python3-venv by hand")?;
        create()?;
    }
    let mut pip = Command::new(&python);
    run(pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(PACKAGES))?;
    std::fs::write(stamp, wanted)?;
    Ok(python)
}

fn run(command: &mut Command) -> Result<()> {
    let out = command::output(command, INSTALL_LIMIT)?;
    let lines: Vec<_> = out.stderr.lines().collect();
    let tail = lines[lines.len().saturating_sub(5)..].join(" | ");
    ensure!(out.status.success(), "{command:?} ended with {}: {tail}", out.status);
    Ok(())
}
