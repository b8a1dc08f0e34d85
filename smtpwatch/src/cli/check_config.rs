//! `smtpwatch check-config`.

use std::io::Write;

use super::{CheckConfigArgs, Exit};
use crate::config::{Config, DEFAULT_PATH};

pub(super) fn run(args: &CheckConfigArgs) -> anyhow::Result<Exit> {
    let (config, path) = Config::load(args.config.config.as_deref())?;
    let web = args.web.load()?;
    let (name, rules) = (path.as_deref(), config.rules.len());
    let rules = if rules == 1 { "1 rule".to_owned() } else { format!("{rules} rules") };
    let line = match name {
        Some(path) => format!("{}: good, {rules}", path.display()),
        None => format!("no configuration file ({DEFAULT_PATH} does not exist): the defaults hold"),
    };
    super::out(|out| {
        writeln!(out, "{line}\nsha256 {} (findings name it as config_sha256)", config.hash())?;
        web.iter().try_for_each(|web| writeln!(out, "{}: good", web.path().display()))
    })?;
    Ok(Exit::Fine)
}
