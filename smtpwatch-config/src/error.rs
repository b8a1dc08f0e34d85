//! Errors in a configuration file: file, line, and the correction. Every reader of the configuration returns
//! [`ConfigError`].

use std::path::{Path, PathBuf};

use super::reference::RULE;

/// Why a configuration was rejected.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read {
        /// The path of the file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// There are more drop-in files than are read.
    #[error("{}: {files} drop-in files: at most {most} are read; put several rules into one file", path.display())]
    DropIns {
        /// The directory.
        path: PathBuf,
        /// The number of files in it.
        files: usize,
        /// The maximum.
        most: usize,
    },
    /// A path in the configuration cannot be written.
    #[error("{key}: {} is {what}: {remedy}", path.display())]
    Path {
        /// Table and key.
        key: &'static str,
        /// The path.
        path: PathBuf,
        /// What is at the path.
        what: &'static str,
        /// What the operator can do.
        remedy: &'static str,
    },
    /// The content of the file is invalid.
    #[error("{}:{line}: {message}", path.display())]
    Invalid {
        /// The path of the file.
        path: PathBuf,
        /// The line, starting at 1.
        line: usize,
        /// The error and its remedy.
        message: String,
    },
}

impl ConfigError {
    pub(super) fn invalid(path: &Path, text: &str, error: &toml::de::Error) -> Self {
        let at = error.span().map_or(0, |span| span.start.min(text.len()));
        let line = text.as_bytes()[..at].iter().filter(|&&byte| byte == b'\n').count() + 1;
        let message = match unknown_field(error.message()) {
            Some((key, known)) => {
                let hint = match known.as_slice() {
                    [] => String::new(),
                    [RULE] => format!(": a drop-in file has only [[{RULE}]] tables"),
                    known => format!(": {}", did_you_mean(&key, known)),
                };
                if is_header(text, at) {
                    format!("unknown table {key:?}{hint}")
                } else {
                    format!("unknown key {key:?} {}{hint}", section(text, at))
                }
            }
            None => match key_at(text, at) {
                Some(key) => format!("{key}: {}", error.message().trim_end()),
                None => error.message().trim_end().replace('\n', ", "),
            },
        };
        Self::Invalid { path: path.to_owned(), line, message }
    }
}

/// A list of the allowed names, preceded by the most similar one if there is one.
pub(super) fn suggest(text: &str, names: &[&str]) -> String {
    let all = names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
    match nearest(text, names) {
        Some(name) => format!("{all} (did you mean {name:?}?)"),
        None => all,
    }
}

fn did_you_mean(key: &str, known: &[&str]) -> String {
    match nearest(key, known) {
        Some(name) => format!("did you mean {name:?}?"),
        None => format!("known keys are {}", known.join(", ")),
    }
}

fn nearest<'a>(text: &str, names: &[&'a str]) -> Option<&'a str> {
    let distance = |name: &str| strsim::damerau_levenshtein(&text.to_ascii_lowercase(), name);
    names.iter().copied().min_by_key(|name| distance(name)).filter(|name| distance(name) <= name.len().div_ceil(3))
}

/// Parses serde's message for an unknown key: ``unknown field `x`, expected one of `a`, `b` ``.
fn unknown_field(message: &str) -> Option<(String, Vec<&str>)> {
    let mut quoted = message.strip_prefix("unknown field ")?.split('`').skip(1).step_by(2);
    Some((quoted.next()?.to_owned(), quoted.collect()))
}

/// The table that contains byte offset `at`: the last table header before it.
fn section(text: &str, at: usize) -> String {
    let above = &text[..text[..at].rfind('\n').unwrap_or(0)];
    let header = above.lines().rev().map(str::trim).find(|line| line.starts_with('[') && !line.contains(','));
    header.map_or_else(
        || "at the top level".to_owned(),
        |line| format!("in {}", line.split(" #").next().unwrap_or(line).trim()),
    )
}

fn is_header(text: &str, at: usize) -> bool {
    let line_start = text[..at].rfind('\n').map_or(0, |end| end + 1);
    text[line_start..].trim_start().starts_with('[')
}

/// The key whose value contains byte offset `at`: the last `key =` at the start of a line.
fn key_at(text: &str, at: usize) -> Option<&str> {
    let line_end = text[at..].find('\n').map_or(text.len(), |end| at + end);
    text[..line_end].lines().rev().take_while(|line| !line.trim_start().starts_with("[[")).find_map(|line| {
        let (key, _) = line.split_once('=')?;
        let key = key.trim();
        (!key.is_empty() && key.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'-' | b'.')))
            .then_some(key)
    })
}
