//! `cargo xtask manifests`: generates the Kubernetes manifests from the chart.

use std::process::Command;
use std::time::Duration;

use smtpwatch_tests::{command, kubernetes, python};

fn main() -> anyhow::Result<()> {
    let mut make = Command::new(python::kubernetes_interpreter()?);
    print!("{}", command::run(make.args(kubernetes::manifests("write")), Duration::from_secs(120))?);
    Ok(())
}
