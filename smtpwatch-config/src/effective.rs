//! Every value in force and its source.

use std::{fmt, ops::Range, path::Path};

use toml::de::{DeTable, DeValue};

use super::{
    ConfigError,
    reference::{KEYS, RULE},
};

/// Where a value comes from, the strongest first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// A flag of the command line.
    Flag(&'static str),
    /// A variable of the environment.
    Variable(&'static str),
    /// A line of the file.
    Line(usize),
    /// No one has said anything.
    Default,
}

/// One value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Effective {
    /// Its table; empty: outside of tables.
    pub table: &'static str,
    /// Which of the rules it is of, from 1; 0: of none.
    pub rule: usize,
    /// Its key.
    pub key: &'static str,
    /// As it is written in a file.
    pub value: String,
    /// Where it comes from.
    pub origin: Origin,
}

impl fmt::Display for Effective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let assignment = format!("{} = {}", self.key, self.value);
        match &self.origin {
            Origin::Flag(flag) => write!(f, "{assignment:<50} # {flag}"),
            Origin::Variable(variable) => write!(f, "{assignment:<50} # {variable}"),
            Origin::Line(line) => write!(f, "{assignment:<50} # line {line}"),
            Origin::Default => write!(f, "{assignment:<50} # default"),
        }
    }
}

/// What is in force with the text of the file, `path` being its name in errors, and with what was `given` in its place: key,
/// value, and origin. Rules come last.
///
/// # Errors
///
/// The text is not TOML.
pub fn effective(
    text: &str,
    path: &Path,
    given: &[(&'static str, String, Origin)],
) -> Result<Vec<Effective>, ConfigError> {
    let root = DeTable::parse(text).map_err(|error| ConfigError::invalid(path, text, &error))?;
    let root = root.get_ref();
    let said = |table: &DeTable<'_>, key: &str| {
        let (_, value) = table.iter().find(|(name, _)| name.get_ref() == key)?;
        Some((text.get(value.span()).map(written)?, Origin::Line(line(text, &value.span()))))
    };
    let mut all = Vec::new();
    for key in KEYS.iter().filter(|key| key.table != RULE) {
        let in_file = match root.get(key.table).map(|table| table.get_ref()) {
            _ if key.table.is_empty() => said(root, key.name),
            Some(DeValue::Table(table)) => said(table, key.name),
            _ => None,
        };
        let full = if key.table.is_empty() { key.name.to_owned() } else { format!("{}.{}", key.table, key.name) };
        let over =
            given.iter().find(|(name, ..)| *name == full).map(|(_, value, origin)| (value.clone(), origin.clone()));
        let default = key.default.map(|default| (default.to_owned(), Origin::Default));
        if let Some((value, origin)) = over.or(in_file).or(default) {
            all.push(Effective { table: key.table, rule: 0, key: key.name, value, origin });
        }
    }
    if let Some(DeValue::Array(rules)) = root.get(RULE).map(|rules| rules.get_ref()) {
        for (place, rule) in rules.iter().enumerate() {
            let DeValue::Table(rule) = rule.get_ref() else { continue };
            for key in KEYS.iter().filter(|key| key.table == RULE) {
                if let Some((value, origin)) = said(rule, key.name) {
                    all.push(Effective { table: RULE, rule: place + 1, key: key.name, value, origin });
                }
            }
        }
    }
    Ok(all)
}

/// The line that a span begins in, from 1.
fn line(text: &str, span: &Range<usize>) -> usize {
    1 + text.get(..span.start).unwrap_or_default().matches('\n').count()
}

/// A value in one line.
fn written(value: &str) -> String {
    value.lines().map(|line| line.split('#').next().unwrap_or_default().trim()).collect::<Vec<_>>().join(" ")
}
