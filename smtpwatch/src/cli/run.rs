//! `smtpwatch run`.

use super::{Exit, RunArgs};
use crate::{config::Config, daemon};

pub(super) fn run(args: RunArgs) -> anyhow::Result<Exit> {
    let (mut config, path) = Config::load(args.config.config.as_deref())?;
    super::override_ports(&mut config, args.port);
    if !args.interface.is_empty() {
        config.interfaces = args.interface;
    }
    match path {
        Some(path) => tracing::info!(path = %path.display(), rules = config.rules.len(), "configuration read"),
        None => tracing::info!("no configuration file: the defaults hold"),
    }
    daemon::run(config, args.listen.0, args.web.load()?)?;
    Ok(Exit::Fine)
}
