//! The web configuration file, in the format of Prometheus' exporter-toolkit. [`ConfigFile`] reads it, and reads it
//! again when it changes; the server takes each valid version as a `WebConfig`.

mod error;
mod file;

use std::path::{Path, PathBuf};

use tokio_rustls::TlsAcceptor;

pub use self::error::WebConfigError;
use super::{files::Files, limits::Quota, tls::ClientAuth, users::Users};
use axum::http::{HeaderName, HeaderValue};

/// The content of the file.
#[derive(Default)]
pub(super) struct WebConfig {
    pub(super) tls: Option<Tls>,
    /// `None`: no login is required.
    pub(super) users: Option<Users>,
    /// Paths that require no login.
    pub(super) auth_excluded_paths: Vec<String>,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    /// Quota of each class of client: loopback, known scraper, other.
    pub(super) rate_limit: Option<Quota>,
}

/// The protections that a version of the file configures. A reload must not remove them while the daemon runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Protection {
    /// The file has at least one setting.
    settings: bool,
    tls: bool,
    /// `basic_auth_users`, or a required client certificate.
    login: bool,
}

impl Protection {
    fn of(config: &WebConfig) -> Self {
        let WebConfig { tls, users, auth_excluded_paths, headers, rate_limit } = config;
        let certificate = tls.as_ref().is_some_and(|tls| tls.client_auth == ClientAuth::Required);
        let further = !auth_excluded_paths.is_empty() || !headers.is_empty() || rate_limit.is_some();
        let login = users.is_some() || certificate;
        Self { settings: tls.is_some() || login || further, tls: tls.is_some(), login }
    }

    /// The protection that `new` lacks, compared with this one.
    fn lost(self, new: Self) -> Option<&'static str> {
        if self.settings && !new.settings {
            Some("it is empty")
        } else if self.login && !new.login {
            Some("it has neither basic_auth_users nor RequireAndVerifyClientCert, and what is in force has")
        } else if self.tls && !new.tls {
            Some("it has no tls_server_config, and what is in force has")
        } else {
            None
        }
    }
}

/// TLS settings of the server.
pub(super) struct Tls {
    pub(super) acceptor: TlsAcceptor,
    pub(super) client_auth: ClientAuth,
}

/// A web configuration file that was read and is valid.
pub struct ConfigFile {
    path: PathBuf,
    config: WebConfig,
    protection: Protection,
    files: Files,
    /// State of the files at the last check, if they differ from those that were read.
    changing: Option<Files>,
    /// The error of the last check.
    failed: Option<String>,
}

impl ConfigFile {
    /// Reads the file, and the files that it names.
    ///
    /// # Errors
    ///
    /// The file is invalid; the error has the line and the remedy.
    pub fn load(path: &Path) -> Result<Self, WebConfigError> {
        let mut files = Files::default();
        let config = file::read(path, &mut files)?;
        let protection = Protection::of(&config);
        Ok(Self { path: path.to_owned(), config, protection, files, changing: None, failed: None })
    }

    /// Reads the files again after one of them has changed, once two consecutive checks see the same state. Returns
    /// whether the content has changed. Invalid files are read again at each check, and the last valid content stays in
    /// force.
    ///
    /// # Errors
    ///
    /// The content is invalid; each error is returned once.
    pub(super) fn refresh(&mut self) -> Result<bool, WebConfigError> {
        let now = self.files.now();
        if self.failed.is_none() && now == self.files {
            return Ok(false);
        }
        // The first half of a file can be valid YAML that requires no login.
        if self.changing.as_ref() != Some(&now) {
            self.changing = Some(now);
            return Ok(false);
        }
        match self.reload() {
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

    /// Reads the files again. A truncated or empty file can be valid: it must not remove a login or TLS.
    fn reload(&self) -> Result<Self, WebConfigError> {
        let new = Self::load(&self.path)?;
        match self.protection.lost(new.protection) {
            None => Ok(new),
            Some(what) => Err(WebConfigError::LessProtection { path: self.path.clone(), what }),
        }
    }

    /// The path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files that the configuration was read from.
    pub fn files(&self) -> impl Iterator<Item = PathBuf> {
        self.files.paths().map(Path::to_owned)
    }

    /// The last valid content.
    pub(super) fn take(&mut self) -> WebConfig {
        std::mem::take(&mut self.config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_protects_less_is_refused_while_the_daemon_runs() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.yml");
        let made = rcgen::generate_simple_self_signed(["mail.example".to_owned()]).unwrap();
        std::fs::write(folder.path().join("cert.pem"), made.cert.pem()).unwrap();
        std::fs::write(folder.path().join("key.pem"), made.signing_key.serialize_pem()).unwrap();
        let tls = "tls_server_config: {cert_file: cert.pem, key_file: key.pem}\n";
        let users = format!("basic_auth_users: {{anna: {}}}\n", bcrypt::hash("right", 4).unwrap());
        let (both, rate) = (format!("{tls}{users}"), "rate_limit: {interval: 1s, burst: 9}\n");
        for (before, after, expected) in [
            (both.as_str(), "", Some("it is empty")),
            (both.as_str(), " \n\t\n", Some("it is empty")),
            (both.as_str(), "# all of it\n", Some("it is empty")),
            (both.as_str(), "basic_auth_users:\n", Some("it is empty")),
            (both.as_str(), "{}\n", Some("it is empty")),
            (rate, "", Some("it is empty")),
            (both.as_str(), tls, Some("it has neither basic_auth_users")),
            (both.as_str(), rate, Some("it has neither basic_auth_users")),
            (both.as_str(), &users, Some("it has no tls_server_config")),
            (both.as_str(), &both.replace("anna", "berta"), None),
            (users.as_str(), &both, None),
            (rate, &both, None),
            ("", "", None),
            ("", &users, None),
        ] {
            std::fs::write(&path, before).unwrap();
            let file = ConfigFile::load(&path).unwrap();
            std::fs::write(&path, after).unwrap();
            let error = file.reload().err().map(|error| error.to_string()).unwrap_or_default();
            match expected {
                None => assert_eq!(error, "", "{before:?} {after:?}"),
                Some(what) => assert!(error.contains(what) && error.contains("restart"), "{after:?}: {error}"),
            }
        }
    }

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
