//! Reads the STARTTLS-Everywhere list from a file or over HTTPS.

use std::path::Path;

use smtpwatch_core::policy::published::list::{MAX_LIST, StarttlsList};
use smtpwatch_system::whole_file;

use super::lookup::Sources;

/// Location of the list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ListSource {
    /// At a URL.
    Url(String),
    /// In a file.
    File(String),
}

impl ListSource {
    /// Parses the value of `starttls_everywhere`; `None`: no list is configured.
    #[must_use]
    pub fn of(value: &str) -> Option<Self> {
        match value {
            "" => None,
            url if url.contains("://") => Some(Self::Url(url.to_owned())),
            path => Some(Self::File(path.to_owned())),
        }
    }

    /// Reads the text of the list.
    ///
    /// # Errors
    ///
    /// The list cannot be read or fetched; the text names the cause and a remedy.
    pub async fn read(&self, sources: Option<&Sources>) -> Result<Vec<u8>, String> {
        match (self, sources) {
            (Self::Url(url), Some(sources)) => {
                let failed = |error| format!("[policy] starttls_everywhere: {url}: {error}");
                sources.list(url).await.map_err(failed)
            }
            (Self::Url(url), None) => Err(format!("[policy] starttls_everywhere: {url}: there are no name servers")),
            (Self::File(path), _) => read_file(path),
        }
    }
}

/// Reads the text of a list from a file.
///
/// # Errors
///
/// The file cannot be read; the text names the cause and a remedy.
pub fn read_file(path: &str) -> Result<Vec<u8>, String> {
    let failed = |why: String| {
        format!("[policy] starttls_everywhere: cannot read {path}: {why}: name a readable file, or a URL")
    };
    whole_file::read(Path::new(path), MAX_LIST as u64).map_err(|error| failed(error.to_string()))
}

/// Parses the text of a list.
///
/// # Errors
///
/// The text is not a list; the error names the cause.
pub fn parse(text: &[u8]) -> Result<StarttlsList, String> {
    StarttlsList::parse(text).map_err(|error| format!("the STARTTLS-Everywhere list cannot be used: {error}"))
}
