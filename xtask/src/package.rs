//! `cargo xtask package`: builds the Debian package with debhelper.
//!
//! The installed files are laid out below `target/package/…/root` as on the target; `deploy/debian` contains the rest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::host;

/// `cargo xtask package`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Use the test build: quick to make, slow to run
    #[arg(long)]
    dev: bool,
    /// Version of the package [default: that of the program]
    #[arg(long, value_name = "VERSION", default_value = env!("CARGO_PKG_VERSION"))]
    version: String,
    /// Check it with lintian
    #[arg(long)]
    lintian: bool,
}

/// Tools that build a package.
pub const TOOLS: [host::Tool; 2] = [("dh", "debhelper"), ("dpkg-buildpackage", "dpkg-dev")];

/// Directories of manual pages and completions, with the shell.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions/smtpwatch"),
    ("zsh", "usr/share/zsh/vendor-completions/_smtpwatch"),
    ("fish", "usr/share/fish/vendor_completions.d/smtpwatch.fish"),
];

/// Builds the package and prints its path.
pub fn run(arguments: &Arguments) -> Result<()> {
    host::ensure_tools(&TOOLS)?;
    let binary = if arguments.dev { host::dev_binary("smtpwatch")? } else { host::dist_binary("smtpwatch")? };
    let home = host::workspace().join("target/package");
    let stage = home.join(format!("smtpwatch-{}", arguments.version));
    if stage.exists() {
        fs::remove_dir_all(&stage).with_context(|| format!("cannot remove {}", stage.display()))?;
    }
    lay_out(&stage.join("root"), &binary)?;
    debian(&stage.join("debian"), &arguments.version)?;
    let mut build = Command::new("dpkg-buildpackage");
    // Symbols of a stripped build would be a package of their own, useless without the sources of that build.
    build.env("DEB_BUILD_OPTIONS", "noautodbgsym");
    if arguments.dev {
        // Compression would take longer than everything else.
        build.env("DPKG_DEB_COMPRESSOR_TYPE", "none");
    }
    build.args(["-us", "-uc", "-b", "-d"]).current_dir(&stage);
    host::quiet(&mut build)?;
    let package = newest(&home, &format!("smtpwatch_{}_", arguments.version))?;
    if arguments.lintian {
        host::ensure_tools(&[("lintian", "lintian")])?;
        let mut look = Command::new("lintian");
        host::quiet(look.args(["--fail-on", "error,warning", "--allow-root"]).arg(&package))?;
        println!("lintian: neither errors nor warnings");
    }
    println!("{}", package.display());
    Ok(())
}

/// Lays out the installed files as on the target.
fn lay_out(root: &Path, binary: &Path) -> Result<()> {
    let workspace = host::workspace();
    copy(binary, &root.join("usr/bin/smtpwatch"))?;
    copy(&workspace.join("deploy/config/smtpwatch.toml"), &root.join("etc/smtpwatch/smtpwatch.toml"))?;
    for part in ["prometheus", "grafana"] {
        copy_tree(&workspace.join("deploy").join(part), &root.join("usr/share/smtpwatch").join(part))?;
    }
    let documents = root.join("usr/share/doc/smtpwatch");
    copy_tree(&workspace.join("docs"), &documents)?;
    copy(&workspace.join("README.md"), &documents.join("README.md"))?;
    // Next to the changelog of the package, which refers to it.
    copy(&workspace.join("CHANGELOG.md"), &documents.join("changes.md"))?;
    let generate = |arguments: &[&str]| -> Result<Vec<u8>> {
        let out = Command::new(binary).arg("generate").args(arguments).output().context("cannot start smtpwatch")?;
        ensure!(out.status.success(), "smtpwatch generate {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
        Ok(out.stdout)
    };
    for (shell, path) in COMPLETIONS {
        write(&root.join(path), &generate(&["completions", shell])?)?;
    }
    let manuals = root.join("usr/share/man/man8");
    fs::create_dir_all(&manuals)?;
    generate(&["man", "--directory", manuals.to_str().context("a path in UTF-8")?]).map(drop)
}

/// Creates the directory `debian`.
fn debian(directory: &Path, version: &str) -> Result<()> {
    let deploy = host::workspace().join("deploy");
    copy_tree(&deploy.join("debian"), directory)?;
    for (file, name) in [("smtpwatch.service", "smtpwatch.service"), ("smtpwatch.sysusers", "smtpwatch.sysusers")] {
        copy(&deploy.join("systemd").join(file), &directory.join(name))?;
    }
    let control = fs::read_to_string(directory.join("control"))?;
    let maintainer = control.lines().find_map(|line| line.strip_prefix("Maintainer: ")).context("a maintainer")?;
    // The date is that of the sources, so that the same sources make the same package.
    let mut log = Command::new("git");
    let time =
        log.args(["log", "-1", "--format=%cD"]).current_dir(host::workspace()).output().context("cannot start git")?;
    let time = String::from_utf8_lossy(&time.stdout).trim().to_owned();
    let time = if time.is_empty() { "Thu, 01 Jan 1970 00:00:00 +0000".to_owned() } else { time };
    let changes = format!(
        "smtpwatch ({version}) unstable; urgency=medium\n\n  * What has changed: /usr/share/doc/smtpwatch/changes.md\n\n \
         -- {maintainer}  {time}\n"
    );
    write(&directory.join("changelog"), changes.as_bytes())
}

fn newest(directory: &Path, prefix: &str) -> Result<PathBuf> {
    let files = fs::read_dir(directory)?.filter_map(|entry| Some(entry.ok()?.path()));
    let named = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(prefix) && name.ends_with(".deb")
    };
    files
        .filter(named)
        .max_by_key(|path| path.metadata().and_then(|file| file.modified()).ok())
        .context("no package was built")
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("cannot list {}", from.display()))? {
        let path = entry?.path();
        let target = to.join(path.file_name().context("a name")?);
        if path.is_dir() { copy_tree(&path, &target)? } else { copy(&path, &target)? }
    }
    Ok(())
}

/// Copies a file, and creates its target directory.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    make_parent(to)?;
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display())).map(drop)
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    make_parent(path)?;
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}

fn make_parent(path: &Path) -> Result<()> {
    let parent = path.parent().context("a directory")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))
}
