//! Python programs of others, in their own environment below `target/lab`.

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

/// Packages that are installed together, each in one version.
struct Packages {
    directory: &'static str,
    names: [&'static str; 2],
    found: OnceLock<Result<PathBuf, String>>,
}

/// A parser of TLS reports, and a mail server that keeps what it gets.
static MAIL: Packages =
    Packages { directory: "python", names: ["parsedmarc==11.1.0", "aiosmtpd==1.4.6"], found: OnceLock::new() };
/// A validator of OpenAPI documents, and a tool that asks a server whatever its document allows, and what it does not.
static API: Packages = Packages {
    directory: "python-api",
    names: ["schemathesis==4.32.5", "openapi-spec-validator==0.9.0"],
    found: OnceLock::new(),
};

/// A driver of browsers, and a checker of what pages are to those who hear them.
static PAGES: Packages = Packages {
    directory: "python-pages",
    names: ["playwright==1.65.2", "axe-playwright-python==0.1.8"],
    found: OnceLock::new(),
};

/// Grafana's schema of dashboards, and a checker of types.
static GRAFANA: Packages = Packages {
    directory: "python-grafana",
    names: ["grafana-foundation-sdk==1769699998!10.1.0", "typeguard==4.6.1"],
    found: OnceLock::new(),
};

/// Go's engine of templates, and the schemas of Kubernetes.
static KUBERNETES: Packages = Packages {
    directory: "python-kubernetes",
    names: ["go-template==0.0.3", "kubernetes-validate==1.37.0"],
    found: OnceLock::new(),
};

/// The interpreter of an environment that has what TLS reports are tested with, installed if this has not been done yet.
///
/// # Errors
/// [`Skip`] with the reason when it cannot be had here.
pub fn interpreter() -> Result<&'static Path> {
    MAIL.interpreter()
}

/// The interpreter of an environment that has what the API is tested with, likewise.
///
/// # Errors
/// [`Skip`] with the reason when it cannot be had here.
pub fn api_interpreter() -> Result<&'static Path> {
    API.interpreter()
}

/// The interpreter of an environment that has what the pages are examined with, likewise.
///
/// # Errors
/// [`Skip`] with the reason when it cannot be had here.
pub fn pages_interpreter() -> Result<&'static Path> {
    PAGES.interpreter()
}

/// The interpreter of an environment that has what dashboards are checked with, likewise.
///
/// # Errors
/// [`Skip`] with the reason when it cannot be had here.
pub fn grafana_interpreter() -> Result<&'static Path> {
    GRAFANA.interpreter()
}

/// The interpreter of an environment that has what manifests are made and checked with, likewise.
///
/// # Errors
/// [`Skip`] with the reason when it cannot be had here.
pub fn kubernetes_interpreter() -> Result<&'static Path> {
    KUBERNETES.interpreter()
}

impl Packages {
    fn interpreter(&'static self) -> Result<&'static Path> {
        let found = self.found.get_or_init(|| install(self).map_err(|error| format!("{error:#}")));
        found
            .as_deref()
            .map_err(|reason| Skip(format!("no Python environment with {}: {reason}", self.names.join(" "))).into())
    }
}

fn install(packages: &Packages) -> Result<PathBuf> {
    let home = lab_directory().join(packages.directory);
    std::fs::create_dir_all(&home)?;
    let lock = File::create(home.join("lock"))?;
    // Another test process may be at it: anyone who is second finds it done.
    lock.lock()?;
    let (environment, stamp) = (home.join("environment"), home.join("stamp"));
    let python = environment.join("bin/python");
    let wanted = packages.names.join("\n");
    if std::fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) && python.exists() {
        return Ok(python);
    }
    eprintln!("lab: installing {} into {} (not into this machine)", packages.names.join(" "), home.display());
    let create = || run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&environment));
    if let Err(error) = create() {
        // Debian keeps the module that makes environments in its own package.
        ensure!(nix::unistd::geteuid().is_root(), "{error:#}: install python3-venv");
        eprintln!("lab: installing on this machine, because it is missing: python3-venv");
        let mut install = Command::new("apt-get");
        install.args(["install", "-y", "-q", "--no-install-recommends", "python3-venv"]);
        run(install.env("DEBIAN_FRONTEND", "noninteractive")).context("install python3-venv by hand")?;
        create()?;
    }
    let mut pip = Command::new(&python);
    run(pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(packages.names))?;
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
