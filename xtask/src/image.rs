//! `cargo xtask image`: builds the container image, which contains only the program and its libraries.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{host, package::copy};

/// `cargo xtask image`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Use the test build: quick to make, slow to run
    #[arg(long)]
    dev: bool,
    /// Name and tag
    #[arg(long, value_name = "NAME", default_value = concat!("localhost/smtpwatch:", env!("CARGO_PKG_VERSION")))]
    name: String,
    /// Also write it to a file that can be loaded elsewhere (podman load, ctr images import)
    #[arg(long, value_name = "FILE")]
    archive: Option<PathBuf>,
}

/// Certificate authorities, for the hosts of MTA-STS policies.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Builds the image and prints its name.
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
    // Mount points of volumes: in a read-only root they cannot be created later.
    for directory in ["etc/smtpwatch", "var/lib/smtpwatch", "host/sys/fs/cgroup", "proc", "sys", "dev", "tmp"] {
        fs::create_dir_all(root.join(directory))?;
    }
    let file = host::workspace().join("deploy/container/Containerfile");
    let mut build = podman(&home);
    // Isolation by chroot is sufficient: nothing runs while it is built.
    build.args(["build", "--isolation", "chroot", "--tag", &arguments.name, "--file"]).arg(file).arg(&home);
    host::quiet(&mut build)?;
    if let Some(archive) = &arguments.archive {
        let _ = fs::remove_file(archive);
        host::quiet(podman(&home).args(["save", "--output"]).arg(archive).arg(&arguments.name))?;
    }
    println!("{}", arguments.name);
    Ok(())
}

/// podman with its own storage, set up to work without overlayfs and systemd.
fn podman(home: &Path) -> Command {
    let mut command = Command::new("podman");
    command.args(["--runtime", "runc", "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--root"]);
    command.arg(home.join("storage")).arg("--runroot").arg(home.join("run"));
    command
}

/// The libraries that a program is linked to, including its loader, as ldd lists them.
fn libraries(binary: &Path) -> Result<Vec<PathBuf>> {
    let out = Command::new("ldd").arg(binary).output().context("cannot start ldd")?;
    ensure!(out.status.success(), "ldd: {}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let path = |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from);
    Ok(text.lines().filter_map(path).collect())
}
