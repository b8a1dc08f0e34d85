//! `smtpwatch check-config`: checks the configuration files, and prints the values in force.

use std::{io::Write, path::Path};

use clap::{ArgMatches, parser::ValueSource};
use smtpwatch_config::{ConfigError, ConfigSource, DEFAULT_PATH, Effective, Origin, drop_in, effective, read_file};
use smtpwatch_core::policy::rule::RuleState;
use smtpwatch_system::clock::now;

use super::{CheckConfigArgs, Exit};

pub(super) fn run(args: CheckConfigArgs, matches: &ArgMatches) -> anyhow::Result<Exit> {
    let source = args.source.source();
    let (config, path) = source.load()?;
    let web = args.web.load()?;
    if args.effective {
        let text = path.as_deref().map(read_file).transpose()?.unwrap_or_default();
        let shown = path.as_deref().unwrap_or(Path::new(DEFAULT_PATH));
        let matches = matches.subcommand_matches("check-config").unwrap_or(matches);
        let files = drop_in::files(shown)?.into_iter();
        let drop_ins: Result<Vec<_>, ConfigError> = files.map(|file| Ok((file.clone(), read_file(&file)?))).collect();
        let all = effective(&text, shown, &drop_ins?, &given(&source, matches))?;
        super::out(|out| write(out, path.as_deref(), &all))?;
        return Ok(Exit::Fine);
    }
    let (name, rules) = (path.as_deref(), config.rules.len());
    let rules = if rules == 1 { "1 rule".to_owned() } else { format!("{rules} rules") };
    let line = match name {
        Some(path) => format!("{}: good, {rules}", path.display()),
        None => format!("no configuration file ({DEFAULT_PATH} does not exist): the defaults hold"),
    };
    super::out(|out| {
        writeln!(out, "{line}\nsha256 {} (findings name it as config_sha256)", config.hash())?;
        let at = now();
        for (number, (rule, place)) in (1..).zip(config.rules.iter().zip(&config.places)) {
            let Some(until) = rule.until else { continue };
            let ends = match rule.state(at) {
                RuleState::Active | RuleState::Expiring => "ends",
                RuleState::Expired => "ended",
            };
            let reason = if rule.reason.is_empty() { String::new() } else { format!(": {}", rule.reason) };
            writeln!(out, "rule {number} ({place}) {ends} {until}{reason}")?;
        }
        web.iter().try_for_each(|web| writeln!(out, "{}: good", web.path().display()))
    })?;
    Ok(Exit::Fine)
}

/// The values that the command line or the environment overrides.
fn given(source: &ConfigSource, matches: &ArgMatches) -> Vec<(&'static str, String, Origin)> {
    let origin = |id: &str, flag, variable| match matches.value_source(id) {
        Some(ValueSource::EnvVariable) => Origin::Variable(variable),
        _ => Origin::Flag(flag),
    };
    let mut given = Vec::new();
    if !source.interfaces.is_empty() {
        let names: Vec<_> = source.interfaces.iter().map(|name| format!("{name:?}")).collect();
        let origin = origin("interface", "--interface", "SMTPWATCH_INTERFACE");
        given.push(("interfaces", format!("[{}]", names.join(", ")), origin));
    }
    if !source.ports.is_empty() {
        given.push(("ports", format!("{:?}", source.ports), origin("port", "--port", "SMTPWATCH_PORT")));
    }
    if let Some(format) = source.format {
        given.push((
            "journal.format",
            format!("{:?}", format.as_str()),
            origin("format", "--format", "SMTPWATCH_FORMAT"),
        ));
    }
    given
}

/// Writes the values as a complete configuration file, with the source of each as a comment.
fn write(out: &mut impl Write, path: Option<&Path>, all: &[Effective]) -> std::io::Result<()> {
    match path {
        Some(path) => writeln!(out, "# {}", path.display())?,
        None => writeln!(out, "# no configuration file: {DEFAULT_PATH} does not exist")?,
    }
    let mut before = ("", 0);
    for value in all {
        let place = (value.table, value.rule);
        if place != before {
            let heading = if value.rule > 0 { format!("[[{}]]", value.table) } else { format!("[{}]", value.table) };
            writeln!(out, "\n{heading}")?;
        }
        writeln!(out, "{value}")?;
        before = place;
    }
    Ok(())
}
