//! `cargo xtask demo`: three network namespaces of the lab, the real daemon, one attack, and the alert.

use anyhow::{Context, Result, ensure};

use crate::host;

/// Builds the programs of the demonstration and runs it.
pub fn run() -> Result<()> {
    host::ensure_tools(&host::NETWORK)?;
    let mut command = host::cargo(&["run", "--quiet", "--package", "smtpwatch-tests", "--bin", "demo"]);
    let status = command.status().context("cannot start cargo")?;
    ensure!(status.success(), "the demonstration failed: no alert came");
    Ok(())
}
