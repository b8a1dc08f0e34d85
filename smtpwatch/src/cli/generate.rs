//! `smtpwatch generate`: prints documents that are generated from the program, such as rules, schema and manual pages.

use std::{io::Write, path::Path};

use anyhow::Context as _;
use clap::{Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;
use smtpwatch_config::reference;
use smtpwatch_core::judge::catalogue;
use smtpwatch_render::text;
use smtpwatch_web::api;

use super::{Cli, ConfigFormat, Exit, RulesArgs, RulesFormat};
use crate::output::metrics;

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

pub(super) fn metrics() -> anyhow::Result<Exit> {
    let page = metrics::page::page()?;
    super::out(|out| out.write_all(page.as_bytes()))?;
    Ok(Exit::Fine)
}

pub(super) fn config(format: ConfigFormat) -> anyhow::Result<Exit> {
    let text = match format {
        ConfigFormat::Toml => reference::file(),
        ConfigFormat::Markdown => reference::page(),
    };
    super::out(|out| out.write_all(text.as_bytes()))?;
    Ok(Exit::Fine)
}

pub(super) fn completions(shell: Shell) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "smtpwatch", &mut script);
    super::out(|out| out.write_all(&script))?;
    Ok(Exit::Fine)
}

/// Writes the manual pages. All are in section 8, for commands of the administrator.
pub(super) fn man(directory: Option<&Path>) -> anyhow::Result<Exit> {
    let mut program = Cli::command().disable_help_subcommand(true);
    program.build();
    match directory {
        None => {
            let mut page = Vec::new();
            man_page(program).render(&mut page)?;
            super::out(|out| out.write_all(&page))?;
        }
        Some(directory) => pages(&program, "smtpwatch", directory)?,
    }
    Ok(Exit::Fine)
}

/// Writes one page for each verb and its sub-verbs: `smtpwatch.8`, `smtpwatch-run.8`, …
fn pages(command: &Command, name: &str, directory: &Path) -> anyhow::Result<()> {
    let path = directory.join(format!("{name}.8"));
    let mut page = Vec::new();
    // clap requires a `'static` name.
    man_page(command.clone().name(name.to_owned().leak() as &str)).render(&mut page)?;
    std::fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
    command.get_subcommands().try_for_each(|verb| pages(verb, &format!("{name}-{}", verb.get_name()), directory))
}

fn man_page(command: Command) -> Man {
    Man::new(command).section("8").manual("smtpwatch")
}
