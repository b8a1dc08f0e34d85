//! `smtpwatch run`.

use super::{Exit, RunArgs};

pub(super) fn run(args: RunArgs) -> anyhow::Result<Exit> {
    let _ = args;
    anyhow::bail!("not here")
}
