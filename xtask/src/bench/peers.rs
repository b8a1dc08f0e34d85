//! The alternative programs that the benchmarks compare with, if they are installed.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result};

use crate::host::{self, Tool};

/// Packages of this machine's Debian release.
const PEERS: [Tool; 5] = [
    ("tcpdump", "tcpdump"),
    ("ndpiReader", "libndpi-bin"),
    ("tshark", "tshark"),
    ("tcpreplay", "tcpreplay"),
    ("ethtool", "ethtool"),
];

/// Installs all of them. Debian 12 has Suricata only in its backports: they are read from a separate source list, and
/// the machine's own lists are not changed.
pub fn install() -> Result<()> {
    host::ensure_tools(&PEERS)?;
    if host::find("suricata").is_some() {
        return Ok(());
    }
    println!("installing on this machine, because it is missing: suricata (from bookworm-backports)");
    let home = host::workspace().join("target/bench/apt");
    let lists = home.join("lists");
    fs::create_dir_all(home.join("parts"))?;
    fs::create_dir_all(lists.join("partial"))?;
    let mirror = mirror()?;
    let line =
        |suite: &str| format!("deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {mirror} {suite} main\n");
    fs::write(home.join("parts/debian.list"), line("bookworm") + &line("bookworm-backports"))?;
    apt(&home, &["update", "-q"])?;
    apt(&home, &["install", "-y", "-q", "--no-install-recommends", "suricata/bookworm-backports"])
}

/// The mirror from which the machine gets its Debian 12 packages.
fn mirror() -> Result<String> {
    let arguments = ["indextargets", "--format", "$(CODENAME) $(REPO_URI)", "Created-By: Packages"];
    let out = Command::new("apt-get").args(arguments).output().context("cannot start apt-get")?;
    let targets = String::from_utf8_lossy(&out.stdout);
    let mirror = targets.lines().find_map(|line| line.strip_prefix("bookworm "));
    Ok(mirror.context("this is no Debian 12, or it has no package lists (apt-get update)")?.to_owned())
}

fn apt(home: &Path, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command
        .args(["-o", "Dir::Etc::sourcelist=/dev/null", "-o"])
        .arg(format!("Dir::Etc::sourceparts={}", home.join("parts").display()))
        .arg("-o")
        .arg(format!("Dir::State::lists={}", home.join("lists").display()))
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive");
    host::quiet(&mut command).context("Suricata cannot be installed")
}

/// The version that `program` reports; `None` if it is not installed.
pub fn version(program: &str) -> Option<String> {
    let (argument, word) = match program {
        "suricata" => ("-V", "version "),
        "ndpiReader" => ("-h", "nDPI "),
        _ => ("--version", "version "),
    };
    let out = Command::new(host::find(program)?).arg(argument).output().ok()?;
    let text = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
    let line = text.lines().find(|line| line.contains(word) || line.to_lowercase().contains(program))?;
    let number = line.split_whitespace().find(|word| word.starts_with(|letter: char| letter.is_ascii_digit()))?;
    Some(format!("{program} {}", number.trim_end_matches(['.', ','])))
}
