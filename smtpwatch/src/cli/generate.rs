//! `smtpwatch generate`.

use std::io::Write;

use smtpwatch_core::judge::catalogue;

use super::{Exit, RulesArgs, RulesFormat};
use crate::output::{api, text};

pub(super) fn rules(args: &RulesArgs) -> anyhow::Result<Exit> {
    super::out(|out| match args.format {
        RulesFormat::Markdown => out.write_all(catalogue::markdown().as_bytes()),
        RulesFormat::Json => catalogue::ROWS.iter().try_for_each(|row| out.write_all(text::json_line(row).as_bytes())),
    })?;
    Ok(Exit::Fine)
}

pub(super) fn schema() -> anyhow::Result<Exit> {
    let schema = serde_json::to_string_pretty(&api::schema::finding())?;
    super::out(|out| writeln!(out, "{schema}"))?;
    Ok(Exit::Fine)
}
