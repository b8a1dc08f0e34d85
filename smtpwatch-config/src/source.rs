//! Sources of the configuration: the file, and command line flags that override it.

use std::path::PathBuf;

use super::{Config, ConfigError, JournalFormat, value::Checked};

/// What is read again at a reload.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Source {
    /// The file; `None`: the one at the usual place, if there is one.
    pub path: Option<PathBuf>,
    /// Interfaces of the command line or the environment; empty: the file has them.
    pub interfaces: Vec<String>,
    /// Ports, likewise.
    pub ports: Vec<u16>,
    /// Form of findings, likewise.
    pub format: Option<JournalFormat>,
}

impl Source {
    /// Reads it. Also tells which file was read.
    ///
    /// # Errors
    ///
    /// The file cannot be read, is not TOML, holds an unknown key or a bad value, or names a path that cannot be
    /// written ([`Config::check_paths`]).
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
