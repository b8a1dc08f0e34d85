//! `cargo xtask demo`: the lab on three network namespaces, the real daemon, one attack, and the alert.

use anyhow::{Context, Result, ensure};

use crate::host;

/// Builds what the demonstration needs and runs it.
pub fn run() -> Result<()> {
    host::ensure_tools(&host::NETWORK)?;
    let mut command = host::cargo(&["run", "--quiet", "--package", "smtpwatch-tests", "--bin", "demo"]);
    let status = command.status().context("cannot start cargo")?;
    ensure!(status.success(), "the demonstration failed: no alert came");
    Ok(())
}
