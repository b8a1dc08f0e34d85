//! `cargo xtask image`: the container image, from nothing but the program and what it is linked to.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{host, package::copy};

/// `cargo xtask image`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Of the build for tests: quick to make, slow to run
    #[arg(long)]
    dev: bool,
    /// Name and tag
    #[arg(long, value_name = "NAME", default_value = concat!("localhost/smtpwatch:", env!("CARGO_PKG_VERSION")))]
    name: String,
    /// Write it to a file too, to be loaded elsewhere (podman load, ctr images import)
    #[arg(long, value_name = "FILE")]
    archive: Option<PathBuf>,
}

/// Certificate authorities, for hosts of policies.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Builds the image, and says its name.
pub fn run(arguments: &Arguments) -> Result<()> {
    host::ensure_tools(&host::CONTAINER)?;
    let binary = if arguments.dev { host::dev_binary("smtpwatch")? } else { host::dist_binary("smtpwatch")? };
    let home = host::workspace().join("target/image");
    let root = home.join("root");
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("cannot remove {}", root.display()))?;
    }
    copy(&binary, &root.join("usr/bin/smtpwatch"))?;
    host::quiet(Command::new("strip").arg(root.join("usr/bin/smtpwatch")))?;
    for library in libraries(&binary)? {
        copy(&library, &root.join(library.strip_prefix("/").unwrap_or(&library)))?;
    }
    copy(Path::new(AUTHORITIES), &root.join(AUTHORITIES.trim_start_matches('/')))?;
    // Where volumes are mounted: a read-only root cannot be given them later.
    for directory in ["etc/smtpwatch", "var/lib/smtpwatch", "host/sys/fs/cgroup", "proc", "sys", "dev", "tmp"] {
        fs::create_dir_all(root.join(directory))?;
    }
    let file = host::workspace().join("deploy/container/Containerfile");
    let mut build = podman(&home);
    // Chroot: there is nothing to run while it is built.
    build.args(["build", "--isolation", "chroot", "--tag", &arguments.name, "--file"]).arg(file).arg(&home);
    host::quiet(&mut build)?;
    if let Some(archive) = &arguments.archive {
        let _ = fs::remove_file(archive);
        host::quiet(podman(&home).args(["save", "--output"]).arg(archive).arg(&arguments.name))?;
    }
    println!("{}", arguments.name);
    Ok(())
}

/// podman with its own storage, that works where there is neither overlayfs for it nor systemd.
fn podman(home: &Path) -> Command {
    let mut command = Command::new("podman");
    command.args(["--runtime", "runc", "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--root"]);
    command.arg(home.join("storage")).arg("--runroot").arg(home.join("run"));
    command
}

/// The libraries that a program is linked to, its loader among them, as ldd names them.
fn libraries(binary: &Path) -> Result<Vec<PathBuf>> {
    let out = Command::new("ldd").arg(binary).output().context("cannot start ldd")?;
    ensure!(out.status.success(), "ldd: {}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let path = |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from);
    Ok(text.lines().filter_map(path).collect())
}
