//! Access to this machine for the tasks: the workspace, cargo, and a few Debian packages.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// A program, and the Debian package that contains it.
pub type Tool = (&'static str, &'static str);

/// Tools for network namespaces and the attacker on the path.
pub const NETWORK: [Tool; 2] = [("ip", "iproute2"), ("nft", "nftables")];
/// Tools of all suites together; the mail servers are in roots of their own.
pub const TESTS: [Tool; 9] = [
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("tc", "iproute2"),
    ("bpftool", "bpftool"),
    ("gcc", "gcc"),
    ("setpriv", "util-linux"),
    ("unshare", "util-linux"),
    ("dh", "debhelper"),
    ("debootstrap", "debootstrap"),
];
/// An independent reader of SMTP in recordings. Without it a comparison is skipped.
pub const ORACLE: [Tool; 1] = [("tshark", "tshark")];

/// The browser that checks the pages. Without it they are not checked.
pub const BROWSER: [Tool; 1] = [("chromium", "chromium")];

/// Tools that build and run a container image, with the certificate authorities in it. Without them that test is
/// skipped.
pub const CONTAINER: [Tool; 4] =
    [("podman", "podman"), ("runc", "runc"), ("conmon", "conmon"), ("update-ca-certificates", "ca-certificates")];

/// The workspace's root directory.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// `cargo` of the toolchain that runs this task, in the workspace.
pub fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    command.args(arguments).current_dir(workspace());
    // Removes the variables that cargo sets for this package: a nested build that inspects them would rebuild
    // everything.
    let of_package = |name: &String| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for name in std::env::vars().map(|(name, _)| name).filter(of_package) {
        command.env_remove(name);
    }
    command
}

/// Path of the release binary `name`, from the package of the same name. Builds it if it is out of date.
pub fn dist_binary(name: &str) -> Result<PathBuf> {
    println!("building {name} (cargo build --profile dist)");
    binary(name, &["--profile", "dist"])
}

/// Path of the debug build of the binary `name`. Builds it if it is out of date.
pub fn dev_binary(name: &str) -> Result<PathBuf> {
    binary(name, &[])
}

fn binary(name: &str, profile: &[&str]) -> Result<PathBuf> {
    let mut arguments = vec!["build", "--quiet", "--package", name, "--message-format=json-render-diagnostics"];
    arguments.extend(profile);
    let out = cargo(&arguments).stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    ensure!(out.status.success(), "{name} does not build");
    executables(&out.stdout)
        .into_iter()
        .rfind(|path| path.file_name().is_some_and(|file| file == name))
        .with_context(|| format!("cargo names no executable {name}"))
}

/// The executables that cargo's JSON messages name. Each line is a message; only messages about programs name an
/// executable.
pub fn executables(messages: &[u8]) -> Vec<PathBuf> {
    let path = |line: &str| line.split_once("\"executable\":\"")?.1.split_once('"').map(|(path, _)| path.into());
    String::from_utf8_lossy(messages).lines().filter_map(path).collect()
}

/// Installs the packages of those `tools` that are missing, with a message.
pub fn ensure_tools(tools: &[Tool]) -> Result<()> {
    let mut packages: Vec<&str> =
        tools.iter().filter(|(program, _)| find(program).is_none()).map(|tool| tool.1).collect();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    println!("installing on this machine, because it is missing: {}", packages.join(" "));
    let install = || {
        let mut command = Command::new("apt-get");
        command.args(["install", "-y", "-q", "--no-install-recommends"]).args(&packages);
        quiet(command.env("DEBIAN_FRONTEND", "noninteractive"))
    };
    if install().is_ok() {
        return Ok(());
    }
    quiet(Command::new("apt-get").args(["update", "-q"]))?;
    install().with_context(|| format!("install {} by hand, as root", packages.join(" ")))
}

/// Path of `program`: in PATH, or in the sbin directories of Debian.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|directory| directory.join(program)).find(|file| file.is_file())
}

/// Runs `command`; its output is shown if it fails.
pub fn quiet(command: &mut Command) -> Result<()> {
    let out = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(out.status.success(), "{command:?} ended with {}: {}", out.status, String::from_utf8_lossy(&out.stderr));
    Ok(())
}
