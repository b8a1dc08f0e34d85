//! Third-party Python programs, each set in a virtual environment below `target/lab`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::root::lab_directory;
use crate::{Skip, command};

/// Time limit for downloading and unpacking all packages of a set.
const INSTALL_LIMIT: Duration = Duration::from_secs(400);

/// A set of packages that are installed together, each with a pinned version.
struct Packages {
    directory: &'static str,
    names: [&'static str; 2],
    found: OnceLock<Result<PathBuf, String>>,
}

/// A parser of TLS reports, and a mail server that stores what it receives.
static MAIL: Packages =
    Packages { directory: "python", names: ["parsedmarc==11.1.0", "aiosmtpd==1.4.6"], found: OnceLock::new() };
/// A validator of OpenAPI documents, and a tool that tests a server with requests that its document allows and requests
/// that it does not.
static API: Packages = Packages {
    directory: "python-api",
    names: ["schemathesis==4.32.5", "openapi-spec-validator==0.9.0"],
    found: OnceLock::new(),
};

/// A browser driver and an accessibility checker.
static PAGES: Packages = Packages {
    directory: "python-pages",
    names: ["playwright==1.65.2", "axe-playwright-python==0.1.8"],
    found: OnceLock::new(),
};

/// Grafana's schema of dashboards, and a type checker.
static GRAFANA: Packages = Packages {
    directory: "python-grafana",
    names: ["grafana-foundation-sdk==1769699998!10.1.0", "typeguard==4.6.1"],
    found: OnceLock::new(),
};

/// Go's template engine and the schemas of Kubernetes.
static KUBERNETES: Packages = Packages {
    directory: "python-kubernetes",
    names: ["go-template==0.0.3", "kubernetes-validate==1.37.0"],
    found: OnceLock::new(),
};

/// The interpreter of the environment for TLS reports; it is installed on first use.
///
/// # Errors
/// [`Skip`] with the reason when it cannot be had here.
pub fn interpreter() -> Result<&'static Path> {
    MAIL.interpreter()
}

/// The interpreter of the environment for API tests; it is installed on first use.
///
/// # Errors
/// [`Skip`] with the reason when it cannot be had here.
pub fn api_interpreter() -> Result<&'static Path> {
    API.interpreter()
}

/// The interpreter of the environment for page tests; it is installed on first use.
///
/// # Errors
/// [`Skip`] with the reason when it cannot be had here.
pub fn pages_interpreter() -> Result<&'static Path> {
    PAGES.interpreter()
}

/// The interpreter of the environment for dashboard checks; it is installed on first use.
///
/// # Errors
/// [`Skip`] with the reason when it cannot be had here.
pub fn grafana_interpreter() -> Result<&'static Path> {
    GRAFANA.interpreter()
}

/// The interpreter of the environment that generates and checks manifests; it is installed on first use.
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
    // Another test process may be installing it: the second one waits and finds it installed.
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
        // Debian has the module `venv` in a package of its own.
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
