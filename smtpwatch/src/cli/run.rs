//! `smtpwatch run`: reads the configuration and runs the daemon.

use super::{Exit, RunArgs};
use crate::daemon::{self, Start};

pub(super) fn run(args: RunArgs) -> anyhow::Result<Exit> {
    let source = args.source.source();
    let (config, path) = source.load()?;
    match &path {
        Some(path) => tracing::info!(path = %path.display(), rules = config.rules.len(), "configuration read"),
        None => tracing::info!("no configuration file: using the defaults"),
    }
    daemon::run(Start { config, source, listen: args.listen.0, web: args.web.load()? })?;
    Ok(Exit::Fine)
}
