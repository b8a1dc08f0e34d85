//! Every value in force and its source. `smtpwatch check-config --effective` prints the list that [`effective()`]
//! returns.

use std::{
    fmt,
    ops::Range,
    path::{Path, PathBuf},
};

use toml::de::{DeTable, DeValue};

use super::{
    ConfigError,
    reference::{KEYS, RULE},
};

/// The source of a value, in order of precedence.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// A command line flag.
    Flag(&'static str),
    /// An environment variable.
    Variable(&'static str),
    /// A line of the file, starting at 1.
    Line(usize),
    /// A line of a drop-in file, starting at 1.
    DropIn(PathBuf, usize),
    /// The default.
    Default,
}

/// One value in force.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Effective {
    /// The table of the key; empty for top-level keys.
    pub table: &'static str,
    /// The number of the rule that the value belongs to, starting at 1; 0 outside of rules.
    pub rule: usize,
    /// The key of the value.
    pub key: &'static str,
    /// The value in TOML syntax.
    pub value: String,
    /// The source of the value.
    pub origin: Origin,
}

impl fmt::Display for Effective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let assignment = format!("{} = {}", self.key, self.value);
        match &self.origin {
            Origin::Flag(flag) => write!(f, "{assignment:<50} # {flag}"),
            Origin::Variable(variable) => write!(f, "{assignment:<50} # {variable}"),
            Origin::Line(line) => write!(f, "{assignment:<50} # line {line}"),
            Origin::DropIn(file, line) => write!(f, "{assignment:<50} # {} line {line}", file.display()),
            Origin::Default => write!(f, "{assignment:<50} # default"),
        }
    }
}

/// All values in force for the text of a file; `path` is its name in errors. `drop_ins` are the paths and texts of the
/// drop-in files, in order; `given` are overrides: key, value, and origin. Rules come last, in order of precedence.
///
/// # Errors
///
/// A text is not TOML.
pub fn effective(
    text: &str,
    path: &Path,
    drop_ins: &[(PathBuf, String)],
    given: &[(&'static str, String, Origin)],
) -> Result<Vec<Effective>, ConfigError> {
    let root = DeTable::parse(text).map_err(|error| ConfigError::invalid(path, text, &error))?;
    let root = root.get_ref();
    let configured =
        |table: &DeTable<'_>, key: &str| configured(text, table, key).map(|(value, line)| (value, Origin::Line(line)));
    let mut all = Vec::new();
    for key in KEYS.iter().filter(|key| key.table != RULE) {
        let in_file = match root.get(key.table).map(|table| table.get_ref()) {
            _ if key.table.is_empty() => configured(root, key.name),
            Some(DeValue::Table(table)) => configured(table, key.name),
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
    let mut number = 0;
    for (file, text) in drop_ins {
        let root = DeTable::parse(text).map_err(|error| ConfigError::invalid(file, text, &error))?;
        rules(text, root.get_ref(), &mut number, |line| Origin::DropIn(file.clone(), line), &mut all);
    }
    rules(text, root, &mut number, Origin::Line, &mut all);
    Ok(all)
}

/// Appends the values of the rules of one file; `number` counts the rules of all files.
fn rules(
    text: &str,
    root: &DeTable<'_>,
    number: &mut usize,
    origin: impl Fn(usize) -> Origin,
    all: &mut Vec<Effective>,
) {
    let Some(DeValue::Array(rules)) = root.get(RULE).map(|rules| rules.get_ref()) else { return };
    for rule in rules.iter() {
        let DeValue::Table(rule) = rule.get_ref() else { continue };
        *number += 1;
        for key in KEYS.iter().filter(|key| key.table == RULE) {
            if let Some((value, line)) = configured(text, rule, key.name) {
                all.push(Effective { table: RULE, rule: *number, key: key.name, value, origin: origin(line) });
            }
        }
    }
}

/// The value of a key in a table of `text`, with its line.
fn configured(text: &str, table: &DeTable<'_>, key: &str) -> Option<(String, usize)> {
    let (_, value) = table.iter().find(|(name, _)| name.get_ref() == key)?;
    Some((text.get(value.span()).map(written)?, line(text, &value.span())))
}

/// The line of the span's start, starting at 1.
fn line(text: &str, span: &Range<usize>) -> usize {
    1 + text.get(..span.start).unwrap_or_default().matches('\n').count()
}

/// A value on one line.
fn written(value: &str) -> String {
    value.lines().map(|line| line.split('#').next().unwrap_or_default().trim()).collect::<Vec<_>>().join(" ")
}
