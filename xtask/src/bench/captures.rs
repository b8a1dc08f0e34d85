//! The captures that are replayed: recorded once from real servers, and cached below `target/bench`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use crate::host::{self, Tool};

/// Tools for recording them, in addition to the lab's own roots.
const TOOLS: [Tool; 4] =
    [("ip", "iproute2"), ("tcpdump", "tcpdump"), ("ethtool", "ethtool"), ("setpriv", "util-linux")];

/// One capture and its contents.
#[derive(Clone, Debug)]
pub struct Capture {
    /// Description for the table.
    pub what: &'static str,
    /// Number of sessions.
    pub sessions: u64,
    /// The file.
    pub path: PathBuf,
}

impl Capture {
    /// Its size in bytes.
    pub fn octets(&self) -> u64 {
        fs::metadata(&self.path).map_or(0, |file| file.len())
    }
}

/// Returns all captures; records those that are missing.
pub fn all() -> Result<Vec<Capture>> {
    let directory = host::workspace().join("target/bench/captures");
    let captures = [
        ("short.pcap", "short sessions in cleartext (smtp-source, smtp-sink)", 40_000),
        ("bodies.pcap", "messages of 1 MB in cleartext (smtp-source, smtp-sink)", 150),
        ("bulk.pcap", "messages of 10 MB under STARTTLS (Postfix to Postfix)", 30),
    ]
    .map(|(name, what, sessions)| Capture { what, sessions, path: directory.join(name) });
    if !captures.iter().all(|capture| capture.path.exists()) {
        make(&directory)?;
    }
    Ok(captures.into())
}

fn make(directory: &Path) -> Result<()> {
    host::ensure_tools(&TOOLS)?;
    // Under another name until they are complete.
    let fresh = directory.with_extension("fresh");
    let _ = fs::remove_dir_all(&fresh);
    fs::create_dir_all(&fresh)?;
    let status = host::cargo(&["run", "--quiet", "--package", "smtpwatch-tests", "--bin", "bench-capture", "--"])
        .arg(&fresh)
        .status()
        .context("cannot start cargo")?;
    ensure!(status.success(), "the captures could not be made");
    let _ = fs::remove_dir_all(directory);
    fs::rename(&fresh, directory).with_context(|| format!("cannot put {} in its place", directory.display()))
}
