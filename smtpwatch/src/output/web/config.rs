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
        Ok(Self { path: path.to_owned(), config, files, failed: None })
    }

    /// Reads the files again when one of them has changed; whether they say something new. As long as what they say is bad,
    /// they are read each time, and what was good holds.
    ///
    /// # Errors
    ///
    /// What is wrong, once.
    pub(super) fn refresh(&mut self) -> Result<bool, WebConfigError> {
        if self.failed.is_none() && !self.files.have_changed() {
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

    /// What was last good.
    pub(super) fn take(&mut self) -> WebConfig {
        std::mem::take(&mut self.config)
    }
}
