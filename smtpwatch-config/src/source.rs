//! Sources of the configuration: the file, and command line flags that override it. The daemon keeps a [`ConfigSource`] and
//! loads it again at each reload.

use std::path::PathBuf;

use super::{Config, ConfigError, JournalFormat, value::Checked};

/// The inputs of the configuration, which are read again at a reload.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ConfigSource {
    /// Path of the file; `None` for the default path, if that file exists.
    pub path: Option<PathBuf>,
    /// Interfaces from the command line or the environment; empty: those of the file apply.
    pub interfaces: Vec<String>,
    /// Ports from the command line or the environment; empty: those of the file apply.
    pub ports: Vec<u16>,
    /// Format of findings from the command line or the environment; `None`: that of the file applies.
    pub format: Option<JournalFormat>,
}

impl ConfigSource {
    /// Reads the configuration. Also returns the path of the file.
    ///
    /// # Errors
    ///
    /// The file cannot be read, is not TOML, contains an unknown key or an invalid value, or names a path that cannot
    /// be written ([`Config::check_paths`]).
    pub fn load(&self) -> Result<(Config, Option<PathBuf>), ConfigError> {
        let (mut config, path) = Config::load(self.path.as_deref())?;
        if !self.interfaces.is_empty() {
            config.interfaces.clone_from(&self.interfaces);
        }
        if !self.ports.is_empty() {
            config.ports.clone_from(&self.ports);
            config.ports.sort_unstable();
            config.ports.dedup();
        }
        if let Some(format) = self.format {
            config.journal.format = Checked(format);
        }
        config.check_paths()?;
        Ok((config, path))
    }
}
