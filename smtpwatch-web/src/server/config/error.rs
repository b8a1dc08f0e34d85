//! Errors in a web configuration file ([`WebConfigError`]). They never quote values, because some are secret.

use std::path::{Path, PathBuf};

use serde_saphyr::{Error, Location};

/// Why a web configuration file was rejected.
#[derive(Debug, thiserror::Error)]
pub enum WebConfigError {
    /// The file could not be read.
    #[error("cannot read the web configuration {}: {source}", path.display())]
    Read {
        /// The path of the file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The reloaded file protects less than the configuration in force.
    #[error("{}: {what}: if this is intended, restart smtpwatch", path.display())]
    LessProtection {
        /// The path of the file.
        path: PathBuf,
        /// The missing protection.
        what: &'static str,
    },
    /// The file, or one that it names, is invalid.
    #[error("{}:{line}: {message}", path.display())]
    Invalid {
        /// The path of the file.
        path: PathBuf,
        /// The line, starting at 1.
        line: u64,
        /// The error and its remedy.
        message: String,
    },
}

/// Settings of the exporter-toolkit that smtpwatch does not support, with the alternative.
const NOT_HERE: [(&str, &str); 8] = [
    ("cert", "use cert_file"),
    ("key", "use key_file"),
    ("client_ca", "use client_ca_file"),
    ("cipher_suites", "the suites are those of rustls, all of them with forward secrecy: leave it out"),
    ("prefer_server_cipher_suites", "the suites are those of rustls: leave it out"),
    ("curve_preferences", "the groups are those of rustls: leave it out"),
    ("client_allowed_sans", "use a client_ca_file that signs only for those who may come in"),
    ("http2", "HTTP/1.1 is what is spoken: leave it out"),
];

impl WebConfigError {
    pub(super) fn at(path: &Path, location: Location, message: impl Into<String>) -> Self {
        Self::Invalid { path: path.to_owned(), line: location.line().max(1), message: message.into() }
    }

    pub(super) fn yaml(path: &Path, error: &Error) -> Self {
        let message = match error.without_snippet() {
            Error::SerdeUnknownField { field, expected, .. } => unknown(field, expected),
            Error::SerdeMissingField { field, .. } => format!("{field} is missing"),
            Error::DuplicateMappingKey { key, .. } => {
                format!("{:?} appears twice", key.as_deref().unwrap_or("a key"))
            }
            Error::SerdeInvalidType { expected, .. } | Error::SerdeInvalidValue { expected, .. } => {
                format!("expected {expected}")
            }
            Error::InvalidScalar { ty, .. } => format!("expected {ty}"),
            Error::Unexpected { expected, .. } => format!("expected {expected}"),
            Error::ExternalMessage { msg, .. } => format!("not YAML: {msg}"),
            // Other messages might quote a value.
            _ => "not allowed here in a web configuration file; docs/web.md has examples".to_owned(),
        };
        Self::at(path, error.location().unwrap_or(Location::UNKNOWN), message)
    }
}

fn unknown(key: &str, known: &[&str]) -> String {
    match NOT_HERE.iter().find(|(name, _)| *name == key) {
        Some((_, instead)) => format!("{key}: the exporter-toolkit has this, smtpwatch has not: {instead}"),
        None => format!("unknown key {key:?}: known keys are {}", known.join(", ")),
    }
}
