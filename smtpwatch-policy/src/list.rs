//! The STARTTLS-Everywhere list, from a file or by HTTPS.

use std::path::Path;

use smtpwatch_core::policy::published::list::{MAX_LIST, StarttlsList};
use smtpwatch_system::whole_file;

use super::lookup::Sources;

/// Where the list is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// At a URL.
    Url(String),
    /// In a file.
    File(String),
}

impl Place {
    /// From the value of `starttls_everywhere`; `None`: there is no list.
    #[must_use]
    pub fn of(value: &str) -> Option<Self> {
        match value {
            "" => None,
            url if url.contains("://") => Some(Self::Url(url.to_owned())),
            path => Some(Self::File(path.to_owned())),
        }
    }

    /// The text of the list.
    ///
    /// # Errors
    ///
    /// It cannot be read or fetched: why, and what to do.
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

/// The text of a list in a file.
///
/// # Errors
///
/// It cannot be read: why, and what to do.
pub fn read_file(path: &str) -> Result<Vec<u8>, String> {
    let failed = |why: String| {
        format!("[policy] starttls_everywhere: cannot read {path}: {why}: name a readable file, or a URL")
    };
    whole_file::read(Path::new(path), MAX_LIST as u64).map_err(|error| failed(error.to_string()))
}

/// The list of a text.
///
/// # Errors
///
/// It is none: why.
pub fn parse(text: &[u8]) -> Result<StarttlsList, String> {
    StarttlsList::parse(text).map_err(|error| format!("the STARTTLS-Everywhere list cannot be used: {error}"))
}
