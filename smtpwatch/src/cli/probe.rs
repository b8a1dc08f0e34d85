//! `smtpwatch probe`.

use super::{Exit, ProbeArgs};

pub(super) fn run(args: &ProbeArgs) -> anyhow::Result<Exit> {
    let _ = args;
    anyhow::bail!("not here")
}
