//! The web configuration file, in the form of Prometheus' exporter-toolkit.

mod error;
mod file;

use std::path::{Path, PathBuf};

use tokio_rustls::TlsAcceptor;

pub use self::error::WebConfigError;
use super::{files::Files, limits::Quota, tls::ClientAuth, users::Users};
use axum::http::{HeaderName, HeaderValue};

/// What the file says.
#[derive(Default)]
pub(super) struct WebConfig {
    pub(super) tls: Option<Tls>,
    /// `None`: nobody has to log in.
    pub(super) users: Option<Users>,
    /// Paths for which nobody has to.
    pub(super) auth_excluded_paths: Vec<String>,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    /// Of all requests.
    pub(super) rate_limit: Option<Quota>,
}

/// How TLS is spoken.
pub(super) struct Tls {
    pub(super) acceptor: TlsAcceptor,
    pub(super) client_auth: ClientAuth,
}

/// A web configuration file that was read and found good.
pub struct ConfigFile {
    path: PathBuf,
    config: WebConfig,
    files: Files,
    /// How they were at the last look, when that was not how they were read.
    changing: Option<Files>,
    /// What was wrong with it when it was last looked at.
    failed: Option<String>,
}

impl ConfigFile {
    /// Reads the file, and those that it names.
    ///
    /// # Errors
    ///
    /// What is wrong, where, and what to do.
    pub fn load(path: &Path) -> Result<Self, WebConfigError> {
        let mut files = Files::default();
        let config = file::read(path, &mut files)?;
        Ok(Self { path: path.to_owned(), config, files, changing: None, failed: None })
    }

    /// Reads the files again when one of them has changed and stands still since the last look; whether they say something
    /// new. As long as what they say is bad, they are read each time, and what was good holds.
    ///
    /// # Errors
    ///
    /// What is wrong, once.
    pub(super) fn refresh(&mut self) -> Result<bool, WebConfigError> {
        let now = self.files.now();
        if self.failed.is_none() && now == self.files {
            return Ok(false);
        }
        // The first half of a file may well be a good one, that asks for no login.
        if self.changing.as_ref() != Some(&now) {
            self.changing = Some(now);
            return Ok(false);
        }
        match Self::load(&self.path) {
            Ok(new) => {
                *self = new;
                Ok(true)
            }
            Err(error) => {
                let message = error.to_string();
                if self.failed.replace(message.clone()).is_some_and(|before| before == message) {
                    return Ok(false);
                }
                Err(error)
            }
        }
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files that it is read from.
    pub fn files(&self) -> impl Iterator<Item = PathBuf> {
        self.files.paths().map(Path::to_owned)
    }

    /// What was last good.
    pub(super) fn take(&mut self) -> WebConfig {
        std::mem::take(&mut self.config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_still_written_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.yml");
        let users = |name: &str| format!("basic_auth_users:\n  {name}: {}\n", bcrypt::hash("right", 4).unwrap());
        std::fs::write(&path, users("anna")).unwrap();
        let mut file = ConfigFile::load(&path).unwrap();
        assert!(file.take().users.is_some());
        std::fs::write(&path, "").unwrap();
        assert!(!file.refresh().unwrap());
        std::fs::write(&path, users("berta")).unwrap();
        assert!(!file.refresh().unwrap());
        assert!(file.refresh().unwrap());
        assert!(file.take().users.is_some());
        assert!(!file.refresh().unwrap());

        std::fs::write(&path, "basic_auth_users: {anna: plain}\n").unwrap();
        assert!(!file.refresh().unwrap());
        assert!(file.refresh().is_err());
        assert!(!file.refresh().unwrap(), "the same mistake is told once");
        std::fs::write(&path, users("anna")).unwrap();
        assert!(!file.refresh().unwrap());
        assert!(file.refresh().unwrap());
    }
}
